"""What the three stand-in backends share: batching, splitting, and an answer for every request."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside Triton's Python stub only

from labkit.backends.settings import Settings

Arrays = dict[str, np.ndarray]


class Engine(Protocol):
    """A loaded model."""

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs for one batch."""


class StandIn:
    """The class Triton drives; a backend says only how to load a model."""

    def load(self, settings: Settings) -> Engine:
        """Load the model file; raise when it does not fit its configuration."""
        raise NotImplementedError

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load one instance of the model (called by Triton once)."""
        self.settings = Settings(args)
        self.engine = self.load(self.settings)
        self._batched = self.settings.max_batch_size > 0
        self._outputs = [tensor.name for tensor in self.settings.outputs]
        self._dtypes = {tensor.name: tensor.numpy_dtype for tensor in self.settings.outputs}
        self._buffers: Arrays = {}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request (called by Triton with what its batcher put together)."""
        inputs = [{t.name(): t.as_numpy() for t in request.inputs()} for request in requests]
        answers: list[Arrays | Exception] = [_NOT_RUN] * len(requests)
        for group in self._groups(inputs):
            wanted = self._wanted(requests[index] for index in group)
            for index, answer in zip(group, self._answer(inputs, group, wanted), strict=True):
                answers[index] = answer
        return [
            self._response(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def finalize(self) -> None:
        """Let the model go (called by Triton before the process ends)."""
        del self.engine

    def _groups(self, inputs: Sequence[Arrays]) -> Iterable[list[int]]:
        """Return which requests can run together: those whose shapes agree beyond the batch."""
        if not self._batched:
            return [[index] for index in range(len(inputs))]
        groups: dict[Any, list[int]] = {}
        for index, arrays in enumerate(inputs):
            key = tuple((name, array.shape[1:]) for name, array in arrays.items())
            groups.setdefault(key, []).append(index)
        return groups.values()

    def _wanted(self, requests: Iterable[Any]) -> list[str]:
        """Return the outputs that at least one of the requests asks for."""
        names = set().union(*(request.requested_output_names() for request in requests))
        return [name for name in self._outputs if name in names] or self._outputs

    def _answer(
        self, inputs: Sequence[Arrays], group: list[int], wanted: list[str]
    ) -> list[Arrays | Exception]:
        """Run a group as one batch; when that fails, each on its own, so that only the bad fail."""
        try:
            if len(group) == 1:
                return [self._run(inputs[group[0]], wanted)]
            return self._run_together([inputs[index] for index in group], wanted)
        except Exception as error:
            if len(group) == 1:
                return [error]
        return [self._answer(inputs, [index], wanted)[0] for index in group]

    def _run_together(self, requests: Sequence[Arrays], wanted: list[str]) -> list[Any]:
        rows = [len(next(iter(arrays.values()))) for arrays in requests]
        batch = {
            name: self._concatenate(name, [arrays[name] for arrays in requests])
            for name in requests[0]
        }
        outputs = self._run(batch, wanted)
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != sum(rows):
                raise ValueError(
                    f"output '{name}' has shape {list(array.shape)} for a batch of {sum(rows)}, "
                    "expected one row for each"
                )
        ends = np.cumsum(rows)
        return [
            {name: array[end - count : end] for name, array in outputs.items()}
            for end, count in zip(ends, rows, strict=True)
        ]

    def _run(self, inputs: Arrays, wanted: list[str]) -> Arrays:
        arrays = self.engine.run(inputs, wanted)
        return {
            name: np.ascontiguousarray(array, dtype=self._dtypes[name])
            for name, array in zip(wanted, arrays, strict=True)
        }

    def _concatenate(self, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Join arrays along the batch axis, in a buffer that is kept for the next batch."""
        rows = sum(len(array) for array in arrays)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows or buffer.shape[1:] != arrays[0].shape[1:]:
            capacity = max(rows, self.settings.max_batch_size)
            buffer = np.empty((capacity, *arrays[0].shape[1:]), arrays[0].dtype)
            self._buffers[name] = buffer
        return np.concatenate(arrays, out=buffer[:rows])

    def _response(self, request: Any, answer: Arrays | Exception) -> Any:
        if isinstance(answer, Exception):
            message = f"{self.settings.model}: {answer}"
            print(f"request refused: {message}", file=sys.stderr, flush=True)
            error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        requested = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in answer.items() if name in requested]
        )


_NOT_RUN = RuntimeError("not run")
