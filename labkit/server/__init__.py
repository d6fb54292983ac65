"""A real Triton Inference Server on this machine: find, start, watch, stop."""

from labkit.server.engine import engine_of
from labkit.server.errors import ModelLoadError, PortInUse, ServerError, TritonNotFound
from labkit.server.find import TritonBinary, find_triton
from labkit.server.server import TritonServer, choose_runtime, runtime_of
from labkit.server.texts import serve_texts

__all__ = [
    "ModelLoadError",
    "PortInUse",
    "ServerError",
    "TritonBinary",
    "TritonNotFound",
    "TritonServer",
    "choose_runtime",
    "engine_of",
    "find_triton",
    "runtime_of",
    "serve_texts",
]
