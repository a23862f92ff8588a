"""Sweeps and records: nothing trained twice, nothing lost, nothing stale, nothing tampered with."""

from __future__ import annotations

import importlib.util
import io
import itertools
import random
import signal
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import mortal_run
from toy import sweep as sweep_in_a_process

from vaelab import files, runs
from vaelab.runs import AuditFailed, Record, RunsFailed

calls: Counter = Counter()


@pytest.fixture(autouse=True)
def no_calls_yet():
    calls.clear()


def run(config, seed):
    """Draw a number from each generator, and note the call."""
    calls[config["a"], seed] += 1
    return {"draw": random.random(), "number": torch.rand(()), "curve": config["a"] * np.random.rand(3)}


def flaky(config, seed):
    """Fail for a = 2."""
    calls[config["a"], seed] += 1
    if config["a"] == 2:
        raise ArithmeticError(f"{seed} went wrong")
    return {"a": config["a"]}


def sweep(folder, function=run, configs=None, seeds=(0, 1), **options):
    return runs.sweep(function, configs or runs.grid(a=[1, 2]), seeds, chapter="day0", folder=folder, **options)


def equal(a: Record, b: Record) -> bool:
    """Say whether two records are of the same run with the same results, bit for bit."""
    same_results = a.results.keys() == b.results.keys() and all(
        np.array_equal(a.results[k], b.results[k]) and type(a.results[k]) is type(b.results[k]) for k in a.results
    )
    return a.config == b.config and a.seed == b.seed and same_results


# Sweeps


def test_a_grid_is_every_combination():
    assert runs.grid(a=[1, 2], b="xy", c=[None]) == [
        {"a": a, "b": b, "c": None} for a, b in itertools.product([1, 2], "xy")
    ]


def test_a_sweep_runs_every_configuration_with_every_seed_in_order(tmp_path):
    records = sweep(tmp_path)
    assert [(r.config, r.seed) for r in records] == [({"a": a}, seed) for a in (1, 2) for seed in (0, 1)]
    assert set(calls.values()) == {1} and len(calls) == 4
    assert records[0]["draw"] == records[0].results["draw"]


def test_configurations_and_seeds_may_be_iterators(tmp_path):
    records = sweep(tmp_path, configs=iter(runs.grid(a=[1, 2])), seeds=iter([0, 1]))
    assert [(r.config["a"], r.seed) for r in records] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_what_is_recorded_is_read_and_not_trained_again(tmp_path):
    first, again = sweep(tmp_path), sweep(tmp_path)
    assert set(calls.values()) == {1}
    assert all(map(equal, first, again))
    assert [r.meta for r in first] == [r.meta for r in again]


def test_only_what_is_missing_is_trained(tmp_path):
    sweep(tmp_path, configs=[{"a": 2}], seeds=[1])
    records = sweep(tmp_path)
    assert set(calls.values()) == {1} and len(records) == 4
    next((tmp_path / "day0").glob("*a=1*seed=0*")).unlink()
    sweep(tmp_path)
    assert calls[1, 0] == 2 and sum(calls.values()) == 5


def test_a_configuration_is_the_same_in_whatever_order_its_names_come(tmp_path):
    sweep(tmp_path, configs=[{"a": 1, "b": 2}])
    sweep(tmp_path, configs=[{"b": 2, "a": 1}])
    assert set(calls.values()) == {1}
    assert len(list(tmp_path.rglob("*.npz"))) == 2


@pytest.mark.parametrize("other", [{"a": 3}, {"a": 1, "b": 1}, {"a": 1.5}, {"a": (1, 2)}, {"a": "1"}, {"a": True}])
def test_another_configuration_is_another_run(tmp_path, other):
    sweep(tmp_path, configs=[{"a": 1}], seeds=[0])
    sweep(tmp_path, function=runs_anything, configs=[other], seeds=[0])
    assert sum(calls.values()) == 2


def runs_anything(config, seed):
    calls["anything", seed] += 1
    return {"config": str(config)}


def test_another_function_or_seed_or_preset_is_another_run(tmp_path, monkeypatch):
    sweep(tmp_path, configs=[{"a": 1}], seeds=[0])
    sweep(tmp_path, configs=[{"a": 1}], seeds=[1])
    sweep(tmp_path, configs=[{"a": 1}], seeds=[0], function=flaky)
    monkeypatch.setenv("VAELAB_PRESET", "paper")
    sweep(tmp_path, configs=[{"a": 1}], seeds=[0])
    assert calls == {(1, 0): 3, (1, 1): 1}


def test_the_same_seed_gives_the_same_bits_whatever_ran_before(tmp_path):
    forwards = sweep(tmp_path / "1")
    backwards = sweep(tmp_path / "2", configs=runs.grid(a=[2, 1]), seeds=[1, 0])
    assert all(map(equal, forwards, reversed(backwards)))
    assert len({r["draw"] for r in forwards}) == len({r["number"] for r in forwards}) == 2  # one for each seed


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_fresh_trains_everything_again_and_records_it(tmp_path, monkeypatch, how):
    first = sweep(tmp_path)
    if how == "environment":
        monkeypatch.setenv("VAELAB_FRESH", "1")
    again = sweep(tmp_path, fresh=True if how == "argument" else None)
    assert set(calls.values()) == {2}
    assert all(map(equal, first, again)) and len(list(tmp_path.rglob("*.npz"))) == 4


def test_fresh_false_reads_whatever_the_environment_says(tmp_path, monkeypatch):
    sweep(tmp_path)
    monkeypatch.setenv("VAELAB_FRESH", "1")
    sweep(tmp_path, fresh=False)
    assert set(calls.values()) == {1}


def test_smoke_neither_reads_nor_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELAB_PRESET", "smoke")
    assert len(sweep(tmp_path)) == len(sweep(tmp_path)) == 4
    assert set(calls.values()) == {2}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", [".", "book"])
def test_records_are_kept_in_the_book_seen_from_the_repository_and_from_the_book(tmp_path, monkeypatch, inside):
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path / inside)
    sweep(None)
    assert len(list((tmp_path / "book" / "runs" / "day0").glob("*.npz"))) == 4
    assert len(runs.read_all("day0")) == 4


def test_a_run_cannot_change_the_configuration_that_is_recorded(tmp_path):
    records = sweep(tmp_path, function=meddling, configs=[{"a": 1}])
    assert [r.config for r in records] == [{"a": 1}, {"a": 1}]


def meddling(config, seed):
    config["a"] = seed
    return {"a": seed}


def test_a_record_says_where_it_comes_from(tmp_path):
    meta = sweep(tmp_path)[0].meta
    assert meta["function"] == "run" and meta["preset"] == "book" and meta["fingerprint"] == runs.fingerprint(run)
    assert meta["torch"] == torch.__version__ and meta["threads"] == torch.get_num_threads()
    assert {"vaelab", "python", "device"} <= meta.keys() and 0 <= meta["minutes"] < 1


def test_map_runs_yields_a_record_or_a_traceback_for_each_job_in_order():
    outcomes = list(runs.map_runs(flaky, [({"a": 1}, 0), ({"a": 2}, 5), ({"a": 3}, 0)]))
    assert outcomes[0]["a"] == 1 and outcomes[2]["a"] == 3
    assert "Traceback" in outcomes[1] and "ArithmeticError: 5 went wrong" in outcomes[1]


# When things go wrong


def test_a_failing_run_is_reported_with_its_traceback_and_the_rest_is_recorded(tmp_path):
    with pytest.raises(RunsFailed, match="2 of 6 runs failed") as raised:
        sweep(tmp_path, function=flaky, configs=runs.grid(a=[1, 2, 3]))
    for part in ("{'a': 2}", "Traceback", "flaky", "ArithmeticError: 0 went wrong", "ArithmeticError: 1 went wrong"):
        assert part in str(raised.value)
    assert {r.config["a"] for r in runs.read_all("day0", tmp_path)} == {1, 3}
    assert len(runs.read_all("day0", tmp_path)) == 4


def unrecordable(config, seed):
    """Return what a record cannot hold, for a = 1."""
    calls[config["a"], seed] += 1
    kinds = {"a set": {1, 2}, "arrays in a dictionary": {"curve": np.zeros(2)}, "a name taken": 1.0}
    wanted = config.get("kind")
    name = "file" if wanted == "a name taken" else "result"
    return {name: np.zeros(2) if wanted == "a name taken" else kinds[wanted]} if config["a"] == 1 else {"result": 1.0}


@pytest.mark.parametrize("kind", ["a set", "arrays in a dictionary", "a name taken"])
def test_a_run_whose_results_cannot_be_recorded_has_failed_and_the_rest_is_recorded(tmp_path, kind):
    with pytest.raises(RunsFailed, match="1 of 2 runs failed"):
        sweep(tmp_path, function=unrecordable, configs=runs.grid(a=[1, 2], kind=[kind]), seeds=[0])
    assert [r.config["a"] for r in runs.read_all("day0", tmp_path)] == [2]


def test_an_interrupted_sweep_keeps_what_is_finished(tmp_path):
    def stop(config, seed):
        if calls[config["a"], seed] == 1 and config["a"] == 2:
            raise KeyboardInterrupt
        return run(config, seed)

    stop.__qualname__ = stop.__name__ = "run"
    with pytest.raises(KeyboardInterrupt):
        calls[2, 0] = 1
        sweep(tmp_path, function=stop)
    assert len(list(tmp_path.rglob("*.npz"))) == 2


DEATHS = {
    "in a run": ({"TOY_DEATH": "2 0"}, None, 2),
    "half written": ({}, ("half written", 3), 2),
    "before it is named": ({}, ("before it is named", 3), 2),
    "after it is named": ({}, ("after it is named", 3), 3),
}


@pytest.mark.parametrize("moment", list(DEATHS))
def test_a_killed_sweep_loses_no_finished_run(processes, tmp_path, monkeypatch, moment):
    environment, death, recorded = DEATHS[moment]
    notes = tmp_path / "notes"
    environment = environment | {"TOY_NOTES": str(notes), "VAELAB_QUIET": "1"}
    process = processes.Process(target=sweep_in_a_process, args=(str(tmp_path), environment, death))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(runs.read_all("toy", tmp_path)) == recorded
    notes.write_text("")
    monkeypatch.setenv("TOY_NOTES", str(notes))
    records = runs.sweep(mortal_run, runs.grid(a=[1, 2]), [0, 1], chapter="toy", folder=tmp_path)
    assert notes.read_text().split("\n")[:-1] == ["1 0", "1 1", "2 0", "2 1"][recorded:]
    expected = runs.sweep(mortal_run, runs.grid(a=[1, 2]), [0, 1], chapter="toy", folder=tmp_path / "anew")
    assert all(map(equal, records, expected))


@pytest.mark.parametrize("damage", [
    lambda b: b[:-20], lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"PK" + bytes(60),
], ids=["cut short", "empty", "half", "zeros"])  # fmt: skip
def test_a_damaged_record_is_named_with_the_way_out(tmp_path, damage):
    sweep(tmp_path)
    path = sorted((tmp_path / "day0").glob("*.npz"))[1]
    path.write_bytes(damage(path.read_bytes()))
    for call in (lambda: sweep(tmp_path), lambda: runs.read(path), lambda: runs.read_all("day0", tmp_path)):
        with pytest.raises(ValueError, match="is no record .* delete it and its run is trained again") as raised:
            call()
        assert str(path) in str(raised.value)
    path.unlink()
    assert len(sweep(tmp_path)) == 4


# Records


def test_arrays_and_numbers_come_back_as_they_were(tmp_path):
    arrays = {
        "bytes": np.arange(12, dtype=np.uint8).reshape(1, 3, 4), "halves": np.float16([0.1, -65504]),
        "doubles": np.array([np.nan, np.inf, 1e-300]), "empty": np.empty((0, 3), dtype=np.float32),
    }  # fmt: skip
    plain = {
        "int": 2**60, "float": 0.1, "inf": float("inf"), "true": True, "text": "größer", "list": [1, [2]], "none": None,
    }  # fmt: skip
    config, meta = {"a": 1, "b": "x", "c": [1, 2]}, {"preset": "book", "minutes": 0.1}
    path = runs.save(Record(config, 3, arrays | plain, meta), tmp_path / "new" / "record.npz")
    back = runs.read(path)
    assert back.config == config and back.seed == 3 and back.meta == meta
    assert {k: back.results[k] for k in plain} == plain
    for name, array in arrays.items():
        assert back.results[name].dtype == array.dtype
        np.testing.assert_array_equal(back.results[name], array)
    assert back.results.keys() == arrays.keys() | plain.keys()


def various(config, seed):
    """Return every kind of result that a chapter may."""
    return {
        "tensor": torch.arange(3.0, requires_grad=True), "scalar": torch.tensor(0.5), "array": np.arange(3),
        "numpy": np.float32(0.5), "zero": np.array(2), "yes": np.bool_(True), "tuple": (1, np.int64(2)), "float": 0.1,
    }  # fmt: skip


def test_results_become_arrays_and_plain_numbers_the_same_trained_or_read(tmp_path):
    trained, read = (sweep(tmp_path, function=various, seeds=[0])[0] for _ in range(2))
    for record in (trained, read):
        results = dict(record.results)
        assert results.pop("tensor").tolist() == results.pop("array").tolist() == [0, 1, 2]
        assert results == {"scalar": 0.5, "numpy": 0.5, "zero": 2, "yes": True, "tuple": [1, 2], "float": 0.1}
        assert {k: type(v) for k, v in results.items()} == {
            "scalar": float, "numpy": float, "zero": int, "yes": bool, "tuple": list, "float": float,
        }  # fmt: skip
    assert equal(trained, read)


def test_a_record_is_written_whole(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(files, "write_whole", lambda path, content: written.append((path, content)))
    runs.save(Record({"a": 1}, 0, {"x": np.arange(3)}, {}), tmp_path / "record.npz")
    assert list(tmp_path.iterdir()) == [] and [path for path, _ in written] == [tmp_path / "record.npz"]
    assert runs.read(io.BytesIO(written[0][1]))["x"].tolist() == [0, 1, 2]


def test_read_all_reads_the_records_of_the_preset_in_force_and_none_at_smoke(tmp_path, monkeypatch):
    counts = {}
    sweep(tmp_path)
    monkeypatch.setenv("VAELAB_PRESET", "paper")
    sweep(tmp_path, seeds=[0])
    for preset in ("book", "paper", "smoke"):
        monkeypatch.setenv("VAELAB_PRESET", preset)
        counts[preset] = len(runs.read_all("day0", tmp_path))
    assert counts == {"book": 4, "paper": 2, "smoke": 0}
    assert runs.read_all("no such chapter", tmp_path) == []


RECORDS = [
    Record({"a": a, "hidden": [8, 4]}, seed, {"fid": 10.0 * a + seed, "curve": np.full(3, seed)}, {})
    for a, seed in [(1, 2), (1, 0), (2, 0), (1, 1)]
]


def test_select_takes_the_configurations_asked_for_ordered_by_seed():
    assert [r.seed for r in runs.select(RECORDS, a=1)] == [0, 1, 2]
    assert [r.seed for r in runs.select(iter(RECORDS), a=2, hidden=(8, 4))] == [0]
    assert runs.select(RECORDS, a=3) == runs.select(RECORDS, b=None) == []


def test_values_are_by_seed():
    assert runs.values(RECORDS, "fid", a=1).tolist() == [10, 11, 12]
    assert runs.values(RECORDS, "curve", a=1).tolist() == [[0] * 3, [1] * 3, [2] * 3]


def test_values_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="no record has {'a': 3}"):
        runs.values(RECORDS, "fid", a=3)
    with pytest.raises(ValueError, match=r"spread is missing from the records of {'a': 1}, seeds \[0, 1, 2\]"):
        runs.values(RECORDS, "spread", a=1)


# Fingerprints

ORIGINAL = '''
    """A chapter's definitions."""
    import functools
    from typing import NamedTuple

    import torch

    LEARNING_RATE = 0.1
    SIZES = (8, 4)
    STEPS = 100
    UNUSED = 1
    double = lambda x: 2 * x
    triple = lambda x: 3 * x


    def noted(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args)
        return wrapper


    class Base:
        def scale(self):
            return 7


    class Terms(NamedTuple):
        nll: float
        kl: float

        @property
        def loss(self):
            return self.nll + 1.0 * self.kl

        @staticmethod
        def zero():
            return 0

        @classmethod
        def one(cls):
            return 11


    class Model(Base):
        width = 16

        def forward(self, x):
            return inner(x)

        @torch.no_grad()
        def sample(self):
            return 5


    def inner(x):
        return x + 1


    def helper(x):
        """Say what it does."""
        return inner(x)


    def behind_a_decorator(x):
        return x - 1


    @torch.no_grad()
    def decorated(x):
        return behind_a_decorator(x)


    @noted
    def noted_too(x):
        return x - 2


    def with_default(x, steps=STEPS):
        return x * steps


    def unused(x):
        return x


    def run(config, seed):
        unused = 1

        def nested(x):
            return SIZES[0] * x  # a nested function

        values = [helper(x) for x in range(3)]
        model = Model()
        terms = Terms(LEARNING_RATE, triple(2))
        called = decorated(1), with_default(1), noted_too(1)
        return {"a": nested(double(unused)), "b": called, "c": model, "d": terms}
'''
numbers = itertools.count()


def module(folder: Path, source: str):
    """Import source as a module of its own; what it is called must not matter, so it always has another name."""
    name = f"chapter_{next(numbers)}"
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def changed(folder: Path, old: str, new: str) -> bool:
    """Say whether replacing one piece of the source changes the fingerprint of `run`."""
    assert ORIGINAL.count(old) == 1
    sources = (ORIGINAL, ORIGINAL.replace(old, new))
    first, second = (runs.fingerprint(module(folder, source).run) for source in sources)
    return first != second


MEANINGLESS = {
    "a comment": ("# a nested function", "# still the same"),
    "a docstring": ("Say what it does.", "Say it better."),
    "a docstring less": ('        """Say what it does."""\n', ""),
    "blank lines": ("    def helper(x):", "\n\n\n    def helper(x):"),
    "spaces": ("return x + 1", "return (x  +  1)"),
    "quotes": ('{"a": nested', "{'a': nested"),
    "a function that is not called": ("        return x\n\n\n    def run", "        return x + 5\n\n\n    def run"),
    "a constant that is not read": ("UNUSED = 1", "UNUSED = 2"),
    "the module's docstring": ("A chapter's definitions.", "Definitions."),
}
MEANINGFUL = {
    "its own code": ("range(3)", "range(4)"),
    "a nested function": ("SIZES[0] * x", "SIZES[1] * x"),
    "a function it calls": ("return inner(x)\n\n\n    def behind", "return inner(2 * x)\n\n\n    def behind"),
    "a function that one calls": ("return x + 1", "return x + 2"),
    "a number it reads": ("LEARNING_RATE = 0.1", "LEARNING_RATE = 0.2"),
    "a tuple that a nested function reads": ("SIZES = (8, 4)", "SIZES = (8, 5)"),
    "a type of number": ("LEARNING_RATE = 0.1", "LEARNING_RATE = 1"),
    "a method": ("return inner(x)\n\n        @torch", "return inner(x) + 1\n\n        @torch"),
    "a decorated method": ("return 5", "return 6"),
    "a property": ("1.0 * self.kl", "2.0 * self.kl"),
    "a static method": ("return 0", "return 1"),
    "a class method": ("return 11", "return 12"),
    "a field": ("kl: float\n", "kl: float\n        extra: float = 0.0\n"),
    "an attribute of a class": ("width = 16", "width = 32"),
    "a method of a base class": ("return 7", "return 8"),
    "a base class": ("class Model(Base)", "class Model"),
    "a lambda": ("lambda x: 2 * x", "lambda x: 4 * x"),
    "another lambda": ("lambda x: 3 * x", "lambda x: 5 * x"),
    "a decorated function": ("return behind_a_decorator(x)", "return 2 * behind_a_decorator(x)"),
    "a function that a decorated one calls": ("return x - 1", "return x - 3"),
    "a function decorated in the chapter": ("return x - 2", "return x - 4"),
    "a default": ("STEPS = 100", "STEPS = 200"),
}


@pytest.mark.parametrize("what", list(MEANINGLESS))
def test_what_means_nothing_leaves_the_fingerprint(tmp_path, what):
    assert not changed(tmp_path, *MEANINGLESS[what])


@pytest.mark.parametrize("what", list(MEANINGFUL))
def test_what_means_something_changes_the_fingerprint(tmp_path, what):
    assert changed(tmp_path, *MEANINGFUL[what])


def test_a_local_variable_with_the_name_of_a_function_does_not_count(tmp_path):
    assert not changed(tmp_path, "        return x\n\n\n    def run", "        return 9\n\n\n    def run")


def test_what_a_closure_holds_counts(tmp_path):
    source = "def make(scale):\n    def run(config, seed):\n        return {'a': scale}\n    return run\n"
    make = module(tmp_path, source).make
    try:
        prints = [runs.fingerprint(make(scale)) for scale in (1, 2, 2)]
    except ValueError:  # to refuse it is right too: a run must depend on its two arguments alone
        return
    assert prints[0] != prints[1] == prints[2]


def test_functions_that_call_each_other_have_a_fingerprint(tmp_path):
    source = """
    def a(n):
        return b(n - 1) if n else 0

    def b(n):
        return a(n)

    def run(config, seed):
        return {"n": a(3)}
    """
    first, other = (module(tmp_path, text).run for text in (source, source.replace("- 1", "- 2")))
    assert runs.fingerprint(first) != runs.fingerprint(other)


def test_a_function_without_source_is_refused():
    space: dict = {}
    exec("def run(config, seed):\n    return {}", space)
    with pytest.raises(ValueError, match="the source of .* cannot be read, so its runs cannot be recorded"):
        runs.fingerprint(space["run"])


# Audit


def noisy(config, seed):
    """Return numbers that differ from seed to seed."""
    calls[config["a"], seed] += 1
    return {"x": float(torch.randn(())) + config["a"], "y": 2.0 * seed, "note": "text"}


def steady(config, seed):
    """Return a number that does not."""
    calls[config["a"], seed] += 1
    return {"x": 5.0}


def audit(records, function=noisy, **options):
    defaults = {"metrics": ["x"], "minutes": 1.0, "seed": 0}
    return runs.audit(function, records, **defaults | options)


def test_honest_records_pass(tmp_path):
    records = sweep(tmp_path, function=noisy, seeds=range(3))
    lines = audit(records, metrics=["x", "y"])
    assert len(lines) == 12 and set(calls.values()) == {2}
    for part in ("{'a': 2} seed 1: x was", "{'a': 1} seed 2: y was 4, is 4 (spread 2)"):
        assert any(part in line for line in lines)


@pytest.mark.parametrize("seeds", [[0], [0, 1]], ids=["one seed", "seeds that agree"])
@pytest.mark.parametrize("function", [steady, noisy])
def test_records_that_repeat_to_the_last_bit_pass_whatever_their_spread(tmp_path, function, seeds):
    assert len(audit(sweep(tmp_path, function=function, seeds=seeds), function)) == 2 * len(seeds)


def of_other_contents(config, seed):
    """Return what a run returns whose data are read out of what is installed."""
    calls[config["a"], seed] += 1
    contents = "here" if calls[config["a"], seed] > 1 else "there"
    return {"x": float(calls[config["a"], seed]), "digest": contents if config["a"] == 1 else "the same"}


def test_runs_on_other_contents_are_not_compared(tmp_path):
    records = sweep(tmp_path, function=of_other_contents, seeds=[0])
    lines = runs.audit(of_other_contents, records[:1], metrics=["x"], minutes=1.0, seed=0)
    assert lines == ["{'a': 1} seed 0: trained on other contents here, so nothing is compared"]
    with pytest.raises(AuditFailed, match="x was 1, is 2"):  # the same contents: a difference is a difference
        runs.audit(of_other_contents, records[1:], metrics=["x"], minutes=1.0, seed=0)


def test_a_metric_that_only_some_records_have_is_compared_where_it_is(tmp_path):
    records = sweep(tmp_path, function=noisy, seeds=[0])
    assert len(audit(records, metrics=["x", "only elsewhere"])) == 2


def tampered(record: Record, by: float) -> Record:
    return record._replace(results=record.results | {"x": record["x"] + by})


@pytest.mark.parametrize("seeds", [2, 5, 40])
@pytest.mark.parametrize("by", [1000.0, -1000.0])
def test_a_tampered_value_fails_however_few_the_seeds(tmp_path, by, seeds):
    records = sweep(tmp_path, function=noisy, seeds=range(seeds))
    records[1] = tampered(records[1], by)
    with pytest.raises(AuditFailed, match=r"{'a': 1} seed [01]: x was" if seeds == 2 else "{'a': 1} seed 1: x was"):
        audit(records)


@pytest.mark.parametrize("value", [0.0, 1e3, -1e6])
def test_a_package_that_now_computes_something_else_fails(tmp_path, monkeypatch, value):
    records = [r for r in sweep(tmp_path, function=noisy, seeds=range(5)) if r.config["a"] == 1]
    records = [tampered(r, 100.0) for r in records]  # so that 0 is far off, too
    monkeypatch.setattr(torch, "randn", lambda size: torch.full(size, value))
    with pytest.raises(AuditFailed, match="x was"):
        audit(records)


def module_of(tmp_path, source: str):
    path = tmp_path / "a_notebook.py"
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location("a_notebook", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cached_helper_counts_for_the_fingerprint(tmp_path):
    source = """
    import functools
    @functools.lru_cache
    def helper():
        return {number}
    def run(config, seed):
        return {{"x": helper()}}
    """
    prints = []
    for number in (1, 2):
        (folder := tmp_path / str(number)).mkdir()
        prints.append(runs.fingerprint(module_of(folder, source.format(number=number)).run))
    assert prints[0] != prints[1]


def test_a_run_that_reads_what_may_change_unseen_is_refused(tmp_path):
    module = module_of(tmp_path, "WIDTHS = [1]\ndef run(config, seed):\n    return {'x': WIDTHS[0]}\n")
    with pytest.raises(ValueError, match="reads WIDTHS, a list"):
        runs.fingerprint(module.run)


def test_an_array_of_objects_is_no_result(tmp_path):
    record = Record({}, 0, {"x": np.array([None, 1.0])}, {})
    with pytest.raises(ValueError, match="Python objects"):
        runs.save(record, tmp_path / "record.npz")
    assert not (tmp_path / "record.npz").exists()


def test_a_value_lost_to_nan_fails(tmp_path):
    records = sweep(tmp_path, function=noisy, seeds=range(3))
    records[1] = tampered(records[1], float("nan"))
    with pytest.raises(AuditFailed):
        audit(records)


def test_a_value_of_another_machine_may_move_by_the_tolerance_times_the_spread_of_its_configuration(tmp_path):
    records = [r for r in sweep(tmp_path, function=noisy, seeds=range(10)) if r.config["a"] == 1]
    records = [r._replace(meta=r.meta | {"device": "another", "torch": "0.0"}) for r in records]
    records[0] = tampered(records[0], 0.3)
    assert len(audit(records)) == 10
    with pytest.raises(AuditFailed, match="seed 0"):
        audit(records, tolerance=0.1)


def test_records_of_another_function_fail_untrained(tmp_path):
    records = sweep(tmp_path, function=noisy)
    stale = records[0]._replace(meta=records[0].meta | {"fingerprint": "of yesterday"})
    with pytest.raises(AuditFailed, match="1 of 4 records of noisy are .* train"):
        audit([stale, *records[1:]])
    assert set(calls.values()) == {1}


def test_no_run_is_begun_that_does_not_fit_into_the_minutes(tmp_path):
    records = sweep(tmp_path, function=noisy, seeds=range(3))
    long = [r._replace(meta=r.meta | {"minutes": 10.0 if r.config["a"] == 1 else 0.0}) for r in records]
    lines = audit(long, minutes=9.9)
    assert len(lines) == 3 and all("{'a': 2}" in line for line in lines)
    assert len(audit(long, minutes=10.1)) == 6  # a repeated run costs what it takes now, not what it took then


def test_what_the_repeated_runs_take_is_counted(tmp_path, monkeypatch):
    records = sweep(tmp_path, function=noisy, seeds=range(3))
    records = [r._replace(meta=r.meta | {"minutes": 0.5}) for r in records]
    clock = itertools.count(step=30.0)  # seconds: every look at the clock is half a minute later
    monkeypatch.setattr(runs.time, "perf_counter", lambda: next(clock))
    assert len(audit(records, minutes=1.2)) == 2


def threads(config, seed):
    """Tell how many threads it has."""
    return {"x": float(torch.get_num_threads())}


def test_a_run_is_repeated_with_as_many_threads_as_it_had(tmp_path):
    records = sweep(tmp_path, function=threads)
    records = [r._replace(meta=r.meta | {"threads": 2}, results={"x": 2.0}) for r in records]
    before = torch.get_num_threads()
    assert len(audit(records, threads)) == 4
    assert torch.get_num_threads() == before


def test_the_sample_is_decided_by_its_seed(tmp_path):
    records = sweep(tmp_path, function=noisy, seeds=range(3))
    assert audit(records, seed=1) == audit(records, seed=1) != audit(records, seed=2)


def test_a_repeated_run_gets_the_configuration_that_the_first_one_got(tmp_path):
    records = sweep(tmp_path, function=keyed, configs=[{"widths": (8, 4)}])
    assert len(audit(records, keyed)) == 2


def keyed(config, seed):
    """Need its tuple to be one."""
    return {"x": {(8, 4): 0.5}[config["widths"]] + seed}
