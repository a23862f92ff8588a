"""Claims, intervals, verdicts."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from vaelab import ledger
from vaelab.book import BOOK
from vaelab.ledger import Claim, Comparison, Interval, Verdict, combine, decide, judge, mean_interval, table
from vaelab.runs import Record, save

# Intervals


def test_the_interval_of_five_values_is_the_textbooks():
    interval = mean_interval([4.0, 5.0, 6.0, 7.0, 8.0])  # t(0.975, 4) = 2.776, standard error sqrt(2.5 / 5)
    assert interval.mean == 6 and interval.count == 5
    assert interval.high - 6 == pytest.approx(2.776 * 0.5**0.5, abs=1e-3) == 6 - interval.low


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 3, 30])
def test_the_interval_is_scipys(count, confidence):
    values = np.random.default_rng(count).normal(size=count)
    expected = stats.t.interval(confidence, count - 1, values.mean(), stats.sem(values))
    assert mean_interval(values, confidence)[1:3] == pytest.approx(expected)


def test_it_covers_the_true_mean_in_95_of_100_samples():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    covered = [interval.low <= 3.0 <= interval.high for interval in map(mean_interval, samples)]
    assert abs(np.mean(covered) - 0.95) < 0.015


def test_values_that_agree_leave_no_doubt():
    assert mean_interval([1.5, 1.5, 1.5]) == Interval(1.5, 1.5, 1.5, 3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")], [[1.0, 2.0], [3.0, 4.0]]])
def test_there_is_no_interval_of_fewer_than_two_finite_numbers(values):
    with pytest.raises(ValueError, match="an interval needs at least two finite numbers"):
        mean_interval(values)


def test_an_interval_prints_all_its_numbers_alike():
    assert f"{Interval(1.0, -0.5, 2.5, 4):+.1f}" == "+1.0 [-0.5, +2.5]"


# Verdicts


@pytest.mark.parametrize("low, high, threshold, increases, decreases", [
    (1.0, 3.0, 0.0, "holds", "does not hold"),
    (-3.0, -1.0, 0.0, "does not hold", "holds"),
    (-1.0, 1.0, 0.0, "undecided", "undecided"),
    (0.0, 1.0, 0.0, "undecided", "does not hold"),
    (1.0, 3.0, 0.5, "holds", "does not hold"),
    (1.0, 3.0, 2.0, "undecided", "does not hold"),
    (1.0, 3.0, 3.0, "does not hold", "does not hold"),
    (-3.0, -1.0, 2.0, "does not hold", "undecided"),
    (-3.0, -1.0, 0.5, "does not hold", "holds"),
    (-1.0, 1.0, 5.0, "does not hold", "does not hold"),
])  # fmt: skip
def test_the_whole_interval_decides(low, high, threshold, increases, decreases):
    difference = Interval((low + high) / 2, low, high, 5)
    assert decide(difference, "increases", threshold) == increases
    assert decide(difference, "decreases", threshold) == decreases


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction is 'up'; it must be 'increases' or 'decreases'"):
        decide(Interval(1.0, 0.5, 1.5, 3), "up")


@pytest.mark.parametrize("verdicts, expected", [
    (["holds"], "holds"),
    (["does not hold"] * 2, "does not hold"),
    (["undecided"] * 2, "undecided"),
    (["holds", "does not hold"], "holds only for"),
    (["holds", "does not hold", "undecided"], "holds only for"),
    (["holds", "undecided"], "undecided"),
    (["does not hold", "undecided"], "does not hold"),
])  # fmt: skip
def test_a_claims_verdict_is_that_of_its_comparisons_or_in_part(verdicts, expected):
    assert combine(verdicts) == combine(verdicts[::-1]) == expected


# Loading

TOML = """
[[claim]]
id = "1a"
chapter = "day1"
source = "Day 1"
statement = "Fewer labels, worse digits."
metric = "fid"
direction = "increases"
threshold = 0.0
compare = [{ control = { labels = 60 }, treatment = { labels = 6 } }]
"""


def written(folder, text: str):
    path = folder / "claims.toml"
    path.write_text(text)
    return path


def test_claims_are_read_by_id(tmp_path):
    second = TOML.replace('"1a"', '"1b"') + 'note = "said more clearly"\n'
    claims = ledger.load(written(tmp_path, TOML + second))
    assert list(claims) == ["1a", "1b"]
    pair = {"control": {"labels": 60}, "treatment": {"labels": 6}}
    expected = Claim("1a", "day1", "Day 1", "Fewer labels, worse digits.", "fid", "increases", 0.0, [pair])
    assert claims["1a"] == expected
    assert claims["1b"] == expected._replace(id="1b", note="said more clearly")


@pytest.mark.parametrize("text, complaint", [
    (TOML.replace('metric = "fid"', ""), r"claim '1a' lacks \['metric'\]"),
    (TOML.replace('id = "1a"', ""), r"lacks \['id'\]"),
    (TOML + "colour = 1\n", r"claim '1a' .*has unknown \['colour'\]"),
    (TOML + TOML, "claim '1a' .*comes twice"),
    (TOML.replace("increases", "rises"), "direction is 'rises'"),
])  # fmt: skip
def test_a_claim_that_is_not_well_formed_is_refused(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        ledger.load(written(tmp_path, text))


@pytest.mark.parametrize("inside", [".", "book"])
def test_the_books_claims_are_found_from_the_repository_and_from_the_book(tmp_path, monkeypatch, inside):
    (tmp_path / "book").mkdir()
    written(tmp_path / "book", TOML)
    monkeypatch.chdir(tmp_path / inside)
    assert list(ledger.load()) == ["1a"]


def test_where_there_are_no_claims_the_message_says_where_they_were_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match="claims.toml"):
        ledger.load()


def test_the_books_own_claims_are_well_formed():
    claims = ledger.load(BOOK / "claims.toml")
    assert claims
    for claim in claims.values():
        assert (BOOK / f"{claim.chapter}.ipynb").exists() and claim.compare
        for pair in claim.compare:
            assert pair.keys() <= {"control", "treatment"} and pair["treatment"]


# Judging

CLAIM = Claim("1a", "day1", "Day 1", "Fewer labels, worse digits.", "fid", "increases", 0.0,
              [{"control": {"labels": 60}, "treatment": {"labels": 6}}])  # fmt: skip


def record(labels: int, seed: int, fid: float, **config) -> Record:
    return Record({"labels": labels, "dataset": "mnist"} | config, seed, {"fid": fid}, {"preset": "book"})


def runs_of(shift: float, seeds=range(5)) -> list[Record]:
    """Runs whose seeds differ far more than the labels do, so that only pairing shows the shift."""
    shifts = [shift + (seed % 3) / 128 for seed in seeds]  # exact in binary
    control = [record(60, seed, 100.0 * seed**2) for seed in seeds]
    return control + [record(6, seed, 100.0 * seed**2 + d) for seed, d in zip(seeds, shifts)]


def test_runs_that_share_a_seed_are_a_pair():
    verdict = judge(CLAIM, runs_of(1.0))
    (comparison,) = verdict.comparisons
    assert isinstance(comparison, Comparison) and isinstance(verdict, Verdict)
    assert comparison.difference == mean_interval([1, 1 + 1 / 128, 1 + 2 / 128, 1, 1 + 1 / 128])
    assert comparison.control == {"labels": 60} and comparison.treatment == {"labels": 6}
    assert comparison.verdict == verdict.verdict == "holds"


@pytest.mark.parametrize("shift, verdict", [(1.0, "holds"), (-1.0, "does not hold"), (-0.01, "undecided")])
def test_the_verdict_follows_the_difference_from_control_to_treatment(shift, verdict):
    assert judge(CLAIM, runs_of(shift)).verdict == verdict


def test_the_threshold_counts():
    assert judge(CLAIM._replace(threshold=0.5), runs_of(1.0)).verdict == "holds"
    assert judge(CLAIM._replace(threshold=1.5), runs_of(1.0)).verdict == "does not hold"


def test_the_order_of_the_records_does_not_matter():
    records = runs_of(1.0)
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    assert judge(CLAIM, iter(shuffled)) == judge(CLAIM, records)


def test_runs_without_a_partner_are_left_out():
    records = runs_of(1.0) + [record(60, 17, 1e9), record(6, 23, -1e9)]
    assert judge(CLAIM, records).comparisons == judge(CLAIM, runs_of(1.0)).comparisons


def test_too_few_pairs_are_refused():
    records = [record(60, 0, 1.0), record(60, 1, 1.0), record(6, 1, 2.0), record(6, 2, 2.0)]
    with pytest.raises(ValueError, match=r"claim 1a: .* share only the seeds \[1\]"):
        judge(CLAIM, records)


@pytest.mark.parametrize("compare", [CLAIM.compare, [{"treatment": {"labels": 6}}]], ids=["with control", "without"])
def test_a_comparison_without_runs_is_refused_by_the_claims_name(compare):
    with pytest.raises(ValueError, match="claim 1a"):
        judge(CLAIM._replace(compare=compare), [])


def test_without_a_control_the_treatments_own_values_are_judged():
    claim = CLAIM._replace(compare=[{"treatment": {"labels": 6}}], threshold=3.0, seeds=3)
    records = [record(6, seed, value) for seed, value in enumerate([4.0, 4.1, 3.9])]
    verdict = judge(claim, records + [record(60, 0, -100.0)])
    assert verdict.verdict == "holds"
    assert verdict.comparisons[0].difference == mean_interval([4.0, 4.1, 3.9]) and verdict.comparisons[0].control == {}


@pytest.mark.parametrize("threshold, verdict", [(5.0, "holds"), (3.0, "does not hold"), (4.0, "undecided")])
def test_without_a_control_decreases_means_below_the_threshold(threshold, verdict):
    claim = CLAIM._replace(compare=[{"treatment": {"labels": 6}}], direction="decreases", threshold=threshold, seeds=3)
    records = [record(6, seed, value) for seed, value in enumerate([4.0, 4.1, 3.9])]
    assert judge(claim, records).verdict == verdict


def test_a_configuration_that_fits_several_is_refused():
    records = runs_of(1.0) + [record(6, 0, 1.0, dataset="digits")]
    with pytest.raises(ValueError, match="claim 1a: {'labels': 6} fits several configurations"):
        judge(CLAIM, records)
    named = [{side: wanted | {"dataset": "mnist"} for side, wanted in CLAIM.compare[0].items()}]
    assert judge(CLAIM._replace(compare=named), records).verdict == "holds"


def test_a_metric_that_the_records_lack_is_refused_by_name():
    with pytest.raises(ValueError, match="spread"):
        judge(CLAIM._replace(metric="spread"), runs_of(1.0))


def test_a_claim_of_several_comparisons_is_judged_on_all_of_them():
    pairs = [{"control": {"labels": 6}, "treatment": {"labels": 60}}, *CLAIM.compare]
    verdict = judge(CLAIM._replace(compare=pairs), runs_of(1.0))
    assert [c.verdict for c in verdict.comparisons] == ["does not hold", "holds"]
    assert verdict.verdict == "holds only for labels 60 → 6"


def test_a_claim_is_judged_by_its_id_on_the_chapters_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, TOML)
    for i, item in enumerate(runs_of(1.0)):
        save(item, tmp_path / "book" / "runs" / "day1" / f"{i}.npz")
    assert judge("1a") == judge(CLAIM, runs_of(1.0))
    with pytest.raises(ValueError, match="claim '1z' is not registered; there are 1a"):
        judge("1z")


def test_a_claim_may_look_at_the_records_of_chapters_beside_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, item in enumerate(runs_of(1.0)):  # the controls in one chapter, the treatments in the other
        chapter = "day0" if item.config["labels"] == 60 else "day1"
        save(item, tmp_path / "book" / "runs" / chapter / f"{i}.npz")
    assert judge(CLAIM._replace(beside=["day0"])).comparisons == judge(CLAIM, runs_of(1.0)).comparisons
    with pytest.raises(ValueError, match="too few pairs"):
        judge(CLAIM)


def test_smoke_judges_nothing(monkeypatch):
    monkeypatch.setenv("VAELAB_PRESET", "smoke")
    verdict = judge(CLAIM, [])
    assert verdict.comparisons == [] and verdict.verdict == "not judged at preset smoke"
    assert "not judged at preset smoke" in table([verdict]) and "not judged" in verdict._repr_markdown_()


# Telling


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_the_table_says_what_was_claimed_measured_and_decided():
    head, rule, row, *notes = table([judge(CLAIM._replace(note="reworded"), runs_of(1.0))]).split("\n")
    assert len(cells(head)) == len(cells(rule)) == 3
    said = "**1a** Fewer labels, worse digits. (Day 1)"
    measured = "fid, 5 seeds<br>labels 60 → 6: +1.01 [+0.998, +1.01]"
    assert cells(row) == [said, measured, "**holds**"]
    assert notes == ["", "Notes", "", "- 1a: reworded"]


def test_without_notes_the_table_ends_with_its_rows():
    assert len(table([judge(CLAIM, runs_of(1.0))] * 2).split("\n")) == 4


def test_a_bar_in_a_statement_does_not_break_the_table():
    claim = CLAIM._replace(statement="log p(x|y) falls")
    head, _, row = table([judge(claim, runs_of(1.0))]).split("\n")
    assert len(cells(row)) == len(cells(head))


def test_a_verdict_shows_itself_in_a_notebook():
    said = judge(CLAIM, runs_of(1.0))._repr_markdown_()
    assert said.startswith("**Claim 1a** (Day 1): Fewer labels, worse digits.") and said.endswith("**Verdict: holds**")
    assert "\n- labels 60 → 6: fid +1.01 [+0.998, +1.01] → holds\n" in said


@pytest.mark.parametrize("control, treatment, words", [
    ({"labels": 60, "dataset": "mnist"}, {"labels": 6, "dataset": "mnist"}, "labels 60 → 6"),
    ({"labels": 60, "model": "cvae"}, {"labels": 6, "model": "copy"}, "labels and model 60 cvae → 6 copy"),
    ({}, {"labels": 6}, "labels 6"),
])  # fmt: skip
def test_a_comparison_is_told_by_what_differs(control, treatment, words):
    interval = Interval(1.0, 0.5, 1.5, 5)
    verdict = Verdict(CLAIM, [Comparison(control, treatment, interval, "holds")], "holds")
    assert f"- {words}: fid +1 " in verdict._repr_markdown_() and f"<br>{words}: +1 " in table([verdict])


def test_comparisons_on_several_data_sets_say_on_which():
    interval, names = Interval(1.0, 0.5, 1.5, 5), ("plain", "balanced")
    pairs = [[{"dataset": dataset, "name": name} for name in names] for dataset in ("mnist", "digits")]
    comparisons = [Comparison(*pair, interval, "holds") for pair in pairs]
    comparisons += [Comparison({}, {"dataset": "digits", "name": "noise"}, interval, "holds")]
    said = table([Verdict(CLAIM, comparisons, "holds")])
    assert "<br>mnist plain → balanced: +1 " in said and "<br>digits plain → balanced: +1 " in said
    assert "<br>digits noise: +1 " in said  # which names it by itself
    alone = table([Verdict(CLAIM, comparisons[:1], "holds")])
    assert "<br>plain → balanced: +1 " in alone  # one data set goes without saying


def test_a_verdict_needs_as_many_pairs_as_were_registered():
    records = runs_of(1.0, seeds=range(4))
    with pytest.raises(ValueError, match=r"claim 1a: .*seeds \[0, 1, 2, 3\]"):
        judge(CLAIM, records)
    assert judge(CLAIM._replace(seeds=4), records).verdict == "holds"
    alone = CLAIM._replace(compare=[{"treatment": {"labels": 6}}])
    with pytest.raises(ValueError, match="not 5"):
        judge(alone, records)


@pytest.mark.parametrize("bad", ["seeds = 1", 'of = "variance"'])
def test_too_few_seeds_and_unknown_statistics_are_refused_when_read(tmp_path, bad):
    path = tmp_path / "claims.toml"
    path.write_text(TOML.replace("[[claim]]", f"[[claim]]\n{bad}", 1))
    with pytest.raises(ValueError, match="seeds of 2 or more"):
        ledger.load(path)


def test_not_worse_by_more_than_a_margin_is_a_decrease_with_a_negative_threshold():
    margin = CLAIM._replace(direction="decreases", threshold=-0.5)
    assert judge(margin, runs_of(0.3)).verdict == "holds"
    assert judge(margin, runs_of(0.9)).verdict == "does not hold"


def test_straying_seeds_are_measured_from_the_mean_of_the_others():
    claim = CLAIM._replace(of="stray", direction="decreases")
    wild = [record(60, seed, value) for seed, value in enumerate([0.0, 4.0, 8.0, 0.0, 8.0])]
    tame = [record(6, seed, value) for seed, value in enumerate([4.0, 4.1, 3.9, 4.0, 4.0])]
    comparison = judge(claim, wild + tame).comparisons[0]
    assert comparison.verdict == "holds"
    strayed = (0.0 + 0.125 + 0.125 + 0.0 + 0.0, 5.0 + 0.0 + 5.0 + 5.0 + 5.0)  # tame, wild
    assert comparison.difference.mean == pytest.approx((strayed[0] - strayed[1]) / 5)
    arrays = [r._replace(results={"fid": np.array([r.results["fid"], 1.0])}) for r in wild + tame]
    assert judge(claim, arrays).comparisons[0].difference == pytest.approx(comparison.difference)


def test_configurations_with_names_are_told_by_them():
    pair = {"control": {"name": "plain", "dataset": "mnist"}, "treatment": {"name": "balanced", "dataset": "mnist"}}
    named = [r._replace(config=r.config | {"name": "plain" if r.config["labels"] == 60 else "balanced"})
             for r in runs_of(1.0)]  # fmt: skip
    text = table([judge(CLAIM._replace(compare=[pair]), named)])
    assert "plain → balanced: +" in text and "name" not in text


def test_the_paired_difference_pairs_by_seed_and_not_by_place():
    records = [record(60, seed, 10.0 * seed) for seed in (0, 1, 2)]
    records += [record(6, seed, 10.0 * seed + 1) for seed in (2, 0)]
    pair = {"control": {"labels": 60}, "treatment": {"labels": 6}}
    difference = ledger.paired_difference(records, "fid", **pair)
    assert difference == mean_interval([1.0, 1.0])
    with pytest.raises(ValueError, match=r"share only the seeds \[0, 2\], too few pairs"):
        ledger.paired_difference(records, "fid", **pair, seeds=3)


def test_the_paired_difference_is_what_a_verdict_rests_on():
    records = runs_of(1.0)
    judged = judge(CLAIM, records).comparisons[0].difference
    assert judged == ledger.paired_difference(iter(records), CLAIM.metric, **CLAIM.compare[0])


@pytest.mark.parametrize("shuffled, verdict", [
    ({0: (1.0, 1.1), 1: (1.0, 0.9), 2: (1.0, 1.0)}, "an artefact of the order of the frames"),
    ({0: (1.0, 3.1), 1: (1.0, 2.9), 2: (1.0, 3.0)}, "holds"),
])  # fmt: skip
def test_what_vanishes_without_its_suspected_cause_is_an_artefact_of_it(shuffled, verdict):
    claim = Claim("b3", "part7", "Part 7", "Small momentum, large KL.", "kl", "increases", 0.5, [
        {"control": {"name": "m 0.9"}, "treatment": {"name": "m 0"}}
    ], seeds=3, artefact={"of": "the order of the frames", "metric": "kl_shuffled"})  # fmt: skip
    records = []
    for seed, pair in shuffled.items():
        for name, kl, other in zip(("m 0.9", "m 0"), (1.0, 3.0 + seed / 10), pair):
            records.append(Record({"name": name}, seed, {"kl": kl, "kl_shuffled": other}, {}))
    judged = judge(claim, records)
    assert judged.verdict == verdict
    assert "without the order of the frames, kl_shuffled" in table([judged])
    assert "kl_shuffled, without the order of the frames" in judged._repr_markdown_()


def test_an_artefact_must_say_of_what_and_how_it_is_measured(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(TOML.replace("[[claim]]", '[[claim]]\nartefact = { of = "x" }', 1))
    with pytest.raises(ValueError, match="must have `of` and `metric`"):
        ledger.load(path)
