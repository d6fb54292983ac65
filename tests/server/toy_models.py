"""Tiny models on Triton's own Python backend, so that these tests need no framework.

`toy` and `flat` return the first ten pixels of each image as its scores; `sleepy` answers after a
known time; `mixed` has two inputs of other dtypes; `broken` fails on every request.
"""

from pathlib import Path

SLEEP_S = 0.05

_CODE = """\
import time
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def tensor(self, request, name):
        return pb.get_input_tensor_by_name(request, name).as_numpy()

    def answer(self, request):
        {body}
"""

_FIRST_TEN = """x = self.tensor(request, "pixels")
        y = np.ascontiguousarray(x.reshape(len(x), -1)[:, :10])
        return pb.InferenceResponse([pb.Tensor("scores", y)])"""

_MIXED = """ids, words = self.tensor(request, "ids"), self.tensor(request, "words")
        lengths = np.array([[len(w) for w in row] for row in words], dtype=np.int64)
        return pb.InferenceResponse([
            pb.Tensor("sums", ids.sum(axis=1, keepdims=True) + lengths),
            pb.Tensor("echo", words),
        ])"""

_BROKEN = """return pb.InferenceResponse(error=pb.TritonError("out of chalk"))"""

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def image_config(name: str, max_batch_size: int) -> str:
    free = "" if max_batch_size else "-1, "
    return f"""
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "pixels" data_type: TYPE_FP32 dims: [ {free}3, 32, 32 ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ {free}10 ] label_filename: "labels.txt" }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


MIXED_CONFIG = """
name: "mixed"
backend: "python"
max_batch_size: 4
input [
  { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "words" data_type: TYPE_STRING dims: [ 1 ] }
]
output [
  { name: "sums" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "echo" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


def write_toy_models(repository: Path, strings: bool = True) -> Path:
    sleepy = f"time.sleep({SLEEP_S})\n        {_FIRST_TEN}"
    models = {
        "toy": (image_config("toy", 8) + "dynamic_batching { }\n", _FIRST_TEN),
        "flat": (image_config("flat", 0), _FIRST_TEN),
        "sleepy": (image_config("sleepy", 8), sleepy),
        "broken": (image_config("broken", 8), _BROKEN),
        "mixed": (MIXED_CONFIG, _MIXED),
    }
    if not strings:
        del models["mixed"]
    for name, (config, body) in models.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)
        (repository / name / "labels.txt").write_text("\n".join(LABELS) + "\n")
        (repository / name / "1" / "model.py").write_text(_CODE.format(body=body))
    return repository
