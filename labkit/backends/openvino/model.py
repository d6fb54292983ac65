"""Stand-in for Triton's openvino backend."""

from labkit.backends.standin import StandIn


class TritonPythonModel(StandIn):
    """An IR or ONNX model in OpenVINO."""

    def load(self, settings):
        """Load `model.xml` with its `model.bin`, or the file that the configuration names."""
        from labkit.backends.openvino.engine import load

        return load(settings)

    @staticmethod
    def complete(settings):
        """Return what the native backend adds to a configuration without inputs or outputs."""
        from labkit.backends.openvino.engine import completed

        return completed(settings)
