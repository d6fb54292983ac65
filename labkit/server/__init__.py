"""A real Triton Inference Server on this machine: find, start, watch, stop."""

from labkit.server.errors import ModelLoadError, PortInUse, ServerError, TritonNotFound
from labkit.server.find import TritonBinary, find_triton
from labkit.server.server import TritonServer, runtime_of

__all__ = [
    "ModelLoadError",
    "PortInUse",
    "ServerError",
    "TritonBinary",
    "TritonNotFound",
    "TritonServer",
    "find_triton",
    "runtime_of",
]
