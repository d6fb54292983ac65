"""One truth of versions: pyproject.toml, constraints.txt, environment.yml and what is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.!]*)")


def parse_pins(text: str) -> dict[str, str]:
    """Every line is a comment or exactly name==version, each name once."""
    pins: dict[str, str] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = PIN.fullmatch(line)
        assert match, f"constraints.txt: {line!r} is not name==version"
        name = canonicalize_name(match[1])
        assert name not in pins, f"constraints.txt names {name} twice"
        pins[name] = match[2]
    return pins


PINS = parse_pins((ROOT / "constraints.txt").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
DIRECT = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *[t for extra in OPTIONAL.values() for t in extra])
    if not text.startswith("labkit[")  # extras that name other extras
]


def closure(requirements: list[Requirement]) -> set[str]:
    """Everything that these requirements bring along, by the installed packages' own metadata."""
    seen: dict[str, set[str]] = {}
    queue = [(canonicalize_name(r.name), set(r.extras)) for r in requirements if applies(r, set())]
    while queue:
        name, extras = queue.pop()
        if name in seen and extras <= seen[name]:
            continue
        seen[name] = seen.get(name, set()) | extras
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if applies(requirement, seen[name]):
                queue.append((canonicalize_name(requirement.name), set(requirement.extras)))
    return set(seen)


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


@pytest.mark.parametrize("text", ["torch", "torch>=2", "torch==2.*", "-i somewhere", "a==1\na==2"])
def test_a_loose_or_double_pin_is_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        parse_pins(text)


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_direct_dependencies_are_pinned_to_something_they_allow(requirement: Requirement) -> None:
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is in pyproject.toml and not in constraints.txt"
    assert requirement.specifier.contains(pin)


def test_transitive_dependencies_are_pinned() -> None:
    unpinned = closure(DIRECT) - PINS.keys()
    assert unpinned == set(), "installed because of labkit, and not in constraints.txt"


def test_pins_agree_with_each_other() -> None:
    wrong = []
    for name in closure(DIRECT):
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            pin = PINS.get(canonicalize_name(requirement.name))
            if pin and applies(requirement, set()) and not requirement.specifier.contains(pin):
                wrong.append(f"{name} needs {requirement}, pinned is {pin}")
    assert wrong == []


def test_installed_versions_are_the_pinned_ones() -> None:
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    differ = {
        name: (installed[name], pin)
        for name, pin in PINS.items()
        if name in installed and Version(installed[name]) != Version(pin)
    }
    assert differ == {}, "installed, pinned; run: make env"


def test_pinned_packages_take_the_python_of_debian_12() -> None:
    # Its 3.11 is 3.11.2 for good; some packages ask for a later one of the same series.
    refused = {
        name: distribution.metadata["Requires-Python"]
        for distribution in metadata.distributions()
        if (name := canonicalize_name(distribution.metadata["Name"])) in PINS
        and not SpecifierSet(distribution.metadata["Requires-Python"] or "").contains("3.11.2")
    }
    assert refused == {}


def test_conda_environment_has_the_same_pins_and_pythons() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip_section,) = [entry for entry in environment["dependencies"] if isinstance(entry, dict)]

    # Nothing but Python and pip comes from conda, so no package can have two versions.
    assert {re.split(r"[<>=]", entry)[0] for entry in plain} == {"python", "pip"}
    # pip reads these lines as a requirements file, with paths relative to environment.yml.
    assert pip_section == {"pip": ["-c constraints.txt", "-e .[dev]"]}

    (python,) = [entry.removeprefix("python") for entry in plain if entry.startswith("python")]
    # pip takes newer ones too, for which the stub must be built; conda takes what was tried.
    assert SpecifierSet(python) == SpecifierSet(PROJECT["requires-python"]) & SpecifierSet("<3.14")


def test_no_file_of_the_installation_names_an_index() -> None:
    names = ("constraints.txt", "environment.yml", "pyproject.toml", "Makefile",
             "tools/make_env.sh", "docker/lab.Dockerfile", ".ci/run")  # fmt: skip
    for name in names:
        text = (ROOT / name).read_text()
        assert not re.search(r"--(extra-)?index-url|--find-links|(^|\s)-[if]\s+http", text), name
        assert not re.search(r"https?://(?!127\.0\.0\.1)", text), name


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.M)
    assert phony
    targets = set(phony[1].split())
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert targets == set(re.findall(r"^  make ([a-z-]+) +\S", shown, re.M))
    promised = {"env", "lab", "test", "test-unit", "lint", "format", "notebooks", "bench-train",
                "bench-serve", "clean", "help"}  # fmt: skip
    assert promised <= targets


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docker/README.md"]
)
def test_texts_are_finished_and_their_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []
    assert "TODO" not in text


def test_make_targets_named_in_the_texts_exist() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    for name in ("README.md", "CONTRIBUTING.md", "docker/README.md"):
        code = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", (ROOT / name).read_text(), re.M)
        assert {first or second for first, second in code} <= set(phony[1].split()), name


def test_an_installation_that_is_no_checkout_has_the_librarys_other_files_too() -> None:
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = {
        path
        for package, patterns in globs["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in (ROOT / "labkit").rglob("*.*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert others - named == set()


def test_what_a_run_makes_is_ignored_by_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    made = [".venv/bin/python", "runs/lab/artifacts/model.onnx", "labkit.egg-info/PKG-INFO",
            "model_repository/cifar10_onnx/1/model.onnx",
            "model_repository/cifar10_openvino_int8/1/model.bin",
            "model_repository/cifar10_tensorrt/1/model.plan",
            "model_repository/cifar10_onnx/configs/tuned.pbtxt"]  # fmt: skip
    kept = ["model_repository/cifar10_onnx/config.pbtxt", "docker/.env",
            "model_repository/cifar10_onnx/labels.txt", "notebooks/01_data.ipynb"]  # fmt: skip
    for path in made:
        assert ignored(path), f"{path} would be committed"
    for path in kept:
        assert not ignored(path), f"{path} would not be committed"


def ignored(path: str) -> bool:
    command = ["git", "check-ignore", "-q", "--no-index", path]
    return subprocess.run(command, cwd=ROOT, timeout=30, check=False).returncode == 0


def test_nothing_slow_comes_with_every_notebook() -> None:
    """`rfc3987-syntax` builds its parsers on import, and jsonschema imports it where it is."""
    assert "rfc3987-syntax" not in PINS, "see CONTRIBUTING.md, Packages, on jsonschema"
