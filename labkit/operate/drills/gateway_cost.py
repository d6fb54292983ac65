"""What the way through the gateway costs, against asking a replica directly."""

from statistics import median

from labkit.operate.drills.compare import failed, images_per_s, measure, ratio
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.lab import Lab
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Record
from labkit.operate.processes import cpu_s

BATCH, CLIENTS = 8, 4
GATEWAY, DIRECT = "through the gateway", "directly"


def run(lab: Lab) -> Outcome:
    """Ask one replica in turn directly and through the gateway."""
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as gateway:
        one = replicas["one"]
        targets = {
            GATEWAY: lab.target(one.http, gateway, BATCH),
            DIRECT: lab.target(one.http, batch=BATCH),
        }
        servers = {GATEWAY: gateway.pid or 0, DIRECT: one.pid}
        before = {name: cpu_s(pid) for name, pid in servers.items()}
        records = measure(lab, targets, CLIENTS)
        spent = {name: cpu_s(pid) - before[name] for name, pid in servers.items()}
    return _outcome(records, spent[GATEWAY], spent[DIRECT])


def _outcome(records: dict[str, list[Record]], gateway_s: float, triton_s: float) -> Outcome:
    share = ratio(records[GATEWAY], records[DIRECT])
    rates = {name: images_per_s(rounds, BATCH) for name, rounds in records.items()}
    typical = {name: _median_ms(rounds) for name, rounds in records.items()}
    through = max(sum(len(record.answered) for record in records[GATEWAY]), 1)
    every = max(sum(len(record.answered) for rounds in records.values() for record in rounds), 1)
    shown = ", ".join(
        f"{name}: {rates[name].median:,.0f} images/s, median {typical[name]:.0f} ms"
        for name in (DIRECT, GATEWAY)
    )
    return Outcome(
        done=f"{CLIENTS} clients with batches of {BATCH}, in turn, {share.n} rounds, without TLS",
        client=shown,
        metrics="the same for Triton either way; processor time per request: "
        f"{1e3 * gateway_s / through:.2f} ms in the gateway, {1e3 * triton_s / every:.1f} ms in "
        "Triton and its model",
        lost=f"{100 * (1 - share.median):.1f} % of the throughput",
        cause="The gateway reads each request in full, looks at its key and path, and sends it on: "
        "one more copy on the same cores. The more work in a request, the smaller its share.",
        numbers=[
            Number("throughput through the gateway against direct", share.median, "×",
                   at_least=0.9, n=share.n, low=share.low, high=share.high),
            Number("processor time of the gateway", 1e3 * gateway_s / through, "ms", n=through),
            Number("processor time of Triton", 1e3 * triton_s / every, "ms", n=every),
            *(
                Number(name, rate.median, "images/s", n=rate.n, low=rate.low, high=rate.high)
                for name, rate in rates.items()
            ),
            Number("failed requests", failed(records), at_most=0),
        ],
    )  # fmt: skip


def _median_ms(records: list[Record]) -> float:
    return median(answer.latency_ms for record in records for answer in record.answered)


DRILL = Drill("gateway-cost", "What the gateway costs", run)
