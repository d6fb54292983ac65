"""What is sent, and where to: this machine only, and within limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from labkit.bench.results import BenchError
from labkit.client import Arrays, LabClient, ModelCard, host_and_port

MAX_SECONDS = 600.0


@dataclass(frozen=True)
class LoadOptions:
    """What rarely changes between measurements.

    Attributes:
        protocol: `http` or `grpc`; the address must be that endpoint's.
        warmup_s: Load that does not count, before the measurement.
        timeout_s: Longest wait for one answer; after that the request counts as an error.
        max_requests: Upper limit of requests in one measurement.
        max_in_flight: Open loop: requests under way at once; beyond, arrivals count as dropped.
        inputs: Input name → array with `batch` rows; None for random values that fit.
        seed: Seeds the random values and the arrival times.
        headers: Sent with every request, such as a gateway's key; gRPC: its metadata.
    """

    protocol: Literal["http", "grpc"] = "http"
    warmup_s: float = 0.3
    timeout_s: float = 10.0
    max_requests: int = 100_000
    max_in_flight: int = 512
    inputs: Mapping[str, np.ndarray] | None = None
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


DEFAULTS = LoadOptions()


def random_inputs(card: ModelCard, batch: int, seed: int = 0) -> Arrays:
    """Make values that fit a model's metadata: floats in [0, 1), small integers, short texts.

    Free axes get `batch` where they are the batch axis, else 1.

    Raises:
        BenchError: the batch exceeds the model's limit.
    """
    if card.max_batch_size and batch > card.max_batch_size:
        raise BenchError(
            f"got batch={batch}, but {card.name} takes at most {card.max_batch_size} per request"
        )
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for tensor in card.inputs:
        shape = [batch if i == 0 and d == -1 else abs(d) for i, d in enumerate(tensor.shape)]
        if tensor.datatype == "BYTES":
            arrays[tensor.name] = np.full(shape, b"text", dtype=np.object_)
            continue
        dtype = np.dtype(triton_to_np_dtype(tensor.datatype))
        values = rng.random(shape) if dtype.kind not in "iub" else rng.integers(0, 2, shape)
        arrays[tensor.name] = values.astype(dtype)
    return arrays


@dataclass(frozen=True)
class Target:
    """What to ask, and where."""

    url: str
    model: str
    batch: int
    arrays: Arrays
    outputs: tuple[str, ...]
    options: LoadOptions

    @classmethod
    def prepare(cls, url: str, model: str, batch: int, options: LoadOptions) -> Target:
        """Ask the server for the model's metadata, and make or check the inputs.

        Raises:
            BenchError: another machine, or inputs or limits that do not fit.
        """
        within("batch", batch, 1, 4096)
        within("warmup_s", options.warmup_s, 0, MAX_SECONDS)
        within("timeout_s", options.timeout_s, 1e-3, MAX_SECONDS)
        address = require_loopback(url)
        with LabClient(address, options.protocol, timeout_s=options.timeout_s) as client:
            card = client.card(model)
        arrays = dict(options.inputs or random_inputs(card, batch, options.seed))
        if card.inputs[0].shape[:1] == (-1,) and len(arrays[card.inputs[0].name]) != batch:
            raise BenchError(f"the given inputs hold other than batch={batch} rows")
        outputs = tuple(tensor.name for tensor in card.outputs)
        return cls(address, model, batch, arrays, outputs, options)


def require_loopback(url: str) -> str:
    """Return `host:port` if it is on this machine; load on others' servers is an attack.

    Raises:
        BenchError: the host is another machine.
    """
    address = host_and_port(url)
    host = address.rsplit(":", 1)[0].strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise BenchError(
            f"got the address {address}; load goes to this machine only, such as 127.0.0.1:8000"
        )
    return address


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside [low, high]."""
    if not low <= value <= high:
        raise BenchError(f"got {name}={value}, expected {low:g} to {high:g}")
