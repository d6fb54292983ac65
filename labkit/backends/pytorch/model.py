"""Stand-in for Triton's pytorch backend, on the CPU."""

from labkit.backends.standin import StandIn


class TritonPythonModel(StandIn):
    """A TorchScript model in PyTorch."""

    engine_module = "labkit.backends.pytorch.engine"
