"""Stand-in for Triton's onnxruntime backend, on the CPU."""

from labkit.backends.standin import StandIn


class TritonPythonModel(StandIn):
    """An ONNX model in ONNX Runtime, or in OpenVINO where the accelerator is asked for."""

    def load(self, settings):
        """Load `model.onnx`."""
        from labkit.backends.onnxruntime.engine import load

        return load(settings)

    @staticmethod
    def complete(settings):
        """Return what the native backend adds to a configuration without inputs or outputs."""
        from labkit.backends.onnxruntime.engine import completed

        return completed(settings)
