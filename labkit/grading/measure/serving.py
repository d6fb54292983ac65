"""Measuring configuration, queries and tuning: what a real Triton answers from the repository."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from labkit.grading.measure.base import (
    Case,
    Checks,
    Floats,
    StageMeasurements,
    entry,
    number,
    top1,
)
from labkit.grading.measure.images import SERVED, SERVED_HELD_OUT
from labkit.grading.results import Measurement
from labkit.grading.untrusted import UnfitFile, read_plain
from labkit.profiles import preset
from labkit.repository import (
    PIPELINE,
    VARIANTS,
    ModelSpec,
    RepositoryError,
    parse_config,
    to_config,
)
from labkit.workspace import sha256

SAME_ANSWERS = 0.95  # share of equal predictions, served and run from the file
CLAIM_TOLERANCE = 0.011  # of an accuracy on the same images
SAMPLE_DEVIATIONS = 3.0  # more, where only a part of the images was measured again
CORES = 2  # that threads × instances may use, as the lab says
SERVE_LIMIT_S = 240.0
CONFIG_MIB = 1
MODELS = tuple(name for name in VARIANTS if name != "cifar10_tensorrt")
PIPELINE_NETWORK = "cifar10_onnx"  # the last step of the pipeline
IMAGE_BYTES = 3 * 32 * 32
CLIENTS = 8  # of the load by which a tuned model is measured again
RATE_FACTOR = 5.0  # that images per second may differ by, of two loads on a machine that is busy
MIN_SETTINGS = 4  # different settings that a tuning must have measured


@dataclass(frozen=True)
class Served:
    """What a real server made of a repository.

    Attributes:
        logits: Model → its answers (N, 10) to the images of `served.u8`.
        failed: Model → why it did not load or answer.
        rates: Model → images per second of a short load, where one was asked for.
    """

    logits: dict[str, Floats]
    failed: dict[str, str]
    rates: dict[str, float] = field(default_factory=dict)

    def problem(self, model: str) -> str:
        """Return why a model has no answers."""
        return f"{model}: {self.failed.get(model, 'no answer')}"


def serve(case: Case, models: tuple[str, ...] = MODELS, config_name: str | None = None) -> Served:
    """Serve models of the case's repository in the sandbox, once for the same files.

    Raises:
        UnfitFile: there is no repository, or the sandbox was stopped.
    """
    repository = case.repository
    if repository is None:
        raise UnfitFile("there is no model repository")
    files = sorted(path for path in repository.rglob("*") if path.is_file())
    if config_name is None:  # Triton does not look at the others then
        files = [path for path in files if path.parent.name != "configs"]
    parts = [f"{path.relative_to(repository)} {sha256(path)}" for path in files]
    key = " ".join([str(config_name), *parts])
    for asked, served in case.served.setdefault(key, []):
        if asked >= set(models):
            return served
    served = _serve(case, repository, models, config_name)
    case.served[key].append((frozenset(models), served))
    return served


def _serve(
    case: Case, repository: Path, models: tuple[str, ...], config_name: str | None
) -> Served:
    sandbox, count = case.sandbox, len(case.images.served_labels)
    there = [name for name in models if (repository / name / "config.pbtxt").is_file()]
    failed = {name: "it is not in the repository" for name in models if name not in there}
    try:
        inside = sandbox.put(repository, "repository")
        answer = sandbox.ask(
            SERVE_LIMIT_S, do="serve", repository=inside, models=there, config_name=config_name,
            images=sandbox.images(SERVED), count=count, out=sandbox.outbox,
            clients=CLIENTS if config_name else 0,
        )  # fmt: skip
        said = answer.get("failed") if isinstance(answer, dict) else None
        failed |= {str(k): str(v) for k, v in said.items()} if isinstance(said, dict) else {}
        logits: dict[str, Floats] = {}
        for name in there:
            try:
                logits[name] = sandbox.take(f"{name}.f32", count)
            except UnfitFile as error:
                failed.setdefault(name, str(error))
        told = answer.get("rates") if isinstance(answer, dict) else None
        told = told if isinstance(told, dict) else {}
        rates = {name: found for name in there if (found := number(told.get(name))) is not None}
        return Served(logits, failed, rates)
    finally:
        sandbox.clear()


def measure_configuration(case: Case) -> StageMeasurements:
    """The text of every configuration, and what a real server answers with it."""
    measured = StageMeasurements({"05.configs": _measure_configs(case)})
    served = measured.measure("05.served", lambda: _measure_served(case, serve(case)))
    measured.require(served.value in (None, 1.0), served.detail)
    try:
        case.document("configure.json")
    except UnfitFile as error:
        measured.require(False, str(error))
    return measured


def _measure_served(case: Case, served: Served) -> Measurement:
    checks = Checks()
    for name in MODELS:
        if name not in served.logits:
            checks.add(False, served.problem(name))
            continue
        same = _agreement_with_file(case, VARIANTS[name], served.logits[name])
        checks.add(same >= SAME_ANSWERS, f"{name} answers {same:.0%} as its file does")
    return checks.measurement(
        f"all {len(MODELS)} models load in Triton and answer as their files do"
    )


def _agreement_with_file(case: Case, spec: ModelSpec, answers: Floats) -> float:
    """Share of equal predictions of a served model and the artifact it should be."""
    try:
        expected = case.logits(next(iter(spec.artifacts))).held_out[:SERVED_HELD_OUT]
    except UnfitFile:
        return 0.0
    return top1(answers[:SERVED_HELD_OUT], expected.argmax(1))


def _measure_configs(case: Case) -> Measurement:
    """Hold each config.pbtxt against what the variant is to be; then `labkit check`."""
    if case.repository is None:
        return Measurement(None, "no model repository was made")
    checks = Checks()
    for name in MODELS:
        problem = _config_problem(case.repository, VARIANTS[name])
        checks.add(not problem, f"{name}: {problem}")
    try:
        inside = case.sandbox.put(case.repository, "repository")
        found = case.sandbox.ask(do="check", repository=inside, models=list(MODELS), cores=CORES)
        said = "; ".join(map(str, found[:3])) if isinstance(found, list) else "no answer"
        checks.add(found == [], f"labkit check: {said}")
    except UnfitFile as error:
        checks.add(False, f"labkit check: {error}")
    finally:
        case.sandbox.clear()
    return checks.measurement("every configuration is what its variant needs, and fits its files")


def _config_problem(repository: Path, spec: ModelSpec) -> str:
    """Say what in a configuration is not what the variant needs; empty when nothing."""
    try:
        config = _read_config(repository, f"{spec.name}/config.pbtxt")
    except UnfitFile as error:
        return str(error)
    wanted = to_config(spec)
    for what, got, expected in (
        ("backend", config.backend, wanted.backend),
        ("max_batch_size", config.max_batch_size, wanted.max_batch_size),
        ("dynamic_batching", config.HasField("dynamic_batching"), spec.dynamic_batching),
        ("input", _tensors(config.input), _tensors(wanted.input)),
        ("output", _tensors(config.output), _tensors(wanted.output)),
    ):
        if got != expected:
            return f"{what} is {got!r}, expected {expected!r}"
    instances = _instances(config)
    if not spec.instances <= max(instances, 1) <= CORES * 2:
        return f"{instances} instances, expected at least {spec.instances}, at most {CORES * 2}"
    return ""


def _read_config(repository: Path, name: str) -> pb.ModelConfig:
    """Read a configuration.

    Raises:
        UnfitFile: it is missing, or none.
    """
    try:
        return parse_config(read_plain(repository, name, CONFIG_MIB).decode())
    except (RepositoryError, UnicodeDecodeError) as error:
        raise UnfitFile(str(error)) from error


def _instances(config: pb.ModelConfig) -> int:
    return sum(group.count or 1 for group in config.instance_group)


def _tensors(tensors: Any) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in tensors]


def measure_queries(case: Case) -> StageMeasurements:
    """What notebook 06 says that the server answered, against what it answers."""
    document = case.document("query.json")
    served = serve(case)
    checks = Checks()
    for name in MODELS:
        written = _written(document, name)
        if written is None:
            checks.add(False, f"query.json has no accuracy of {name}")
        else:
            _check_accuracy(case, checks, f"query.json, {name}", written, served, name)
    measurement = checks.measurement(
        "the accuracy of every variant through the server is confirmed"
    )
    complete = all(_written(document, name) for name in MODELS)
    return StageMeasurements.one("06.answers", measurement, complete)


def measure_pipeline(case: Case) -> StageMeasurements:
    """What notebook 10 says of its pipeline, against the network behind it.

    The pipeline gives test images to `cifar10_onnx` as they are, so its accuracy is that model's.
    No Python model of a student runs where models are measured.
    """
    document = case.document("pipeline.json")
    served = serve(case, (PIPELINE_NETWORK,))
    checks = Checks()
    written = _written(document, PIPELINE)
    usable = checks.add(written is not None, f"pipeline.json has no accuracy of {PIPELINE}")
    if written is not None:
        place = f"pipeline.json, {PIPELINE}"
        _check_accuracy(case, checks, place, written, served, PIPELINE_NETWORK)
    floats, pixels = (
        number(entry(document, "requests", way, "bytes")) or 0.0 for way in ("tensor", "thumbnail")
    )
    checks.add(
        floats >= 4 * IMAGE_BYTES and IMAGE_BYTES <= pixels < floats,
        "pipeline.json has not the bytes of a request with floats, and with the same pixels",
    )
    measurement = checks.measurement("the pipeline's accuracy is that of the network behind it")
    return StageMeasurements.one("10.answers", measurement, usable)


def _written(document: Any, variant: str) -> tuple[float, float] | None:
    """Return the accuracy of a variant, and of how many images it is; None where it is missing."""
    accuracy, n = (number(entry(document, "variants", variant, key)) for key in ("accuracy", "n"))
    return None if accuracy is None or n is None else (accuracy, n)


def _check_accuracy(
    case: Case,
    checks: Checks,
    place: str,
    written: tuple[float, float],
    served: Served,
    model: str,
) -> None:
    """Hold an accuracy that is written down against what a model answers."""
    if model not in served.logits:
        checks.add(False, served.problem(model))
        return
    accuracy, n = written
    labels = case.images.served_labels[SERVED_HELD_OUT:]
    measured = top1(served.logits[model][SERVED_HELD_OUT:], labels)
    checks.add(
        _confirmed(case, accuracy, n, measured),
        f"{place}: got {accuracy:.1%} of {n:,.0f} images; {model}, measured through the server: "
        f"{measured:.1%} of {len(labels):,}",
    )


def _confirmed(case: Case, claimed: float, claimed_n: float, measured: float) -> bool:
    """Say whether an accuracy is of enough images, and as near to the measured one as chance."""
    measured_n = len(case.images.served_labels[SERVED_HELD_OUT:])
    enough = claimed_n >= preset(case.profile).test_images
    return enough and abs(claimed - measured) <= _tolerance(claimed_n, measured_n, measured)


def _tolerance(claimed_n: float, measured_n: int, accuracy: float) -> float:
    """Return how far two accuracies may differ, when one is of part of the other's images."""
    if claimed_n <= measured_n:
        return CLAIM_TOLERANCE
    deviation = float(np.sqrt(max(accuracy * (1 - accuracy), 0.01) / measured_n))
    return CLAIM_TOLERANCE + SAMPLE_DEVIATIONS * deviation


def measure_tuning(case: Case) -> StageMeasurements:
    """The recommendation: measured, written back, and served."""
    document = case.document("tune.json")
    checks = Checks()
    grid = entry(document, "grid")
    settings = list(grid.values()) if isinstance(grid, dict) else []
    wanted = entry(document, "recommendation")
    model = entry(wanted, "model")
    usable = checks.add(
        isinstance(model, str) and model in MODELS, "tune.json recommends none of the models"
    )
    fits = False
    if usable:
        problem = _tuned_problem(case, model, wanted)
        usable = checks.add(not problem, problem)
        try:
            served = serve(case, (model,), "tuned")
        except UnfitFile as error:
            served = Served({}, {model: str(error)})
        usable &= _check_tuned_answers(case, model, served, checks)
        best = max((rate for points in settings for rate, _ in _readings(points)), default=0.0)
        fits = _check_rate(best, served.rates.get(model), checks)
    enough = [_was_measured(points) for points in settings]
    checks.add(
        len(enough) >= MIN_SETTINGS and all(enough) and fits,
        f"tune.json has measurements of {sum(enough)} settings, at least {MIN_SETTINGS} expected"
        f"{'' if fits else ', of which the highest rate was confirmed'}",
    )
    measurement = checks.measurement("the tuned setting is measured, written back, and served")
    return StageMeasurements.one("07.tuned", measurement, usable)


def _readings(points: Any) -> list[tuple[float, float]]:
    """Return images per second, and the number of requests, of each point of a setting."""
    return [
        (
            number(entry(point, "images_per_s", "median")) or 0.0,
            number(entry(point, "latency_ms", "n")) or 0.0,
        )
        for point in (points if isinstance(points, list) else [])
    ]


def _was_measured(points: Any) -> bool:
    """Say whether a setting was measured: every point has requests and a rate."""
    readings = _readings(points)
    return bool(readings) and all(rate > 0 and requests > 0 for rate, requests in readings)


def _tuned_problem(case: Case, model: str, wanted: Any) -> str:
    """Say where configs/tuned.pbtxt is not what was recommended; empty when it is."""
    if case.repository is None:
        return "there is no model repository"
    try:
        config = _read_config(case.repository, f"{model}/configs/tuned.pbtxt")
    except UnfitFile as error:
        return str(error)
    found = {
        "instances": _instances(config),
        "dynamic_batching": config.HasField("dynamic_batching"),
    }
    expected = {key: wanted.get(key) for key in found}
    return "" if found == expected else f"configs/tuned.pbtxt has {found}, recommended {expected}"


def _check_tuned_answers(case: Case, model: str, served: Served, checks: Checks) -> bool:
    """Compare a model that was served with its tuned configuration with its file."""
    if model not in served.logits:
        return checks.add(False, served.problem(model))
    same = _agreement_with_file(case, VARIANTS[model], served.logits[model])
    return checks.add(same >= SAME_ANSWERS, f"{model}, tuned, answers {same:.0%} as its file does")


def _check_rate(best: float, measured: float | None, checks: Checks) -> bool:
    """Hold the highest rate of the grid against a load on the server with the tuned setting."""
    return checks.add(
        measured is not None
        and measured > 0
        and measured / RATE_FACTOR <= best <= measured * RATE_FACTOR,
        f"tune.json says up to {best:,.0f} images per second; measured again with the tuned "
        f"setting: {f'{measured:,.0f}' if measured else 'nothing'}, expected within a factor of "
        f"{RATE_FACTOR:g}",
    )
