"""docker/: the compose file as its own tool reads it, and the properties the lab relies on."""

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


def read_env() -> dict[str, str]:
    lines = (DOCKER / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def substitute(text: str) -> str:
    """Put the values of docker/.env in; an unknown variable is an error."""
    env = read_env()
    return re.sub(r"\$\{(\w+)\}", lambda match: env[match[1]], text)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(substitute(COMPOSE.read_text()))["services"]


def seconds(text: str) -> float:
    units = {"s": 1, "m": 60}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([sm])", text))


@pytest.mark.compose
def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    # From another folder, as a user would with -f: .env must be found all the same.
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose here")
    clean = {name: value for name, value in os.environ.items() if name not in read_env()}
    done = subprocess.run(
        ["docker-compose", "-f", str(COMPOSE), "config"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    config = yaml.safe_load(done.stdout)
    assert set(config["services"]) == {"triton", "lab"}
    assert config["services"]["triton"]["image"] == read_env()["TRITON_IMAGE"]
    sources = [volume.split(":")[0] for volume in config["services"]["triton"]["volumes"]]
    assert [Path(source).resolve() for source in sources] == [
        ROOT / "model_repository",
        DOCKER / "serve.sh",
    ]
    assert Path(config["services"]["lab"]["build"]["context"]).resolve() == ROOT
    assert config["services"]["lab"]["platform"] == "linux/amd64"


@pytest.mark.compose
def test_compose_refuses_a_broken_file(tmp_path: Path) -> None:
    # The check above must be able to fail.
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose here")
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.read_text().replace("    image: ${TRITON_IMAGE}", "    imagee: x"))
    shutil.copy(DOCKER / ".env", tmp_path)
    done = subprocess.run(
        ["docker-compose", "-f", str(broken), "config"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0


def test_image_is_the_official_one_pinned_in_one_place() -> None:
    image = read_env()["TRITON_IMAGE"]
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", image)
    own = {".env"}
    ignored = {".venv", "runs", ".git"}
    folders = [path for path in ROOT.iterdir() if path.name not in ignored]
    files = [
        path
        for folder in folders
        for path in (folder.rglob("*") if folder.is_dir() else [folder])
        if path.is_file() and path.suffix in {".py", ".yaml", ".yml", ".sh", ".Dockerfile", ".toml"}
    ]
    release = image.rsplit(":", 1)[1]
    named = [path for path in files if path.name not in own and release in path.read_text()]
    assert named == []


def test_every_variable_is_set_and_used() -> None:
    text = COMPOSE.read_text()
    used = set(re.findall(r"\$\{(\w+)\}", text))
    assert used | {"COMPOSE_PROJECT_NAME"} == set(read_env())


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    assert services["triton"]["ports"] == [f"127.0.0.1:{p}:{p}" for p in (8000, 8001, 8002)]
    assert services["lab"]["ports"] == ["127.0.0.1:8888:8888"]
    assert not any("network_mode" in service for service in services.values())


def test_repository_is_mounted_read_only(services: dict[str, Any]) -> None:
    mounts = {volume.split(":")[1]: volume for volume in services["triton"]["volumes"]}
    assert mounts["/model_repository"].endswith(":ro")
    assert all(volume.endswith(":ro") for volume in services["triton"]["volumes"])


@pytest.mark.parametrize("name", ["triton", "lab"])
def test_limits_and_privileges(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert re.fullmatch(r"\d+g", str(service["mem_limit"]))
    assert float(service["cpus"]) > 0
    assert service["pids_limit"] > 0
    assert service["shm_size"] == "1g"
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["cap_drop"] == ["ALL"]
    assert "privileged" not in service


def test_grace_period_exceeds_the_exit_timeout(services: dict[str, Any]) -> None:
    triton = services["triton"]
    assert seconds(triton["stop_grace_period"]) > float(triton["environment"]["EXIT_TIMEOUT_S"])


def test_health_is_readiness_and_not_mere_life(services: dict[str, Any]) -> None:
    health = services["triton"]["healthcheck"]
    assert health["test"][0] == "CMD"
    assert health["test"][-1].endswith(":8000/v2/health/ready")
    assert "--fail" in health["test"]
    assert {"interval", "timeout", "retries", "start_period"} <= set(health)


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
