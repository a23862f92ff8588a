"""The committed records: of today's code, small, trained again in part, and judged."""

from __future__ import annotations

import collections

import nbformat
import pytest

from vaelab import ledger, runs
from vaelab.book import BOOK, audit, chapters, definitions

RUNS = BOOK / "runs"
RECORDED = sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir())


@pytest.fixture(autouse=True)
def in_the_book(monkeypatch):
    monkeypatch.chdir(BOOK)
    monkeypatch.setenv("VAELAB_PRESET", "book")


@pytest.mark.parametrize("chapter", RECORDED)
def test_records_are_of_the_functions_in_the_notebook(chapter):
    module = definitions(BOOK / f"{chapter}.ipynb")
    for record in runs.read_all(chapter):
        name = record.meta["function"]
        assert record.meta["fingerprint"] == runs.fingerprint(getattr(module, name)), (
            f"{name} of {chapter} has changed since {record.config} was recorded: run `make chapters CHAPTER={chapter}`"
        )


@pytest.mark.parametrize("chapter", RECORDED)
def test_no_seed_was_left_out(chapter):
    """Whoever drops the seed that spoils a verdict leaves a gap; a claim says how many seeds it needs."""
    seeds = collections.defaultdict(set)
    for record in runs.read_all(chapter):
        seeds[record.meta["function"], str(record.config)].add(record.seed)
    assert all(s == set(range(len(s))) for s in seeds.values())
    assert all(len(s) >= 3 for s in seeds.values())


def test_the_records_stay_small():
    assert sum(path.stat().st_size for path in RUNS.rglob("*") if path.is_file()) < 20e6


@pytest.mark.parametrize("claim", ledger.load(BOOK / "claims.toml").values(), ids=lambda claim: claim.id)
def test_every_claim_is_judged_on_enough_runs_and_stands_on_the_ledger_page(claim):
    verdict = ledger.judge(claim)
    assert min(comparison.difference.count for comparison in verdict.comparisons) >= claim.seeds >= 3
    page = nbformat.read(BOOK / "ledger.ipynb", as_version=4)
    shown = "".join(o.data.get("text/markdown", "") for c in page.cells for o in c.get("outputs", []) if "data" in o)
    assert ledger.table([verdict]).splitlines()[2] in shown, "execute the ledger again: make chapters CHAPTER=ledger"


def test_a_sample_of_the_records_trains_to_the_same_numbers_again():
    """Only records whose data set is embedded can be trained on a machine with an empty cache."""
    lines = list(audit(chapters(RECORDED), minutes=1.5))
    print("\n".join(lines))
    assert any("was" in line for line in lines)
