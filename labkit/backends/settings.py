"""A model's configuration as a stand-in reads it: every setting is honoured or refused by name."""

import json
from collections.abc import Collection, Mapping, Sequence
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


class Engine(Protocol):
    """A loaded model."""

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs for one batch.

        Raises:
            RequestError: The inputs are at fault; any other error is the model's or the engine's.
        """


class RequestError(ValueError):
    """A request that the model cannot take: the caller's fault, not the server's."""


class ConfigError(ValueError):
    """A configuration that this stand-in cannot serve: got, expected, and where."""


@dataclass(frozen=True)
class Tensor:
    """An input or output, as `config.pbtxt` or a model file describes it.

    Attributes:
        name: Name of the tensor.
        dtype: Triton's name of the data type, such as `TYPE_FP32`; None where the file has none.
        shape: Full shape with the batch axis, -1 where variable; None where the file has none.
        optional: Whether a request may leave this input out.
        aliases: Further names that a model file has for the same tensor.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    optional: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def numpy_dtype(self) -> Any:
        """The numpy type of the elements; `object` for strings."""
        return DTYPES[str(self.dtype)]


def fits(mine: Sequence[int], theirs: Sequence[int]) -> bool:
    """Say whether two shapes agree; -1 agrees with every size."""
    return len(mine) == len(theirs) and all(
        a == b or a == -1 or b == -1 for a, b in zip(mine, theirs, strict=True)
    )


class Settings:
    """The parts of a model's configuration that a stand-in needs."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.model = args["model_name"]
        self.folder = Path(args["model_repository"]) / args["model_version"]
        self.instance = args["model_instance_name"]
        self.max_batch_size = int(self.config.get("max_batch_size", 0))
        self.parameters = {
            key: value["string_value"] for key, value in self.config.get("parameters", {}).items()
        }
        self.inputs = [self._tensor(entry) for entry in self.config.get("input", [])]
        self.outputs = [self._tensor(entry) for entry in self.config.get("output", [])]
        self._refuse_unsupported(args)

    def error(self, message: str) -> ConfigError:
        """Return an error that names the model first."""
        return ConfigError(f"model '{self.model}': {message}")

    def file(self, default: str) -> Path:
        """Return the model file: `default_model_filename`, else the backend's default.

        Raises:
            ConfigError: The file is not there.
        """
        path = self.folder / (self.config.get("default_model_filename") or default)
        if not path.is_file():
            present = sorted(entry.name for entry in self.folder.iterdir())
            raise self.error(
                f"no file {path.name} in version folder {self.folder.name}, which holds "
                f"{', '.join(present) or 'nothing'}; add it, or name the file in "
                "default_model_filename"
            )
        return path

    def check_parameters(self, known: Collection[str], elsewhere: Mapping[str, str]) -> None:
        """Refuse parameters that this stand-in does not honour.

        Args:
            known: Names that are honoured.
            elsewhere: Names that the native backend knows and this one refuses → why.
        """
        for name in self.parameters:
            if name in elsewhere:
                raise self.error(f"parameter '{name}' is not supported: {elsewhere[name]}")
            if name not in known:
                raise self.error(
                    f"unknown parameter '{name}', expected one of {', '.join(sorted(known))}"
                )

    def integer(self, name: str, minimum: int = 0) -> int | None:
        """Return an integer parameter, or None when it is not set."""
        text = self.parameters.get(name)
        if text is None:
            return None
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise self.error(
                f"parameter '{name}' is {text!r}, expected an integer of {minimum} or more"
            )
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """Return a boolean parameter; Triton takes true/false, yes/no, on/off, 1/0."""
        text = self.parameters.get(name)
        if text is None:
            return default
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise self.error(f"parameter '{name}' is {text!r}, expected true or false")

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """Return a parameter that is one of a few words, or None when it is not set."""
        text = self.parameters.get(name)
        if text is not None and text not in allowed:
            raise self.error(
                f"parameter '{name}' is {text!r}, expected one of {', '.join(allowed)}"
            )
        return text

    def match(
        self,
        kind: str,
        configured: Collection[Tensor],
        found: Collection[Tensor],
        file: str,
        need_all: bool,
    ) -> None:
        """Hold the configured tensors against those of the model file.

        Args:
            kind: `input` or `output`, for the messages.
            configured: Tensors of config.pbtxt.
            found: Tensors of the model file.
            file: Name of the model file, for the messages.
            need_all: Whether the configuration must list every tensor of the file.

        Raises:
            ConfigError: A name, data type or shape differs; the message says got and expected.
        """
        by_name = {name: tensor for tensor in found for name in (tensor.name, *tensor.aliases)}
        names = ", ".join(f"'{tensor.name}'" for tensor in found)
        if not configured:
            raise self.error(f"config.pbtxt lists no {kind}, expected {names} as in {file}")
        for tensor in configured:
            if tensor.name not in by_name:
                raise self.error(
                    f"config.pbtxt has {kind} '{tensor.name}', which is not in {file}; "
                    f"expected {names}"
                )
            self._match_one(kind, tensor, by_name[tensor.name], file)
        listed = [by_name[tensor.name].name for tensor in configured]
        if twice := sorted(name for name in set(listed) if listed.count(name) > 1):
            raise self.error(f"config.pbtxt lists {kind} {', '.join(twice)} of {file} twice")
        missing = {tensor.name for tensor in found} - set(listed)
        if need_all and missing:
            raise self.error(
                f"config.pbtxt lacks {kind} {', '.join(sorted(missing))}, which {file} needs"
            )

    def _match_one(self, kind: str, tensor: Tensor, found: Tensor, file: str) -> None:
        if found.dtype is not None and found.dtype != tensor.dtype:
            raise self.error(
                f"{kind} '{tensor.name}' is {tensor.dtype} in config.pbtxt, expected {found.dtype} "
                f"as in {file}"
            )
        if found.shape is None or tensor.shape is None:
            return
        if self.max_batch_size > 0 and found.shape and found.shape[0] not in (-1, None):
            raise self.error(
                f"max_batch_size is {self.max_batch_size}, but {kind} '{tensor.name}' of {file} "
                f"has the fixed first dimension {found.shape[0]}, expected a variable one: export "
                "the model with a dynamic batch axis, or set max_batch_size: 0"
            )
        if not fits(tensor.shape, found.shape):
            batch = self.max_batch_size > 0
            note = " (dims without the batch axis, because max_batch_size > 0)" if batch else ""
            raise self.error(
                f"{kind} '{tensor.name}' has dims {list(tensor.shape[batch:])} in config.pbtxt, "
                f"expected {list(found.shape[batch:])} as in {file}{note}"
            )

    def _tensor(self, entry: Mapping[str, Any]) -> Tensor:
        name, dtype = entry["name"], entry["data_type"]
        if dtype not in DTYPES:
            raise self.error(
                f"tensor '{name}' is {dtype}, which has no numpy type; expected one of "
                f"{', '.join(DTYPES)}"
            )
        if entry.get("allow_ragged_batch"):
            raise self.error(f"tensor '{name}': allow_ragged_batch is not supported")
        dims = entry["reshape"].get("shape", []) if "reshape" in entry else entry["dims"]
        shape = tuple(int(size) for size in dims)  # what the model sees, after Triton's reshape
        if self.max_batch_size > 0:
            shape = (-1, *shape)
        return Tensor(name, dtype, shape, bool(entry.get("optional")))

    def _refuse_unsupported(self, args: Mapping[str, str]) -> None:
        if args["model_instance_kind"] != "CPU":
            raise self.error(
                f"instance kind is {args['model_instance_kind']}, expected KIND_CPU: the stand-in "
                "backends compute on the CPU"
            )
        refused = [field for field in ("batch_input", "batch_output") if self.config.get(field)]
        if "sequence_batching" in self.config:
            refused.append("sequence_batching")
        if refused:
            raise self.error(f"{refused[0]} is not supported by the stand-in backends")
        if self.config.get("model_transaction_policy", {}).get("decoupled"):
            raise self.error("a decoupled model is not supported by the stand-in backends")
