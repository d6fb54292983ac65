"""Ask a Triton server: numpy in, logits or labels out, over HTTP or gRPC.

One `LabClient` belongs to one thread and one process: the HTTP transport is built on gevent, whose
sockets cannot be shared. Close it (`with LabClient(...) as client:`): an exiting server waits for
open keep-alive connections.

This package needs numpy and tritonclient only; it never imports torch.
"""

from labkit.client.errors import (
    BadInput,
    ClientError,
    InvalidRequest,
    NotFound,
    ServerFault,
    Timeout,
    Unavailable,
    Unreachable,
    Unsupported,
)
from labkit.client.lab_client import LabClient, ModelState, Prediction, Protocol
from labkit.client.metrics_page import PORTS, Sample, host_and_port, metrics
from labkit.client.tensors import Arrays, ModelCard, TensorInfo, check_inputs, check_range, split
from labkit.client.transport import GRPC_CHANNEL_ARGS, plain

__all__ = [
    "GRPC_CHANNEL_ARGS",
    "PORTS",
    "Arrays",
    "BadInput",
    "ClientError",
    "InvalidRequest",
    "LabClient",
    "ModelCard",
    "ModelState",
    "NotFound",
    "Prediction",
    "Protocol",
    "Sample",
    "ServerFault",
    "TensorInfo",
    "Timeout",
    "Unavailable",
    "Unreachable",
    "Unsupported",
    "check_inputs",
    "check_range",
    "host_and_port",
    "metrics",
    "plain",
    "split",
]
