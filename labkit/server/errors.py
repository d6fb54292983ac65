"""What can go wrong with a server: each message says what happened and what to do."""

from labkit.errors import LabError


class ServerError(LabError):
    """The server could not be started, or ended on its own."""


class TritonNotFound(ServerError):
    """No Triton can run on this machine: neither the wheel's binary nor a container engine."""


class PortInUse(ServerError):
    """A requested port is held by another process, which the message names."""


class ModelLoadError(ServerError):
    """Triton refused to load a model.

    Attributes:
        models: Model name → the server's own log lines about it.
    """

    def __init__(self, message: str, models: dict[str, str]) -> None:
        super().__init__(message)
        self.models = models


class BuildError(ServerError):
    """Triton's own backends, or its Python stub, could not be built; nothing half-built stays."""
