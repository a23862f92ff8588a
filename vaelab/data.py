"""Data sets as tensors that live on the device.

A data set is loaded once, moved once, and afterwards only indexed: no worker processes, nothing per sample
in Python. A batch is a row selection `images[idx]`, and `Shuffle` says which rows.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import platformdirs
import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab import files, ink, text
from vaelab.lab import device as default_device
from vaelab.lab import epoch_generator

IMAGES = ("mnist", "fashion-mnist", "digits", "ink")
SENTENCES = ("docstrings", "grammar", "multi30k")
NAMES = IMAGES + SENTENCES


class Unavailable(RuntimeError):
    """A data set is neither on this machine nor to be had from the network."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels; `x, y = split` takes them apart, `split[rows]` selects rows of both."""

    images: Tensor  # (N, channels, height, width), float32 in [0, 1]
    labels: Tensor  # (N,), int64 in [0, num_classes)

    def __iter__(self) -> Iterator[Tensor]:
        yield self.images
        yield self.labels

    def __getitem__(self, rows: Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def __len__(self) -> int:
        return self.images.shape[0]


class Dataset(NamedTuple):
    """A train and a test split. The test split is for reporting: nothing is ever chosen on it."""

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    digest: str  # SHA-256 of the pixels and labels, first 16 hex digits


def folder() -> Path:
    """Return the data folder: `$VAELAB_DATA`, else `vaelab` in the user's cache folder."""
    chosen = os.environ.get("VAELAB_DATA")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("vaelab"))


def load(
    name: str,
    size: int | None = None,
    device: torch.device | str | None = None,
    correlation: float | None = None,
) -> Dataset | text.Corpus:
    """Load a data set, images as a `Dataset` or sentences as a `text.Corpus`, as tensors on the device.

    Args:
        name: images: `"mnist"`, `"fashion-mnist"` (28 x 28; from the data folder, else downloaded and verified),
            `"digits"` (8 x 8, 1,797 images, embedded: nothing is downloaded) or `"ink"` (`ink.draw`: colour
            frames, 33 x 33, in clips of 32, 640 clips to train on and 64 to test). Sentences: `"docstrings"`
            (`text.docstrings`, read from the installed libraries), `"grammar"` (`text.grammar`, drawn) or
            `"multi30k"` (captions of photographs, from the data folder, into which the reader puts them).
        size: side to which images are resized bilinearly; None keeps the native size. Not for sentences.
            `"ink"` is drawn at the size, which must be odd and at least 17 (33: 0.3 GB in memory; 65: 1.1 GB).
        device: where the tensors live; None takes `vaelab.device()`.
        correlation: of neighbouring frames of `"ink"`, at least 0 and below 1; None takes `ink.CORRELATION`.
            For `"ink"` alone.

    Raises:
        ValueError: unknown name, a size < 1, a size for sentences, a size or correlation that `ink.draw` refuses,
            or a correlation for anything else.
        Unavailable: the files are missing or damaged and cannot be fetched. Never a silent substitute.

    >>> digits = load("digits", device="cpu")
    >>> digits.train.images.shape, digits.test.images.shape
    (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    if name in SENTENCES and size is not None:
        raise ValueError(f"size is {size}, but {name!r} are sentences; only images have a size")
    if name != "ink" and correlation is not None:
        raise ValueError(f"correlation is {correlation}, but {name!r} has no frames in time; only 'ink' has")
    place, root = str(device or default_device()), str(folder())
    if name in SENTENCES:
        return _load_corpus(name, place, root)
    if name == "ink":  # one entry in memory for a default and its value
        size, correlation = size or 33, ink.CORRELATION if correlation is None else float(correlation)
    return _load(name, size, place, root, correlation)


@functools.lru_cache(maxsize=4)
def _load_corpus(name: str, device: str, root: str) -> text.Corpus:
    if name == "grammar":
        return text.grammar().to(device)
    if name == "multi30k":
        return _multi30k(Path(root)).to(device)
    try:
        return text.docstrings(root).to(device)
    except ValueError as error:
        raise Unavailable(f"{error}. Use the drawn sentences: load('grammar').") from error


def _multi30k_files(root: Path) -> list[Path]:
    return [root / "multi30k" / f"{split}.txt.gz" for split in ("train", "valid", "test")]


def _multi30k(root: Path) -> text.Corpus:
    """Captions of 4 to 16 words, all of the 2,500 most frequent words; at most 12,000 to train on."""
    try:
        train, validation, test = (text.read(f, min_words=4, max_words=16) for f in _multi30k_files(root))
        vocabulary = text.Vocabulary.build(train, 2500)
        train = [words for words in train if vocabulary.covers(words)][:12_000]
        return text.corpus("multi30k", train, validation, test, vocabulary)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"multi30k could not be read ({error}). Put the English captions of Multi30k, lower case, words and "
            "punctuation apart, one a line, packed with gzip, as train.txt.gz, valid.txt.gz and test.txt.gz (29,000, "
            f"1,014 and 1,000 lines) into {root / 'multi30k'}; they are for non-commercial research and education. "
            "Or use sentences that need no download: load('docstrings') or load('grammar')."
        ) from error


@functools.lru_cache(maxsize=4)  # a sweep asks for the same data set once a run
def _load(name: str, size: int | None, device: str, root: str, correlation: float | None = None) -> Dataset:
    if name == "digits":
        train, test, class_names = _digits()
    elif name == "ink":
        train, test, class_names = _ink(size, correlation, root)
    else:
        train, test, class_names = _torchvision(name, Path(root))
    digest = hashlib.sha256()
    for tensor in (*train, *test):
        digest.update(tensor.contiguous().numpy())
    train, test = (Split(_resize(s.images, size).to(device), s.labels.to(device)) for s in (train, test))
    return Dataset(name, train, test, len(class_names), class_names, digest.hexdigest()[:16])


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or size == images.shape[-1]:
        return images
    shape = (size, size)
    return F.interpolate(images, shape, mode="bilinear", align_corners=False)  # (N,1,h,w) -> (N,1,size,size)


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, shuffled and cut 1,437 / 360 with equal class shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=bunch.target)
    names = tuple(str(digit) for digit in range(10))
    return Split(images[train], labels[train]), Split(images[test], labels[test]), names


def _ink(size: int, correlation: float, root: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Colour frames in clip order, 32 a clip, drawn; 640 clips to train on and 64 others to test."""
    splits = []
    for clips, seed in ((640, 0), (64, 1)):
        images, labels = ink.kept(root, clips, size=size, seed=seed, correlation=correlation)
        splits.append(Split(images.float().div_(255), labels))
    return *splits, ink.CLASS_NAMES


def _torchvision(name: str, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """MNIST or Fashion-MNIST through torchvision, every archive checked against its MD5 first."""
    kind = _torchvision_kind(name)
    raw = root / kind.__name__ / "raw"
    for archive, md5 in kind.resources:
        _check_archive(raw / archive, md5)
    try:
        splits = [kind(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:  # torchvision raises RuntimeError, URLError or OSError, depending on the cause
        raise Unavailable(_way_out(name, raw, kind.resources, error)) from error
    train, test = (Split(s.data.unsqueeze(1).float() / 255, s.targets.long()) for s in splits)
    names = tuple(c.split(" - ")[0] for c in kind.classes) if name == "mnist" else tuple(kind.classes)
    return train, test, names


def at_hand(name: str) -> bool:
    """Say whether a data set can be loaded without asking the network: embedded, drawn, or its files are here.

    >>> at_hand("digits")
    True
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(NAMES)}")
    if name in ("digits", "ink", "docstrings", "grammar"):
        return True
    if name == "multi30k":
        return all(path.exists() for path in _multi30k_files(folder()))
    kind = _torchvision_kind(name)
    archives = [folder() / kind.__name__ / "raw" / archive for archive, _ in kind.resources]
    return all(archive.exists() or archive.with_suffix("").exists() for archive in archives)


def _torchvision_kind(name: str):
    from torchvision import datasets  # slow to import, and `digits` does without

    return {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]


def _check_archive(archive: Path, md5: str) -> None:
    """Raise if an archive is there but damaged; unpack a sound one, so that torchvision reads just that."""
    if not archive.exists():
        return
    packed = archive.read_bytes()
    digest = hashlib.md5(packed).hexdigest()
    if digest != md5:
        raise Unavailable(
            f"{archive} is damaged ({len(packed)} bytes, MD5 {digest}, expected {md5}). "
            "Delete it, and the next call downloads it again; or copy a sound one in its place."
        )
    content, unpacked = gzip.decompress(packed), archive.with_suffix("")
    if not unpacked.exists() or unpacked.read_bytes() != content:
        files.write_whole(unpacked, content)


def _way_out(name: str, raw: Path, resources, error: Exception) -> str:
    archives = ", ".join(archive for archive, _ in resources)
    return (
        f"{name} could be neither read nor downloaded ({type(error).__name__}: {error}). "
        f"Put sound copies of {archives} into {raw}, or set VAELAB_DATA to a folder whose "
        f"{raw.relative_to(raw.parents[1])} has them, or use the embedded data: load('digits')."
    )


def balanced_subset(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draw the same number of examples from every class.

    Args:
        labels: (N,) int64.
        per_class: how many of each class.
        seed: decides the draw; a larger `per_class` with the same seed contains the smaller draw.

    Returns:
        (num_classes * per_class,) row numbers, class by class, on the device of `labels`.

    Raises:
        ValueError: `per_class` < 1, or a class has fewer examples.

    >>> labels = torch.tensor([0, 1, 1, 0, 1])
    >>> labels[balanced_subset(labels, 2, seed=0)].tolist()
    [0, 0, 1, 1]
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1).cpu()  # (n,)
        if len(rows) < per_class:
            raise ValueError(f"per_class is {per_class}, but class {label} has only {len(rows)} examples")
        order = torch.randperm(len(rows), generator=generator)
        chosen.append(rows[order[:per_class]])
    return torch.cat(chosen).to(labels.device)


class Shuffle:
    """Row numbers of batch `step`: every epoch a fresh permutation, a pure function of (seed, step).

    Having no state of its own, it needs no place in a checkpoint: a resumed run asks for the next step.
    A last incomplete batch of an epoch is dropped, unless it is the only one.

    >>> batches = Shuffle(10, batch_size=4, seed=0)
    >>> batches.per_epoch, len(batches(0)), batches(7).equal(batches(7))
    (2, 4, True)
    """

    def __init__(self, count: int, batch_size: int, seed: int = 0, device: torch.device | str = "cpu"):
        if count < 1 or batch_size < 1:
            raise ValueError(f"count is {count}, batch_size is {batch_size}; both must be at least 1")
        self.count, self.batch_size = count, min(batch_size, count)
        self.seed, self.device = seed, device
        self.per_epoch = count // self.batch_size
        self._epoch, self._order = -1, torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        """Return the (batch_size,) int64 row numbers of batch `step`, counted from 0."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = epoch_generator(self.seed, epoch)
            self._order = torch.randperm(self.count, generator=generator).to(self.device)
            self._epoch = epoch
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
