"""A model's configuration as a stand-in and `labkit check` read it: one reading, Triton's words.

A message begins with what the native backend says, word for word, so that a search for it finds
something; what to do follows an arrow.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

DTYPES: dict[str, Any] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}
INVALID, INTERNAL, UNAVAILABLE, UNSUPPORTED = (
    "Invalid argument",
    "Internal",
    "Unavailable",
    "Unsupported",
)


class Engine(Protocol):
    """A loaded model."""

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs for one batch.

        Raises:
            RequestError: The inputs are at fault; any other error is the model's or the engine's.
        """


class RequestError(ValueError):
    """A request that the model cannot take: the caller's fault, not the server's."""


class EngineError(RuntimeError):
    """What an engine said, in the native backend's words."""


class ConfigError(ValueError):
    """A configuration that cannot be served.

    Attributes:
        words: What the native backend says, or what the stand-in says where that one says nothing.
        fix: What to do.
        kind: Triton's word for the kind of error.
        ours: Whether the native backend loads this, and crashes or answers wrongly later.
    """

    def __init__(self, words: str, fix: str = "", kind: str = INVALID, ours: bool = False) -> None:
        super().__init__(f"{words} → {fix}" if fix else words)
        self.words, self.fix, self.kind, self.ours = words, fix, kind, ours


@dataclass(frozen=True)
class Tensor:
    """An input or output, as `config.pbtxt` or a model file describes it.

    Attributes:
        name: Name of the tensor.
        dtype: Triton's name of the data type, such as `TYPE_FP32`; None where the file has none.
        shape: Of a file: full shape, -1 where variable; None where the file has none. Of a
            configuration: without the batch axis, after Triton's reshape.
        optional: Whether a request may leave this input out.
        aliases: Further names that a model file has for the same tensor.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    optional: bool = False
    aliases: tuple[str, ...] = ()
    ragged: bool = False


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model file; ONNX has inputs with a value of their own, too."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    initializers: tuple[Tensor, ...] = ()


class Settings:
    """The parts of a model's configuration that a backend needs."""

    def __init__(self, args: Mapping[str, str], native: bool = False) -> None:
        """Read a configuration.

        Args:
            args: As Triton gives them to a Python-based backend.
            native: Whether a native backend serves it, which also does what a stand-in refuses.
        """
        self.native = native
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.model = args["model_name"]
        self.folder = Path(args["model_repository"]) / args["model_version"]
        self.instance = args.get("model_instance_name", self.model)
        self.max_batch_size = int(self.config.get("max_batch_size", 0))
        self.batched = self.max_batch_size > 0
        self.parameters = {
            key: value.get("string_value", "")
            for key, value in self.config.get("parameters", {}).items()
        }
        self.inputs = [self._tensor(entry) for entry in self.config.get("input", [])]
        self.outputs = [self._tensor(entry) for entry in self.config.get("output", [])]
        if not native:
            self._refuse_unsupported()

    def file(self, default: str, missing: str, kind: str, ours: bool = False) -> Path:
        """Return the model file: `default_model_filename`, else the backend's default.

        Args:
            default: Name of the file where the configuration has none.
            missing: The native backend's words where it is not there; may hold `{path}`.
            kind: Of that error.
            ours: Whether the native backend ends the server there.

        Raises:
            ConfigError: The file is not there.
        """
        path = self.folder / (self.config.get("default_model_filename") or default)
        if not path.exists():
            present = sorted(e.name for e in self.folder.iterdir()) if self.folder.is_dir() else []
            raise ConfigError(
                missing.format(path=path, model=self.model),
                f"add {path.name} to version folder {self.folder.name}, which holds "
                f"{', '.join(present) or 'nothing'}, or name the file in default_model_filename",
                kind,
                ours,
            )
        return path

    def integer(self, name: str) -> int:
        """Return an integer parameter, 0 where there is none; read as in C++: the first digits."""
        text = self.parameters.get(name)
        if text is None:
            return 0
        number = re.match(r"\s*[+-]?\d+", text)
        if number is None:
            raise ConfigError(
                f"failed to convert '{text}' to integral number", f"write {name} as a whole number"
            )
        return int(number[0])

    def boolean(self, name: str, default: bool) -> bool:
        """Return a boolean parameter as Triton reads one."""
        text = self.parameters.get(name)
        if text is None:
            return default
        if text.lower() in ("true", "on", "1"):
            return True
        if text.lower() in ("false", "off", "0"):
            return False
        raise ConfigError(f"failed to convert '{text}' to boolean", f"write {name} true or false")

    def _tensor(self, entry: Mapping[str, Any]) -> Tensor:
        dims = entry["reshape"].get("shape", []) if "reshape" in entry else entry.get("dims", [])
        return Tensor(
            entry["name"],
            entry.get("data_type"),
            tuple(int(size) for size in dims),
            bool(entry.get("optional")),
            ragged=bool(entry.get("allow_ragged_batch")),
        )

    def _refuse_unsupported(self) -> None:
        """Refuse what native backends do and a stand-in does not."""
        sequence = self.config.get("sequence_batching", {})
        refused = {
            "batch_input": self.config.get("batch_input"),
            "batch_output": self.config.get("batch_output"),
            "sequence_batching with control_input or state": sequence.get("control_input")
            or sequence.get("state"),
            "a decoupled model": self.config.get("model_transaction_policy", {}).get("decoupled"),
        }
        for what, there in refused.items():
            if there:
                raise ConfigError(
                    f"model '{self.model}': {what} is not supported by the stand-in backends, "
                    "which answer each request once, by itself",
                    "leave it out, or serve with native backends",
                    UNSUPPORTED,
                )
