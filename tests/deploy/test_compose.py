"""docker/: the compose file as its own tool reads it, and the properties the lab relies on.

No test here starts a container: what only an engine can show is not shown.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"

PROFILES = {  # profile → what it adds to the services that always start
    "": {"triton"},
    "lab": {"lab"},
    "monitoring": {"prometheus", "grafana"},
    "scale": {"gateway", "secrets", "replica"},
}
SERVICES = sorted(set().union(*PROFILES.values()))
PUBLISHED = {
    "triton": [8000, 8001, 8002],
    "lab": [8888],
    "gateway": [8080, 8081],
    "prometheus": [9090],
    "grafana": [3000],
}
ONE_SHOT = {"secrets"}  # ends by itself: no health to check
WRITABLE = {  # where a service may write to a disk
    "lab": {"/lab", "/home/lab/.cache"},
    "secrets": {"/secrets"},
    "prometheus": {"/prometheus"},
}
MIB = {"m": 1, "g": 1024}


def read_env() -> dict[str, str]:
    lines = (DOCKER / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def substitute(text: str) -> str:
    """Put the values of docker/.env in; an unknown variable is an error."""
    env = read_env()
    return re.sub(r"\$\{(\w+)\}", lambda match: env[match[1]], text)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return yaml.safe_load(substitute(COMPOSE.read_text()))


@pytest.fixture(scope="module")
def services(document: dict[str, Any]) -> dict[str, Any]:
    return document["services"]


def seconds(text: str) -> float:
    units = {"s": 1, "m": 60}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([sm])", text))


def config(file: Path, profiles: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose here")
    clean = {name: value for name, value in os.environ.items() if name not in read_env()}
    flags = [flag for profile in profiles if profile for flag in ("--profile", profile)]
    return subprocess.run(
        ["docker-compose", "-f", str(file), *flags, "config"],
        cwd=folder, env=clean, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# ---- what other programs say of the file ---------------------------------------------------


@pytest.mark.compose
@pytest.mark.parametrize(
    "profiles",
    [[], ["lab"], ["monitoring"], ["scale"], ["scale", "monitoring"], list(PROFILES)],
    ids=lambda profiles: "+".join(filter(None, profiles)) or "default",
)
def test_compose_itself_accepts_the_file(profiles: list[str], tmp_path: Path) -> None:
    # From another folder, as a user would with -f: .env must be found all the same.
    done = config(COMPOSE, profiles, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert {"triton"} <= set(read) <= set(SERVICES)
    assert read["triton"]["image"] == read_env()["TRITON_IMAGE"]
    sources = [volume.split(":")[0] for volume in read["triton"]["volumes"]]
    assert [Path(source).resolve() for source in sources] == [
        ROOT / "model_repository",
        DOCKER / "serve.sh",
    ]


@pytest.mark.compose
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("  image: ${TRITON_IMAGE}", "  imagee: x"),
        ("condition: service_healthy", "condition: healthy"),
        ("cap_drop: [ALL]", "cap_drop: ALL"),
        ("aliases: [triton]", "alias: [triton]"),
    ],
)
def test_compose_refuses_a_broken_file(right: str, wrong: str, tmp_path: Path) -> None:
    # The check above must be able to fail.
    text = COMPOSE.read_text()
    assert right in text
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace(right, wrong))
    shutil.copy(DOCKER / ".env", tmp_path)
    assert config(broken, list(PROFILES), tmp_path).returncode != 0


def test_the_compose_specification_accepts_the_file(document: dict[str, Any]) -> None:
    specification = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    for service in document["services"].values():
        service["cpus"] = float(service["cpus"])  # it knows no whole number for it
    text = yaml.safe_dump(document)
    assert specification.PyCompose.from_yaml(text).service_names() == SERVICES
    with pytest.raises(ValueError, match="mem_limits"):
        specification.PyCompose.from_yaml(text.replace("mem_limit:", "mem_limits:"))


# ---- images --------------------------------------------------------------------------------


def test_image_is_the_official_one_pinned_in_one_place() -> None:
    image = read_env()["TRITON_IMAGE"]
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", image)
    # A cluster does not read .env: there the release stands again, and may be no other one.
    ignored = {".venv", "runs", ".git"}
    folders = [path for path in ROOT.iterdir() if path.name not in ignored]
    files = [
        path
        for folder in folders
        for path in (folder.rglob("*") if folder.is_dir() else [folder])
        if path.is_file() and path.suffix in {".py", ".yaml", ".yml", ".sh", ".Dockerfile", ".toml"}
    ]
    release = image.rsplit(":", 1)[1]
    named = [path for path in files if release in path.read_text()]
    assert [path for path in named if DOCKER / "kubernetes" not in path.parents] == []
    for path in (DOCKER / "kubernetes").rglob("*.yaml"):
        releases = re.findall(r"\b\d\d\.\d\d-py3\b", path.read_text())
        assert set(releases) <= {release}, path


def test_every_image_has_an_exact_version(services: dict[str, Any]) -> None:
    env = read_env()
    assert re.fullmatch(r"nginx:\d+\.\d+\.\d+", env["NGINX_IMAGE"])
    version = tuple(map(int, env["NGINX_IMAGE"].split(":")[1].split(".")))
    assert version >= (1, 27, 4)  # `server … resolve`, `keepalive_min_timeout`
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", env["PROMETHEUS_IMAGE"])
    assert re.fullmatch(r"grafana/grafana:\d+\.\d+\.\d+", env["GRAFANA_IMAGE"])
    pinned = {value for name, value in env.items() if name.endswith("_IMAGE")}
    built = {"cifar10-triton-lab:local"}
    assert {service["image"] for service in services.values()} <= pinned | built


def test_every_variable_is_set_and_used() -> None:
    text = COMPOSE.read_text()
    used = set(re.findall(r"\$\{(\w+)\}", text))
    assert used | {"COMPOSE_PROJECT_NAME"} == set(read_env())


# ---- profiles ------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_starts_what_it_should(services: dict[str, Any], profile: str) -> None:
    expected = [profile] if profile else None
    found = {name for name, service in services.items() if service.get("profiles") == expected}
    assert found == PROFILES[profile]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_needs_no_other_profile(services: dict[str, Any], profile: str) -> None:
    started = PROFILES[""] | PROFILES[profile]
    for name in PROFILES[profile]:
        assert set(services[name].get("depends_on", {})) <= started


def test_replicas_are_tritons_without_ports_under_the_same_name(services: dict[str, Any]) -> None:
    # A published port can belong to one container only, so what is scaled publishes none.
    own = {"profiles", "deploy", "networks"}
    replica = {key: value for key, value in services["replica"].items() if key not in own}
    triton = {key: value for key, value in services["triton"].items() if key != "ports"}
    assert replica == triton
    assert services["replica"]["networks"]["default"]["aliases"] == ["triton"]
    for name, service in services.items():
        assert name == "replica" or "deploy" not in service
    for protocol, port in (("http", 8000), ("grpc", 8001)):
        site = (DOCKER / "gateway" / "site" / f"upstream_{protocol}.conf").read_text()
        assert re.search(rf"^server triton:{port} resolve ", site, re.M)


# ---- what holds for every service ----------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
class TestEveryService:
    def test_publishes_on_loopback_only(self, services: dict[str, Any], name: str) -> None:
        expected = [f"127.0.0.1:{port}:{port}" for port in PUBLISHED.get(name, [])]
        assert services[name].get("ports", []) == expected
        assert services[name].get("network_mode", "none") == "none"

    def test_cannot_gain_rights(self, services: dict[str, Any], name: str) -> None:
        service = services[name]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["cap_drop"] == ["ALL"]
        assert not {"privileged", "cap_add", "pid", "ipc", "devices", "userns_mode"} & set(service)

    def test_is_not_root(self, services: dict[str, Any], name: str) -> None:
        user, _, group = services[name]["user"].partition(":")
        assert int(user) > 0
        assert group.isdecimal()

    def test_has_a_read_only_root(self, services: dict[str, Any], name: str) -> None:
        service = services[name]
        assert service["read_only"] is True
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            assert mode == ([] if target in WRITABLE.get(name, set()) else ["ro"]), volume
            assert "docker.sock" not in source
        for entry in service.get("tmpfs", []):
            assert ("exec" in entry) == (name == "lab" and entry.startswith("/tmp:")), entry

    def test_has_limits(self, services: dict[str, Any], name: str) -> None:
        service = services[name]
        number, unit = re.fullmatch(r"(\d+)([mg])", str(service["mem_limit"])).groups()
        assert 256 <= int(number) * MIB[unit] <= 8192
        assert 0 < float(service["cpus"]) <= 2
        assert 0 < service["pids_limit"] <= 4096
        assert service["restart"] == "no"

    def test_rotates_its_log(self, services: dict[str, Any], name: str) -> None:
        assert services[name]["logging"] == {
            "driver": "json-file",
            "options": {"max-size": "10m", "max-file": "3"},
        }

    def test_says_how_it_is(self, services: dict[str, Any], name: str) -> None:
        if name in ONE_SHOT:
            assert "healthcheck" not in services[name]
            return
        if "build" in services[name]:
            dockerfile = ROOT / services[name]["build"]["dockerfile"]
            assert re.search(r"^HEALTHCHECK --interval=\d+s ", dockerfile.read_text(), re.M)
            return
        health = services[name]["healthcheck"]
        assert health["test"][0] == "CMD"
        assert 5 <= seconds(health["interval"]) <= 30
        assert seconds(health["timeout"]) <= seconds(health["interval"])
        assert 2 <= health["retries"] <= 5
        assert seconds(health["start_period"]) > 0

    def test_mounts_what_exists(self, services: dict[str, Any], name: str) -> None:
        # An engine makes a folder where a mounted file is missing, and says nothing.
        for volume in services[name].get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
        for place in re.findall(r"/opt/(?:lab|gateway)/(\S+?\.sh)", str(services[name])):
            assert list(DOCKER.rglob(place)), place


def test_named_volumes_are_declared(document: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in document["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "/"))
    }
    assert used == set(document["volumes"])


def test_links_between_containers_lead_somewhere(services: dict[str, Any]) -> None:
    """Names and ports in the mounted files are those of the services."""
    prometheus = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yml").read_text())
    assert prometheus["rule_files"] == ["alerts.yml"]
    (scraped,) = prometheus["scrape_configs"][0]["dns_sd_configs"]
    assert scraped["names"] == ["triton"]
    assert scraped["port"] == 8002
    provisioning = DOCKER / "monitoring" / "grafana" / "provisioning"
    sources = yaml.safe_load(next((provisioning / "datasources").iterdir()).read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    boards = yaml.safe_load(next((provisioning / "dashboards").iterdir()).read_text())
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert boards["providers"][0]["options"]["path"] in mounts
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DOCKER / "monitoring" / "grafana" / "dashboards" / Path(home).name).is_file()


# ---- one service at a time -----------------------------------------------------------------


def test_only_what_hands_tensors_over_has_shared_memory(services: dict[str, Any]) -> None:
    sized = {name for name, service in services.items() if "shm_size" in service}
    assert sized == {"triton", "replica", "lab"}
    assert {services[name]["shm_size"] for name in sized} == {"1g"}


def test_grace_period_exceeds_the_exit_timeout(services: dict[str, Any]) -> None:
    triton = services["triton"]
    assert seconds(triton["stop_grace_period"]) > float(triton["environment"]["EXIT_TIMEOUT_S"])
    rules = (DOCKER / "gateway" / "nginx.conf").read_text()
    shutdown = re.search(r"^worker_shutdown_timeout (\d+s);", rules, re.M)
    assert seconds(services["gateway"]["stop_grace_period"]) > seconds(shutdown[1])
    assert services["gateway"]["stop_signal"] == "SIGQUIT"  # nginx: end in order


def test_health_is_readiness_and_not_mere_life(services: dict[str, Any]) -> None:
    health = services["triton"]["healthcheck"]
    assert health["test"][-1].endswith(":8000/v2/health/ready")
    assert "--fail" in health["test"]


def test_gateway_waits_for_its_secrets_and_a_replica(services: dict[str, Any]) -> None:
    assert services["gateway"]["depends_on"] == {
        "secrets": {"condition": "service_completed_successfully"},
        "triton": {"condition": "service_healthy"},
    }
    health = services["gateway"]["healthcheck"]["test"]
    assert health[-1] == "https://localhost:8080/healthz"
    assert "--insecure" not in health
    assert "location = /healthz" in (DOCKER / "gateway" / "nginx.conf").read_text()


def test_grafana_has_no_password_to_guess_and_nothing_to_change(services: dict[str, Any]) -> None:
    settings = services["grafana"]["environment"]
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not [name for name in settings if "PASSWORD" in name]


def test_lab_image_is_not_root_and_keeps_its_token(services: dict[str, Any]) -> None:
    dockerfile = (DOCKER / "lab.Dockerfile").read_text()
    users = re.findall(r"^USER (.+)$", dockerfile, re.M)
    assert users == ["lab"]
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    compose = [line.split("#")[0] for line in COMPOSE.read_text().splitlines()]
    for text in ("\n".join(lines), "\n".join(compose)):
        assert not re.search(r"token\s*=\s*['\"]{0,2}\s*(,|\]|$)", text, re.I | re.M)
        assert "--allow-root" not in text
        assert "password" not in text.lower()
    assert services["lab"]["environment"] == ["JUPYTER_TOKEN"]


def test_lab_is_built_for_the_processor_that_the_wheel_is_for(services: dict[str, Any]) -> None:
    assert services["lab"]["platform"] == "linux/amd64"
    assert (DOCKER / services["lab"]["build"]["context"]).resolve() == ROOT


def test_lab_image_installs_the_pins() -> None:
    dockerfile = (DOCKER / "lab.Dockerfile").read_text()
    assert "-c constraints.txt" in dockerfile
    base = read_env()["PYTHON_IMAGE"]
    assert re.fullmatch(r"python:3\.1[12]-slim-\w+", base)
    assert f"ARG PYTHON_IMAGE={base}" in dockerfile
    for source in re.findall(r"^COPY --chown=lab:lab (.+) \S+$", dockerfile, re.M):
        for path in source.split():
            assert (ROOT / path).exists(), path


def test_every_key_is_explained(services: dict[str, Any]) -> None:
    explained = (DOCKER / "README.md").read_text()
    plain = {"build", "environment", "volumes", "ports"}  # explained by what they hold
    keys = {key for service in services.values() for key in service} - plain
    assert {key for key in keys - {"security_opt"} if f"`{key}" not in explained} == set()
    for text in ("no-new-privileges", "JUPYTER_TOKEN", ":ro", "127.0.0.1:8000:8000", "serve.sh"):
        assert text in explained, text
    for name in read_env():
        assert name in explained or name.endswith("_IMAGE") or name == "COMPOSE_PROJECT_NAME", name


# ---- secrets stay out of the repository and out of images ----------------------------------


def test_what_the_gateway_keeps_secret_is_ignored_by_git_and_images() -> None:
    if shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "--others", "--exclude-standard", "docker/gateway/secrets"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert listed.stdout == ""
    ignored = (DOCKER / "gateway" / "secrets" / ".gitignore").read_text().splitlines()
    assert ignored[-2:] == ["*", "!.gitignore"]
    assert "docker/gateway/secrets" in (ROOT / ".dockerignore").read_text().splitlines()
