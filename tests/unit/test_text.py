"""Sentences: numbered and back, read or refused, the same corpus every time, batches of every length."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import itertools
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from vaelab import data, text
from vaelab.text import BOS, EOS, PAD, UNK

# Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> text.Vocabulary:
    return text.Vocabulary(["the", "cat", "sleeps"])


def test_the_specials_come_first_then_the_words_in_their_order(vocabulary):
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    assert vocabulary.words == ("<pad>", "<bos>", "<eos>", "<unk>", "the", "cat", "sleeps") and len(vocabulary) == 7
    assert "cat" in vocabulary and "dog" not in vocabulary and "<pad>" not in vocabulary
    assert vocabulary.covers(["the", "cat"]) and not vocabulary.covers(["the", "dog"])


@pytest.mark.parametrize(
    "words, wrong", [(["a", "b", "a"], "'a'"), (["a", ""], "''"), (["a b"], "'a b'"), (["<eos>"], "'<eos>'")]
)
def test_words_that_cannot_be_told_apart_are_refused(words, wrong):
    with pytest.raises(ValueError, match=f"words has {wrong}; each must come once"):
        text.Vocabulary(words)


def test_the_most_frequent_words_come_first_and_equals_alphabetically():
    sentences = ["d c b", ["c", "b"], "c a", "<unk> <unk> <unk> <unk>"]
    build = text.Vocabulary.build
    assert build(sentences).words[4:] == ("c", "b", "a", "d")
    assert build(reversed(sentences)).words == build(sentences).words
    assert build(sentences, size=3).words[4:] == ("c", "b", "a")
    assert build(sentences, min_count=2).words[4:] == ("c", "b")


@pytest.mark.parametrize("wrong", [{"size": 0}, {"min_count": 0}])
def test_a_vocabulary_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="both must be at least 1"):
        text.Vocabulary.build(["a"], **wrong)


def test_a_sentence_is_its_words_then_eos_then_padding(vocabulary):
    encoded = vocabulary.encode(["the cat sleeps", ["cat"]], labels=[1, 0])
    assert encoded.tokens.tolist() == [[4, 5, 6, EOS], [5, EOS, PAD, PAD]]
    assert encoded.lengths.tolist() == [4, 2] and encoded.labels.tolist() == [1, 0]
    assert {t.dtype for t in (encoded.tokens, encoded.lengths, encoded.labels)} == {torch.int64}
    assert vocabulary.encode(["cat"]).labels.tolist() == [0]
    assert vocabulary.encode(["cat", "cat"], labels=torch.tensor([2, 1], dtype=torch.uint8)).labels.tolist() == [2, 1]


def test_decoding_undoes_encoding_and_stops_at_the_first_eos(vocabulary):
    sentences = ["the cat sleeps", "cat", "the the"]
    assert vocabulary.decode(vocabulary.encode(sentences).tokens) == sentences
    assert vocabulary.decode(torch.tensor([5, EOS, 6, EOS])) == ["cat"]
    assert vocabulary.decode(torch.tensor([[4, UNK], [EOS, 5]])) == ["the <unk>", ""]


@pytest.mark.parametrize("tokens", [[[4, 7]], [[-1, 4]]])
def test_numbers_without_a_word_are_refused(vocabulary, tokens):
    with pytest.raises(ValueError, match="tokens reach from .*; allowed: 0 to 6"):
        vocabulary.decode(torch.tensor(tokens))


def test_decode_wants_rows(vocabulary):
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 1, 1\); allowed: \(N, T\) or \(T,\)"):
        vocabulary.decode(torch.full((1, 1, 1), 4))


def test_an_unknown_word_is_named_unless_it_may_be_unknown(vocabulary):
    with pytest.raises(ValueError, match="'dog' in sentence 1 .*'the dog sleeps'.* allow_unknown=True for <unk>"):
        vocabulary.encode(["the cat", "the dog sleeps"])
    assert vocabulary.encode(["the dog"], allow_unknown=True).tokens.tolist() == [[4, UNK, EOS]]


@pytest.mark.parametrize("special", text.SPECIALS)
def test_a_special_name_in_a_sentence_is_no_word(vocabulary, special):
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        vocabulary.encode([f"the {special}"])
    assert vocabulary.encode([f"{special} cat"], allow_unknown=True).tokens.tolist() == [[UNK, 5, EOS]]


@pytest.mark.parametrize(
    "sentences, message",
    [
        (["cat", " "], "sentence 1 is empty"),
        ([[]], "sentence 0 is empty"),
        ([], "sentences is empty"),
        ("the cat", "sentences is one string, 'the cat'; it must be a list"),
    ],
)
def test_no_words_are_refused(vocabulary, sentences, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.encode(sentences)


@pytest.mark.parametrize("labels", [[0], [0, -1], [0.0, 1.0], [[0], [1]]])
def test_labels_that_do_not_fit_are_refused(vocabulary, labels):
    with pytest.raises(ValueError, match=r"labels have shape .*; allowed: \(2,\), whole numbers from 0"):
        vocabulary.encode(["the", "cat"], labels)


# Sentences


@pytest.fixture(scope="module")
def sentences(vocabulary) -> text.Sentences:
    return vocabulary.encode(["the cat sleeps", "cat", "cat sleeps"], labels=[0, 1, 2])


def test_rows_keep_their_order_and_are_as_wide_as_the_longest(sentences):
    part = sentences[torch.tensor([2, 1])]
    assert part.tokens.tolist() == [[5, 6, EOS], [5, EOS, PAD]]
    assert part.lengths.tolist() == [3, 2] and part.labels.tolist() == [2, 1] and len(part) == 2
    assert sentences[torch.tensor([1, 1])].tokens.tolist() == [[5, EOS]] * 2


def test_masks_slices_and_lists_select_rows_too(sentences):
    expected = sentences[torch.tensor([1, 2])]
    for rows in (torch.tensor([False, True, True]), slice(1, None), [1, 2]):
        part = sentences[rows]
        assert part.tokens.equal(expected.tokens) and part.lengths.equal(expected.lengths)
        assert part.labels.equal(expected.labels)


def test_no_rows_are_no_sentences(sentences):
    none = sentences[torch.tensor([], dtype=torch.int64)]
    assert len(none) == 0 and none.tokens.shape == (0, 0)


def test_lengths_stay_on_the_cpu(sentences):
    moved = sentences.to("meta")
    assert moved.tokens.device.type == moved.labels.device.type == "meta" and moved.lengths.device.type == "cpu"
    part = moved[torch.tensor([2, 1])]
    assert part.tokens.shape == (2, 3) and part.tokens.device.type == "meta" and part.lengths.tolist() == [3, 2]
    with pytest.raises(ValueError, match="lengths are on meta; they must be on the CPU"):
        text.Sentences(moved.tokens, moved.lengths.to("meta"), moved.labels)


@pytest.mark.parametrize("shapes", [((3,), (3,), (3,)), ((3, 4), (2,), (3,)), ((3, 4), (3,), (3, 1))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"the shapes are .*; allowed: \(N, T\), \(N,\), \(N,\)"):
        text.Sentences(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))


# A text of one's own


def test_tokenize_parts_words_from_punctuation():
    assert text.tokenize("A re-used 'Tensor', isn't it?  (x_1)") == [
        *("a", "re-used", "'", "tensor", "'", ",", "isn't", "it", "?", "(", "x_1", ")")
    ]
    assert text.tokenize(" \n") == []


def test_a_file_is_read_plain_or_packed(tmp_path):
    content = "a b c\r\n\n   \nd\nÄ é f g\u2028h\nb b".encode("utf-8-sig")
    (tmp_path / "mine.txt").write_bytes(content)
    (tmp_path / "mine.txt.gz").write_bytes(gzip.compress(content))
    for path in (tmp_path / "mine.txt", str(tmp_path / "mine.txt.gz")):
        assert text.read(path) == [["a", "b", "c"], ["d"], ["Ä", "é", "f", "g", "h"], ["b", "b"]]
        assert text.read(path, min_words=2, max_words=3) == [["a", "b", "c"], ["b", "b"]]
    (tmp_path / "raw.txt").write_text("Stop, now.\n")
    assert text.read(tmp_path / "raw.txt", split=text.tokenize) == [["stop", ",", "now", "."]]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="mine.txt is not there; it must be a text file of one sentence a line"):
        text.read(tmp_path / "mine.txt")
    with pytest.raises(FileNotFoundError, match="is not there"):
        text.read(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_another_encoding_is_told_with_its_place(tmp_path, packed):
    content = "fine\nun café\n".encode("latin-1")
    path = tmp_path / ("mine.gz" if packed else "mine.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"mine.* is not UTF-8 \(line 2, byte 7 is 0xe9\); re-encode it to UTF-8"):
        text.read(path)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-9], lambda b: b"plain text", lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:], lambda b: b[1:]],
)
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = tmp_path / "mine.txt.gz"
    path.write_bytes(damage(gzip.compress(b"one two three four five\n" * 9)))
    with pytest.raises(ValueError, match="mine.txt.gz is damaged, or no gzip file"):
        text.read(path)


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_without_a_word_is_refused(tmp_path, content):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match="mine.txt is empty; it must hold one sentence a line"):
        text.read(tmp_path / "mine.txt")


def test_lengths_that_no_line_has_are_refused_with_those_there_are(tmp_path):
    (tmp_path / "mine.txt").write_text("a b c d\na b c d e f\n")
    with pytest.raises(ValueError, match="none of the 2 lines of .*mine.txt has 1 to 3 words: they have 4 to 6"):
        text.read(tmp_path / "mine.txt", max_words=3)
    with pytest.raises(ValueError, match="7 to any number of words"):
        text.read(tmp_path / "mine.txt", min_words=7)


@pytest.mark.parametrize("wrong", [{"min_words": 0}, {"min_words": 5, "max_words": 4}])
def test_impossible_lengths_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="allowed: 1 <= min_words <= max_words"):
        text.read(tmp_path / "mine.txt", **wrong)


# A corpus of one's own

TRAIN, VALIDATION, TEST = ["a b", "a c a", "b a"], [["a"], ["d"]], ["b b"]


def test_a_corpus_leaves_out_sentences_beyond_its_vocabulary():
    small = text.corpus("small", TRAIN, VALIDATION, TEST, 2, labels=[[0, 1, 2], [1, 2], [2]], class_names="xyz")
    assert isinstance(small, text.Corpus) and small.name == "small" and small.class_names == ("x", "y", "z")
    assert small.vocabulary.words[4:] == ("a", "b")
    decoded = [small.vocabulary.decode(split.tokens) for split in (small.train, small.validation, small.test)]
    assert decoded == [["a b", "b a"], ["a"], ["b b"]]
    assert [s.labels.tolist() for s in (small.train, small.validation, small.test)] == [[0, 2], [1], [2]]


def test_a_corpus_may_keep_them_with_unknown_words():
    small = text.corpus("small", TRAIN, VALIDATION, TEST, vocabulary=2, allow_unknown=True)
    assert small.train.tokens[1].tolist() == [4, UNK, 4, EOS] and small.validation.tokens[1].tolist() == [UNK, EOS]


def test_the_vocabulary_is_of_the_training_sentences_or_a_ready_one():
    assert text.corpus("small", TRAIN, VALIDATION, TEST).vocabulary.words[4:] == ("a", "b", "c")
    ready = text.Vocabulary("dcba")
    small = text.corpus("small", TRAIN, VALIDATION, TEST, ready)
    assert small.vocabulary is ready and len(small.validation) == 2 and small.class_names == ("all",)


def test_the_digest_is_that_of_tokens_labels_and_vocabulary():
    small = text.corpus("small", TRAIN, VALIDATION, TEST)
    parts = [t.numpy().tobytes() for s in (small.train, small.validation, small.test) for t in (s.tokens, s.labels)]
    expected = hashlib.sha256(b"".join(parts) + "\n".join(small.vocabulary.words).encode()).hexdigest()
    assert small.digest == expected[:16]
    renamed = [[s.replace("a", "x") for s in TRAIN], [["x"]], TEST]
    others = [
        text.corpus("small", *renamed).digest,
        text.corpus("small", TRAIN, VALIDATION, ["b a"]).digest,
        text.corpus("small", TRAIN, VALIDATION, TEST, labels=[[0] * 3, [0] * 2, [1]], class_names="xy").digest,
    ]
    assert len({small.digest, *others}) == 4


def test_a_corpus_moves_but_its_lengths_stay():
    moved = text.corpus("small", TRAIN, VALIDATION, TEST).to("meta")
    assert all(s.tokens.device.type == "meta" for s in (moved.train, moved.validation, moved.test))
    assert moved.test.lengths.device.type == "cpu" and moved.name == "small"


@pytest.mark.parametrize(
    "splits, more, message",
    [
        ((TRAIN, [], TEST), {}, "validation has 0 sentences"),
        ((TRAIN, VALIDATION, ["q", "a q"]), {}, "test has 2 sentences, none of them of the 7 words"),
        (("a b", VALIDATION, TEST), {}, "sentences is one string"),
        ((TRAIN, [[]], TEST), {}, "sentence 0 is empty"),
        ((TRAIN, VALIDATION, TEST), {"labels": [[0], [0, 0], [0]]}, "labels have shape"),
        ((TRAIN, VALIDATION, TEST), {"labels": [[0] * 3, [0, 1], [0]]}, "labels of validation reach 1; class_names"),
        ((TRAIN, VALIDATION, TEST), {"vocabulary": 0}, "size is 0"),
    ],
)
def test_a_corpus_that_cannot_be_is_refused(splits, more, message):
    with pytest.raises(ValueError, match=message):
        text.corpus("small", *splits, **more)


# The order of training


@pytest.fixture(scope="module")
def lengths() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, 18, (1003,), generator=generator)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("batch_size", [1, 32, 100, 1003])
def test_every_epoch_visits_each_row_at_most_once(lengths, batch_size, alike):
    batches = text.LengthStrata(lengths, batch_size, seed=3, alike=alike)
    assert batches.per_epoch == 1003 // batch_size
    epochs = [[batches(e * batches.per_epoch + b) for b in range(batches.per_epoch)] for e in (0, 1)]
    for epoch in epochs:
        assert {(b.dtype, tuple(b.shape)) for b in epoch} == {(torch.int64, (batch_size,))}
        rows = torch.cat(epoch)
        assert len(rows.unique()) == len(rows) == 1003 - 1003 % batch_size and 0 <= rows.min() and rows.max() < 1003
    assert not torch.cat(epochs[0]).equal(torch.cat(epochs[1]))


def test_the_rows_left_out_are_others_every_epoch(lengths):
    batches = text.LengthStrata(lengths, 100)
    left_out = [
        set(range(1003)) - set(torch.cat([batches(10 * epoch + b) for b in range(10)]).tolist()) for epoch in range(20)
    ]
    assert {len(rows) for rows in left_out} == {3} and len(set.union(*left_out)) > 40


@pytest.mark.parametrize("alike", [False, True])
def test_a_batch_is_a_pure_function_of_seed_and_step(lengths, alike):
    batches, again = (text.LengthStrata(lengths, 100, seed=1, alike=alike) for _ in range(2))
    in_order = [batches(step) for step in range(25)]
    assert all(again(step).equal(in_order[step]) for step in (7, 24, 3, 12, 7))
    other = text.LengthStrata(lengths, 100, seed=2, alike=alike)
    assert not other(7).equal(in_order[7])


def test_a_batch_has_one_row_of_every_stratum(lengths):
    batches = text.LengthStrata(lengths[:1000], 50)
    of_batches = torch.stack([lengths[batches(b)] for b in range(20)])  # (20 batches, 50 strata)
    assert (of_batches.diff(dim=1) >= 0).all()  # a batch goes from the shortest stratum to the longest
    assert of_batches.T.flatten().sort().values.view(50, 20).equal(of_batches.T.sort(dim=1).values)


def test_who_of_a_stratum_comes_when_is_decided_stratum_by_stratum():
    batches = text.LengthStrata(torch.arange(1000), 50)  # no two alike, so that only the strata can be shuffled
    place = torch.stack([batches(b) for b in range(20)]) % 20  # (20 batches, 50 strata): from shortest to longest
    assert place.sort(dim=0).values.equal(torch.arange(20)[:, None].expand(20, 50))
    assert all(len(of_batch.unique()) > 10 for of_batch in place)


def test_equal_lengths_are_spread_at_random():
    batches = text.LengthStrata(torch.full((1000,), 7), 100)
    first = batches(0)
    assert abs(torch.corrcoef(torch.stack([first, torch.arange(100)]).double())[0, 1]) < 0.4


def test_strata_make_the_mean_length_of_all_batches_alike(lengths):
    def spread(batches) -> float:
        means = [lengths[batches(step)].double().mean() for step in range(5 * batches.per_epoch)]
        return torch.stack(means).std().item()

    strata, alike = (spread(text.LengthStrata(lengths, 32, alike=alike)) for alike in (False, True))
    random = spread(data.Shuffle(len(lengths), 32))
    assert strata < alike / 10 and strata < random / 3
    assert random == pytest.approx(lengths.double().std().item() / math.sqrt(32), rel=0.2)
    assert alike == pytest.approx(lengths.double().std().item(), rel=0.1)


def test_alike_means_alike_in_random_order(lengths):
    batches = text.LengthStrata(lengths, 32, alike=True)
    of_batches = [lengths[batches(step)] for step in range(batches.per_epoch)]
    assert max((b.max() - b.min()).item() for b in of_batches) <= 1
    order = [b[0].item() for b in of_batches]
    assert order != sorted(order)


def test_a_small_set_is_one_batch_of_all_its_rows():
    batches = text.LengthStrata(torch.tensor([5, 3, 4]), 32)
    assert batches.per_epoch == 1 and batches.batch_size == 3 and sorted(batches(4).tolist()) == [0, 1, 2]


def test_the_row_numbers_live_where_they_are_wanted(lengths):
    assert text.LengthStrata(lengths, 32, device="meta")(0).device.type == "meta"


def test_drawing_batches_leaves_the_default_generator_alone(lengths):
    state = torch.get_rng_state()
    text.LengthStrata(lengths, 32)(0)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("count, batch_size", [(0, 4), (4, 0)])
def test_no_rows_and_no_batch_are_refused(count, batch_size):
    with pytest.raises(ValueError, match=rf"lengths have shape \({count},\), batch_size is {batch_size}"):
        text.LengthStrata(torch.full((count,), 5), batch_size)
    with pytest.raises(ValueError, match=r"lengths have shape \(2, 2\)"):
        text.LengthStrata(torch.full((2, 2), 5), 2)


# Docstrings

GOOD = '''
"""Return the first of the many values.

A second sentence, which is good (it has commas), follows here! Too short.
This one has a_name and is left out. This one has 3 numbers in it, too.
A longer sentence that goes on and on and on and never seems to come to any end at all.

Args:
    value: the long name of the value to be kept.
    other: an unfinished line that is continued
        further to the right and so on

>>> print("these are the words of an example")
these are the words of an example
"""

def outer():
    r"""A name with an `escape` in it"""
    def inner():
        """The function within the other one."""
    text = """This is no docstring at all, my friend."""
    if True:
        class Local:
            """The class within the other one."""
            async def method(self):
                """Return the first of the many values."""
    try:
        pass
    except ValueError:
        def handler():
            """The function within the handler there."""
'''
EXPECTED = {
    "return the first of the many values",
    "a second sentence , which is good ( it has commas ) , follows here",
    "the long name of the value to be kept",
    "further to the right and so on",
    "a name with an escape in it",
    "the function within the other one",
    "the class within the other one",
    "the function within the handler there",
}


@pytest.fixture
def package(tmp_path) -> Path:
    """A package with a good file, and with all that is not one."""
    root = tmp_path / "site-packages" / "madeup"
    (root / "deep").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "good.py").write_text(GOOD)
    (root / "deep" / "again.py").write_text('"""Return the first of the many values."""')
    (root / "broken.py").write_text('"""This file does not parse at all."""\ndef (:')
    (root / "nulls.py").write_bytes(b'"""This file has a null in it."""\0')
    (root / "undeclared.py").write_bytes('"""This file is undeclared latin, café."""'.encode("latin-1"))
    declared = '# -*- coding: latin-1 -*-\n"""This file declares that it is latin. Café."""'
    (root / "declared.py").write_bytes(declared.encode("latin-1"))
    (root / "escape.py").write_text('"""A warning is not worth a word. \\q"""\nx = "\\q"')
    (root / "deepest.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (root / "tests" / "test_it.py").write_text('"""The tests are not what users read."""')
    return root


def test_sentences_are_those_of_the_docstrings_that_can_be_read(package, recwarn):
    found = text._prose(package)
    assert set(found) == EXPECTED | {"this file declares that it is latin", "a warning is not worth a word"}
    assert len(found) == len(set(found)) and not recwarn.list
    assert found == text._prose(package)


def test_five_to_sixteen_words_are_a_sentence():
    def kept(count: int) -> list[str]:
        return list(text._sentences(" ".join(["word"] * count) + "."))

    assert [count for count in range(1, 30) if kept(count)] == list(range(5, 17))


def prose(*counts: int) -> dict[str, list[str]]:
    """Made-up sentences, as many for each library; of `a`, `b` and `c`, so that three words cover them."""
    sentences = (" ".join(words) for n in range(1, 9) for words in itertools.product("abc", repeat=n))
    return {f"library {i}": list(itertools.islice(sentences, count)) for i, count in enumerate(counts)}


def test_the_sentences_chosen_are_covered_shuffled_and_cut():
    found = text._choose(prose(900, 600) | {"rare": ["rare words", "rarer still"]}, size=3, count=1000)
    assert set(found["words"]) == {"a", "b", "c"} and [len(split) for split in found["splits"]] == [800, 100, 100]
    pairs = [pair for split in found["splits"] for pair in split]
    assert len({sentence for sentence, _ in pairs}) == 1000
    given = {s: label for label, sentences in enumerate(prose(900, 600).values()) for s in sentences}
    assert all(given[sentence] == label for sentence, label in pairs)
    shares = [sum(label for _, label in split) / len(split) for split in found["splits"]]
    assert shares == pytest.approx([0.4] * 3, abs=0.15)


def test_fewer_sentences_are_cut_in_the_same_shares_and_hardly_any_are_refused():
    assert [len(split) for split in text._choose(prose(150))["splits"]] == [120, 15, 15]
    with pytest.raises(ValueError, match="only 99 sentences in the docstrings of library 0; at least 100 needed"):
        text._choose(prose(99))


def test_a_sentence_of_two_libraries_belongs_to_the_first():
    shared = prose(200)["library 0"]
    found = text._choose({"one": shared, "two": [*shared, "a b c a b c a b c"]})
    assert Counter(label for split in found["splits"] for _, label in split) == {0: 200, 1: 1}


@pytest.fixture
def networkx_alone(monkeypatch) -> dict[str, tuple[str, Path]]:
    """The sources of one small library instead of all: reading them takes a second."""
    sources = {"networkx": text._sources()["networkx"]}
    sources["networkx"] = ("1.2.3", sources["networkx"][1] / "classes")
    monkeypatch.setattr(text, "_sources", lambda: sources)
    return sources


def same(one: text.Corpus, other: text.Corpus) -> bool:
    return one.digest == other.digest and one.class_names == other.class_names and len(one.train) == len(other.train)


def test_what_was_read_is_kept_and_a_damaged_file_is_made_anew(networkx_alone, tmp_path, monkeypatch):
    first = text.docstrings(tmp_path)
    (kept,) = tmp_path.iterdir()
    sound = kept.read_bytes()
    damaged = [
        sound[:-5],
        b"",
        sound[:200] + bytes([sound[200] ^ 4]) + sound[201:],
        b"no archive",
        gzip.compress(b"{}"),
    ]
    for content in damaged:
        kept.write_bytes(content)
        assert same(text.docstrings(tmp_path), first)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [sound]
    monkeypatch.setattr(text, "_prose", lambda library: pytest.fail("read again"))
    monkeypatch.setattr(text, "_fingerprint", lambda sources: kept.name.split("-")[1].split(".")[0])
    assert same(text.docstrings(tmp_path), first)


def test_another_version_and_another_code_are_another_file(networkx_alone, monkeypatch):
    before = text._fingerprint(networkx_alone)
    assert before == text._fingerprint(dict(networkx_alone))
    assert before != text._fingerprint({"networkx": ("1.2.4", networkx_alone["networkx"][1])})
    monkeypatch.setattr(text, "_shuffled", lambda items, random: list(items))
    assert before != text._fingerprint(networkx_alone)


def test_a_folder_that_cannot_be_written_costs_only_time(networkx_alone, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be kept and will be read again next time"):
        corpus = text.docstrings(tmp_path / "file")
    assert len(corpus.train) > 80


def test_the_sources_are_found_without_importing_them():
    sources = text._sources()
    assert sources["python"][0] == ".".join(map(str, sys.version_info[:3]))
    assert sources["torch"][0] == importlib.metadata.version("torch")
    assert (sources["python"][1] / "json" / "__init__.py").exists()
    assert set(sources) <= set(text.LIBRARIES) and all(folder.is_dir() for _, folder in sources.values())


def test_a_library_that_is_not_here_is_left_out(monkeypatch):
    monkeypatch.setattr(text, "LIBRARIES", ("python", "numpy", "no_such_library"))
    assert list(text._sources()) == ["python", "numpy"]


def check_corpus(corpus: text.Corpus, sizes: list[int], shortest: int, longest: int) -> None:
    """Whole sentences, no unknown word, no sentence twice."""
    splits = (corpus.train, corpus.validation, corpus.test)
    assert [len(split) for split in splits] == sizes
    for split in splits:
        words = (split.tokens > UNK).sum(1)
        assert words.equal(split.lengths - 1) and words.min() >= shortest and words.max() <= longest
        assert (split.tokens == UNK).sum() == 0 and (split.tokens == EOS).sum() == len(split)
        assert split.tokens.gather(1, split.lengths[:, None] - 1).eq(EOS).all()
        assert split.tokens.shape[1] == split.lengths.max() and split.tokens.max() < len(corpus.vocabulary)
        assert 0 <= split.labels.min() and split.labels.max() < len(corpus.class_names)
    sentences = [s for split in splits for s in corpus.vocabulary.decode(split.tokens)]
    assert len(set(sentences)) == len(sentences) == sum(sizes)


def test_the_real_docstrings_are_whole(readers_data):
    """With those that the reader has: reading them takes 20 seconds, and would write into the reader's folder."""
    if not (readers_data / f"docstrings-{text._fingerprint(text._sources())}.json.gz").exists():
        pytest.skip("the docstrings have not been read on this machine: data.load('docstrings') does")
    corpus = data.load("docstrings")
    check_corpus(corpus, [8000, 1000, 1000], 5, 16)
    assert len(corpus.vocabulary) == 1504 and corpus.class_names == text.LIBRARIES
    assert set(corpus.train.labels.tolist()) == set(range(5))
    assert corpus is data.load("docstrings")


# The grammar


@pytest.fixture(scope="module")
def grammar() -> text.Corpus:
    return data.load("grammar", device="cpu")


def test_the_grammar_gives_whole_sentences_once(grammar):
    check_corpus(grammar, [4000, 1000, 1000], 4, 14)
    assert 150 <= len(grammar.vocabulary) - 4 <= 200 and len(grammar.class_names) == 8
    assert set((grammar.train.lengths - 1).tolist()) == set(range(4, 15))


def test_the_grammar_is_the_same_everywhere(grammar):
    assert grammar.digest == "b194603471895c0f"


def test_a_seed_draws_another_grammar_corpus():
    one, again, other = (text.grammar((50, 5, 5), seed=seed) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest
    assert [len(split) for split in (one.train, one.validation, one.test)] == [50, 5, 5]
    assert one.vocabulary.words == other.vocabulary.words


def test_the_topics_are_equally_frequent_and_a_sentence_stays_with_its_own(grammar):
    shares = grammar.train.labels.bincount() / len(grammar.train)
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.025)  # five standard deviations
    topics = {}  # word: the topics in which it was seen
    for sentence, label in zip(grammar.vocabulary.decode(grammar.train.tokens), grammar.train.labels.tolist()):
        for word in sentence.split():
            topics.setdefault(word, set()).add(label)
    assert set(map(len, topics.values())) == {1, 8}  # a word belongs to one topic, or to all
    own = {word for word, where in topics.items() if len(where) == 1}
    assert all(3 <= sum(w in own for w in s.split()) <= 5 for s in grammar.vocabulary.decode(grammar.test.tokens))


def surprise(sentence: str, topic: int) -> float:
    """Return -log p of a sentence in nats, reading it from left to right by the rule in the docstring."""
    agents, verbs, things = text._TOPIC_WORDS[topic]
    words, nats = sentence.split(), math.log(8)

    def take(options: list[str], may_be_missing: bool = False) -> None:
        nonlocal nats
        here = bool(words) and words[0] in options
        assert here or may_be_missing
        nats += math.log(2) * may_be_missing + (math.log(len(options)) if here else 0)
        words[: 1 if here else 0] = []

    for options, may_be_missing in (
        *((text._OPENINGS, True), (text._DETERMINERS, False), (text._MANNERS, True), (agents, False)),
        *((text._ADVERBS, True), (verbs, False), (text._AMOUNTS, True), (text._QUALITIES, True), (things, False)),
    ):
        take(options, may_be_missing)
    tails = {
        "place": (text._LINKS, ["the"], text._PLACES),
        "verb": (["and"], verbs, things),
        "reason": (text._REASONS, ["the"], text._MANNERS, agents, text._STATES),
    }
    nats += math.log(4)
    for options in next((kinds for kinds in tails.values() if words and words[0] in kinds[0]), ()):
        take(options, may_be_missing=options is text._MANNERS)
    assert not words
    return nats


def test_the_entropy_of_the_grammar_is_as_told(grammar):
    sentences = grammar.vocabulary.decode(grammar.train.tokens)
    nats = [surprise(*pair) for pair in zip(sentences, grammar.train.labels.tolist())]
    assert sum(nats) / len(nats) == pytest.approx(21.0, abs=0.15)
    parts = [math.log(2) + math.log(n) / 2 for n in (6, 8, 6, 6, 8)] + [math.log(n) for n in (8, 6, 4, 4, 5, 4)]
    tails = [math.log(4 * 6), math.log(4 * 5), math.log(4 * 2 * 4 * 6) + math.log(8) / 2]
    assert sum(parts) + sum(tails) / 4 == pytest.approx(21.0, abs=0.05)


@pytest.mark.parametrize("counts", [(0, 1, 1), (5, 5)])
def test_counts_that_make_no_corpus_are_refused(counts):
    with pytest.raises(ValueError, match="it must be three whole numbers of at least 1"):
        text.grammar(counts)


# Through data.load


def test_sentences_have_no_size_and_are_moved():
    with pytest.raises(ValueError, match="size is 28, but 'grammar' are sentences; only images have a size"):
        data.load("grammar", size=28)
    moved = data.load("grammar", device="meta")
    assert moved.train.tokens.device.type == "meta" and moved.train.lengths.device.type == "cpu"
    assert data.load("grammar") is data.load("grammar")
    assert data.at_hand("grammar") and data.at_hand("docstrings")


@pytest.fixture
def captions(monkeypatch, tmp_path) -> Path:
    """A tiny stand-in for Multi30k in a data folder."""
    folder = tmp_path / "multi30k"
    folder.mkdir()
    sound = "a dog runs fast .\ntwo dogs run .\ntoo short\n" + "too long " * 9 + "\n"
    for split in ("train", "valid", "test"):
        unknown = "a zebra runs fast .\n" if split != "train" else ""
        (folder / f"{split}.txt.gz").write_bytes(gzip.compress((unknown + sound).encode()))
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    return folder


def test_captions_of_known_words_and_four_to_sixteen_of_them_are_kept(captions):
    assert data.at_hand("multi30k")
    corpus = data.load("multi30k")
    for split in (corpus.train, corpus.validation, corpus.test):
        assert corpus.vocabulary.decode(split.tokens) == ["a dog runs fast .", "two dogs run ."]
    assert corpus.class_names == ("all",) and corpus.train.labels.tolist() == [0, 0]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-4])])
def test_captions_that_cannot_be_read_are_told_where_to_put(captions, damage):
    damage(captions / "valid.txt.gz")
    assert data.at_hand("multi30k") == (captions / "valid.txt.gz").exists()
    with pytest.raises(data.Unavailable, match="train.txt.gz, valid.txt.gz and test.txt.gz") as raised:
        data.load("multi30k")
    assert str(captions / "valid.txt.gz") in str(raised.value) and "non-commercial" in str(raised.value)


def test_the_real_captions_are_enough(readers_data):
    if not data.at_hand("multi30k"):
        pytest.skip("no Multi30k on this machine")
    corpus = data.load("multi30k")
    assert len(corpus.train) == 12_000 and len(corpus.validation) >= 500 and len(corpus.test) >= 500
    assert len(corpus.vocabulary) == 2504


def test_without_sources_the_docstrings_are_unavailable(monkeypatch, tmp_path):
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    monkeypatch.setattr(text, "_sources", lambda: {"python": ("3", tmp_path / "nowhere")})
    with pytest.raises(data.Unavailable, match="only 0 sentences .*load\\('grammar'\\)"):
        data.load("docstrings")
    assert list(tmp_path.iterdir()) == []
