"""Sentences as rows of word numbers, the corpora they come from, and the order in which training visits them.

To bring a text of your own, one sentence a line, into any chapter that takes sentences::

    from vaelab import text

    sentences = text.read("mine.txt.gz", min_words=4, max_words=16, split=text.tokenize)
    mine = text.corpus("mine", sentences[2000:], sentences[1000:2000], sentences[:1000], vocabulary=1500)
    len(mine.train), mine.vocabulary.decode(mine.train.tokens[:3])
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import sysconfig
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from vaelab import files
from vaelab.lab import epoch_generator

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


# Sentences and their words


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences with a label each; `sentences[rows]` selects rows, in that order, as wide as the longest of them.

    Selecting is pure indexing. The lengths stay on the CPU, so that rows from there ask the accelerator nothing.

    >>> sentences = Vocabulary(["a", "b"]).encode(["a b a", "b"])
    >>> sentences.tokens.tolist(), sentences.lengths.tolist(), sentences[torch.tensor([1])].tokens.tolist()
    ([[4, 5, 4, 2], [5, 2, 0, 0]], [4, 2], [[5, 2]])
    """

    tokens: Tensor  # (N, T), int64: the words, then EOS, then PAD up to T, the longest sentence with its EOS
    lengths: Tensor  # (N,), int64, always on the CPU: words and EOS, so at least 2
    labels: Tensor  # (N,), int64

    def __post_init__(self):
        tokens, lengths, labels = tuple(self.tokens.shape), tuple(self.lengths.shape), tuple(self.labels.shape)
        if len(tokens) != 2 or lengths != tokens[:1] or labels != tokens[:1]:
            shapes = f"tokens {tokens}, lengths {lengths}, labels {labels}"
            raise ValueError(f"the shapes are {shapes}; allowed: (N, T), (N,), (N,)")
        if self.lengths.device.type != "cpu":
            raise ValueError(f"lengths are on {self.lengths.device}; they must be on the CPU")

    def __getitem__(self, rows: Tensor | slice | Sequence[int]) -> Sentences:
        at_home = rows.cpu() if isinstance(rows, Tensor) else rows
        lengths = self.lengths[at_home]
        longest = int(lengths.max()) if lengths.numel() else 0
        there = rows.to(self.tokens.device) if isinstance(rows, Tensor) else rows
        return Sentences(self.tokens[:, :longest][there], lengths, self.labels[there])

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> Sentences:
        """Return them with tokens and labels on the device; the lengths stay on the CPU."""
        return Sentences(self.tokens.to(device), self.lengths, self.labels.to(device))


class Vocabulary:
    """The words that have a number: `<pad> <bos> <eos> <unk>` are 0 to 3, then come the words in their order.

    Args:
        words: distinct, without white space; none of the four special names.

    Attributes:
        words: all of them with the specials, so that `words[token]` is the word of a token.

    Raises:
        ValueError: a word is empty, has white space, is special or comes twice.

    >>> vocabulary = Vocabulary(["the", "cat", "sleeps"])
    >>> len(vocabulary), "cat" in vocabulary, vocabulary.decode(torch.tensor([[4, 5, 6, 2, 0]]))
    (7, True, ['the cat sleeps'])
    """

    def __init__(self, words: Iterable[str]):
        words = tuple(words)
        wrong = [word for word in words if word.split() != [word] or word in SPECIALS]
        wrong += [word for word, count in Counter(words).items() if count > 1]
        if wrong:
            raise ValueError(f"words has {wrong[0]!r}; each must come once, without white space, and not be special")
        self.words = SPECIALS + words
        self._number = {word: number for number, word in enumerate(words, start=len(SPECIALS))}

    @classmethod
    def build(cls, sentences: Iterable[str | Sequence[str]], size: int | None = None, min_count: int = 1) -> Vocabulary:
        """Return the vocabulary of the most frequent words, most frequent first, equals in alphabetical order.

        Args:
            sentences: strings, split at white space, or lists of words.
            size: how many words at most, the four specials not counted; None takes all.
            min_count: rarer words are left out.

        >>> Vocabulary.build(["b a", "c a"], size=2).words[4:]
        ('a', 'b')
        """
        if (size is not None and size < 1) or min_count < 1:
            raise ValueError(f"size is {size}, min_count is {min_count}; both must be at least 1")
        counts = Counter(word for sentence in _word_lists(sentences) for word in sentence)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([w for w in ranked if counts[w] >= min_count and w not in SPECIALS][:size])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._number

    def covers(self, sentence: Iterable[str]) -> bool:
        """Say whether every word of a list of words has a number of its own."""
        return all(word in self._number for word in sentence)

    def encode(
        self,
        sentences: Iterable[str | Sequence[str]],
        labels: Sequence[int] | Tensor | None = None,
        allow_unknown: bool = False,
    ) -> Sentences:
        """Turn sentences into word numbers, on the CPU.

        Args:
            sentences: strings, split at white space, or lists of words.
            labels: (N,) a whole number from 0 for each; None labels all 0.
            allow_unknown: a word outside the vocabulary becomes `<unk>` instead of an error.

        Raises:
            ValueError: a word outside the vocabulary, an empty sentence, no sentence, or not a label for each.
        """
        rows = [self._numbers(sentence, row, allow_unknown) for row, sentence in enumerate(_word_lists(sentences))]
        if not rows:
            raise ValueError("sentences is empty; there must be at least one")
        lengths = torch.tensor([len(row) for row in rows])  # (N,)
        longest = int(lengths.max())
        tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])  # (N, T)
        return Sentences(tokens, lengths, _labels(labels, len(rows)))

    def _numbers(self, sentence: Sequence[str], row: int, allow_unknown: bool) -> list[int]:
        if not sentence:
            raise ValueError(f"sentence {row} is empty; each must have at least one word")
        if not allow_unknown and not self.covers(sentence):
            word = next(word for word in sentence if word not in self)
            raise ValueError(
                f"{word!r} in sentence {row} ({' '.join(sentence)!r}) is not in the vocabulary of {len(self)} words; "
                "leave the sentence out, build a larger vocabulary, or give allow_unknown=True for <unk> in its place"
            )
        return [self._number.get(word, UNK) for word in sentence] + [EOS]

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the sentences of (N, T) word numbers as N strings, each up to its EOS; (T,) counts as one row.

        Raises:
            ValueError: a number that no word has, or tokens of another shape.
        """
        if tokens.ndim not in (1, 2):
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; allowed: (N, T) or (T,)")
        rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
        if any(not 0 <= token < len(self) for row in rows for token in row):
            reach = f"{int(tokens.min())} to {int(tokens.max())}"
            raise ValueError(f"tokens reach from {reach}; allowed: 0 to {len(self) - 1}")
        return [" ".join(self.words[token] for token in row[: (row + [EOS]).index(EOS)]) for row in rows]


def _word_lists(sentences: Iterable[str | Sequence[str]]) -> Iterator[Sequence[str]]:
    if isinstance(sentences, str):
        raise ValueError(f"sentences is one string, {sentences[:40]!r}; it must be a list of sentences")
    return (sentence.split() if isinstance(sentence, str) else sentence for sentence in sentences)


def _labels(labels: Sequence[int] | Tensor | None, count: int) -> Tensor:
    if labels is None:
        return torch.zeros(count, dtype=torch.int64)
    labels = torch.as_tensor(labels)
    if labels.shape != (count,) or labels.is_floating_point() or labels.lt(0).any():
        kind = f"shape {tuple(labels.shape)}, type {labels.dtype}"
        raise ValueError(f"labels have {kind}; allowed: ({count},), whole numbers from 0")
    return labels.to("cpu", torch.int64)


# Corpora


class Corpus(NamedTuple):
    """Sentences to train on, to choose on (validation) and to report on (test), with their vocabulary."""

    name: str
    train: Sentences
    validation: Sentences
    test: Sentences
    vocabulary: Vocabulary
    class_names: tuple[str, ...]
    digest: str  # SHA-256 of tokens, vocabulary and labels, first 16 hex digits

    def to(self, device: torch.device | str) -> Corpus:
        """Return it with the tokens and labels of every split on the device."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return self._replace(**moved)


def corpus(
    name: str,
    train: Iterable[str | Sequence[str]],
    validation: Iterable[str | Sequence[str]],
    test: Iterable[str | Sequence[str]],
    vocabulary: Vocabulary | int | None = None,
    allow_unknown: bool = False,
    labels: Sequence[Sequence[int]] | None = None,
    class_names: Sequence[str] = ("all",),
) -> Corpus:
    """Build a corpus from three lists of sentences, strings (split at white space) or lists of words.

    Args:
        vocabulary: a ready one; or how many of the most frequent words of `train` it holds; None holds all.
        allow_unknown: words outside the vocabulary become `<unk>`. If not, the sentences that have one are left
            out, so that every likelihood is that of the very words.
        labels: a list for each of the three, numbers into `class_names`; None labels all 0.

    Raises:
        ValueError: a split has no sentence, or none is left; an empty sentence; labels that do not fit.

    >>> tiny = corpus("tiny", ["a b", "a c a"], ["a"], ["b a"], vocabulary=2)
    >>> len(tiny.train), len(tiny.vocabulary), tiny.vocabulary.decode(tiny.test.tokens)
    (1, 6, ['b a'])
    """
    split_names = ("train", "validation", "test")
    splits = [list(_word_lists(split)) for split in (train, validation, test)]
    if not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary.build(splits[0], vocabulary)
    encoded = []
    for split_name, split, split_labels in zip(split_names, splits, labels or (None,) * 3):
        numbers = _labels(split_labels, len(split)).tolist()
        pairs = [(s, n) for s, n in zip(split, numbers) if allow_unknown or vocabulary.covers(s)]
        if not pairs:
            raise ValueError(
                f"{split_name} has {len(split)} sentences, none of them of the {len(vocabulary)} words of the "
                "vocabulary alone; give more sentences or a larger vocabulary, or allow_unknown=True"
            )
        if max(numbers) >= len(class_names):
            raise ValueError(f"labels of {split_name} reach {max(numbers)}; class_names has only {len(class_names)}")
        encoded.append(vocabulary.encode(*zip(*pairs), allow_unknown=allow_unknown))
    return Corpus(name, *encoded, vocabulary, tuple(class_names), _digest(encoded, vocabulary))


def _digest(splits: Sequence[Sentences], vocabulary: Vocabulary) -> str:
    tensors = [tensor for split in splits for tensor in (split.tokens, split.labels)]
    parts = [*(tensor.numpy().tobytes() for tensor in tensors), "\n".join(vocabulary.words).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def tokenize(sentence: str) -> list[str]:
    """Split a sentence into words and punctuation, in lower case.

    A word is a run of letters, digits and underscores, with apostrophes or hyphens inside; any other character
    that is not white space is a word by itself.

    >>> tokenize("Don't re-use it, ever (please).")
    ["don't", 're-use', 'it', ',', 'ever', '(', 'please', ')', '.']
    """
    return re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", sentence.lower())


def read(
    path: str | Path,
    min_words: int = 1,
    max_words: int | None = None,
    split: Callable[[str], list[str]] = str.split,
) -> list[list[str]]:
    """Read a text file of one sentence a line, UTF-8, plain or packed (`.gz`).

    Args:
        min_words, max_words: other lines are left out, blank lines always.
        split: turns a line into words; `str.split` suits a text in which words and punctuation are already apart,
            `tokenize` any other.

    Returns:
        The sentences as lists of words, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not UTF-8 or empty, or no line has an allowed number of words.
    """
    if min_words < 1 or (max_words is not None and max_words < min_words):
        raise ValueError(f"min_words is {min_words}, max_words is {max_words}; allowed: 1 <= min_words <= max_words")
    lines = [words for line in _utf8(Path(path)).split("\n") if (words := split(line))]
    if not lines:
        raise ValueError(f"{path} is empty; it must hold one sentence a line")
    kept = [words for words in lines if min_words <= len(words) and (max_words is None or len(words) <= max_words)]
    if not kept:
        shortest, longest = min(map(len, lines)), max(map(len, lines))
        raise ValueError(
            f"none of the {len(lines)} lines of {path} has {min_words} to {max_words or 'any number of'} words: they "
            f"have {shortest} to {longest}; put one sentence on each line, or give other min_words and max_words"
        )
    return kept


def _utf8(path: Path) -> str:
    """Return a file's text; a byte order mark is no part of it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; it must be a text file of one sentence a line, plain or .gz")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged, or no gzip file ({error}); copy a sound one in its place") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = error.start - content.rfind(b"\n", 0, error.start)
        found = f"line {line}, byte {byte} is 0x{content[error.start]:02x}"
        raise ValueError(f"{path} is not UTF-8 ({found}); re-encode it to UTF-8") from error


# Order


class LengthStrata:
    """Row numbers of batch `step`, each batch with one sentence from every range of lengths.

    An epoch leaves out count % batch_size rows at random, sorts the others by length (equals at random) and cuts
    them into batch_size strata; batch b has one row of each. So all batches have nearly the same lengths on
    average, and what batch normalisation measures on one holds for the others. Like `data.Shuffle` this is a pure
    function of (seed, step), and the only batch of a small set has all of its rows.

    Args:
        lengths: (N,) whole numbers, as in `Sentences.lengths`.
        alike: batches of sentences of one length, in random order: saves padding, and is the trap, for then the
            mean and variance over a batch are those of its length. Kept to show it.
        device: where the row numbers live; the CPU also suits sentences that lie elsewhere.

    Attributes:
        per_epoch: batches in an epoch.

    >>> batches = LengthStrata(torch.tensor([9, 3, 9, 3]), batch_size=2)
    >>> batches.per_epoch, len(batches(0)), batches(7).equal(batches(7))
    (2, 2, True)
    """

    def __init__(
        self,
        lengths: Tensor,
        batch_size: int,
        seed: int = 0,
        alike: bool = False,
        device: torch.device | str = "cpu",
    ):
        if lengths.ndim != 1 or len(lengths) < 1 or batch_size < 1:
            shape = tuple(lengths.shape)
            raise ValueError(f"lengths have shape {shape}, batch_size is {batch_size}; allowed: (N,), both at least 1")
        self.lengths, self.batch_size = lengths.cpu(), min(batch_size, len(lengths))
        self.seed, self.alike, self.device = seed, alike, device
        self.per_epoch = len(lengths) // self.batch_size
        self._epoch, self._batches = -1, torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        """Return the (batch_size,) int64 row numbers of batch `step`, counted from 0."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._draw(epoch).to(self.device), epoch
        return self._batches[batch]

    def _draw(self, epoch: int) -> Tensor:
        """Return the (per_epoch, batch_size) rows of an epoch."""
        generator = epoch_generator(self.seed, epoch)
        kept = torch.randperm(len(self.lengths), generator=generator)[: self.per_epoch * self.batch_size]
        by_length = kept[self.lengths[kept].argsort(stable=True)]  # equals keep their random order
        if self.alike:
            return by_length.view(self.per_epoch, -1)[torch.randperm(self.per_epoch, generator=generator)]
        strata = by_length.view(self.batch_size, -1)  # (batch_size, per_epoch): a stratum is a row
        shuffled = torch.rand(strata.shape, generator=generator).argsort(1)
        return strata.gather(1, shuffled).T.contiguous()


# The docstrings of the installed libraries

LIBRARIES = ("python", "numpy", "torch", "sympy", "networkx")  # the standard library, and what torch brings along
_ASIDE = {"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}


def docstrings(folder: str | Path) -> Corpus:
    """Return sentences from the docstrings of the standard library and of torch, sympy, networkx and numpy.

    The rule: lines of a paragraph that are indented alike, cut at stops and colons; of these, sentences of letters,
    commas and parentheses alone, in lower case, without the stop; 5 to 16 words by `tokenize`, no sentence twice.
    Those made of the 1,500 most frequent words alone are shuffled with a seed, and 10,000 of them (there are some
    12,000) cut into 8,000 / 1,000 / 1,000; were there fewer, in the same shares. The label is the library.

    The sources are parsed, nothing is imported. That takes some 20 seconds, so the result is kept in `folder`,
    for these versions of Python and the libraries; a damaged file there is made anew. Docstrings change from
    version to version: record `digest`.

    Raises:
        ValueError: hardly any sentence was found, say because the sources are not installed.
    """
    sources = _sources()
    path = Path(folder) / f"docstrings-{_fingerprint(sources)}.json.gz"
    found = _kept(path)
    if found is None:
        found = _choose({name: _prose(library) for name, (_, library) in sources.items()})
        _keep(path, found)
    splits = found["splits"]
    sentences = [[sentence for sentence, _ in split] for split in splits]
    labels = [[label for _, label in split] for split in splits]
    return corpus("docstrings", *sentences, Vocabulary(found["words"]), labels=labels, class_names=tuple(sources))


def _sources() -> dict[str, tuple[str, Path]]:
    """Return version and folder of each library that is here, without importing it."""
    found = {"python": (platform.python_version(), Path(sysconfig.get_path("stdlib")))}
    for name in LIBRARIES[1:]:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = (importlib.metadata.version(name), Path(next(iter(spec.submodule_search_locations))))
    return found


def _fingerprint(sources: dict[str, tuple[str, Path]]) -> str:
    """Name what the sentences depend on: the versions, and the code that reads and chooses."""
    versions = [f"{name} {version}" for name, (version, _) in sources.items()]
    parts = (_prose, _docstrings, _sentences, _passages, _choose, _shuffled, tokenize, Vocabulary.build)
    code = map(inspect.getsource, parts)
    return hashlib.sha256("\n".join([*versions, repr(sorted(_ASIDE)), *code]).encode()).hexdigest()[:16]


def _prose(library: Path) -> list[str]:
    """Return the sentences of all docstrings below a folder, words and punctuation apart, in a fixed order."""
    found = {}
    for path in sorted(library.rglob("*.py"), key=Path.as_posix):  # paths themselves compare otherwise on Windows
        if not _ASIDE.intersection(path.relative_to(library).parts):
            found |= dict.fromkeys(s for docstring in _docstrings(path) for s in _sentences(docstring))
    return list(found)


def _docstrings(path: Path) -> list[str]:
    """Return the docstrings of a file; of one that does not parse, none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like: not our files
            todo = [ast.parse(path.read_bytes())]  # from bytes: heeds the declaration of the encoding
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []
    found = []
    while todo:
        node = todo.pop()
        # Definitions stand among statements: walking expressions too would take twice as long.
        todo += [child for block in ("body", "orelse", "finalbody", "handlers") for child in getattr(node, block, ())]
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
    return found


def _sentences(docstring: str) -> Iterator[str]:
    """Yield the plain sentences of a docstring, words and punctuation apart."""
    for passage in _passages(docstring):
        for sentence in re.split(r"(?<=[.!?:]) ", passage):
            if re.fullmatch(r"[A-Za-z][A-Za-z ,'()-]*[.!?]?", sentence):
                words = tokenize(sentence.rstrip(".!?"))
                if 5 <= len(words) <= 16 and not {"'", "-"}.intersection(words):
                    yield " ".join(words)


def _passages(docstring: str) -> Iterator[str]:
    """Yield the runs of lines that are indented alike, each as one line; paragraphs with a doctest are left out."""
    for paragraph in re.split(r"\n\s*\n", docstring.replace("`", "")):
        runs = [] if ">>>" in paragraph else groupby(paragraph.split("\n"), lambda line: re.match(r"\s*", line).end())
        runs = [(indent, " ".join(" ".join(lines).split())) for indent, lines in runs]
        for (indent, passage), (next_indent, _) in zip(runs, [*runs[1:], (0, "")]):
            # What goes on further to the right was not over: a colon says so, and its sentence is left out.
            yield passage + " :" if next_indent > indent else passage


def _choose(prose: dict[str, list[str]], size: int = 1500, count: int = 10_000) -> dict:
    """Choose the vocabulary and up to `count` sentences that it covers: {"words", "splits": (sentence, label)}."""
    labelled = {}
    for label, sentences in enumerate(prose.values()):
        for sentence in sentences:
            labelled.setdefault(sentence, label)  # one that two libraries share belongs to the first
    vocabulary = Vocabulary.build(labelled, size)
    covered = [pair for pair in labelled.items() if vocabulary.covers(pair[0].split())]
    if len(covered) < 100:
        raise ValueError(f"only {len(covered)} sentences in the docstrings of {', '.join(prose)}; at least 100 needed")
    chosen = _shuffled(covered, Random(0))[:count]
    tenth = len(chosen) // 10
    splits = chosen[2 * tenth :], chosen[tenth : 2 * tenth], chosen[:tenth]
    return {"words": vocabulary.words[len(SPECIALS) :], "splits": splits}


def _shuffled(items: Sequence, random: Random) -> list:
    """Return the items in a random order that is the same in every version of Python (`shuffle` promises none)."""
    return [items[i] for _, i in sorted((random.random(), i) for i in range(len(items)))]


def _kept(path: Path) -> dict | None:
    """Return what an earlier call kept; None if it is not there or damaged, which the checksum of gzip tells."""
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() == {"words", "splits"} else None


def _keep(path: Path, found: dict) -> None:
    try:
        files.write_whole(path, gzip.compress(json.dumps(found).encode(), mtime=0))
    except OSError as error:
        warnings.warn(f"the sentences could not be kept and will be read again next time: {error}", stacklevel=3)


# A grammar

_TOPICS = {  # topic: those who act, what they did, what they did it to
    "kitchen": ("cook baker waiter guest", "chopped boiled tasted burned", "onions soups noodles pies carrots"),
    "garden": ("gardener beekeeper owner florist", "watered planted cut picked", "roses hedges tulips weeds herbs"),
    "harbour": ("sailor captain fisher pilot", "moored loaded steered repaired", "ships boats nets barges anchors"),
    "school": ("teacher pupil headmaster librarian", "read copied marked explained", "essays poems lessons maps sums"),
    "concert": ("violinist singer composer drummer", "played rehearsed tuned sang", "songs waltzes flutes lutes drums"),
    "hospital": ("doctor nurse surgeon patient", "treated nursed examined cured", "wounds fevers burns coughs bruises"),
    "court": ("judge lawyer witness clerk", "denied heard signed dismissed", "appeals claims pleas contracts verdicts"),
    "stable": ("rider groom farmer jockey", "fed saddled brushed trained", "horses ponies mares mules donkeys"),
}
_OPENINGS = "yesterday once today later finally meanwhile".split()
_DETERMINERS = "the a every one this that".split()
_MANNERS = "young old quiet proud tired clever cheerful nervous".split()
_ADVERBS = "slowly gladly quickly carefully rarely often".split()
_AMOUNTS = "the some many few two all".split()
_QUALITIES = "small large strange beautiful cheap heavy new ordinary".split()
_PLACES = "tower river market bridge station church".split()
_LINKS = "near behind beyond beside".split()
_REASONS = "because while although before".split()
_STATES = "slept waited smiled laughed complained arrived".split()


def grammar(counts: tuple[int, int, int] = (4000, 1000, 1000), seed: int = 0) -> Corpus:
    """Return sentences drawn from a small grammar, with the topic as label: no download, the same everywhere.

    A sentence, 4 to 14 words, no full stop; brackets hold what comes or stays away by independent coin tosses::

        [opening] determiner [manner] AGENT [adverb] VERB [amount] [quality] OBJECTS [tail]
        tail = link "the" place | "and" VERB OBJECTS | reason "the" [manner] AGENT state

    Words in capitals are those of the topic, one of 8, so that a sentence says its topic several times over; the
    other choices say nothing of each other. No sentence comes twice, within a split or among them. The entropy of
    a sentence is 21.0 nats, ln 8 = 2.1 of them its topic: no model does with fewer.

    Args:
        counts: sentences to train on, to choose on, to report on.
        seed: decides the draw.

    Raises:
        ValueError: a count below 1.

    >>> corpus = grammar((100, 10, 10))
    >>> len(corpus.train), len(corpus.class_names)
    (100, 8)
    """
    if len(counts) != 3 or min(counts) < 1:
        raise ValueError(f"counts is {counts}; it must be three whole numbers of at least 1")
    random, drawn = Random(seed), {}
    while len(drawn) < sum(counts):
        topic = _pick(range(len(_TOPICS)), random)
        drawn.setdefault(" ".join(_draw(*_TOPIC_WORDS[topic], random)), topic)
    pairs, ends = list(drawn.items()), (counts[0], counts[0] + counts[1], sum(counts))
    splits = [pairs[start:end] for start, end in zip((0, *ends), ends)]
    sentences, labels = ([[pair[i] for pair in split] for split in splits] for i in (0, 1))
    return corpus("grammar", *sentences, Vocabulary(_grammar_words()), labels=labels, class_names=tuple(_TOPICS))


_TOPIC_WORDS = [tuple(words.split() for words in kinds) for kinds in _TOPICS.values()]


def _grammar_words() -> list[str]:
    """Return every word of the grammar once, in alphabetical order."""
    shared = (_OPENINGS, _DETERMINERS, _MANNERS, _ADVERBS, _AMOUNTS, _QUALITIES, _PLACES, _LINKS, _REASONS, _STATES)
    own = (words for kinds in _TOPIC_WORDS for words in kinds)
    return sorted({"and", *(word for words in (*shared, *own) for word in words)})


def _pick(options: Sequence, random: Random):
    return options[int(random.random() * len(options))]  # random() alone is promised to stay as it is


def _draw(agents: list[str], verbs: list[str], things: list[str], random: Random) -> list[str]:
    """Draw one sentence of a topic."""

    def pick(options: Sequence) -> str:
        return _pick(options, random)

    def perhaps(options: Sequence) -> list[str]:
        return [pick(options)] if random.random() < 0.5 else []

    sentence = [*perhaps(_OPENINGS), pick(_DETERMINERS), *perhaps(_MANNERS), pick(agents), *perhaps(_ADVERBS)]
    sentence += [pick(verbs), *perhaps(_AMOUNTS), *perhaps(_QUALITIES), pick(things)]
    tail = pick(("none", "place", "verb", "reason"))
    if tail == "place":
        sentence += [pick(_LINKS), "the", pick(_PLACES)]
    elif tail == "verb":
        sentence += ["and", pick(verbs), pick(things)]
    elif tail == "reason":
        sentence += [pick(_REASONS), "the", *perhaps(_MANNERS), pick(agents), pick(_STATES)]
    return sentence
