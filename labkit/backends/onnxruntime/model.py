"""Stand-in for Triton's onnxruntime backend, on the CPU."""

from labkit.backends.standin import StandIn


class TritonPythonModel(StandIn):
    """An ONNX model in ONNX Runtime, or in OpenVINO where the accelerator is asked for."""

    engine_module = "labkit.backends.onnxruntime.engine"
