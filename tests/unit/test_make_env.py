"""tools/make_env.sh: which Python it takes, and what it says where there is none."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "make_env.sh"

# A stand-in for a Python: prints its version, makes a "venv", and knows enough pip to be satisfied.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *"sys.exit(not (3, 11)"*) exit {usable} ;;
    *"sys.exit(sys.version_info"*) exit {newer} ;;
    *"sys.version_info[:3]"*) echo "{version}" ;;
    *libc_ver*) echo "{glibc}" ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip list"*) echo "pip==1" ;;
    *"pip install"*" torch torchvision") echo "$*" >> torch; {torch} ;;
    *"pip install"*) echo "$*" >> installed; exit {pip} ;;
esac
"""


class Box:
    """An empty project folder and a PATH with chosen Pythons."""

    def __init__(self, root: Path) -> None:
        self.project = root / "a project with spaces"
        self.bin = root / "bin"
        self.project.mkdir()
        self.bin.mkdir()
        for tool in ("date", "cat", "pwd", "rm", "mkdir", "cp", "uname", "df", "awk", "du", "cut",
                     "wc", "sh", "expr", "printf"):  # fmt: skip
            path = Path("/usr/bin") / tool
            (self.bin / tool).symlink_to(path if path.exists() else Path("/bin") / tool)

    def python(
        self, name: str, version: str = "3.12.1", usable: bool = True, glibc: str = "2.36",
        pip: int = 0, newer: bool = False, torch: str = ":",
    ) -> Path:  # fmt: skip
        path = self.bin / name
        text = FAKE_PYTHON.format(
            version=version, usable=int(not usable), newer=int(not newer), glibc=glibc, pip=pip,
            torch=torch,
        )  # fmt: skip
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", str(SCRIPT), *arguments],
            cwd=self.project, env={"PATH": str(self.bin)},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_the_newest_python_that_starts_is_taken(box: Box) -> None:
    broken = box.bin / "python3.12"  # as a version manager leaves it
    broken.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    broken.chmod(0o755)
    box.python("python3.11", "3.11.7")
    box.python("python3", "3.9.2", usable=False)
    done = box.run()
    assert done.returncode == 0, done.stderr
    assert "python3.11 (3.11.7)" in done.stdout
    assert (box.project / "installed").read_text().count("-c constraints.txt -e .[dev]") == 1
    assert done.stdout.splitlines()[-1].startswith("environment: ready in .venv")


def test_no_usable_python_is_one_sentence(box: Box) -> None:
    box.python("python3", "3.9.2", usable=False)
    done = box.run()
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert "python3 (3.9.2)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (box.project / ".venv").exists()


def test_no_python_at_all(box: Box) -> None:
    done = box.run()
    assert done.returncode == 1
    assert "no Python at all" in done.stderr


def test_a_named_python_is_taken_or_refused_by_name(box: Box) -> None:
    named = box.python("my-python", "3.11.9")
    assert box.run(str(named)).returncode == 0
    other = Box(box.project)
    old = other.python("old-python", "3.8.18", usable=False)
    done = other.run(str(old))
    assert done.returncode == 1
    assert f"PYTHON={old} (3.8.18)" in done.stderr


def test_a_python_without_a_stub_in_the_wheel_needs_a_compiler(box: Box) -> None:
    named = box.python("new-python", "3.14.0", usable=False, newer=True)
    done = box.run(str(named))
    assert done.returncode == 1
    assert "3.11 to 3.13" in done.stderr and "install g++" in done.stderr
    assert not (box.project / ".venv").exists()
    box.python("g++")
    assert box.run(str(named)).returncode == 0


def test_an_environment_made_elsewhere_is_made_anew(box: Box) -> None:
    box.python("python3.12")
    assert box.run().returncode == 0
    (box.project / ".venv" / "old").touch()
    assert box.run().returncode == 0
    assert (box.project / ".venv" / "old").exists()  # the same place: only completed
    (box.project / ".venv" / "made-in").write_text("/elsewhere\n")
    done = box.run()
    assert "was not made in this folder" in done.stdout
    assert not (box.project / ".venv" / "old").exists()


def test_a_failed_installation_says_how_to_go_on(box: Box) -> None:
    box.python("python3.12", pip=1)
    done = box.run()
    assert done.returncode == 1
    assert "run it again" in done.stderr
    assert "ready" not in done.stdout


def test_an_old_c_library_is_named_before_gigabytes_are_fetched(box: Box) -> None:
    box.python("python3.12", glibc="2.31")
    done = box.run()
    assert done.returncode == 1
    assert "2.31" in done.stderr
    assert "2.35" in done.stderr
    assert not (box.project / "installed").exists()


@pytest.mark.parametrize(
    ("free_gb", "index", "said"),
    [
        (9, "", "10 GB of free disk are needed"),
        (9, "https://wheels.example/cpu", None),
        (4, "https://wheels.example/cpu", "5 GB of free disk are needed while installing; there"),
    ],
)
def test_room_is_asked_for_by_what_is_installed(
    box: Box, free_gb: int, index: str, said: str | None
) -> None:
    box.python("python3.12")
    df = box.bin / "df"
    df.unlink()
    blocks = int(free_gb * 1e9 / 1024) + 1
    df.write_text(f"#!/bin/sh\necho header\necho 'disk 1 1 {blocks} 1% /'\n")
    df.chmod(0o755)
    done = box.run("", index)
    assert done.returncode == int(said is not None), done.stderr
    assert said is None or (said in done.stderr and f"{free_gb} GB." in done.stderr)


def write_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            "Requires-Dist: nobody-has-this\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_the_pinned_pytorch_comes_from_a_folder_of_wheels(box: Box) -> None:
    wheels = box.project / "wheels"
    wheels.mkdir()
    pins = (ROOT / "constraints.txt").read_text()
    (box.project / "constraints.txt").write_text(pins)
    pinned = dict(line.split("==") for line in pins.splitlines() if line.startswith("torch"))
    for name in ("torch", "torchvision"):
        write_wheel(wheels, name, f"{pinned[name]}+cpu")
        write_wheel(wheels, name, "99.0+cpu")  # newer than what the lab was tried with
    # The script's own arguments, to a real pip that reports what it would install.
    pip = f"shift 3; {shlex.quote(sys.executable)} -m pip install --dry-run --ignore-installed"
    box.python("python3.12", torch=f'{pip} --quiet --report report.json "$@"')
    done = box.run("", "wheels")
    assert done.returncode == 0, done.stderr
    assert "PyTorch comes from wheels" in done.stdout
    report = json.loads((box.project / "report.json").read_text())
    chosen = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    assert chosen == {name: f"{pinned[name]}+cpu" for name in ("torch", "torchvision")}
    assert "-e .[dev]" in (box.project / "installed").read_text()  # the rest, after it


def test_an_index_is_handed_to_pip_for_pytorch_only(box: Box) -> None:
    box.python("python3.12")
    assert box.run("", "https://wheels.example/cpu").returncode == 0
    assert "-i https://wheels.example/cpu torch torchvision" in (box.project / "torch").read_text()
    assert "example" not in (box.project / "installed").read_text()


def test_a_torch_index_that_is_none_is_named_before_anything_is_made(box: Box) -> None:
    box.python("python3.12")
    done = box.run("", "whels")
    assert done.returncode == 1
    assert "TORCH_INDEX=whels is neither" in done.stderr
    assert not (box.project / ".venv").exists()


def test_a_torch_index_without_the_pinned_version_stops(box: Box) -> None:
    box.python("python3.12", torch="exit 1")
    done = box.run("", "https://wheels.example/cpu")
    assert done.returncode == 1
    assert "TORCH_INDEX=https://wheels.example/cpu" in done.stderr
    assert not (box.project / "installed").exists()
