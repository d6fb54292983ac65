"""Held-out images: mirrored, chosen by the seed, and never written with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.data import SPLIT_SIZES, Images
from labkit.grading.carry_forward import CarryForward, Reference, StageOutputs, artifacts_of
from labkit.grading.measure import Case
from labkit.grading.measure import images as heldout
from labkit.grading.measure.images import (
    HELD_OUT_IMAGES,
    MODELS,
    SERVED,
    SERVED_HELD_OUT,
    GradingImages,
    ImageFiles,
    hold_out,
)
from labkit.profiles import PROFILES, preset
from labkit.workspace import MADE_BY, OPTIONAL, write_json

SIDE = 4
IMAGE_BYTES = 3 * SIDE * SIDE


def draw(count: int, seed: int) -> Images:
    """Tiny images whose first byte and label are their number."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, SIDE, SIDE), np.uint8)
    return Images(pixels, np.arange(count) % 10)


@pytest.fixture
def images() -> GradingImages:
    return GradingImages(draw(300, 1), draw(50, 2), draw(2_000, 3))


# ---- which


def test_images_are_mirrored_moved_and_lit_otherwise() -> None:
    test = draw(200, 0)
    held_out = hold_out(test, 200, seed=0)
    assert held_out.pixels.flags.c_contiguous
    assert held_out.pixels.dtype == np.uint8
    np.testing.assert_array_equal(held_out.labels, test.labels)
    mirrored = test.pixels[..., ::-1]
    same = [
        np.array_equal(one, other) for one, other in zip(held_out.pixels, mirrored, strict=True)
    ]
    assert sum(same) < 10, "a mirror alone gives none of them"
    shift, light = heldout.MOST_SHIFT, heldout.MOST_LIGHT
    around = ((0, 0), (shift, shift), (shift, shift))
    for image, source in zip(held_out.pixels, mirrored, strict=True):
        wide = np.pad(source, around, mode="edge").astype(int)
        parts = [
            wide[:, y : y + SIDE, x : x + SIDE]
            for y in range(2 * shift + 1)
            for x in range(2 * shift + 1)
        ]
        assert any(np.abs(image - part).max() <= light for part in parts)


def test_the_seed_chooses_them() -> None:
    test = draw(1_000, 0)
    one, same, other = (hold_out(test, 100, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)


def test_no_image_is_chosen_twice_and_each_keeps_its_label() -> None:
    """Of images of one colour each, which no move changes."""
    shades = np.arange(256, dtype=np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (256, 3, SIDE, SIDE)).copy()
    held_out = hold_out(Images(pixels, np.arange(256)), 200, seed=2**63)
    assert len(set(held_out.labels.tolist())) == 200
    found = held_out.pixels.mean(axis=(1, 2, 3))
    assert np.abs(found - held_out.labels).max() <= heldout.MOST_LIGHT


def test_every_profile_says_how_many() -> None:
    assert set(HELD_OUT_IMAGES) == set(PROFILES)
    assert all(count >= SERVED_HELD_OUT for count in HELD_OUT_IMAGES.values())


def test_a_grading_chooses_from_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = SimpleNamespace(train=draw(30, 0), test=draw(3_000, 1))
    monkeypatch.setattr(heldout, "load_cifar10", lambda: cifar)
    chosen = GradingImages.choose("smoke", seed=5)
    assert len(chosen.held_out.labels) == HELD_OUT_IMAGES["smoke"]
    assert len(chosen.test.labels) == preset("smoke").test_images
    np.testing.assert_array_equal(chosen.test.pixels, cifar.test.pixels[:500])
    assert chosen.training is cifar.train


@pytest.mark.data
def test_of_the_real_images_every_class_is_held_out(data: Path) -> None:
    chosen = GradingImages.choose("smoke", seed=0)
    assert chosen.held_out.pixels.shape == (1_000, 3, 32, 32)
    counts = np.bincount(chosen.held_out.labels, minlength=10)
    assert counts.min() > 60  # of some 100 each


# ---- files


def stored(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8).reshape(-1, 3, SIDE, SIDE)


def test_files_hold_images_in_order_and_nothing_else(tmp_path: Path, images: GradingImages) -> None:
    files = ImageFiles(tmp_path / "images", images, "smoke")
    validation = list(range(1_500, 200, -1))
    files.use_splits(validation)
    chosen = validation[: preset("smoke").validation_images]
    expected = [images.held_out.pixels, images.training.pixels[chosen]]
    np.testing.assert_array_equal(stored(files.folder / MODELS), np.concatenate(expected))
    served = [images.held_out.pixels[:SERVED_HELD_OUT], images.test.pixels]
    np.testing.assert_array_equal(stored(files.folder / SERVED), np.concatenate(served))
    assert sorted(path.name for path in files.folder.iterdir()) == [MODELS, SERVED]


def test_labels_stay_with_the_grader(tmp_path: Path, images: GradingImages) -> None:
    files = ImageFiles(tmp_path, images, "smoke")
    files.use_splits([5, 3, 4])
    np.testing.assert_array_equal(files.validation_labels, [5, 3, 4])
    np.testing.assert_array_equal(files.held_out_labels, images.held_out.labels)
    np.testing.assert_array_equal(files.served_labels[:SERVED_HELD_OUT], np.arange(200) % 10)
    np.testing.assert_array_equal(files.served_labels[SERVED_HELD_OUT:], images.test.labels)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {MODELS: 303 * IMAGE_BYTES, SERVED: 250 * IMAGE_BYTES}


def test_other_splits_replace_the_images(tmp_path: Path, images: GradingImages) -> None:
    files = ImageFiles(tmp_path, images, "smoke")
    files.use_splits(list(range(900)))
    files.use_splits([1_999])
    np.testing.assert_array_equal(stored(tmp_path / MODELS)[300:], images.training.pixels[-1:])
    np.testing.assert_array_equal(files.validation_labels, [9])


def test_a_user_of_the_sandbox_may_read_them(tmp_path: Path, images: GradingImages) -> None:
    files = ImageFiles(tmp_path / "images", images, "smoke")
    files.use_splits([0])
    assert files.folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in files.folder.iterdir()} == {0o644}


# ---- whose validation images they are


def write_splits(path: Path, first: int) -> None:
    """Splits whose validation images begin at `first`."""
    indices = {name: list(range(first, first + 20)) for name in SPLIT_SIZES}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"indices": indices})


@dataclass
class Grading:
    """What goes on from stage to stage of one submission."""

    carry_forward: CarryForward
    case: Case

    def advance(self, stage: str, outputs: StageOutputs | None) -> None:
        self.carry_forward.advance(stage, outputs)
        self.case.use_splits(self.carry_forward.artifacts["splits.json"])


@pytest.fixture
def grading(tmp_path: Path, images: GradingImages) -> Grading:
    """One whose reference validates on images 100…."""
    folder = tmp_path / "reference"
    write_splits(folder / "splits.json", 100)
    made = {name: folder / name for name in MADE_BY if name not in OPTIONAL}
    for path in made.values():
        path.touch()
    files = ImageFiles(tmp_path / "images", images, "smoke")
    case = Case(SimpleNamespace(), files, "smoke")  # type: ignore[arg-type]
    return Grading(CarryForward(Reference(made, folder), tmp_path), case)


def own(tmp_path: Path, stage: str, first: int = 700) -> StageOutputs:
    made = StageOutputs({name: tmp_path / stage / name for name in artifacts_of(stage)})
    for path in made.files.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("own")
    if stage == "01_data":
        write_splits(made.files["splits.json"], first)
    return made


def validates_on(tmp_path: Path) -> int:
    """Return the number of the first validation image in the file."""
    pixels = stored(tmp_path / "images" / MODELS)[300:]
    training = draw(2_000, 3).pixels
    [first] = np.flatnonzero((training == pixels[0]).all(axis=(1, 2, 3)))
    assert len(pixels) == 20
    return int(first)


def test_a_submission_is_measured_on_its_own_validation_images(
    grading: Grading, tmp_path: Path
) -> None:
    grading.advance("01_data", own(tmp_path, "01_data"))
    assert validates_on(tmp_path) == 700
    grading.advance("02_train", own(tmp_path, "02_train"))
    assert validates_on(tmp_path) == 700


def test_with_the_reference_in_its_place_on_the_references(
    grading: Grading, tmp_path: Path
) -> None:
    grading.advance("01_data", None)
    assert validates_on(tmp_path) == 100


def test_a_later_failure_replaces_the_validation_images_as_well(
    grading: Grading, tmp_path: Path
) -> None:
    """Notebook 03 is given the reference's splits then, and what it claims is about those."""
    grading.advance("01_data", own(tmp_path, "01_data"))
    grading.case.served["of other images"] = None
    grading.advance("02_train", None)
    assert validates_on(tmp_path) == 100
    assert grading.case.served == {}, "answers to other images are not used again"


def test_a_failed_measurement_keeps_the_validation_images(grading: Grading, tmp_path: Path) -> None:
    for stage in ("01_data", "02_train", "03_export", "04_quantize", "05_configure"):
        grading.advance(stage, own(tmp_path, stage))
    grading.case.served["of these images"] = None
    grading.advance("06_serve", None)
    assert validates_on(tmp_path) == 700
    assert grading.case.served == {"of these images": None}, "it is not served again"
