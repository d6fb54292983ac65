"""Put load on a model and measure what comes back: closed loop, open loop, and the server's share.

Closed loop: N clients, each sends its next request when the last answer is there. It finds the
greatest throughput, and flatters latency: a slow server slows its own load down.

Open loop: requests arrive at a given rate, whether or not the server keeps up, as users do.
Latency counts from the moment a request was due, so a stall is charged to every request that it
delayed (Tene, "How NOT to Measure Latency": coordinated omission).

The load comes from this machine and competes with the server for its cores: compare settings
within one run, and do not read the figures as the server's own limit.
"""

from labkit.bench.loops import closed_loop, poisson_schedule, repeat
from labkit.bench.memory import InstanceMemory, instance_memory
from labkit.bench.results import BenchError, LoadResult, Percentiles, Repeated, ServerSplit
from labkit.bench.target import LoadOptions, random_inputs, require_loopback
from labkit.compare import in_turn

__all__ = [
    "BenchError",
    "InstanceMemory",
    "LoadOptions",
    "LoadResult",
    "Percentiles",
    "Repeated",
    "ServerSplit",
    "closed_loop",
    "in_turn",
    "instance_memory",
    "poisson_schedule",
    "random_inputs",
    "repeat",
    "require_loopback",
]
