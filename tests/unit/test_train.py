"""Training, as the cells of notebook 02 do it; and that an interruption changes nothing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lesson import cell_source, run_cells

from labkit.data import Images, preprocess
from labkit.network import load_network
from labkit.profiles import PROFILES
from labkit.train import EpochRecord, Epochs, TrainError

TINY = {"epochs": 3, "widths": (4, 6, 8), "batch_size": 16, "growing": 0.6, "precision": "fp32"}
WHOLE = {"shift": 0, "growing": 0.0, "first_size": 32, "batch_size": 42}  # no shift, no shrinking


@pytest.fixture(autouse=True)
def _restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> Images:
    """Forty-two noisy images; every class has a coarse pattern of its own."""
    generator = np.random.default_rng(0)
    labels = np.arange(42) % 10
    patterns = generator.integers(40, 216, (10, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    pixels = patterns[labels] + generator.integers(-40, 40, (42, 3, 32, 32))
    return Images(pixels.astype(np.uint8), labels.astype(np.int64))


def make(
    data: Images, folder: Path, seed: int = 3, threads: int = 1, **changes: Any
) -> SimpleNamespace:
    """Run the cells of notebook 02 up to the loop, with another recipe and these images."""
    settings = SimpleNamespace(name="smoke", seed=seed, threads=threads)
    page = run_cells("02_train", "imports", "network", "recipe", settings=settings)
    recipe = replace(page.recipe, **(TINY | changes))
    given = vars(page) | {
        "recipe": recipe,
        "training": data,
        "validation": data,
        "statistics": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "count": len(data.labels),
        "steps": len(data.labels) // recipe.batch_size,
        "lab": SimpleNamespace(path=lambda name: folder / name, record=lambda *_, **__: None),
    }
    cells = ("build", "whitening", "batches", "ex-02-learning-rate", "optimizers", "evaluate")
    return run_cells("02_train", *cells, "train-epoch", "epochs", **given)


def fit(page: SimpleNamespace, stop_in: int | None = None) -> None:
    """Run the loop's cell; with `stop_in`, it is interrupted in the middle of that epoch."""
    whole = page.batches

    def broken(epoch: int) -> Any:
        yield next(whole(epoch))
        raise KeyboardInterrupt

    def batches(epoch: int) -> Any:
        return broken(epoch) if epoch == stop_in else whole(epoch)

    page.train_epoch.__globals__["batches"] = batches
    run_cells("02_train", "loop", **vars(page))


def same(one: SimpleNamespace, other: SimpleNamespace) -> bool:
    weights = other.model.state_dict()
    return all(torch.equal(value, weights[n]) for n, value in one.model.state_dict().items())


# --- the same seed, the same weights ---------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_and_threads_give_the_same_weights(data, tmp_path, threads):
    one = make(data, tmp_path / "one", threads=threads)
    fit(one)
    torch.rand(7), np.random.rand(7)  # whatever else draws numbers in between
    other = make(data, tmp_path / "other", threads=threads)
    fit(other)
    assert same(one, other)


def test_another_seed_gives_other_weights(data, tmp_path):
    one, other = make(data, tmp_path / "one"), make(data, tmp_path / "other", seed=4)
    fit(one)
    fit(other)
    assert not same(one, other)


def test_it_learns_and_leaves_the_whitening_layer_alone(data, tmp_path):
    changes = {"widths": (8, 16, 32), "batch_size": 14, "bias_lr": 0.5, "head_lr": 0.5}
    page = make(data, tmp_path, epochs=20, **changes)
    before, filters = page.evaluate(page.model, data), page.model.whiten.weight.clone()
    fit(page)
    assert page.evaluate(page.model, data) > before + 0.3
    assert page.epochs.history[-1].loss < page.epochs.history[0].loss
    assert torch.equal(page.model.whiten.weight, filters)


def test_every_weight_that_is_trained_has_an_optimizer(data, tmp_path):
    page = make(data, tmp_path)
    groups = [*page.muon.param_groups, *page.sgd.param_groups]
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(map(id, page.trained))


def test_the_schedule_that_is_written_is_the_one_that_trains(data, tmp_path):
    page = make(data, tmp_path)
    asked: list[tuple[float, float]] = []

    def constant(progress: float, warmup: float) -> float:
        asked.append((progress, warmup))
        return 0.25

    page.train_epoch.__globals__["learning_rate"] = constant
    fit(page)
    groups = [*page.muon.param_groups, *page.sgd.param_groups]
    assert sorted({progress for progress, _ in asked}) == pytest.approx(np.arange(6) / 6)
    assert {warmup for _, warmup in asked} == {page.recipe.warmup}
    assert all(group["lr"] == 0.25 * group["peak"] for group in groups)


def test_bf16_trains_float32_weights(data, tmp_path):
    page = make(data, tmp_path, precision="bf16", epochs=1)
    fit(page)
    assert all(value.dtype != torch.bfloat16 for value in page.model.state_dict().values())


# --- interruption ------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_interrupted_in_the_same_process_it_ends_with_the_same_weights(data, tmp_path, epoch):
    straight, broken = make(data, tmp_path / "one"), make(data, tmp_path / "other")
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, stop_in=epoch)
    fit(broken)
    assert same(straight, broken)
    losses = [[record.loss for record in page.epochs.history] for page in (straight, broken)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.parametrize("epoch", [1, 2])
def test_interrupted_and_started_again_it_ends_with_the_same_weights(data, tmp_path, epoch):
    straight = make(data, tmp_path / "one")
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(make(data, tmp_path / "other"), stop_in=epoch)
    again = make(data, tmp_path / "other")
    assert len(again.epochs.history) == epoch
    fit(again)
    assert same(straight, again)


@pytest.mark.parametrize("change", ["recipe", "network", "images", "damage"])
def test_it_does_not_continue_another_training(data, tmp_path, caplog, change):
    broken = make(data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, stop_in=1)
    path = broken.epochs.path
    if change == "damage":
        path.write_bytes(path.read_bytes()[:200])
    if change == "network":
        saved = torch.load(path, weights_only=True)
        saved["identity"]["network"] += "# one more line"
        torch.save(saved, path)
    images = Images(data.pixels, data.labels[::-1].copy()) if change == "images" else data
    other = {"filter_lr": 0.2} if change == "recipe" else {}
    assert make(images, tmp_path, **other).epochs.history == []
    assert "starting over" in caplog.text


def test_a_finished_training_is_done_anew_not_reused(data, tmp_path):
    page = make(data, tmp_path)
    fit(page)
    fit(page)  # does nothing
    assert len(page.epochs.history) == TINY["epochs"]
    page.epochs.forget()
    assert make(data, tmp_path).epochs.history == []


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    record = EpochRecord(1, 32, 0.1, float("nan"), 0.1, 0.1, 1.0, 1.0)
    epochs = Epochs(tmp_path / "state.pt", {}, {})
    with pytest.raises(TrainError, match="not a number"):
        epochs.finish(record)
    assert not epochs.path.exists()


def test_the_saved_network_is_the_class_of_the_cell_with_the_trained_weights(data, tmp_path):
    page = make(data, tmp_path)
    fit(page)
    run_cells("02_train", "save", **vars(page))
    assert (tmp_path / "network.py").read_text() == cell_source("02_train", "network")
    loaded = load_network(tmp_path / "checkpoint.pt")
    expected = page.predict(page.model, data.pixels)
    assert np.allclose(page.predict(loaded, data.pixels), expected, atol=1e-5)
    assert not page.epochs.path.exists(), "the next training is a new one"


# --- batches -----------------------------------------------------------------------------------


def test_batches_have_the_promised_shape_range_and_size(data, tmp_path):
    page = make(data, tmp_path)
    for epoch in range(page.recipe.epochs):
        batches = list(page.batches(epoch))
        assert len(batches) == 2
        for images, labels in batches:
            size = page.image_size(epoch)
            assert images.shape == (16, 3, size, size)
            assert images.dtype == torch.float32
            assert images.min() >= 0 and images.max() <= 1
            assert labels.shape == (16,)


def test_cutout_hides_one_square_of_each_image_and_nothing_else(data, tmp_path):
    plain, _ = next(make(data, tmp_path, **WHOLE).batches(0))
    cut, _ = next(make(data, tmp_path, **WHOLE, cutout=12).batches(0))
    hidden = (cut != plain).any(1)  # Shape: (42, 32, 32)
    for image, where in zip(cut, hidden, strict=True):
        rows, columns = where.any(1).nonzero().ravel(), where.any(0).nonzero().ravel()
        square = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        assert (image[(slice(None), *square)] == 0.5).all()
        assert where[square].float().mean() > 0.9  # a pixel may have been 0.5 before
        assert 6 <= len(where[square]) <= 12  # at an edge less than all of it
        assert 6 <= where[square].shape[1] <= 12


def test_without_augmentation_the_pixels_are_those_of_preprocess(data, tmp_path):
    images, labels = next(make(data, tmp_path, **WHOLE).batches(0))
    originals = preprocess(data.pixels)
    known = {image.tobytes(): label for image, label in zip(originals, data.labels, strict=True)}
    for image, label in zip(originals, data.labels, strict=True):
        known[image[:, :, ::-1].copy().tobytes()] = label
    for image, label in zip(images.contiguous().numpy(), labels, strict=True):
        assert known[np.ascontiguousarray(image).tobytes()] == label


def test_who_is_mirrored_in_one_epoch_is_not_in_the_next(data, tmp_path):
    page = make(data, tmp_path, **WHOLE)
    originals = {image.tobytes() for image in preprocess(data.pixels)}

    def mirrored(epoch: int) -> set[bytes]:
        images = map(np.ascontiguousarray, next(page.batches(epoch))[0].contiguous().numpy())
        return {
            min(image.tobytes(), image[:, :, ::-1].copy().tobytes())
            for image in images
            if image.tobytes() not in originals
        }

    first, second = mirrored(0), mirrored(1)
    assert first and second
    assert not first & second
    assert len(first | second) == 42


def test_shifts_move_by_at_most_two_pixels_and_do_move(tmp_path):
    pixels = np.zeros((64, 3, 32, 32), np.uint8)
    pixels[:, :, 16, 16] = 255
    data = Images(pixels, np.zeros(64, np.int64))
    page = make(data, tmp_path, **(WHOLE | {"shift": 2, "batch_size": 64}))
    images, _ = next(page.batches(0))
    rows, columns = np.nonzero(images[:, 0].numpy() == 1)[1:]
    assert set(rows) == {14, 15, 16, 17, 18}
    assert columns.min() == 13 and columns.max() == 18  # mirrored, 16 becomes 15


# --- schedules and recipes ---------------------------------------------------------------------


def test_every_profile_has_a_recipe_whose_images_grow_to_full_size(data, tmp_path):
    page = make(data, tmp_path)
    assert set(page.RECIPES) == set(PROFILES)
    for name, recipe in page.RECIPES.items():
        sizes_page = make(data, tmp_path, **vars(recipe))
        sizes = [sizes_page.image_size(epoch) for epoch in range(recipe.epochs)]
        assert sizes == sorted(sizes)
        assert all(size % 4 == 0 for size in sizes)
        if name != "smoke":
            assert sizes[-2:] == [32, 32]


# --- Muon --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_orthogonalize_moves_all_singular_values_close_to_one(data, tmp_path, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = make(data, tmp_path).orthogonalize(matrix)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = (left @ right).flatten()
    assert torch.nn.functional.cosine_similarity(update.flatten(), nearest, dim=0) > 0.95


def test_muon_keeps_the_norm(data, tmp_path):
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    weight.grad = torch.randn_like(weight)
    make(data, tmp_path).Muon([weight], lr=0.0, momentum=0.6).step()
    assert weight.norm().item() == pytest.approx(2.0, rel=1e-5)  # the root of four filters


# --- prediction --------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_the_batch_size_and_counts_right_answers(data, tmp_path):
    page = make(data, tmp_path)
    page.model.train()
    by_five = page.predict(page.model, data.pixels, batch=5)
    assert by_five.shape == (42, 10) and by_five.dtype == np.float32
    assert np.allclose(by_five, page.predict(page.model, data.pixels), atol=1e-5)
    answers = by_five.argmax(1)
    assert page.evaluate(page.model, Images(data.pixels, answers)) == 1.0
    assert page.evaluate(page.model, Images(data.pixels, (answers + 1) % 10)) == 0.0
