"""Every path of a run, atomic writes, and the manifest that says which step made which file."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from labkit.errors import LabError

LAB_WORKSPACE = "runs/lab"

# Which notebook makes which artifact: the data flow of the lab, in one place.
MADE_BY: dict[str, str] = {
    "splits.json": "01_data",
    "statistics.json": "01_data",
    "network.py": "02_train",
    "checkpoint.pt": "02_train",
    "history.json": "02_train",
    "model.pt": "03_export",
    "model_optimized.pt": "03_export",
    "model.onnx": "03_export",
    "model.plan": "03_export",
    "export.json": "03_export",
    "model_int8.pt": "04_quantize",
    "model_int8.onnx": "04_quantize",
    "model_int8.xml": "04_quantize",
    "model_int8.bin": "04_quantize",
    "quantize.json": "04_quantize",
    "configure.json": "05_configure",
    "query.json": "06_serve",
    "tune.json": "07_tune",
    "pipeline.json": "10_pipeline",
    "report.json": "08_report",
    "report.html": "08_report",
}

OPTIONAL = frozenset({"model.plan"})  # made only where an NVIDIA GPU is


class MissingInput(LabError):
    """A step needs a file that no earlier step of this run has made."""


class CorruptFile(LabError):
    """A JSON file of the run cannot be read."""


class NoCacheFolder(LabError):
    """Nothing says where downloads belong: neither LABKIT_CACHE nor a home folder."""


def project_root() -> Path:
    """Return the folder that holds `notebooks/` and `model_repository/`.

    Looked for from the current folder upwards, then beside this package, so that notebooks work
    from wherever JupyterLab was started.

    Returns:
        The absolute path; the current folder when neither place looks like the project.
    """
    for folder in [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]]:
        if (folder / "notebooks").is_dir() and (folder / "model_repository").is_dir():
            return folder
    return Path.cwd()


def cache_dir() -> Path:
    """Return the folder for what is downloaded once per user; it is not created here.

    Returns:
        `$LABKIT_CACHE`, else the system's own place, on Linux `$XDG_CACHE_HOME/labkit` or
        `~/.cache/labkit`. A relative LABKIT_CACHE starts at the project root, so that the command
        line and the kernels, which run in `notebooks/`, mean the same folder.

    Raises:
        NoCacheFolder: the home folder is needed and unknown.
    """
    chosen = os.environ.get("LABKIT_CACHE")
    try:
        if chosen:
            return project_root() / Path(chosen).expanduser()
        return user_cache_path("labkit", appauthor=False)
    except RuntimeError as error:
        raise NoCacheFolder(
            "the home folder for the cache is not known (HOME is not set, and this user has no "
            "entry in the system): set LABKIT_CACHE to the absolute path of a writable folder"
        ) from error


@contextmanager
def atomic_path(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name keeps the suffix, because some exporters choose the format by it. Until it is
    renamed, nobody else can read it.

    Args:
        path: The file.
        mode: Its permissions; a container must be able to read most files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write `text` as UTF-8, all or nothing."""
    with atomic_path(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Write `value` as indented JSON, all or nothing; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CorruptFile: the file is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(
            f"{path} is not valid JSON ({error}); delete it and run again the step that makes it"
        ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Workspace:
    """The folder of one run.

    Attributes:
        root: Absolute path of the run.
        repository: The Triton model repository of the run: the project's own `model_repository/`
            for the hands-on run, a private one below `root` for every other run.
    """

    root: Path
    repository: Path

    @classmethod
    def open(cls, path: str | Path = LAB_WORKSPACE) -> "Workspace":
        """Open the run that a notebook names, making its folders where they are missing.

        Args:
            path: Absolute, or relative to the project root. The environment variable
                `LABKIT_WORKSPACE` overrides it, so that CI can step through the notebooks as they
                are without touching a student's files.
        """
        return cls.at(os.environ.get("LABKIT_WORKSPACE") or path)

    @classmethod
    def at(cls, path: str | Path) -> "Workspace":
        """Open the run at `path`, whatever the environment says."""
        project = project_root()
        root = (project / path).resolve()
        by_hand = root == (project / LAB_WORKSPACE).resolve()
        repository = project / "model_repository" if by_hand else root / "model_repository"
        workspace = cls(root, repository)
        for folder in (workspace.artifacts, workspace.logs, workspace.repository):
            folder.mkdir(parents=True, exist_ok=True)
        return workspace

    @property
    def artifacts(self) -> Path:
        """Files that one step makes and another reads."""
        return self.root / "artifacts"

    @property
    def logs(self) -> Path:
        """Logs of the servers and of the notebooks of this run."""
        return self.root / "logs"

    @property
    def executed(self) -> Path:
        """Notebooks as they were executed in this run."""
        return self.root / "notebooks"

    @property
    def manifest_path(self) -> Path:
        """The manifest: artifact → SHA-256, size in bytes, made by, when."""
        return self.root / "manifest.json"

    def path(self, name: str) -> Path:
        """Return where artifact `name` belongs, whether or not it exists."""
        return self.artifacts / name

    def require(self, name: str) -> Path:
        """Return the path of an artifact that must exist.

        Raises:
            MissingInput: it does not; the message names the notebook that makes it.
        """
        path = self.path(name)
        if not path.is_file():
            maker = MADE_BY.get(name)
            step = f"run notebook {maker} first" if maker else "no notebook makes this file"
            raise MissingInput(f"{name} is missing in {self._shown(self.artifacts)}: {step}")
        return path

    def record(self, *names: str, made_by: str) -> None:
        """Enter artifacts into the manifest.

        Args:
            names: Artifacts that exist.
            made_by: The notebook that made them, such as `03_export`.

        Raises:
            MissingInput: one of them does not exist.
        """
        manifest = self.manifest()
        for name in names:
            path = self.require(name)
            manifest[name] = {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
                "made_by": made_by,
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        write_json(self.manifest_path, manifest)

    def forget(self, made_by: str) -> None:
        """Take a step's artifacts out of the manifest; the files stay.

        Called before the step runs again, so that files of an earlier run cannot pass for new.
        """
        kept = {n: entry for n, entry in self.manifest().items() if entry["made_by"] != made_by}
        write_json(self.manifest_path, kept)

    def unrecorded(self, made_by: str) -> list[str]:
        """Return the artifacts of a step that are missing, not recorded, or changed since."""
        manifest = self.manifest()
        return [
            name
            for name, maker in MADE_BY.items()
            if maker == made_by
            and name not in OPTIONAL
            and not (
                self.path(name).is_file()
                and manifest.get(name, {}).get("sha256") == sha256(self.path(name))
            )
        ]

    def manifest(self) -> dict[str, dict[str, Any]]:
        """Return the manifest; empty for a new run."""
        return read_json(self.manifest_path) if self.manifest_path.is_file() else {}

    def save_json(self, name: str, value: Any, made_by: str) -> Path:
        """Write a JSON artifact and enter it into the manifest; returns its path."""
        write_json(self.path(name), value)
        self.record(name, made_by=made_by)
        return self.path(name)

    def load_json(self, name: str) -> Any:
        """Read a JSON artifact.

        Raises:
            MissingInput: it does not exist; the message names the notebook that makes it.
            CorruptFile: it is not valid JSON.
        """
        return read_json(self.require(name))

    def _shown(self, path: Path) -> str:
        """Return a path as a person would type it from the project root."""
        root = project_root()
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
