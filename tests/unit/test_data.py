import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lesson import run_cells

from labkit import data, download
from labkit.data import DataError, load_cifar10, load_split, preprocess
from labkit.workspace import Workspace, cache_dir

LABELS = np.repeat(np.arange(10), 5_000)


def write_batches(folder: Path) -> dict[str, str]:
    """Six tiny batches of two images each; returns their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    checksums = {}
    for index, name in enumerate(download.BATCHES):
        records = np.full((2, data.RECORD_BYTES), index, dtype=np.uint8)
        records[:, 0] = [index, 9 - index]  # labels
        records[:, 1] = 200  # the first red pixel
        (folder / name).write_bytes(records.tobytes())
        checksums[name] = hashlib.md5(records.tobytes()).hexdigest()
    return checksums


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache" / download.FOLDER
    checksums = write_batches(folder)
    monkeypatch.setattr(download, "BATCHES", checksums)
    monkeypatch.setattr(data, "BATCHES", checksums)
    return folder


def test_binary_records_become_images(tiny: Path) -> None:
    cifar = load_cifar10(tiny)
    assert cifar.train.pixels.shape == (10, 3, 32, 32)
    assert cifar.test.pixels.shape == (2, 3, 32, 32)
    assert cifar.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert cifar.test.labels.tolist() == [5, 4]
    assert cifar.train.pixels[2, 0, 0, 0] == 200
    assert cifar.train.pixels[2, 2, 31, 31] == 1


def test_a_flipped_byte_is_noticed_and_repaired(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (tiny / "data_batch_2.bin").read_bytes()
    (tiny / "data_batch_2.bin").write_bytes(b"\x07" + good[1:])

    def repair(folder: Path) -> Path:
        (folder / "data_batch_2.bin").write_bytes(good)
        return folder

    monkeypatch.setattr(data, "fetch", repair)
    assert load_cifar10(tiny).train.labels[2] == 1


def test_a_warm_cache_is_read_once_and_nothing_is_fetched(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tiny.parent))
    monkeypatch.setattr(data, "fetch", lambda *folder: pytest.fail("fetched a warm cache"))
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    load_cifar10()
    assert sorted(read) == sorted(download.BATCHES)


def test_a_cold_cache_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))

    def fetch(folder: Path) -> Path:
        monkeypatch.setattr(data, "BATCHES", write_batches(folder))
        return folder

    monkeypatch.setattr(data, "fetch", fetch)
    assert len(load_cifar10().train.labels) == 10


@pytest.mark.data
def test_the_real_images_load() -> None:
    if download.damaged(cache_dir() / download.FOLDER):
        pytest.skip("no CIFAR-10 in the cache: `labkit data` fetches it")
    cifar = load_cifar10()
    assert (len(cifar.train.labels), len(cifar.test.labels)) == (50_000, 10_000)


def test_splits_are_stratified_disjoint_and_seeded() -> None:
    """As notebook 01 makes them."""
    given = {
        "np": np,
        "CLASSES": data.CLASSES,
        "cifar": SimpleNamespace(train=SimpleNamespace(labels=LABELS)),
        "settings": SimpleNamespace(seed=3),
    }
    page = run_cells("01_data", "splits", **given)
    assert page.SIZES == data.SPLIT_SIZES
    assert {name: len(part) for name, part in page.splits.items()} == page.SIZES
    assert len(set().union(*page.splits.values())) == 50_000
    for part in page.splits.values():
        assert len(set(np.bincount(LABELS[part]).tolist())) == 1
    assert page.splits == page.stratified_split(LABELS, seed=3)
    assert page.splits != page.stratified_split(LABELS, seed=4)


def test_preprocess_scales_to_one_and_is_contiguous() -> None:
    pixels = np.array([0, 51, 255], dtype=np.uint8).reshape(1, 3, 1, 1)
    pixels = np.broadcast_to(pixels, (5, 3, 32, 32))
    prepared = preprocess(pixels)
    assert prepared.shape == (5, 3, 32, 32)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    np.testing.assert_allclose(prepared[0, :, 0, 0], [0, 0.2, 1])


def test_preprocess_takes_one_image() -> None:
    assert preprocess(np.zeros((3, 32, 32), np.uint8)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 32, 32, 3), np.uint8),  # channels last
        np.zeros((2, 3, 32, 32), np.float32),  # already scaled
        np.zeros((3, 28, 28), np.uint8),
        np.zeros((1, 1, 3, 32, 32), np.uint8),
    ],
    ids=["channels last", "float", "size", "rank"],
)
def test_preprocess_refuses(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(N, 3, 32, 32\)"):
        preprocess(wrong)


def test_unknown_split_lists_the_known(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tiny.parent))
    workspace = Workspace.at(tmp_path / "run")
    workspace.save_json("splits.json", {"indices": {"train": [0, 4]}}, made_by="01_data")
    assert load_split(workspace, "train").labels.tolist() == [0, 2]
    assert load_split(workspace, "train", limit=1).labels.tolist() == [0]
    assert load_split(workspace, "test").labels.tolist() == [5, 4]
    with pytest.raises(DataError, match="got split 'dev', expected one of: train, test"):
        load_split(workspace, "dev")
