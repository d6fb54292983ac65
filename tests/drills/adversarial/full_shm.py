"""Triton with hardly any shared memory, in which it hands tensors to Python-based models."""

import os
import subprocess
import sys
from pathlib import Path

from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Moment, NotMeasured, Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.processes import until
from labkit.operate.programs import Program
from labkit.operate.replicas import lasting_ports
from labkit.server.ports import can_listen

SHM = Path("/dev/shm")
KIB = 1024
# One instance takes 1 MiB when it starts, and more as its tensors need it.
ENOUGH_TO_START, TOO_LITTLE = 1_024 * KIB, 512 * KIB
SMALL, LARGE = 1, 64  # images per request; 64 are 0.8 MB, four at once do not fit
CLIENTS = 4
START_LIMIT_S = 60.0


def run(lab: DrillEnvironment) -> Outcome:
    """Serve with 1 MiB of shared memory; then try to start with half of that."""
    bubblewrap = find_bubblewrap()
    repository = lab.repository()
    lab.say("starting Triton with 1 MiB of /dev/shm")
    seconds = 2.0 if lab.short else 6.0
    ports = lasting_ports(3)
    address = f"127.0.0.1:{ports[0]}"
    program = Program(
        "Triton in a small /dev/shm",
        [*confined(bubblewrap, ENOUGH_TO_START), *serve_command(repository, ports)],
        lab.folder / "serve.log",
        lambda: "ready:" in (lab.folder / "serve.log").read_text(errors="replace"),
        environment=_temporary(lab),
        start_limit_s=START_LIMIT_S,
    )
    with program:
        records = []
        for batch, words in ((SMALL, "small"), (LARGE, "large"), (SMALL, "small")):
            lab.say(f"{words} requests")
            with Load(
                lab.target(address, batch=batch), LoadProfile(CLIENTS, seconds=seconds)
            ) as load:
                records.append(load.finish())
        alive = program.running
        outside = regions_outside(lab)
    until(lambda: can_listen(ports[0]), 20)
    lab.say("starting Triton with too little of it")
    refusal = _refusal(bubblewrap, repository, lab)
    return _outcome(records, alive, refusal, outside)


def find_bubblewrap() -> str:
    """Return the bubblewrap program that works here.

    Raises:
        NotMeasured: there is none, or this system does not let it work.
    """
    try:
        from labkit.grading.sandbox import SandboxUnavailable, find_isolation
    except ImportError:
        raise NotMeasured("this edition comes without the sandbox that hides /dev/shm") from None
    try:
        return find_isolation().program
    except SandboxUnavailable as error:
        raise NotMeasured(f"no private /dev/shm can be made: {error}") from error


def confined(bubblewrap: str, shm_bytes: int) -> list[str]:
    """Return the beginning of a command that runs with a /dev/shm of its own.

    Everything else is the machine's own; nothing of the machine's /dev/shm is seen or filled.
    """
    return [
        bubblewrap, "--dev-bind", "/", "/", "--size", str(shm_bytes), "--tmpfs", str(SHM),
        "--die-with-parent", "--",
    ]  # fmt: skip


def serve_command(repository: Path, ports: list[int]) -> list[str]:
    """Return the command that serves a repository at three ports."""
    names = ("--http-port", "--grpc-port", "--metrics-port")
    flags = [text for name, port in zip(names, ports, strict=True) for text in (name, str(port))]
    return [
        sys.executable,
        "-m",
        "labkit",
        "serve",
        str(repository),
        "--runtime",
        "stand-in",
        *flags,
    ]


def regions_outside(lab: DrillEnvironment) -> int:
    """Return how many of this server's shared-memory files lie in the machine's own /dev/shm."""
    names = [folder.name for folder in (lab.folder / "tmp").glob("labkit-triton-*")]
    return sum(len(list(SHM.glob(f"{name}-*"))) for name in names)


def _temporary(lab: DrillEnvironment) -> dict[str, str]:
    """Return the variable that keeps temporary files in the drill's folder."""
    folder = lab.folder / "tmp"
    folder.mkdir(exist_ok=True)
    return {"TMPDIR": str(folder)}


def _refusal(bubblewrap: str, repository: Path, lab: DrillEnvironment) -> str:
    """Return what Triton says when it cannot even start; empty when it does start."""
    command = [*confined(bubblewrap, TOO_LITTLE), *serve_command(repository, [0, 0, 0])]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            env={**os.environ, **_temporary(lab)},
        )
    except subprocess.TimeoutExpired:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines()]
    return next((line for line in lines if "shared memory" in line), " ".join(lines)[:300])


def _outcome(records: list[Record], alive: bool, refusal: str, outside: int) -> Outcome:
    small, large, again = records
    words = next(iter(large.errors), "")
    told = [answer for answer in large.failed if "shm-size" in answer.error]
    return Outcome(
        done="Triton with 1 MiB of /dev/shm, all of which its one instance takes when it starts; "
        "then with half a MiB",
        client=f"requests of {SMALL} image: {len(small.failed) + len(again.failed)} errors; of "
        f"{LARGE} images: {len(large.failed)} of {len(large.answers)} failed with: {words}",
        metrics="the failures count as nv_inference_request_failure with reason BACKEND",
        lost="the requests whose tensors found no room; the server and the model go on",
        cause="Tensors reach a Python-based model through shared memory, which grows with the "
        f"largest batch. With half a MiB Triton does not start and says: {refusal[:160]}",
        numbers=[
            Number(
                "small requests that failed",
                len(small.failed) + len(again.failed),
                at_most=0,
                n=len(small.answers) + len(again.answers),
            ),
            Number("large requests that failed", len(large.failed), n=len(large.answers)),
            Number(
                "of these without a message that names --shm-size",
                len(large.failed) - len(told),
                at_most=0,
            ),
            Number("server alive afterwards", float(alive), at_least=1),
            Number(
                "refuses to start with half a MiB, with a reason",
                float("shared memory" in refusal),
                at_least=1,
            ),
            Number("its files in the machine's own /dev/shm", outside, at_most=0),
        ],
        moments=[Moment(0.0, "full")],
        evidence={"errors": large.errors},
    )


DRILL = Drill("full-shm", "No room in /dev/shm", run)
