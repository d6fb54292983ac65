"""What the way through the gateway costs, against asking a replica directly."""

from labkit.operate.drills.compare import failed, images_per_s, measure, ratio
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.lab import Lab
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Record

BATCH, CLIENTS = 8, 4
GATEWAY, DIRECT = "through the gateway", "directly"


def run(lab: Lab) -> Outcome:
    """Ask one replica in turn directly and through the gateway."""
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as gateway:
        address = replicas["one"].http
        targets = {
            GATEWAY: lab.target(address, gateway, BATCH),
            DIRECT: lab.target(address, batch=BATCH),
        }
        return _outcome(measure(lab, targets, CLIENTS))


def _outcome(records: dict[str, list[Record]]) -> Outcome:
    share = ratio(records[GATEWAY], records[DIRECT])
    rates = {name: images_per_s(rounds, BATCH) for name, rounds in records.items()}
    median = {
        name: sorted(a.latency_ms for r in rounds for a in r.answered)[
            sum(len(r.answered) for r in rounds) // 2
        ]
        for name, rounds in records.items()
    }
    return Outcome(
        done=f"{CLIENTS} clients with batches of {BATCH}, in turn, {share.n} rounds",
        client=", ".join(
            f"{name}: {rates[name].median:,.0f} images/s, median {median[name]:.0f} ms"
            for name in (DIRECT, GATEWAY)
        ),
        metrics="the same for Triton: it computes the same batches either way",
        lost=f"{100 * (1 - share.median):.1f} % of the throughput",
        cause="The gateway reads each request in full, looks at its key and path, and sends it "
        "on: one more copy on the same cores. The more work in a request, the smaller its share.",
        numbers=[
            Number(
                "throughput through the gateway against direct", share.median, "×",
                at_least=0.9, n=share.n, low=share.low, high=share.high,
            ),
            *(
                Number(name, rate.median, "images/s", n=rate.n, low=rate.low, high=rate.high)
                for name, rate in rates.items()
            ),
            Number("failed requests", failed(records), at_most=0),
        ],
    )  # fmt: skip


DRILL = Drill("gateway-cost", "What the gateway costs", run)
