"""Load in the background while something happens to the servers, every answer kept with its time.

The senders and loops are those of `labkit.bench`; here each answer is written down, because a drill
asks not how fast the servers were but what each request met.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from labkit.bench import BenchError, LoadOptions, Percentiles, poisson_schedule
from labkit.bench.loops import Asked, ask_in_turn, ask_on_schedule, run_load
from labkit.bench.senders import Sender
from labkit.bench.target import Target, require_loopback
from labkit.operate.processes import until

MAX_SECONDS, MAX_REQUESTS = 600.0, 200_000
# A kept-alive connection that the other side has closed just as a request was sent on it. HTTP lets
# a client repeat what is safe to repeat (RFC 9112, 9.3.1), and tritonclient's HTTP client does.
CLOSED = frozenset({"ServerDisconnectedError", "ClientOSError", "ClientConnectionResetError"})
ATTEMPTS = 3
MAX_WORDS = 320  # characters of an error that are kept
_STATUS = re.compile(r"^HTTP (?P<status>\d{3}): (?P<text>.*)$", re.DOTALL)
_MESSAGE = re.compile(r'"error"\s*:\s*"(?P<text>(?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Answer:
    """What one request met.

    Attributes:
        at_s: When it was over, in seconds since the load began.
        latency_ms: From sending until then.
        status: HTTP status; 0 where no answer came.
        error: Empty for an answer with a result; else the server's words or the kind of error.
        resent: How often it was sent again, as its kept-alive connection had been closed.
    """

    at_s: float
    latency_ms: float
    status: int
    error: str
    resent: int = 0

    @property
    def kind(self) -> str:
        """Status and words, the same for requests that failed for the same reason."""
        return f"{self.status}: {self.error}" if self.status else self.error


@dataclass(frozen=True)
class Second:
    """One second of a load: answers with a result, and those without one by kind."""

    second: int
    answered: int
    failed: int
    refused: int  # 503 and 429: the server said no at once, as it was told to
    p99_ms: float | None


@dataclass
class Record:
    """Everything that a load met.

    Attributes:
        answers: In the order in which they came back.
        seconds: How long it lasted.
        due_latency_ms: Open loop: latency from the moment a request was due, of those answered.
        late_ms: Open loop: how late requests were sent, 95th percentile.
        dropped: Open loop: requests that were due and never sent, as too many were under way.
    """

    answers: Sequence[Answer]
    seconds: float
    due_latency_ms: Sequence[float] = ()
    late_ms: float = 0.0
    dropped: int = 0

    @property
    def answered(self) -> list[Answer]:
        """Those with a result."""
        return [answer for answer in self.answers if not answer.error]

    @property
    def failed(self) -> list[Answer]:
        """Those without."""
        return [answer for answer in self.answers if answer.error]

    @property
    def resent(self) -> int:
        """Requests that were sent again, as their kept-alive connection had been closed."""
        return sum(answer.resent > 0 for answer in self.answers)

    @property
    def errors(self) -> dict[str, int]:
        """Kind of error → how often, the most frequent first."""
        return dict(Counter(answer.kind for answer in self.failed).most_common())

    @property
    def rate_per_s(self) -> float:
        """Requests answered with a result per second."""
        return len(self.answered) / max(self.seconds, 1e-9)

    def latency_ms(self) -> Percentiles:
        """Return the latencies of the answered requests: from when they were due, if known.

        Raises:
            BenchError: none was answered.
        """
        return Percentiles.of(
            self.due_latency_ms or [answer.latency_ms for answer in self.answered]
        )

    def longest_gap_s(self) -> float:
        """Return the longest time without any answer that has a result, in seconds."""
        times = [0.0, *(answer.at_s for answer in self.answered), self.seconds]
        return max(b - a for a, b in pairwise(times))

    def per_second(self) -> list[Second]:
        """Return what came back in each second, for a figure."""
        rows = []
        for second in range(int(self.seconds) + 1):
            here = [answer for answer in self.answers if int(answer.at_s) == second]
            good = sorted(answer.latency_ms for answer in here if not answer.error)
            refused = sum(answer.status in (429, 503) for answer in here)
            p99 = good[min(len(good) - 1, int(0.99 * len(good)))] if good else None
            rows.append(Second(second, len(good), len(here) - len(good) - refused, refused, p99))
        return rows


@dataclass(frozen=True)
class LoadProfile:
    """What load to put on.

    Attributes:
        clients: Closed loop: so many clients, each with one request under way.
        rate_per_s: Open loop instead: so many requests per second on average.
        seconds: How long at most.
        requests: How many at most.
    """

    clients: int = 8
    rate_per_s: float | None = None
    seconds: float = 60.0
    requests: int = MAX_REQUESTS

    def __post_init__(self) -> None:
        """Refuse what is not bounded."""
        if not (0 < self.seconds <= MAX_SECONDS and 0 < self.requests <= MAX_REQUESTS):
            raise BenchError(
                f"got {self.seconds} seconds and {self.requests} requests, expected at most "
                f"{MAX_SECONDS:g} and {MAX_REQUESTS:,}"
            )


class Load:
    """A load that runs in the background; a context manager, at whose end it has stopped.

    Args:
        target: What is sent, and where to; see `aimed_at`.
        profile: How much.
    """

    def __init__(self, target: Target, profile: LoadProfile) -> None:
        self.answers: list[Answer] = []
        self._target, self._profile = target, profile
        self._stop = threading.Event()
        self._begin = 0.0
        self._asked: Asked | None = None
        self._error: BaseException | None = None
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="labkit-load", daemon=True)

    def __enter__(self) -> Self:
        self._begin = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def now_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._begin

    @property
    def running(self) -> bool:
        """Whether it still sends or waits for answers."""
        return self._thread.is_alive()

    def reached(self, requests: int, limit_s: float) -> bool:
        """Wait until so many answers are there; return whether that came true in time."""
        until(lambda: len(self.answers) >= requests or not self.running, limit_s)
        return len(self.answers) >= requests

    def send_no_more(self) -> None:
        """Let each client of a closed loop leave when it has the answer that it waits for."""
        self._stop.set()

    def stop(self) -> None:
        """Send no more, and wait for the answers that are still due."""
        self.send_no_more()
        self._thread.join()

    def finish(self) -> Record:
        """Wait until its time or its requests are used up; return what it met.

        Raises:
            BenchError: the load generator itself failed.
        """
        self._thread.join()
        return self.record()

    def record(self) -> Record:
        """Stop if it has not ended yet, and return what it met.

        Raises:
            BenchError: the load generator itself failed.
        """
        self.stop()
        if self._error is not None:
            raise BenchError(f"the load broke off: {self._error}") from self._error
        record = Record(self.answers, self._seconds)
        if self._asked is not None and self._profile.rate_per_s:
            record.due_latency_ms = self._asked.samples_ms
            late = sorted(self._asked.late_ms)
            record.late_ms = late[int(0.95 * len(late))] if late else 0.0
            record.dropped = sum(n for k, n in self._asked.errors.items() if "dropped" in k)
        return record

    def _run(self) -> None:
        try:
            connections = self._profile.clients
            if self._profile.rate_per_s:
                connections = self._target.options.max_in_flight
            self._asked = run_load(self._target, self._ask, connections)
        except BaseException as error:
            self._error = error
        self._seconds = time.perf_counter() - self._begin

    async def _ask(self, sender: Sender) -> Asked:
        profile, recorder = self._profile, _Recorder(sender, self.answers, self._begin)
        if profile.rate_per_s is None:
            return await ask_in_turn(
                recorder, profile.clients, profile.seconds, profile.requests, self._stop.is_set
            )
        due_s = poisson_schedule(profile.rate_per_s, profile.seconds, self._target.options.seed)
        return await ask_on_schedule(
            recorder, due_s[: profile.requests], self._target.options.max_in_flight
        )


@dataclass
class _Recorder:
    """A sender that writes down what each request met."""

    sender: Sender
    answers: list[Answer]
    begin: float

    async def send(self) -> str | None:
        """Ask once; return None for an answer, else the kind of error."""
        start = time.perf_counter()
        error, resent = await self.sender.send(), 0
        while error in CLOSED and resent < ATTEMPTS - 1:
            error, resent = await self.sender.send(), resent + 1
        end = time.perf_counter()
        status, text = parse_error(error)
        self.answers.append(Answer(end - self.begin, 1e3 * (end - start), status, text, resent))
        return error

    async def statistics(self) -> dict[str, Any]:
        """Read the model's counters."""
        return await self.sender.statistics()

    async def close(self) -> None:
        """Close the connections."""
        await self.sender.close()


def parse_error(error: str | None) -> tuple[int, str]:
    """Return status and words of what a sender says; 200 and no words for None."""
    if error is None:
        return 200, ""
    match = _STATUS.match(error)
    if match is None:
        return 0, error
    said = _MESSAGE.search(match["text"])
    words = said["text"] if said else match["text"].strip()
    return int(match["status"]), (words or "no message")[:MAX_WORDS]


def aimed_at(
    replica: str,
    model: str,
    *,
    url: str = "",
    key: str = "",
    batch: int = 1,
    timeout_s: float = 30.0,
) -> Target:
    """Prepare requests of random images.

    Args:
        replica: HTTP address of a replica, which is asked for the model's tensors.
        model: Its name.
        url: Where the load goes to: a gateway's HTTP address; the replica itself when left out.
        key: The gateway's key, sent as `X-API-Key`.
        batch: Images per request.
        timeout_s: Longest wait for one answer, in seconds.

    Raises:
        BenchError: another machine, or a batch that does not fit.
    """
    headers = {"X-API-Key": key} if key else {}
    options = LoadOptions(timeout_s=timeout_s, headers=headers, max_in_flight=400)
    target = Target.prepare(replica, model, batch, options)
    return replace(target, url=require_loopback(url)) if url else target
