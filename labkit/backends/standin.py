"""What the three stand-in backends share: batching, splitting, and an answer for every request."""

import functools
import importlib
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside Triton's Python stub only

from labkit.backends.settings import (
    DTYPES,
    INTERNAL,
    ConfigError,
    Engine,
    EngineError,
    RequestError,
    Settings,
)

Arrays = dict[str, np.ndarray]
Answer = Arrays | Exception


def quietly(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function, good for one call, that raises what `call` raises, without a traceback.

    The stub sends the traceback of an exception to the client. One that is raised by functions
    written in C has none: a generator that has ended raises what is thrown into it, and adds no
    frame of its own.
    """
    errors: list[Exception] = []
    ended = (item for item in ())
    next(ended, None)

    def attempt(argument: Any, _: None) -> Any:
        try:
            return call(argument)
        except Exception as error:
            errors.append(_in_tritons_words(error))

    steps = itertools.chain([None], map(ended.throw, errors))
    return functools.partial(functools.reduce, attempt, steps)


def _in_tritons_words(error: Exception) -> Exception:
    """Return an error whose class is called as Triton calls its kind: the stub shows both."""
    if not isinstance(error, ConfigError | EngineError):
        traceback.print_exception(error)
    kind = error.kind if isinstance(error, ConfigError) else INTERNAL
    return type(kind, (Exception,), {})(str(error))


def _complete(complete: Callable[[Settings], dict[str, Any]], config: Any) -> Any:
    """Complete a configuration object of the stub, which says neither where the model lies."""
    fields = config.as_dict()
    if fields.get("input") and fields.get("output"):
        return config
    file = Path(Path("/proc/self/cmdline").read_bytes().split(b"\0")[1].decode())
    settings = Settings(
        {
            "model_config": json.dumps(fields),
            "model_name": fields["name"],
            "model_repository": str(file.parent.parent),
            "model_version": file.parent.name,
        }
    )
    added = complete(settings)
    if "max_batch_size" in added:
        config.set_max_batch_size(added["max_batch_size"])
    if "dynamic_batching" in added:
        config.set_dynamic_batching()
    for entry in added.get("input", []):
        config.add_input(entry)
    for entry in added.get("output", []):
        config.add_output(entry)
    return config


class ClassProperty(property):
    """A property of the class itself: Triton completes a configuration without an instance."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        assert self.fget is not None
        return self.fget(owner)


class StandIn:
    """The class Triton drives; a backend names only the module of its engine.

    Attributes:
        engine_module: Has `load`, and `completed` for a configuration without inputs or outputs.
    """

    engine_module: str

    def load(self, settings: Settings) -> Engine:
        """Load the model file; raise when it does not fit its configuration."""
        return importlib.import_module(self.engine_module).load(settings)

    @classmethod
    def complete(cls, settings: Settings) -> dict[str, Any]:
        """Return what the native backend adds to a configuration."""
        return importlib.import_module(cls.engine_module).completed(settings)

    @ClassProperty
    def auto_complete_config(self: Any) -> Callable[[Any], Any]:
        """Add inputs, outputs and batching to a configuration without (called by Triton once)."""
        return quietly(functools.partial(_complete, self.complete))

    @property
    def initialize(self) -> Callable[[Any], Any]:
        """Load one instance of the model (called by Triton once)."""
        return quietly(self._initialize)

    def _initialize(self, args: Mapping[str, str]) -> None:
        self.settings = Settings(args)
        self.engine = self.load(self.settings)
        self._batched = self.settings.max_batch_size > 0
        self._outputs = [tensor.name for tensor in self.settings.outputs]
        self._dtypes = {tensor.name: DTYPES[str(tensor.dtype)] for tensor in self.settings.outputs}
        self._strings = {t.name for t in self.settings.inputs if t.dtype == "TYPE_STRING"}
        self._buffers: Arrays = {}

    @property
    def execute(self) -> Callable[[Any], list[Any]]:
        """Answer every request (called by Triton with what its batcher put together)."""
        return quietly(self._execute)

    def _execute(self, requests: Sequence[Any]) -> list[Any]:
        inputs = [{t.name(): self._to_numpy(t) for t in request.inputs()} for request in requests]
        answers: dict[int, Answer] = {}
        groups = self._groups(inputs)
        for group in groups:
            wanted = self._wanted([requests[index] for index in group])
            # An engine may use the memory of its outputs again, so only a lone run may lend it.
            answers |= self._answer(inputs, group, wanted, lend=len(groups) == 1)
        errors = [e for e in answers.values() if isinstance(e, Exception)]
        if len(errors) == len(requests) and not any(isinstance(e, RequestError) for e in errors):
            # Triton counts a batch as failed where its execution fails, not where its answers do.
            raise EngineError(self._told(errors[0]))
        return [self._response(request, answers[index]) for index, request in enumerate(requests)]

    def finalize(self) -> None:
        """Let the model go (called by Triton before the process ends)."""
        del self.engine

    def _to_numpy(self, tensor: Any) -> np.ndarray:
        """Return a tensor of Triton's: a read-only view of its memory, which no engine may keep.

        By DLPack, which does not depend on numpy's layout: the stub of Triton's wheel predates
        numpy 2. Strings cannot cross by it; where the stub would garble them, the server refuses
        the model before it starts.
        """
        return tensor.as_numpy() if tensor.name() in self._strings else np.from_dlpack(tensor)

    def _groups(self, inputs: Sequence[Arrays]) -> list[list[int]]:
        """Return which requests can run together: those whose shapes agree beyond the batch."""
        if not self._batched or len(inputs) == 1:
            return [[index] for index in range(len(inputs))]
        groups: dict[Any, list[int]] = {}
        for index, arrays in enumerate(inputs):
            key = frozenset((name, array.shape[1:]) for name, array in arrays.items())
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def _wanted(self, requests: Sequence[Any]) -> list[str]:
        """Return the outputs that at least one of the requests asks for."""
        names = set().union(*(request.requested_output_names() for request in requests))
        return [name for name in self._outputs if name in names]

    def _answer(
        self, inputs: Sequence[Arrays], group: Sequence[int], wanted: list[str], lend: bool
    ) -> dict[int, Answer]:
        """Run a group as one batch; when that fails, each on its own, so that only the bad fail."""
        try:
            batch = self._join([inputs[index] for index in group])
            outputs = self._run(batch, wanted, lend)
            if not self._batched:
                return {group[0]: outputs}
            rows = [_rows(inputs[index]) for index in group]
            return dict(zip(group, _split(outputs, rows), strict=True))
        except Exception as error:
            if len(group) == 1:
                return {group[0]: error}
        answers: dict[int, Answer] = {}
        for index in group:
            answers |= self._answer(inputs, [index], wanted, lend=False)
        return answers

    def _join(self, requests: Sequence[Arrays]) -> Arrays:
        """Concatenate requests along the batch axis; a single one stays as it is."""
        if len(requests) == 1:
            return requests[0]
        return {
            name: self._concatenate(name, [arrays[name] for arrays in requests])
            for name in requests[0]
        }

    def _run(self, inputs: Arrays, wanted: list[str], lend: bool) -> Arrays:
        outputs = {}
        for name, array in zip(wanted, self.engine.run(inputs, wanted), strict=True):
            expected = self._dtypes[name]
            if expected is np.object_:
                array = array.astype(np.object_)
            elif array.dtype != expected:
                raise TypeError(f"output '{name}' is {array.dtype}, expected {np.dtype(expected)}")
            outputs[name] = np.asarray(array, order="C") if lend else np.array(array, order="C")
        return outputs

    def _concatenate(self, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Join arrays along the batch axis, in a buffer that is kept for the next batch."""
        rows = sum(len(array) for array in arrays)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows or buffer.shape[1:] != arrays[0].shape[1:]:
            capacity = max(rows, self.settings.max_batch_size)
            buffer = np.empty((capacity, *arrays[0].shape[1:]), arrays[0].dtype)
            self._buffers[name] = buffer
        return np.concatenate(arrays, out=buffer[:rows])

    def _response(self, request: Any, answer: Answer) -> Any:
        if isinstance(answer, Exception):
            return pb_utils.InferenceResponse(error=self._error(answer))
        requested = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in answer.items() if name in requested]
        )

    def _error(self, error: Exception) -> Any:
        """Return what a client is told, and whose fault it was: the request's, or the server's."""
        code = pb_utils.TritonError.INTERNAL
        if isinstance(error, RequestError):
            code = pb_utils.TritonError.INVALID_ARG
        return pb_utils.TritonError(self._told(error), code)

    def _told(self, error: Exception) -> str:
        """Log an error, and return the engine's own words: nothing of Python reaches a client."""
        print(f"{self.settings.model}: request failed: {error}", file=sys.stderr, flush=True)
        if not isinstance(error, RequestError | EngineError):
            traceback.print_exception(error)
        return str(error)


def _rows(arrays: Arrays) -> int:
    """Return the batch size of one request."""
    return len(next(iter(arrays.values())))


def _split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """Cut the outputs of a batch into the rows of each request, without a copy."""
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != sum(rows):
            raise ValueError(
                f"output '{name}' has shape {list(array.shape)} for a batch of {sum(rows)}, "
                "expected one row for each"
            )
    if len(rows) == 1:
        return [outputs]
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]
