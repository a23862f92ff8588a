"""Claims, intervals, verdicts.

`book/claims.toml` says what is claimed and how it will be judged, before anything is trained. A claim names
a metric of the recorded runs and one or more comparisons::

    [[claim]]
    id = "12a"
    chapter = "day12"
    source = "Day 12"
    statement = "With fewer labelled images the CVAE draws worse digits."
    metric = "fid"
    direction = "increases"        # from `control` to `treatment`; or "decreases"
    threshold = 0.0                # by more than this, in the metric's units
    compare = [{ control = { labels = 6000 }, treatment = { labels = 600 } }]

Runs that share a seed are a pair. The verdict comes from the 95 % interval of the mean paired difference.
Without `control` the treatment's own values must lie above the threshold ("increases") or below it.
"Not worse by more than 0.5" is a decrease with the threshold -0.5.

Four fields are optional. `beside` names further chapters whose runs are compared with this one's. `seeds` says how
many pairs the verdict needs (default 5). With `of = "stray"` what is compared is not the metric but how far it lies
from its mean over the other seeds, summed over its entries: for a claim that seeds differ less.
`artefact = { of = "the order of the frames", metric = "kl_shuffled" }` names what we suspect a claim to come from, and
the same measurement without it: where the claim holds, but in none of its comparisons by that metric, the verdict is
"an artefact of the order of the frames".
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from vaelab import runs
from vaelab.lab import preset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOLDS, FAILS, UNDECIDED, PARTLY = "holds", "does not hold", "undecided", "holds only for"
ARTEFACT = "an artefact of"
NOT_JUDGED = "not judged at preset smoke"
_REQUIRED = ("id", "chapter", "source", "statement", "metric", "direction", "threshold", "compare")


class Claim(NamedTuple):
    """One claim, as registered before the runs."""

    id: str
    chapter: str
    source: str
    statement: str
    metric: str
    direction: str  # "increases" or "decreases"
    threshold: float
    compare: list[dict[str, dict[str, Any]]]
    note: str = ""  # why it was changed after registration, if it was
    seeds: int = 5  # how many pairs a verdict needs
    of: str = "value"  # or "stray": the distance from the mean of the other seeds
    beside: Sequence[str] = ()  # other chapters whose records it looks at
    artefact: Mapping[str, str] | None = None  # "of": what it may come from; "metric": the same without that


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


class Comparison(NamedTuple):
    """One comparison of a claim, judged."""

    control: dict[str, Any]
    treatment: dict[str, Any]
    difference: Interval
    verdict: str


class Verdict(NamedTuple):
    """A claim, judged."""

    claim: Claim
    comparisons: list[Comparison]
    verdict: str
    without: Sequence[Comparison] = ()  # the same, without what the claim may be an artefact of

    def _repr_markdown_(self) -> str:
        """Say it in a notebook."""
        lines = [f"**Claim {self.claim.id}** ({self.claim.source}): {self.claim.statement}", ""]
        compared = [(_words(c, self.comparisons), c) for c in self.comparisons]
        lines += [f"- {words}: {self.claim.metric} {c.difference:+.3g} → {c.verdict}" for words, c in compared]
        for c in self.without:
            without = f"{self.claim.artefact['metric']}, without {self.claim.artefact['of']}"
            lines.append(f"- {_words(c, self.without)}: {without} {c.difference:+.3g} → {c.verdict}")
        return "\n".join([*lines, "", f"**Verdict: {self.verdict}**"])


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with its Student t interval.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    >>> f"{mean_interval([1.0, 2.0, 3.0]):.2f}"
    '2.00 [-0.48, 4.48]'
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values are {values.tolist()}; an interval needs at least two finite numbers")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return Interval(float(mean), float(mean - half), float(mean + half), len(values))


def decide(difference: Interval, direction: str, threshold: float = 0.0) -> str:
    """Say whether a difference goes in a direction by more than a threshold.

    It holds if the whole interval lies beyond the threshold, does not hold if the whole interval lies on
    this side of it, and is undecided if the interval straddles it.

    >>> decide(Interval(2.0, 1.0, 3.0, 5), "increases"), decide(Interval(2.0, 1.0, 3.0, 5), "decreases")
    ('holds', 'does not hold')
    """
    if direction not in ("increases", "decreases"):
        raise ValueError(f"direction is {direction!r}; it must be 'increases' or 'decreases'")
    low, high = (difference.low, difference.high) if direction == "increases" else (-difference.high, -difference.low)
    if low > threshold:
        return HOLDS
    return FAILS if high <= threshold else UNDECIDED


def load(path: str | Path | None = None) -> dict[str, Claim]:
    """Read the claims, by id, from a file (default: `claims.toml` of the book).

    Raises:
        ValueError: a claim lacks a field, has an unknown one or a bad direction, or an id comes twice.
    """
    places = [Path(path)] if path else [Path("claims.toml"), Path("book/claims.toml")]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise FileNotFoundError(f"there is no {' and no '.join(map(str, places))} in {Path.cwd()}")
    claims: dict[str, Claim] = {}
    for entry in tomllib.loads(path.read_text()).get("claim", []):
        absent = [field for field in _REQUIRED if field not in entry]
        unknown = [field for field in entry if field not in Claim._fields]
        if absent or unknown or entry["id"] in claims or not entry["compare"]:
            wrong = f"lacks {absent}, has unknown {unknown}, compares nothing, or comes twice"
            raise ValueError(f"{path}: claim {entry.get('id')!r} {wrong}")
        decide(Interval(0, 0, 0, 2), entry["direction"])
        if entry.get("seeds", 2) < 2 or entry.get("of", "value") not in ("value", "stray"):
            raise ValueError(f"{path}: claim {entry['id']!r} needs seeds of 2 or more, and of 'value' or 'stray'")
        if "artefact" in entry and set(entry["artefact"]) != {"of", "metric"}:
            raise ValueError(f"{path}: the artefact of claim {entry['id']!r} must have `of` and `metric`, no more")
        claims[entry["id"]] = Claim(**entry)
    return claims


def judge(claim: Claim | str, records: Iterable[runs.Record] | None = None) -> Verdict:
    """Judge one claim on recorded runs.

    Args:
        claim: the claim or its id. records: the runs; None reads those of the claim's chapter and of those beside it.

    Raises:
        ValueError: no claim has this id, or a comparison has too few pairs of runs.
    """
    if isinstance(claim, str):
        known = load()
        if claim not in known:
            raise ValueError(f"claim {claim!r} is not registered; there are {', '.join(known)}")
        claim = known[claim]
    if preset() == "smoke":  # a few steps decide nothing
        return Verdict(claim, [], NOT_JUDGED)
    if records is None:
        records = [record for chapter in (claim.chapter, *claim.beside) for record in runs.read_all(chapter)]
    records = list(records)
    try:
        comparisons = [_compare(claim, pair, records) for pair in claim.compare]
        removed = claim._replace(metric=claim.artefact["metric"]) if claim.artefact else None
        without = [_compare(removed, pair, records) for pair in claim.compare] if removed else []
    except ValueError as error:
        raise ValueError(f"claim {claim.id}: {error}") from error
    verdict = combine([c.verdict for c in comparisons])
    if verdict == HOLDS and without and all(c.verdict == FAILS for c in without):
        verdict = f"{ARTEFACT} {claim.artefact['of']}"
    if verdict == PARTLY:
        verdict += " " + "; ".join(_words(c, comparisons) for c in comparisons if c.verdict == HOLDS)
    return Verdict(claim, comparisons, verdict, without)


def combine(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim from those on its comparisons: all alike, or in part.

    >>> combine(["holds", "holds"]), combine(["holds", "does not hold"]), combine(["holds", "undecided"])
    ('holds', 'holds only for', 'undecided')
    """
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if FAILS in verdicts:
        return PARTLY if HOLDS in verdicts else FAILS
    return UNDECIDED


def paired_difference(
    records: Iterable[runs.Record],
    metric: str,
    control: Mapping[str, Any],
    treatment: Mapping[str, Any],
    seeds: int = 2,
    of: str = "value",
) -> Interval:
    """Return the mean of treatment minus control over the seeds that both were run with, with its interval.

    Args:
        records: among them those of the two configurations. metric: the name of a result.
        control, treatment: what tells each configuration, and no other, from the rest.
        seeds: how many pairs there must be. of: "value" or "stray", as in a claim.

    Raises:
        ValueError: too few pairs; a configuration that fits several; a result that a record lacks.
    """
    records = list(records)
    treated, plain = (_by_seed(records, metric, wanted, of) for wanted in (treatment, control))
    shared = sorted(treated.keys() & plain.keys())
    if len(shared) < seeds:
        pair = {"control": dict(control), "treatment": dict(treatment)}
        raise ValueError(f"the runs of {pair} share only the seeds {shared}, too few pairs")
    return mean_interval([treated[seed] - plain[seed] for seed in shared])


def _compare(claim: Claim, pair: Mapping[str, Mapping[str, Any]], records: list[runs.Record]) -> Comparison:
    """Judge one comparison; without a control it is of the treatment's own values."""
    if "control" in pair:
        interval = paired_difference(records, claim.metric, **pair, seeds=claim.seeds, of=claim.of)
    else:
        own = _by_seed(records, claim.metric, pair["treatment"], claim.of)
        if len(own) < claim.seeds:
            raise ValueError(f"{dict(pair)} has only seeds {sorted(own)}, not {claim.seeds}")
        interval = mean_interval(list(own.values()))
    # Without a control, "decreases" means: lies below the threshold.
    below = "control" not in pair and claim.direction == "decreases"
    verdict = decide(interval, claim.direction, -claim.threshold if below else claim.threshold)
    return Comparison(dict(pair.get("control", {})), dict(pair["treatment"]), interval, verdict)


def _by_seed(records: list[runs.Record], metric: str, wanted: Mapping[str, Any], of: str) -> dict[int, float]:
    chosen = runs.select(records, **wanted)
    if len({r.seed for r in chosen}) < len(chosen):
        raise ValueError(f"{dict(wanted)} fits several configurations; name what "
                         "tells them apart (or delete records of an older function)")
    absent = [r.seed for r in chosen if metric not in r.results]
    if absent:
        raise ValueError(f"{metric} is missing from records of {dict(wanted)}, seeds {absent}")
    values = {r.seed: np.asarray(r.results[metric], dtype=float) for r in chosen}
    return _stray(values) if of == "stray" else {seed: float(value) for seed, value in values.items()}


def _stray(values: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Return, for each seed, the distance of its value from the mean of the others, summed over entries."""
    if len(values) < 2:
        return dict.fromkeys(values, 0.0)
    total = sum(values.values())
    return {s: float(np.abs(v - (total - v) / (len(values) - 1)).sum()) for s, v in values.items()}


def _words(c: Comparison, among: Sequence[Comparison]) -> str:
    """Say what is compared, naming only what differs: "labels 600 → 60", or, of configurations with names, "a → b".

    The data set that both have in common is named where the comparisons `among` which it stands are on several.
    """
    differs = [k for k, v in c.treatment.items() if c.control.get(k) != v]
    before = " ".join(str(c.control[k]) for k in differs if k in c.control)
    after = " ".join(str(c.treatment[k]) for k in differs)
    what = "" if "name" in differs else " and ".join(differs) + " "
    if "dataset" not in differs and len({other.treatment.get("dataset") for other in among}) > 1:
        what = f"{c.treatment['dataset']} {what}"
    return f"{what}{before} → {after}" if before else f"{what}{after}"


def table(verdicts: Iterable[Verdict]) -> str:
    """Return verdicts as a Markdown table: what was claimed, what was measured, what follows; then the notes."""
    verdicts = list(verdicts)
    lines = ["| claim | difference, with its 95 % interval | verdict |", "| --- | --- | --- |"]
    for verdict in verdicts:
        claim = verdict.claim
        seeds = min((c.difference.count for c in verdict.comparisons), default=0)
        said = f"**{claim.id}** {claim.statement} ({claim.source})".replace("|", r"\|")
        measured = "<br>".join(f"{_words(c, verdict.comparisons)}: {c.difference:+.3g}" for c in verdict.comparisons)
        if verdict.without:
            again = "<br>".join(f"{_words(c, verdict.without)}: {c.difference:+.3g}" for c in verdict.without)
            measured += f"<br>without {claim.artefact['of']}, {claim.artefact['metric']}<br>{again}"
        lines.append(f"| {said} | {claim.metric}, {seeds} seeds<br>{measured} | **{verdict.verdict}** |")
    notes = [f"- {v.claim.id}: {v.claim.note}" for v in verdicts if v.claim.note]
    return "\n".join(lines + (["", "Notes", "", *notes] if notes else []))
