"""Evidence: a value that is read out of a run's own file, and never passed in.

A report row counts as measured only with a `MeasuredValue`, which is made from a file of the run
and a place in it. There is no way to give it a value.
"""

from dataclasses import dataclass, field
from typing import Any

from jsonpointer import JsonPointerException, resolve_pointer

from labkit.errors import LabError
from labkit.workspace import Workspace, sha256


class NoEvidence(LabError):
    """A claim points at a file, or at a place in it, that does not bear it out."""


class EvidenceFolder:
    """The JSON artifacts of a run, each held against the manifest before it is read."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._manifest = workspace.manifest()
        self._documents: dict[str, Any] = {}

    def document(self, file: str) -> Any:
        """Return the content of an artifact.

        Raises:
            NoEvidence: the file is missing, is not in the manifest, or was changed after the step
                that made it had recorded it.
        """
        if file not in self._documents:
            path = self._workspace.path(file)
            entry = self._manifest.get(file)
            if not path.is_file() or entry is None:
                raise NoEvidence(f"{file} is no recorded artifact of this run")
            if sha256(path) != entry["sha256"]:
                raise NoEvidence(
                    f"{file} was changed after {entry['made_by']} had recorded it: run it again"
                )
            self._documents[file] = self._workspace.load_json(file)
        return self._documents[file]

    def recorded(self, file: str) -> str | None:
        """Return the SHA-256 that the manifest has for any artifact; None when it has none."""
        entry = self._manifest.get(file)
        return str(entry["sha256"]) if entry else None

    def checksum(self, file: str) -> str:
        """Return the SHA-256 that the manifest has for an artifact that `document` accepts."""
        self.document(file)
        return str(self._manifest[file]["sha256"])

    def value(self, file: str, pointer: str) -> Any:
        """Return the value at a place in an artifact.

        Args:
            file: Name of a JSON artifact, such as `query.json`.
            pointer: JSON pointer (RFC 6901), such as `/variants/cifar10_onnx/accuracy`.

        Raises:
            NoEvidence: nothing is there, or null is.
        """
        try:
            value = resolve_pointer(self.document(file), pointer)
        except JsonPointerException:
            raise NoEvidence(f"{file} has nothing at {pointer}") from None
        if value is None:
            raise NoEvidence(f"{file} has null at {pointer}")
        return value


@dataclass(frozen=True)
class MeasuredValue:
    """A measured value and where it was read.

    Attributes:
        folder: The run's evidence.
        file: Name of a JSON artifact.
        pointer: JSON pointer of the value in it.
        value: What is there; read, never given.

    Raises:
        NoEvidence: nothing is there.
    """

    folder: EvidenceFolder = field(repr=False, compare=False)
    file: str
    pointer: str
    value: Any = field(init=False)

    def __post_init__(self) -> None:
        """Read the value."""
        object.__setattr__(self, "value", self.folder.value(self.file, self.pointer))

    def to_dict(self) -> dict[str, Any]:
        """Return the value as `report.json` keeps it."""
        return {
            "status": "measured",
            "value": self.value,
            "evidence": {
                "file": self.file,
                "pointer": self.pointer,
                "sha256": self.folder.checksum(self.file),
            },
        }


@dataclass(frozen=True)
class Unmeasured:
    """The other half of a `MeasuredValue`: what is not known, and why."""

    reason: str

    def __post_init__(self) -> None:
        """Refuse an empty reason."""
        if not self.reason.strip():
            raise NoEvidence("a value that was not measured needs a reason")

    def to_dict(self) -> dict[str, Any]:
        """Return it as `report.json` keeps it."""
        return {"status": "not measured", "reason": self.reason}


def measured_or_reason(
    folder: EvidenceFolder, file: str, pointer: str
) -> MeasuredValue | Unmeasured:
    """Return the value, or the reason why there is none."""
    try:
        return MeasuredValue(folder, file, pointer)
    except NoEvidence as error:
        return Unmeasured(str(error))
