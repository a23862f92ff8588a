"""Data sets: whole, verified, never silently another; batches and subsets that can be drawn again."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from vaelab import data

TRAIN, TEST = 12, 5  # images in the tiny stand-in for MNIST


# The embedded digits


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", device="cpu")


def test_digits_are_labelled_images_in_the_unit_interval(digits):
    assert digits.train.images.shape == (1437, 1, 8, 8) and digits.test.images.shape == (360, 1, 8, 8)
    for split in (digits.train, digits.test):
        assert isinstance(split, data.Split)
        assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert split.images.min() == 0 and split.images.max() == 1
        assert split.labels.shape == (len(split),) and set(split.labels.tolist()) == set(range(10))
    assert digits.num_classes == 10 and digits.class_names == tuple("0123456789")


def test_both_splits_have_the_same_shares_of_classes(digits):
    shares = [s.labels.bincount() / len(s) for s in (digits.train, digits.test)]
    assert torch.allclose(*shares, atol=0.003)


def test_the_splits_together_are_all_of_scikit_learns_digits_once(digits):
    from sklearn.datasets import load_digits

    def rows(images, labels):
        pixels = np.asarray(images).reshape(-1, 64).tolist()
        return sorted((*image, label) for image, label in zip(pixels, labels.tolist()))

    images, labels = (torch.cat(tensors) for tensors in zip(digits.train, digits.test))
    ours, bunch = rows(images * 16, labels), load_digits()
    assert ours == rows(bunch.images, bunch.target)
    assert len({tuple(row[:-1]) for row in ours}) == len(ours)  # so no image is in both splits


def test_the_order_says_nothing_about_the_class(digits):
    assert (digits.train.labels.diff() == 0).float().mean() < 0.2  # sorted: nearly 1; shuffled: 0.1


def test_a_row_selection_selects_images_with_their_labels(digits):
    rows = torch.tensor([5, 2])
    part = digits.train[rows]
    assert len(part) == 2
    assert part.images.equal(digits.train.images[rows]) and part.labels.equal(digits.train.labels[rows])


def test_the_digest_is_that_of_pixels_and_labels(digits):
    tensors = (*digits.train, *digits.test)
    expected = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
    assert digits.digest == expected[:16]


def test_size_resizes_bilinearly_and_leaves_the_digest(digits):
    doubled = data.load("digits", size=16)
    assert doubled.train.images.shape == (1437, 1, 16, 16) and doubled.test.images.shape == (360, 1, 16, 16)
    small, large = digits.train.images[0, 0].numpy(), doubled.train.images[0, 0].numpy()
    middles, edges = np.arange(16) / 2 - 0.25, np.arange(8)  # pixel centres of the large image in the small one
    along = np.stack([np.interp(middles, edges, row) for row in small])
    expected = np.stack([np.interp(middles, edges, column) for column in along.T], axis=1)
    np.testing.assert_allclose(large, expected, atol=1e-6)
    assert doubled.digest == digits.digest and doubled.train.labels.equal(digits.train.labels)


def test_the_native_size_changes_nothing(digits):
    assert data.load("digits", size=8).train.images.equal(digits.train.images)


def test_a_second_load_is_the_same_object():
    assert data.load("digits", size=9) is data.load("digits", size=9)
    assert data.load("digits", size=9) is not data.load("digits", size=10)


def test_the_device_is_honoured():
    assert data.load("digits", device="meta").train.images.device.type == "meta"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="name is 'cifar'; it must be one of mnist, fashion-mnist, digits"):
        data.load("cifar")


@pytest.mark.parametrize("size", [0, -8])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"size is {size}; it must be at least 1"):
        data.load("digits", size=size)


# The data folder


def test_the_data_folder_is_the_one_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    assert data.folder() == tmp_path


def test_a_tilde_in_the_data_folder_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("VAELAB_DATA", "~/sets")
    assert data.folder() == tmp_path / "sets"


@pytest.mark.parametrize("value", [None, ""])
def test_without_one_the_data_folder_is_in_the_users_cache(monkeypatch, value):
    monkeypatch.delenv("VAELAB_DATA") if value is None else monkeypatch.setenv("VAELAB_DATA", value)
    assert data.folder().name == "vaelab" and data.folder().is_absolute()


# MNIST through torchvision, with a tiny archive set of our own


def idx(array: np.ndarray) -> bytes:
    """Encode a uint8 array in MNIST's format: a magic number, the lengths of the axes, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"{part}-{kind}-ubyte": rng.integers(0, high, shape, dtype=np.uint8)
        for part, count in (("train", TRAIN), ("t10k", TEST))
        for kind, high, shape in (("images-idx3", 256, (count, 28, 28)), ("labels-idx1", 10, (count,)))
    }


@pytest.fixture(params=["mnist", "fashion-mnist"])
def archives(request, monkeypatch, tmp_path, pixels) -> tuple[str, Path]:
    """Sound archives in a data folder, whose MD5s torchvision knows, and no server to fetch others from."""
    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[request.param]
    raw = tmp_path / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    for name, array in pixels.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    resources = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(raw.iterdir(), reverse=True)]
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    return request.param, raw


def check_pixels(loaded: data.Dataset, pixels: dict[str, np.ndarray]) -> None:
    for split, part in ((loaded.train, "train"), (loaded.test, "t10k")):
        np.testing.assert_array_equal(split.images.numpy()[:, 0], pixels[f"{part}-images-idx3-ubyte"] / np.float32(255))
        np.testing.assert_array_equal(split.labels.numpy(), pixels[f"{part}-labels-idx1-ubyte"])


def test_sound_archives_load_without_network(archives, pixels):
    name, _ = archives
    loaded = data.load(name)
    check_pixels(loaded, pixels)
    assert loaded.name == name and loaded.num_classes == len(loaded.class_names) == 10
    assert loaded.train.images.dtype == torch.float32 and loaded.train.labels.dtype == torch.int64
    assert loaded.class_names[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]


def test_unpacked_files_alone_load_too(archives, pixels):
    name, raw = archives
    for archive in raw.glob("*.gz"):
        (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
        archive.unlink()
    check_pixels(data.load(name), pixels)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]])
def test_a_damaged_archive_is_named_with_the_way_out_and_nothing_is_lost(archives, damage):
    name, raw = archives
    archive = raw / "train-images-idx3-ubyte.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    before = {path: path.read_bytes() for path in raw.glob("*.gz")}
    with pytest.raises(data.Unavailable, match="Delete it, and the next call downloads it again") as raised:
        data.load(name)
    assert str(archive) in str(raised.value)
    assert {path: path.read_bytes() for path in raw.glob("*.gz")} == before


def test_a_damaged_archive_is_noticed_though_its_unpacked_file_is_there(archives):
    name, raw = archives
    archive = raw / "t10k-labels-idx1-ubyte.gz"
    (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
    archive.write_bytes(b"not an archive")
    with pytest.raises(data.Unavailable, match=archive.name):
        data.load(name)


def test_an_unpacked_file_that_differs_from_its_archive_is_replaced(archives, pixels):
    name, raw = archives
    stale = raw / "train-labels-idx1-ubyte"
    stale.write_bytes(idx(np.zeros(TRAIN, dtype=np.uint8)))
    (raw / "train-images-idx3-ubyte").write_bytes(idx(pixels["train-images-idx3-ubyte"])[:100])  # a cut-off unpacking
    check_pixels(data.load(name), pixels)
    assert stale.read_bytes() == idx(pixels["train-labels-idx1-ubyte"])


@pytest.mark.parametrize("missing", ["everything", "one archive"])
def test_without_archives_and_network_the_message_says_what_to_do(archives, missing):
    name, raw = archives
    shutil.rmtree(raw) if missing == "everything" else (raw / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(data.Unavailable) as raised:
        data.load(name)
    for part in (name, str(raw), "t10k-images-idx3-ubyte.gz", "VAELAB_DATA", "load('digits')"):
        assert part in str(raised.value)


def test_what_is_at_hand_is_told_without_asking_the_network(archives):
    name, raw = archives
    assert data.at_hand("digits") and data.at_hand(name)
    next(raw.glob("*.gz")).unlink()
    assert not data.at_hand(name)
    with pytest.raises(ValueError, match="mnist"):
        data.at_hand("imagenet")


def test_a_failure_is_not_remembered(archives, pixels, tmp_path):
    name, raw = archives
    hidden = raw.rename(tmp_path / "hidden")
    with pytest.raises(data.Unavailable):
        data.load(name)
    shutil.rmtree(raw, ignore_errors=True)
    hidden.rename(raw)
    check_pixels(data.load(name), pixels)


def test_another_data_folder_is_loaded_anew(archives, pixels, tmp_path, monkeypatch):
    name, raw = archives
    first = data.load(name)
    shutil.copytree(raw.parent, tmp_path / "other" / raw.parent.name)
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path / "other"))
    assert data.load(name) is not first
    check_pixels(data.load(name), pixels)


# Balanced subsets


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0] * 5 + [1] * 9 + [3] * 4)[torch.randperm(18, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("per_class", [1, 3, 4])
def test_a_balanced_subset_has_each_class_equally_often_and_no_row_twice(labels, per_class):
    rows = data.balanced_subset(labels, per_class, seed=0)
    assert labels[rows].tolist() == [0] * per_class + [1] * per_class + [3] * per_class
    assert len(set(rows.tolist())) == len(rows) and rows.dtype == torch.int64


def test_a_balanced_subset_is_decided_by_its_seed(labels):
    draws = [tuple(data.balanced_subset(labels, 2, seed).tolist()) for seed in range(20)]
    assert draws[7] == tuple(data.balanced_subset(labels, 2, seed=7).tolist())
    assert len(set(draws)) > 15


def test_a_larger_balanced_subset_contains_the_smaller(labels):
    for seed in range(5):
        draws = [set(data.balanced_subset(labels, n, seed).tolist()) for n in (1, 2, 3, 4)]
        assert draws[0] < draws[1] < draws[2] < draws[3]


def test_every_example_can_come_into_a_balanced_subset(labels):
    drawn = [data.balanced_subset(labels, 1, seed) for seed in range(200)]
    assert set(torch.cat(drawn).tolist()) == set(range(18))


def test_a_balanced_subset_leaves_the_default_generator_alone(labels):
    before = torch.get_rng_state()
    data.balanced_subset(labels, 2, seed=0)
    assert torch.get_rng_state().equal(before)


def test_too_few_examples_are_refused(labels):
    with pytest.raises(ValueError, match="per_class is 5, but class 3 has only 4 examples"):
        data.balanced_subset(labels, 5, seed=0)
    with pytest.raises(ValueError, match="per_class is 0; it must be at least 1"):
        data.balanced_subset(labels, 0, seed=0)


# Batches


@pytest.mark.parametrize("count, batch_size", [(12, 4), (10, 4), (5, 5), (7, 1)])
def test_every_epoch_is_another_permutation_cut_into_full_batches(count, batch_size):
    batches = data.Shuffle(count, batch_size, seed=1)
    assert batches.per_epoch == count // batch_size
    epochs = []
    for epoch in range(4):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        drawn = [batches(step) for step in steps]
        assert all(len(rows) == batch_size and rows.dtype == torch.int64 for rows in drawn)
        rows = torch.cat(drawn).tolist()
        assert len(set(rows)) == len(rows) and set(rows) <= set(range(count))
        epochs.append(tuple(rows))
    assert len(set(epochs)) == 4


def test_over_the_epochs_every_row_is_drawn_though_incomplete_batches_are_dropped():
    batches = data.Shuffle(10, 4, seed=0)
    assert set(torch.cat([batches(step) for step in range(40)]).tolist()) == set(range(10))


def test_a_batch_is_a_pure_function_of_seed_and_step():
    forwards = data.Shuffle(10, 3, seed=5)
    in_order = [forwards(step).tolist() for step in range(12)]
    anyhow = data.Shuffle(10, 3, seed=5)
    for step in (11, 0, 7, 7, 3, 11, 1):
        assert anyhow(step).tolist() == in_order[step]
    assert [data.Shuffle(10, 3, seed=6)(step).tolist() for step in range(12)] != in_order


def test_drawing_batches_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    data.Shuffle(10, 3, seed=5)(4)
    assert torch.get_rng_state().equal(before)


def test_a_small_data_set_is_one_batch_of_all_its_rows():
    batches = data.Shuffle(3, batch_size=128, seed=0)
    assert batches.per_epoch == 1
    assert all(sorted(batches(step).tolist()) == [0, 1, 2] for step in range(5))
    assert len({tuple(batches(step).tolist()) for step in range(20)}) > 1


@pytest.mark.parametrize("count, batch_size", [(0, 4), (4, 0), (-1, 1)])
def test_no_rows_and_no_batch_are_refused(count, batch_size):
    with pytest.raises(ValueError, match=f"count is {count}, batch_size is {batch_size}; both must be at least 1"):
        data.Shuffle(count, batch_size)
