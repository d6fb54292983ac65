"""Stand-in for Triton's openvino backend."""

from labkit.backends.standin import StandIn


class TritonPythonModel(StandIn):
    """An IR or ONNX model in OpenVINO."""

    engine_module = "labkit.backends.openvino.engine"
