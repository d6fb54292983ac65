"""Stand-in for Triton's pytorch backend, on the CPU."""

from labkit.backends.standin import StandIn


class TritonPythonModel(StandIn):
    """A TorchScript model in PyTorch."""

    def load(self, settings):
        """Load `model.pt`."""
        from labkit.backends.pytorch.engine import load

        return load(settings)
