"""What every drill is given: the model of a run in a private repository, and servers to start."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from labkit.bench.target import Target
from labkit.client.counters import Counters
from labkit.errors import LabError
from labkit.operate.gateway import Gateway
from labkit.operate.load import aimed_at
from labkit.operate.replicas import Replica, Replicas
from labkit.repository import CONFIG, THREAD_PARAMETERS, parse_config, to_text
from labkit.workspace import project_root, write_text

MODEL = "cifar10_onnx"
RUNS = ("lab", "standard", "smoke")
# A gateway whose rate limit is not the subject; every drill sends at most what this machine can.
OPEN = {"rate": "100000r/s", "burst": "10000"}


class NoRun(LabError):
    """There is no finished run whose model the drills could serve."""


@dataclass(frozen=True)
class Queue:
    """How long requests may wait inside Triton, and how many.

    Attributes:
        size: Requests that wait at most; one more is refused with 503. 0: no limit.
        timeout_ms: How long one waits at most, in milliseconds; then it is refused. 0: no limit.
        delay_ms: How long one waits for company, in milliseconds. Never 0 beside a policy: then
            the batcher of Triton 24.10 now and then sleeps for half a second with a request in the
            queue and an idle model (measured: some of a hundred requests of a lone client).
    """

    size: int = 0
    timeout_ms: float = 0.0
    delay_ms: float = 1.0


@dataclass
class DrillEnvironment:
    """Where a drill takes place.

    Attributes:
        model: Folder of the model in a run's repository; read, never changed.
        folder: Private folder for repositories and logs.
        short: Fewer requests and seconds, for tests.
        seed: Seeds everything that is random.
        say: Told in a few words what is going on.
    """

    model: Path
    folder: Path
    short: bool = False
    seed: int = 0
    say: Callable[[str], None] = field(default=lambda text: None)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    def for_drill(self, name: str) -> "DrillEnvironment":
        """Return this lab with an empty folder of its own for one drill."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return replace(self, folder=folder)

    def repository(
        self,
        name: str = "models",
        *,
        versions: Sequence[int] = (1,),
        threads: int = 1,
        queue: Queue | None = None,
    ) -> Path:
        """Copy the model into a repository of this drill's own: one instance, dynamic batching.

        Args:
            name: Of the repository, below the lab's folder.
            versions: Version folders, each with the model's files; Triton serves the newest.
            threads: Threads of the instance.
            queue: The queue policy; None for none.
        """
        target = self.folder / name / self.name
        shutil.rmtree(target, ignore_errors=True)
        files = newest_version(self.model)
        for version in versions:
            shutil.copytree(files, target / str(version))
        for labels in self.model.glob("*.txt"):
            shutil.copyfile(labels, target / labels.name)
        config = parse_config((self.model / CONFIG).read_text(encoding="utf-8"))
        del config.instance_group[1:]
        config.instance_group[0].count = 1
        if parameter := THREAD_PARAMETERS.get(config.backend):
            config.parameters[parameter].string_value = str(threads)
        config.dynamic_batching.SetInParent()
        if queue is not None:
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = queue.size
            policy.default_timeout_microseconds = round(1_000 * queue.timeout_ms)
            config.dynamic_batching.max_queue_delay_microseconds = round(1_000 * queue.delay_ms)
        write_text(target / CONFIG, to_text(config))
        return self.folder / name

    def replicas(
        self,
        repository: Path,
        names: Sequence[str] = ("one", "two"),
        extra_args: Sequence[str] = (),
        exit_timeout_s: int = 3,
    ) -> Replicas:
        """Return replicas of a repository, to be started with `with`."""
        self.say(f"starting {len(names)} Triton{'s' if len(names) > 1 else ''}")
        return Replicas(repository, names, self.folder, extra_args, exit_timeout_s)

    def gateway(self, replicas: Replicas, settings: Mapping[str, str] | None = None) -> Gateway:
        """Return a gateway before replicas, to be started with `with`."""
        return Gateway(
            [replica.http for replica in replicas],
            [replica.grpc for replica in replicas],
            self.folder / "gateway",
            settings=OPEN if settings is None else settings,
        )

    def target(
        self, replica: str, gateway: Gateway | None = None, batch: int = 1, timeout_s: float = 30.0
    ) -> Target:
        """Return requests of random images, for a gateway or straight for a replica.

        Args:
            replica: HTTP address of a replica that runs.
            gateway: Where the requests go; None for the replica itself.
            batch: Images per request.
            timeout_s: Longest wait for one answer, in seconds.
        """
        if gateway is None:
            return aimed_at(replica, self.name, batch=batch, timeout_s=timeout_s)
        return aimed_at(
            replica,
            self.name,
            url=gateway.http_url,
            key=gateway.key,
            batch=batch,
            timeout_s=timeout_s,
        )

    def counters(self, replicas: Iterable[Replica]) -> Counters:
        """Return what all these replicas have counted of the model together."""
        return Counters.total(Counters.read(replica.metrics, self.name) for replica in replicas)


def newest_version(model: Path) -> Path:
    """Return the version folder with the highest number.

    Raises:
        NoRun: there is none.
    """
    versions = [path for path in model.glob("*") if path.name.isdecimal() and any(path.iterdir())]
    if not versions:
        raise NoRun(f"{model} holds no version with a file in it: run notebook 05_configure first")
    return max(versions, key=lambda path: int(path.name))


def find_model(run: Path | None = None) -> Path:
    """Return the folder of the model that the drills serve.

    Args:
        run: Folder of a run; None for the newest complete one of the project.

    Raises:
        NoRun: the run has no such model, or there is no run.
    """
    if run is not None:
        found = _model_of(run.absolute())
        if found is None:
            raise NoRun(
                f"{run} has no {MODEL} with a model file: expected a run that got through notebook "
                "05, such as runs/standard; `labkit run` makes one"
            )
        return found
    folders = [project_root() / "runs" / name for name in RUNS]
    candidates = [path for path in map(_model_of, folders) if path is not None]
    if not candidates:
        raise NoRun(
            f"no run has a {MODEL} to serve: looked into runs/{', runs/'.join(RUNS)}; "
            "make one with `make lab PROFILE=smoke` (3 minutes), or name one with --run"
        )
    return max(candidates, key=lambda path: newest_version(path).stat().st_mtime)


def _model_of(run: Path) -> Path | None:
    """Return the model's folder of a run; None where it is not complete."""
    if not run.is_dir():
        return None
    by_hand = run == project_root() / "runs" / RUNS[0]
    repository = project_root() / "model_repository" if by_hand else run / "model_repository"
    model = repository / MODEL
    if not (model / CONFIG).is_file():
        return None
    try:
        newest_version(model)
    except NoRun:
        return None
    return model
