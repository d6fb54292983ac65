"""The private folder in which one notebook of one submission runs."""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from labkit.chain import PAPERMILL_ENVIRONMENT
from labkit.download import FOLDER as IMAGES
from labkit.grading.sandbox import BUBBLEWRAP, HOME, LAB, TMP, Isolation, Sandbox, sandbox_uid
from labkit.server.engine import STAND_IN
from labkit.workspace import MADE_BY, cache_dir, sha256, write_json

OWN_FOLDERS = ("notebooks", "model_repository", "run")  # of the lab
SERVER = "triton"  # in the cache, see `labkit.server.fetch`
DATA = "/data"  # the cache as seen from inside: it holds CIFAR-10
PASSWD = "student:x:{uid}:{uid}:student:/home/student:/bin/sh\n"
GROUP = "student:x:{uid}:\n"


class Workdir:
    """Folders of this machine that a confined program sees as its own.

    Attributes:
        root: The folder that holds them all; removed with everything in it at the end.
        lab: Seen as `/lab`, the program's project: `notebooks/`, `model_repository/`, `run/`.
        run: Below `lab`: the workspace of the run, artifacts and model repository.
        log: What the program prints; the program cannot see or change it.
    """

    def __init__(self, root: Path, isolation: Isolation) -> None:
        self.root, self.isolation = root, isolation
        self.writable = root / "rw"  # its disk use is watched
        self.lab, self.tmp, self.home = (self.writable / name for name in ("lab", "tmp", "home"))
        self.run = self.lab / "run"
        self.log = root / "log.txt"
        self.log.touch()
        inner = [self.lab / "notebooks", self.lab / "model_repository", self.tmp, self.home]
        parts = ("artifacts", "logs", "model_repository", "notebooks")
        inner += [self.run / name for name in parts]
        for folder in inner:
            folder.mkdir(parents=True)
        self.root.chmod(0o711)
        uid = sandbox_uid() if os.geteuid() == 0 else os.getuid()
        for name, text in (("passwd", PASSWD), ("group", GROUP)):
            (root / name).write_text(text.format(uid=uid))

    def seen(self, path: Path) -> str:
        """Return a path of `lab` as the program sees it."""
        if self.isolation.kind != BUBBLEWRAP:
            return str(path)
        return str(LAB / PurePosixPath(path.relative_to(self.lab)))

    def put_artifacts(self, artifacts: Mapping[str, Path]) -> None:
        """Copy artifacts of earlier stages in, and enter them into the run's manifest."""
        for name, path in artifacts.items():
            shutil.copyfile(path, self.run / "artifacts" / name)
        write_manifest(self.run, artifacts)

    def put_repository(self, repository: Path | None) -> None:
        """Copy a model repository in."""
        if repository is not None:
            shutil.copytree(repository, self.run / "model_repository", dirs_exist_ok=True)

    def put_home(self, template: Path) -> None:
        """Copy in a home folder with caches, see `make_home`."""
        if template.is_dir():
            shutil.copytree(template, self.home, dirs_exist_ok=True)

    def put_files(self, folder: Path, files: Iterable[str], beside: Path) -> None:
        """Copy a submission's other files in, where its notebook will look for them.

        Args:
            folder: The submission.
            files: Names below it.
            beside: The folder of the notebook, the same or below it: what lies in there comes
                beside the notebook, what lies elsewhere beside the notebook's folder.
        """
        for name in files:
            if any(part.endswith(".ipynb") for part in PurePosixPath(name).parts[:-1]):
                continue  # no folder takes the place of the notebook that is to run
            near = (folder / name).is_relative_to(beside)
            if not near and PurePosixPath(name).parts[0] in OWN_FOLDERS:
                continue
            root = self.lab / "notebooks" if near else self.lab
            target = root / (folder / name).relative_to(beside if near else folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copyfile(folder / name, target)

    def hand_over(self) -> None:
        """Give the folders to the user that the program runs as, where that is another one."""
        if os.geteuid() != 0 or self.isolation.kind != BUBBLEWRAP:
            return
        uid = sandbox_uid()
        for path in (self.writable, *self.writable.rglob("*")):
            with suppress(FileNotFoundError):  # of a kernel that has started: it is gone
                os.chown(path, uid, uid, follow_symlinks=False)

    def sandbox(
        self,
        profile: str,
        read_only: Mapping[str, Path] | None = None,
        data: bool = True,
        runtime: str = STAND_IN,
    ) -> Sandbox:
        """Describe what a program in this workdir sees.

        Args:
            profile: The lab's profile, whatever a notebook says.
            read_only: Inside path → path of this machine, besides environment and data.
            data: Whether it sees CIFAR-10, labels and all: what runs a notebook does, what measures
                its models does not.
            runtime: What serves models in it.
        """
        confined = self.isolation.kind == BUBBLEWRAP
        cache = cache_dir()
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": HOME if confined else str(self.home),
            "TMPDIR": TMP if confined else str(self.tmp),
            "LANG": "C.UTF-8",
            "USER": "student",
            "LABKIT_CACHE": DATA if confined else str(cache),
            "LABKIT_RUNTIME": runtime,
            "LABKIT_PROFILE": profile,
            "LABKIT_WORKSPACE": self.seen(self.run),
            "NO_COLOR": "1",
            "PYTHONNOUSERSITE": "1",  # no package in a home folder takes the place of a library
            # A thread that spins until its turn comes takes the turns of all others: beside ten
            # busy processes on two cores, a training took three times the CPU time.
            "OMP_WAIT_POLICY": "PASSIVE",
            **PAPERMILL_ENVIRONMENT,
        }
        if not confined:
            return Sandbox(environment=environment, folder=str(self.lab / "notebooks"))
        images = {f"{DATA}/{IMAGES}": cache / IMAGES} if data else {}
        # What starts Triton; where the cache has none, bubblewrap leaves it out.
        server = {f"{DATA}/{SERVER}": cache / SERVER}
        passwd = {f"/etc/{name}": self.root / name for name in ("passwd", "group")}
        return Sandbox(
            read_write={LAB: self.lab, TMP: self.tmp, HOME: self.home},
            read_only={**images, **server, **passwd, **(read_only or {})},
            environment=environment,
            folder=f"{LAB}/notebooks",
        )


def make_home(folder: Path) -> None:
    """Make a home folder that spares every notebook the search for fonts, half a second each."""
    caches = folder / ".cache" / "matplotlib"
    caches.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MPLCONFIGDIR": str(caches)}
    command = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)


def write_manifest(run: Path, names: Iterable[str]) -> None:
    """Write the manifest of a run for artifacts that lie in it."""
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    files = {name: run / "artifacts" / name for name in names}
    manifest = {
        name: {
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
            "made_by": MADE_BY[name],
            "made_at": made_at,
        }
        for name, path in files.items()
    }
    write_json(run / "manifest.json", manifest)


@contextmanager
def readable() -> Iterator[None]:
    """Make files that the sandbox's user can read, whatever the umask of whoever grades.

    What is kept stays private as far as the folder of the grading is.
    """
    former = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(former)


@contextmanager
def open_workdir(parent: Path, isolation: Isolation) -> Iterator[Workdir]:
    """Make a workdir in a folder; remove it at the end, whatever became of its permissions."""
    parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="workdir-", dir=parent))
    try:
        yield Workdir(root, isolation)
    finally:
        remove(root)


def remove(root: Path) -> None:
    """Remove a stranger's folder, whatever its permissions and depth; no link is ever followed.

    Everything goes by descriptors of folders that were opened as folders, so that nothing can be
    put in their place meanwhile. Inner folders are moved up before they are emptied: a tree can be
    deeper than a path may be long, and than `shutil.rmtree` can follow.
    """
    if root.is_symlink() or not root.is_dir():
        return
    heap = Path(tempfile.mkdtemp(prefix="removed-", dir=root.parent))
    heap_fd = os.open(heap, os.O_RDONLY | os.O_DIRECTORY)
    numbers = itertools.count(1)
    try:
        with suppress(OSError):  # else it may not be moved
            os.close(_open_folder(str(root), heap_fd))
        os.rename(root, "0", dst_dir_fd=heap_fd)
        waiting = ["0"]
        while waiting:
            _empty(heap_fd, waiting, numbers)
    finally:
        os.close(heap_fd)
    with suppress(OSError):
        heap.rmdir()


def _empty(heap: int, waiting: list[str], numbers: Iterator[int]) -> None:
    """Remove one folder of the heap; those in it are put on the heap."""
    name = waiting.pop()
    try:
        folder = _open_folder(name, heap)
    except NotADirectoryError:  # it has been swapped for something else
        with suppress(OSError):
            os.unlink(name, dir_fd=heap)
        return
    except OSError:  # what cannot be removed stays, and everything else goes
        return
    try:
        for entry in list(os.scandir(folder)):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):  # else it may not be moved
                        os.close(_open_folder(entry.name, folder))
                    moved = str(next(numbers))
                    os.rename(entry.name, moved, src_dir_fd=folder, dst_dir_fd=heap)
                    waiting.append(moved)
                else:
                    os.unlink(entry.name, dir_fd=folder)
    finally:
        os.close(folder)
    with suppress(OSError):
        os.rmdir(name, dir_fd=heap)


def _open_folder(name: str, above: int) -> int:
    """Open a folder below another one, made readable; never what a link leads to.

    Raises:
        OSError: it is no folder, or somebody else's.
    """
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=above)
    try:
        with suppress(OSError):
            Path(f"/proc/self/fd/{found}").chmod(0o700)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(found)
