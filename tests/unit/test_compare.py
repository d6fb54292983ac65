import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from labkit import compare as module
from labkit import runtime
from labkit.compare import ComparisonError, Spread, compare, in_turn, latency_ms, memory_mib


class Fake:
    """A runner that takes a known time on a clock that only runners move."""

    def __init__(self, clock: list[float], seconds: Iterator[float], threads: int = 1) -> None:
        self.name, self.threads = "fake", threads
        self._clock, self._seconds = clock, seconds
        self.calls = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self._clock[0] += next(self._seconds)
        self.calls += 1
        return images


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_ratios_come_from_the_same_round(clock: list[float]) -> None:
    slow = Fake(clock, itertools.repeat(0.4))
    fast = Fake(clock, itertools.repeat(0.1))
    result = compare({"slow": slow, "fast": fast}, "slow", 32, 3, 1.0)
    assert result.ratio["slow"] == Spread(1.0, 1.0, 1.0, 3)
    # 1 second holds 3 calls of 0.4 s (1.2 s) and 10 of 0.1 s: 80 and 320 images/s.
    assert result.images_per_s["slow"].median == pytest.approx(80)
    assert result.ratio["fast"].median == pytest.approx(4, rel=0.11)
    assert result.best() == "fast"
    assert json.loads(json.dumps(result.to_json()))["baseline"] == "slow"


def test_each_round_is_told() -> None:
    lines: list[str] = []
    assert in_turn({"one": lambda: 1}, 2, lines.append) == {"one": [1, 1]}
    assert lines == ["round 1 of 2", "round 2 of 2"]


def test_drift_that_hits_all_leaves_the_ratio(clock: list[float]) -> None:
    """The machine gets slower and slower; so do both runners."""

    class Drifting(Fake):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            self._clock[0] += next(self._seconds) * (1 + self._clock[0] / 20)
            return images

    runners = {
        "a": Drifting(clock, itertools.repeat(0.02)),
        "b": Drifting(clock, itertools.repeat(0.01)),
    }
    result = compare(runners, "a", rounds=6, seconds=0.5)
    assert result.images_per_s["a"].high > 1.2 * result.images_per_s["a"].low
    assert result.ratio["b"].median == pytest.approx(2, rel=0.1)


def test_every_other_round_goes_backwards(clock: list[float]) -> None:
    order: list[str] = []

    class Noting(Fake):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            order.append(self.name)
            return super().__call__(images)

    runners = {}
    for name in "abc":
        runners[name] = Noting(clock, itertools.repeat(1.0))
        runners[name].name = name
    compare(runners, "a", rounds=2, seconds=0.5)
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b", "c", "b", "a"]


def test_unfair_comparisons_are_refused(clock: list[float]) -> None:
    one, two = (Fake(clock, itertools.repeat(1.0), threads) for threads in (1, 2))
    with pytest.raises(ComparisonError, match=r"thread counts differ.*'two': 2"):
        compare({"one": one, "two": two}, "one")
    with pytest.raises(ComparisonError, match="'three' is not among one"):
        compare({"one": one}, "three")
    with pytest.raises(ComparisonError, match="rounds=0"):
        compare({"one": one}, "one", rounds=0)


def test_latency_has_percentiles_of_the_timed_calls(clock: list[float]) -> None:
    seconds = itertools.chain([9.0] * 3, itertools.repeat(0.002, 95), itertools.repeat(0.2, 5))
    sample = latency_ms(Fake(clock, seconds), batch=4, calls=100)
    assert (sample.batch, sample.n) == (4, 100)
    assert sample.p50 == pytest.approx(2)
    assert 0 < sample.p50 <= sample.p95
    with pytest.raises(ComparisonError, match="calls=19"):
        latency_ms(Fake(clock, itertools.repeat(1.0)), calls=19)


def test_a_spread_reads_as_a_sentence_has_it() -> None:
    assert str(Spread.of([2.0, 1.9, 2.1])) == "2.00 (1.90 to 2.10, n = 3)"


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    """A model with 40 MiB of weights must show up as such."""
    weights = np.ones((3 * 32 * 32, 3413), np.float32)  # 40 MiB
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "large",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3413])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "large.onnx")
    used = memory_mib(tmp_path / "large.onnx", batch=1)
    assert used.loaded - used.runtime > 35
    assert used.running >= used.loaded - 1
    with pytest.raises(ComparisonError, match=r"absent\.onnx failed: .*does not exist"):
        memory_mib(tmp_path / "absent.onnx")
