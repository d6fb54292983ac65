"""Judging configuration, queries and tuning: by what a real Triton answers from the repository."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labkit.grading.measure.base import (
    Case,
    Checks,
    Floats,
    StageMeasurements,
    entry,
    nothing,
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
    measurements = {"05.configs": _measure_configs(case)}
    try:
        served = serve(case)
        measurements["05.served"], accepted = _measure_served(case, served)
    except UnfitFile as error:
        measurements["05.served"], accepted = nothing(error), False
    try:
        case.document("configure.json")
        missing = ""
    except UnfitFile as error:
        missing, accepted = str(error), False
    why_not = missing or measurements["05.served"].detail
    return StageMeasurements(measurements, accepted, "" if accepted else why_not)


def _measure_served(case: Case, served: Served) -> tuple[Measurement, bool]:
    checks = Checks()
    for name in MODELS:
        if name not in served.logits:
            checks.add(False, f"{name}: {served.failed.get(name, 'no answer')}")
            continue
        same = _agreement_with_file(case, VARIANTS[name], served.logits[name])
        checks.add(same >= SAME_ANSWERS, f"{name} answers {same:.0%} as its file does")
    measurement = checks.measurement(
        f"all {len(MODELS)} models load in Triton and answer as their files do"
    )
    return measurement, measurement.value == 1.0


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
        text = read_plain(repository, f"{spec.name}/config.pbtxt", CONFIG_MIB)
        config = parse_config(text.decode())
    except (UnfitFile, RepositoryError, UnicodeDecodeError) as error:
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
    instances = sum(group.count or 1 for group in config.instance_group)
    if not spec.instances <= max(instances, 1) <= CORES * 2:
        return f"{instances} instances, expected at least {spec.instances}, at most {CORES * 2}"
    return ""


def _tensors(tensors: Any) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in tensors]


def measure_queries(case: Case) -> StageMeasurements:
    """What notebook 06 says that the server answered, against what it answers."""
    document = case.document("query.json")
    served = serve(case)
    checks, complete = Checks(), True
    labels = case.images.served_labels[SERVED_HELD_OUT:]
    for name in MODELS:
        claimed = number(entry(document, "variants", name, "accuracy"))
        n = number(entry(document, "variants", name, "n"))
        if claimed is None or n is None:
            checks.add(False, f"query.json has no accuracy of {name}")
            complete = False
            continue
        if name not in served.logits:
            checks.add(False, f"{name}: {served.failed.get(name, 'no answer')}")
            continue
        measured = top1(served.logits[name][SERVED_HELD_OUT:], labels)
        checks.add(
            _confirmed(case, claimed, n, measured),
            f"query.json says {claimed:.1%} of {n:,.0f} images for {name}; measured through the "
            f"server: {measured:.1%} of {len(labels):,}",
        )
    measurement = checks.measurement(
        "the accuracy of every variant through the server is confirmed"
    )
    return StageMeasurements.one("06.answers", measurement, complete)


def measure_pipeline(case: Case) -> StageMeasurements:
    """What notebook 10 says of its pipeline, against the network behind it.

    The pipeline gives test images to `cifar10_onnx` as they are, so its accuracy is that model's.
    No Python model of a student runs where models are measured.
    """
    document = case.document("pipeline.json")
    served = serve(case, (PIPELINE_NETWORK,))
    checks = Checks()
    claimed = number(entry(document, "variants", PIPELINE, "accuracy"))
    n = number(entry(document, "variants", PIPELINE, "n"))
    usable = checks.add(
        claimed is not None and n is not None, f"pipeline.json has no accuracy of {PIPELINE}"
    )
    if claimed is not None and n is not None and PIPELINE_NETWORK in served.logits:
        labels = case.images.served_labels[SERVED_HELD_OUT:]
        measured = top1(served.logits[PIPELINE_NETWORK][SERVED_HELD_OUT:], labels)
        checks.add(
            _confirmed(case, claimed, n, measured),
            f"pipeline.json says {claimed:.1%} of {n:,.0f} images; {PIPELINE_NETWORK}, measured "
            f"through the server: {measured:.1%} of {len(labels):,}",
        )
    floats, pixels = (
        number(entry(document, "requests", way, "bytes")) or 0.0 for way in ("tensor", "thumbnail")
    )
    checks.add(
        floats >= 4 * IMAGE_BYTES and IMAGE_BYTES <= pixels < floats,
        "pipeline.json has not the bytes of a request with floats, and with the same pixels",
    )
    measurement = checks.measurement("the pipeline's accuracy is that of the network behind it")
    return StageMeasurements.one("10.answers", measurement, usable)


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
    model = entry(document, "recommendation", "model")
    usable = checks.add(
        isinstance(model, str) and model in MODELS, "tune.json recommends none of the models"
    )
    if usable:
        problem = _tuned_problem(case, model, entry(document, "recommendation"))
        usable = checks.add(not problem, problem)
        usable &= _check_tuned_server(case, model, checks)
        _check_rate(case, model, document, checks)
    grid = entry(document, "grid")
    counts = [_measured(points) for points in grid.values()] if isinstance(grid, dict) else []
    checks.add(
        len(counts) >= MIN_SETTINGS and all(counts),
        f"tune.json has measurements of {sum(counts)} settings, at least {MIN_SETTINGS} expected",
    )
    measurement = checks.measurement("the tuned setting is measured, written back, and served")
    return StageMeasurements.one("07.tuned", measurement, usable)


def _check_rate(case: Case, model: str, document: Any, checks: Checks) -> None:
    """Hold the highest rate of the grid against a load on the server with the tuned setting."""
    grid = entry(document, "grid")
    rows = [point for points in grid.values() if isinstance(points, list) for point in points] if (
        isinstance(grid, dict)
    ) else []  # fmt: skip
    claimed = [number(entry(point, "images_per_s", "median")) or 0.0 for point in rows]
    try:
        measured = serve(case, (model,), "tuned").rates.get(model)
    except UnfitFile:
        measured = None
    best = max(claimed, default=0.0)
    checks.add(
        measured is not None
        and measured / RATE_FACTOR <= best <= measured * RATE_FACTOR
        and measured > 0,
        f"tune.json says up to {best:,.0f} images per second; measured again with the tuned "
        f"setting: {'nothing' if measured is None else f'{measured:,.0f}'}, expected within a "
        f"factor of {RATE_FACTOR:g}",
    )


def _measured(points: Any) -> bool:
    """Say whether a setting was measured: every point has requests and a rate."""
    return (
        isinstance(points, list)
        and len(points) > 0
        and all(
            (number(entry(point, "latency_ms", "n")) or 0) > 0
            and (number(entry(point, "images_per_s", "median")) or 0) > 0
            for point in points
        )
    )


def _tuned_problem(case: Case, model: str, wanted: Any) -> str:
    """Say where configs/tuned.pbtxt is not what was recommended; empty when it is."""
    if case.repository is None:
        return "there is no model repository"
    try:
        text = read_plain(case.repository, f"{model}/configs/tuned.pbtxt", CONFIG_MIB)
        config = parse_config(text.decode())
    except (UnfitFile, RepositoryError, UnicodeDecodeError) as error:
        return str(error)
    instances = sum(group.count or 1 for group in config.instance_group)
    found = {"instances": instances, "dynamic_batching": config.HasField("dynamic_batching")}
    expected = {key: wanted.get(key) for key in found}
    return "" if found == expected else f"configs/tuned.pbtxt has {found}, recommended {expected}"


def _check_tuned_server(case: Case, model: str, checks: Checks) -> bool:
    """Serve one model with its tuned configuration, and compare it with its file."""
    try:
        served = serve(case, (model,), "tuned")
    except UnfitFile as error:
        return checks.add(False, str(error))
    if model not in served.logits:
        return checks.add(False, f"{model}: {served.failed.get(model, 'no answer')}")
    same = _agreement_with_file(case, VARIANTS[model], served.logits[model])
    return checks.add(same >= SAME_ANSWERS, f"{model}, tuned, answers {same:.0%} as its file does")
