"""Training: same seed, same weights; interruption changes nothing; checkpoints are checked."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from labkit.data import Images, preprocess
from labkit.model import CifarNet
from labkit.muon import Muon, orthogonalize
from labkit.profiles import PROFILES, Profile
from labkit.recipe import RecipeError
from labkit.train import (
    RECIPES,
    CheckpointError,
    TrainConfig,
    Trainer,
    TrainError,
    build_model,
    evaluate,
    load_checkpoint,
    one_cycle,
    predict,
)

TINY = TrainConfig(epochs=3, widths=(4, 6, 8), batch_size=16, threads=1, seed=3)


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


def fit(trainer: Trainer, epochs: int | None = None, stop_after: int | None = None) -> None:
    """The loop of notebook 02; `stop_after` batches of the epoch after `epochs`, it breaks off."""
    for epoch in trainer.remaining_epochs():
        for done, (images, labels) in enumerate(trainer.batches(epoch)):
            if epoch == epochs and done == stop_after:
                raise KeyboardInterrupt
            with trainer.autocast():
                logits = trainer.model(images)
            loss = trainer.loss(logits, labels)
            loss.backward()
            trainer.step(loss, logits)
        trainer.end_epoch(0.5)


def make(data: Images, config: TrainConfig = TINY, path: Path | None = None) -> Trainer:
    return Trainer(build_model(config, data), data, config, path)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict()


def same(one: Trainer, other: Trainer) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


# --- the same seed, the same weights ---------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_and_threads_give_the_same_weights(data, threads):
    config = replace(TINY, threads=threads)
    one, other = make(data, config), make(data, config)
    fit(one)
    torch.rand(7), np.random.rand(7)  # whatever else draws numbers in between
    fit(other)
    assert same(one, other)


def test_another_seed_gives_other_weights(data):
    one, other = make(data), make(data, replace(TINY, seed=4))
    fit(one)
    fit(other)
    assert not same(one, other)


def test_it_learns(data):
    config = replace(TINY, epochs=20, widths=(8, 16, 32), batch_size=14, bias_lr=0.5, head_lr=0.5)
    trainer = make(data, config)
    before = evaluate(trainer.model, data)
    fit(trainer)
    assert evaluate(trainer.model, data) > before + 0.3
    assert trainer.history[-1].loss < trainer.history[0].loss


def test_the_whitening_layer_is_left_alone(data):
    trainer = make(data)
    before = trainer.model.whiten.weight.clone()
    fit(trainer)
    assert torch.equal(trainer.model.whiten.weight, before)


# --- interruption ------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_interrupted_in_the_same_process_it_ends_with_the_same_weights(data, epochs):
    straight, broken = make(data), make(data)
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, epochs, stop_after=1)
    fit(broken)
    assert same(straight, broken)
    assert [record.loss for record in broken.history] == [r.loss for r in straight.history]


@pytest.mark.parametrize("epochs", [1, 2])
def test_interrupted_and_started_again_it_ends_with_the_same_weights(data, tmp_path, epochs):
    path = tmp_path / "checkpoint.pt"
    straight = make(data)
    fit(straight)
    broken = make(data, path=path)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, epochs, stop_after=1)
    assert not path.exists(), "an unfinished network must not look finished"
    again = make(data, path=path)
    assert len(again.history) == epochs
    fit(again)
    assert same(straight, again)
    assert path.exists()
    assert not again.partial.exists()


@pytest.mark.parametrize("change", ["recipe", "data", "damage"])
def test_it_does_not_continue_another_training(data, tmp_path, caplog, change):
    path = tmp_path / "checkpoint.pt"
    broken = make(data, path=path)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, 1, stop_after=0)
    config, images = TINY, data
    if change == "recipe":
        config = replace(TINY, filter_lr=0.2)
    elif change == "data":
        images = Images(data.pixels, data.labels[::-1].copy())
    else:
        broken.partial.write_bytes(broken.partial.read_bytes()[:200])
    again = make(images, config, path)
    assert again.history == []
    assert "starting over" in caplog.text


def test_a_finished_training_is_done_anew_not_reused(data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit(make(data, path=path))
    assert make(data, path=path).history == []


def test_running_the_loop_again_after_the_end_does_nothing(data):
    trainer = make(data)
    fit(trainer)
    before = {name: value.clone() for name, value in weights(trainer).items()}
    fit(trainer)
    assert len(trainer.history) == TINY.epochs
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_an_epoch_cut_short_is_refused(data):
    trainer = make(data)
    for images, labels in islice(trainer.batches(0), 1):
        logits = trainer.model(images)
        loss = trainer.loss(logits, labels)
        loss.backward()
        trainer.step(loss, logits)
    with pytest.raises(TrainError, match="1 of 2 steps"):
        trainer.end_epoch(0.5)


# --- batches -----------------------------------------------------------------------------------


def test_batches_have_the_promised_shape_range_and_size(data):
    trainer = make(data)
    for epoch in range(TINY.epochs):
        batches = list(trainer.batches(epoch))
        assert len(batches) == 2
        for images, labels in batches:
            size = TINY.image_size(epoch)
            assert images.shape == (16, 3, size, size)
            assert images.dtype == torch.float32
            assert images.min() >= 0 and images.max() <= 1
            assert labels.shape == (16,)


def test_without_augmentation_the_pixels_are_those_of_preprocess(data):
    config = replace(TINY, shift=0, growing=0.0, first_size=32, batch_size=42)
    trainer = make(data, config)
    images, labels = next(trainer.batches(0))
    known = {
        image.tobytes(): label
        for image, label in zip(preprocess(data.pixels), data.labels, strict=True)
    }
    mirrored = {
        image[:, :, ::-1].copy().tobytes(): label
        for image, label in zip(preprocess(data.pixels), data.labels, strict=True)
    }
    found = known | mirrored
    for image, label in zip(images.contiguous().numpy(), labels, strict=True):
        assert found[np.ascontiguousarray(image).tobytes()] == label


def test_who_is_mirrored_in_one_epoch_is_not_in_the_next(data):
    config = replace(TINY, shift=0, growing=0.0, first_size=32, batch_size=42)
    trainer = make(data, config)

    def mirrored(epoch: int) -> set[bytes]:
        originals = {image.tobytes() for image in preprocess(data.pixels)}
        images = next(trainer.batches(epoch))[0].contiguous().numpy()
        return {
            min(image.tobytes(), image[:, :, ::-1].copy().tobytes())
            for image in map(np.ascontiguousarray, images)
            if image.tobytes() not in originals
        }

    first, second = mirrored(0), mirrored(1)
    assert first and second
    assert not first & second
    assert len(first | second) == 42


def test_shifts_move_by_at_most_two_pixels_and_do_move():
    pixels = np.zeros((64, 3, 32, 32), np.uint8)
    pixels[:, :, 16, 16] = 255
    data = Images(pixels, np.zeros(64, np.int64))
    config = replace(TINY, growing=0.0, first_size=32, batch_size=64)
    trainer = make_on_noise(config, data)
    images, _ = next(trainer.batches(0))
    rows, columns = np.nonzero(images[:, 0].numpy() == 1)[1:]
    assert set(rows) == {14, 15, 16, 17, 18}
    assert columns.min() == 13 and columns.max() == 18  # mirrored, 16 becomes 15


def make_on_noise(config: TrainConfig, data: Images) -> Trainer:
    return Trainer(CifarNet(config.widths), data, config)


# --- schedules and recipes ---------------------------------------------------------------------


def test_the_learning_rate_rises_then_falls_to_zero():
    values = [one_cycle(step / 100, 0.25) for step in range(101)]
    assert values[0] == pytest.approx(0.2)
    assert max(values) == values[25] == pytest.approx(1)
    assert values[100] == 0
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)


@pytest.mark.parametrize("name", RECIPES)
def test_images_grow_to_their_full_size_before_the_end(name):
    config = RECIPES[name]
    sizes = [config.image_size(epoch) for epoch in range(config.epochs)]
    assert sizes == sorted(sizes)
    assert all(size % 4 == 0 for size in sizes)
    if name != "smoke":
        assert sizes[-2:] == [32, 32]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_a_recipe(name):
    config = TrainConfig.from_profile(PROFILES[name])
    assert config.train_images == PROFILES[name].train_images
    assert config.seed == PROFILES[name].seed


def test_a_profile_without_a_recipe_is_refused():
    with pytest.raises(RecipeError, match="no recipe for profile 'new'; known: smoke"):
        TrainConfig.from_profile(Profile("new", 1, 1, 1, 1, 1.0, 1))


@pytest.mark.parametrize(
    "change", [{"precision": "fp8"}, {"epochs": 0}, {"batch_size": 0}, {"threads": 0}]
)
def test_impossible_recipes_are_refused(change):
    with pytest.raises(RecipeError, match=str(next(iter(change.values())))):
        replace(TINY, **change)


def test_bf16_trains_in_float32_weights(data):
    trainer = make(data, replace(TINY, precision="bf16", epochs=1))
    fit(trainer)
    assert all(value.dtype != torch.bfloat16 for value in weights(trainer).values())


def test_no_images_are_refused(data):
    with pytest.raises(TrainError, match="at least one"):
        Trainer(CifarNet((4, 6, 8)), data.take(slice(0)), TINY)


# --- Muon --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_orthogonalize_moves_all_singular_values_close_to_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(
            orthogonalize(matrix).flatten(), (left @ right).flatten(), dim=0
        )
        > 0.95
    )


def test_muon_keeps_the_norm_and_skips_what_has_no_gradient():
    used = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    unused = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    before = unused.detach().clone()
    used.grad = torch.randn_like(used)
    Muon([used, unused], lr=0.0, momentum=0.6).step()
    assert used.norm().item() == pytest.approx(2.0, rel=1e-5)  # the root of four filters
    assert torch.equal(unused, before)


# --- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_the_network_and_its_story(data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = make(data, path=path)
    fit(trainer)
    model, meta = load_checkpoint(path)
    assert not model.training
    assert np.array_equal(predict(model, data.pixels), predict(trainer.model, data.pixels))
    assert TrainConfig.from_dict(meta["train_config"]) == TINY
    assert [record["epoch"] for record in meta["history"]] == [1, 2, 3]
    assert meta["versions"]["torch"] == torch.__version__
    assert len(meta["data"]) == 64


def test_a_checkpoint_of_foreign_fields_is_refused():
    with pytest.raises(RecipeError, match="optimiser"):
        TrainConfig.from_dict(TINY.as_dict() | {"optimiser": "adam"})


def test_checkpoints_that_are_none_are_refused_with_the_next_step(tmp_path):
    with pytest.raises(CheckpointError, match="run notebook 02_train first"):
        load_checkpoint(tmp_path / "missing.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(broken)
    torch.save({"format": 99}, broken)
    with pytest.raises(CheckpointError, match="format 99, expected 1"):
        load_checkpoint(broken)
    torch.save({"format": 1, "model_config": {"widths": [4, 6, 8]}, "model": {}}, broken)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(broken)


class Evil:
    """Unpickled, it would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "evil.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not Path("evil-was-here").exists()


# --- prediction --------------------------------------------------------------------------------


def test_predict_takes_bytes_and_floats_in_any_batch_size_and_leaves_the_mode(data):
    model = CifarNet((4, 6, 8)).train()
    by_bytes = predict(model, data.pixels, batch_size=5)
    by_floats = predict(model, preprocess(data.pixels), batch_size=42)
    assert by_bytes.shape == (42, 10) and by_bytes.dtype == np.float32
    assert np.allclose(by_bytes, by_floats, atol=1e-5)
    assert model.training
    assert predict(model, data.pixels[:0]).shape == (0, 10)


def test_evaluate_is_the_share_of_right_answers(data):
    model = CifarNet((4, 6, 8))
    answers = predict(model, data.pixels).argmax(1)
    assert evaluate(model, Images(data.pixels, answers)) == 1.0
    assert evaluate(model, Images(data.pixels, (answers + 1) % 10)) == 0.0
