"""What the three stand-in backends share: batching, splitting, and an answer for every request."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside Triton's Python stub only

from labkit.backends.settings import Engine, RequestError, Settings

Arrays = dict[str, np.ndarray]
Answer = Arrays | Exception


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
        answers: dict[int, Answer] = {}
        groups = self._groups(inputs)
        for group in groups:
            wanted = self._wanted([requests[index] for index in group])
            # An engine may use the memory of its outputs again, so only a lone run may lend it.
            answers |= self._answer(inputs, group, wanted, lend=len(groups) == 1)
        return [self._response(request, answers[index]) for index, request in enumerate(requests)]

    def finalize(self) -> None:
        """Let the model go (called by Triton before the process ends)."""
        del self.engine

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
        """Log an error, and say whose fault it is: the request's, or the model's and its engine's.

        A client may mend a request; of a failure of ours it is told in a line, and the log in full.
        """
        message = f"{self.settings.model}: {error}"
        if isinstance(error, RequestError):
            print(f"request refused: {message}", file=sys.stderr, flush=True)
            return pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
        trace = "".join(traceback.format_exception(error))
        print(f"inference failed: {message}\n{trace}", file=sys.stderr, flush=True)
        return pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)


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
