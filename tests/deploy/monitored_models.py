"""Models on Triton's own Python backend, one for each thing that monitoring must show.

`steady` answers after 2 ms and batches; `late` lets nobody wait for longer than 5 ms, and `full` no
second request at all; `raises` fails in Python; `polite` returns its error as an answer.
"""

from pathlib import Path

CODE = """\
import time
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        {execute}
        return [self.answer(request) for request in requests]

    def answer(self, request):
        {answer}
"""
COPY = """x = pb.get_input_tensor_by_name(request, "x").as_numpy()
        return pb.InferenceResponse([pb.Tensor("y", x)])"""
CONFIG = """
backend: "python"
max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ {batching} }}
"""
POLITE = 'return pb.InferenceResponse(error=pb.TritonError("out of chalk"))'
IMPATIENT = "timeout_action: REJECT default_timeout_microseconds: 5000"
MODELS = {
    "steady": ("time.sleep(0.002)", COPY, ""),
    "late": ("time.sleep(0.05)", COPY, f"default_queue_policy {{ {IMPATIENT} }}"),
    "full": ("time.sleep(0.05)", COPY, "default_queue_policy { max_queue_size: 1 }"),
    "raises": ("raise ValueError('out of chalk')", COPY, ""),
    "polite": ("pass", POLITE, ""),
}


def write_models(repository: Path) -> Path:
    for name, (execute, answer, batching) in MODELS.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(
            f'name: "{name}"' + CONFIG.format(batching=batching)
        )
        code = CODE.format(execute=execute, answer=answer)
        (repository / name / "1" / "model.py").write_text(code)
    return repository
