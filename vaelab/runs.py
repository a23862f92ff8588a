"""Many runs: recorded, resumed, audited.

Intervals need many runs and a laptop is slow, so training and telling are kept apart. A chapter writes::

    def run(config, seed):
        …
        return {"fid": 12.3, "curve": np.array(...)}      # numbers and small arrays, by name

    records = runs.sweep(run, grid, seeds, chapter="day12")

and `sweep` trains only what no record holds. Each finished run is one small file in `book/runs/<chapter>/`,
written whole the moment it ends, so that a sweep killed at any time loses no finished run.

A record is found by configuration, seed, preset and the fingerprint of the function: change what `run` does
and it is trained anew; change a comment and it is not.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
import io
import itertools
import json
import platform
import random
import re
import textwrap
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import vaelab
from vaelab import files
from vaelab.lab import device, flag, preset, seed_everything
from vaelab.training import quiet

Run = Callable[[Mapping[str, Any], int], Mapping[str, Any]]


class RunsFailed(RuntimeError):
    """Some runs of a sweep raised; the others are recorded."""


class AuditFailed(AssertionError):
    """A run trained again disagrees with its record."""


class Record(NamedTuple):
    """One finished run."""

    config: dict[str, Any]
    seed: int
    results: dict[str, Any]  # numbers, and NumPy arrays for curves and pictures
    meta: dict[str, Any]  # preset, fingerprint, versions, device, threads, minutes

    def __getitem__(self, name):  # record["fid"] reads a result; record[0] would only confuse
        return self.results[name]


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return every combination of the axes as a list of configurations.

    >>> grid(labels=[6, 60], steps=[10])
    [{'labels': 6, 'steps': 10}, {'labels': 60, 'steps': 10}]
    """
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def sweep(
    run: Run,
    configs: Iterable[Mapping[str, Any]],
    seeds: Iterable[int],
    *,
    chapter: str,
    folder: str | Path | None = None,
    fresh: bool | None = None,
) -> list[Record]:
    """Return one record for every configuration and seed, training those that no record holds.

    At preset `smoke` nothing is read and nothing is written: everything is trained, so pass little.

    Args:
        run: the chapter's function; it must depend on its two arguments alone.
        configs: dictionaries of numbers, strings, booleans and tuples.
        seeds: every configuration is run with each; all generators are seeded before.
        chapter: the folder below `book/runs`.
        folder: where records are kept, instead of there.
        fresh: train everything, also what a record holds; None asks the environment variable `VAELAB_FRESH`.

    Raises:
        RunsFailed: at the end, with the tracebacks, if runs raised; all others are recorded by then.
    """
    keep = preset() != "smoke"
    fresh = flag("VAELAB_FRESH") if fresh is None else fresh
    folder = _folder(chapter, folder)
    jobs = [(dict(config), int(seed)) for config, seed in itertools.product(configs, seeds)]
    held = {} if fresh or not keep else _held(run, jobs, folder)
    missing = [i for i in range(len(jobs)) if i not in held]
    failures = []
    bar = tqdm(map_runs(run, [jobs[i] for i in missing]), total=len(missing), desc=chapter, unit="run",
               disable=quiet() or not missing)  # fmt: skip
    for outcome, i in zip(bar, missing):  # the bar first, so that it learns of its end
        if isinstance(outcome, Record):
            held[i] = outcome
            problem = _try_save(outcome, _path(folder, run, *jobs[i])) if keep else ""
        else:
            problem = outcome
        if problem:
            failures.append(f"{jobs[i]}:\n{problem}")
    if failures:
        raise RunsFailed(f"{len(failures)} of {len(jobs)} runs failed, the rest are kept.\n" + "\n".join(failures))
    return [held[i] for i in range(len(jobs))]


def _try_save(record: Record, path: Path) -> str:
    """Save a record; return a traceback if its results cannot be recorded."""
    try:
        save(record, path)
    except (TypeError, ValueError):
        return traceback.format_exc()
    return ""


def map_runs(run: Run, jobs: Sequence[tuple[dict, int]]) -> Iterator[Record | str]:
    """Run the jobs and yield, in their order, a record or a traceback for each.

    The one place that decides where runs happen: here, in this process, one after the other.
    """
    for config, seed in jobs:
        try:
            yield _one(run, config, seed)
        except Exception:  # a failed run is reported, and the rest go on
            yield traceback.format_exc()


def _one(run: Run, config: dict, seed: int) -> Record:
    seed_everything(seed)
    begun = time.perf_counter()
    results = {name: _plain(value) for name, value in run(dict(config), seed).items()}
    return Record(_plain(config), seed, results, _meta(run, (time.perf_counter() - begun) / 60))


def _meta(run: Run, minutes: float) -> dict[str, Any]:
    where = device()
    return {
        "function": run.__name__,
        "fingerprint": fingerprint(run),
        "preset": preset(),
        "vaelab": vaelab.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if where.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "minutes": round(minutes, 3),
    }


def _plain(value: Any) -> Any:
    """Turn tensors into arrays and NumPy numbers into Python's, and tuples into lists, as JSON will."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim:
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


# What a function does, as a number


def fingerprint(function: Callable) -> str:
    """Return a hash of what a function does: its code and that of the functions it calls in its own module.

    Comments, docstrings, blank lines and quotes do not count.

    Raises:
        ValueError: there is no source to read, as for a function typed into a plain Python prompt.
    """
    seen: dict[str, str] = {}
    _collect(function, seen)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:12]


def _collect(item: Any, seen: dict[str, str], name: str = "") -> None:
    """Gather the essence of `item` and of whatever in the same module it names."""
    name = name or item.__qualname__
    if name in seen:
        return
    if isinstance(item, type):
        _collect_class(item, seen)
        return
    function = inspect.unwrap(item)
    tree = _tree(function)
    seen[name] = repr(_essence(tree))
    names = _globals_read(function.__code__) | _read_when_defined(tree)
    around = dict(zip(function.__code__.co_freevars, (c.cell_contents for c in function.__closure__ or ())))
    for other in sorted(names):
        _collect_named(other, function.__globals__.get(other), function.__module__, seen)
    for other, value in around.items():
        _collect_named(other, value, function.__module__, seen)


def _collect_named(name: str, other: Any, module: str, seen: dict[str, str]) -> None:
    function = inspect.unwrap(other) if callable(other) and hasattr(other, "__wrapped__") else other
    if isinstance(function, (types.FunctionType, type)) and function.__module__ == module:
        _collect(function, seen, name if getattr(function, "__name__", "") == "<lambda>" else "")
    elif type(other) in (list, dict, set):
        kind = type(other).__name__
        raise ValueError(f"the run reads {name}, a {kind} that may change: make it a tuple, or configuration")
    elif type(other) in (int, float, str, bool, tuple):
        seen[name] = repr(other)  # a constant of the module


def _collect_class(item: type, seen: dict[str, str]) -> None:
    """A notebook's classes have no source of their own, their methods have."""
    fields, bases = list(getattr(item, "__annotations__", {})), [base.__name__ for base in item.__bases__]
    seen[item.__qualname__] = repr((fields, bases))
    for base in item.__bases__:
        if base.__module__ == item.__module__ and base.__qualname__ not in seen:
            _collect_class(base, seen)
    for name, member in vars(item).items():
        member = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        if isinstance(member, types.FunctionType):
            if member.__module__ == item.__module__ and inspect.unwrap(member).__code__.co_filename[:1] != "<":
                _collect(member, seen)
        elif type(member) in (int, float, str, bool, tuple) and not name.startswith("_"):
            seen[f"{item.__qualname__}.{name}"] = repr(member)


def _read_when_defined(tree: ast.AST) -> set[str]:
    """Names that stand in decorators and defaults: they are read once, when the function is defined."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            early = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
            found |= {n.id for part in early for n in ast.walk(part) if isinstance(n, ast.Name)}
    return found


def _globals_read(code: types.CodeType) -> set[str]:
    """Names that code reads from its module; a local variable of the same name as a global does not count."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals_read(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _tree(function: types.FunctionType) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError) as error:
        raise ValueError(f"the source of {function!r} cannot be read, so its runs cannot be recorded") from error


def _essence(node: Any) -> Any:
    """Reduce a syntax tree to nested tuples that are the same under every Python from 3.10 on.

    (`ast.dump` and `ast.unparse` are not: they would make a reader's newer Python train everything anew.)
    """
    if isinstance(node, list):
        return tuple(_essence(child) for child in node)
    if not isinstance(node, ast.AST):
        return repr(node)
    documented = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None
    fields = {name: value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_params")}
    if documented:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty parts to nested format specifications
        fields["values"] = [v for v in node.values if not (isinstance(v, ast.Constant) and v.value == "")]
    return (type(node).__name__, *((k, _essence(v)) for k, v in fields.items() if v not in (None, [])))


# Records on disk


def _folder(chapter: str, folder: str | Path | None) -> Path:
    """`book/runs/<chapter>`, seen from the repository or from `book`, or below the folder named."""
    if folder is not None:
        return Path(folder) / chapter
    here = Path.cwd()
    book = here if here.name == "book" else here / "book"
    return book / "runs" / chapter


def _path(folder: Path, run: Run, config: Mapping[str, Any], seed: int) -> Path:
    key = json.dumps([_plain(config), seed, preset(), run.__name__, fingerprint(run)], sort_keys=True)
    readable = re.sub(r"[^\w=.-]+", "-", ",".join(f"{k}={v}" for k, v in config.items()))[:80]
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    there = next(folder.glob(f"*-{digest}.npz"), None)  # whatever the order of names it was written with
    return there or folder / f"{readable},seed={seed}-{digest}.npz"


def _held(run: Run, jobs: Sequence[tuple[dict, int]], folder: Path) -> dict[int, Record]:
    paths = {i: _path(folder, run, *job) for i, job in enumerate(jobs)}
    return {i: read(path) for i, path in paths.items() if path.exists()}


def save(record: Record, path: str | Path) -> Path:
    """Write a record as one compressed .npz file: a JSON header and the arrays."""
    arrays = {name: value for name, value in record.results.items() if isinstance(value, np.ndarray)}
    header = record._asdict() | {"results": {k: v for k, v in record.results.items() if k not in arrays}}
    content = io.BytesIO()
    taken = {"file", "header", "allow_pickle"} & arrays.keys()
    if taken:
        raise ValueError(f"a result is named {taken.pop()}, which a record cannot hold; name it otherwise")
    if any(array.dtype.hasobject for array in arrays.values()):
        raise ValueError("a result is an array of Python objects, which a record cannot hold; keep numbers in arrays")
    np.savez_compressed(content, header=np.array(json.dumps(header)), **arrays)
    return files.write_whole(path, content.getvalue())


def read(path: str | Path) -> Record:
    """Read a record that `save` wrote.

    Raises:
        ValueError: the file is no record; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            arrays = {name: stored[name] for name in stored.files if name != "header"}
    except Exception as error:  # a damaged zip raises half a dozen kinds
        raise ValueError(f"{path} is no record ({error}); delete it and its run is trained again") from error
    return Record(header["config"], header["seed"], header["results"] | arrays, header["meta"])


def read_all(chapter: str, folder: str | Path | None = None) -> list[Record]:
    """Return a chapter's records of the preset in force, by file name; none at preset `smoke`."""
    records = [read(path) for path in sorted(_folder(chapter, folder).glob("*.npz"))]
    return [record for record in records if record.meta["preset"] == preset() != "smoke"]


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Return the records whose configuration has these values, ordered by seed.

    >>> select([Record({"a": 1}, 3, {}, {}), Record({"a": 1}, 0, {}, {}), Record({"a": 2}, 0, {}, {})], a=1)[0].seed
    0
    """
    wanted = _plain(wanted)
    chosen = [r for r in records if all(k in r.config and r.config[k] == v for k, v in wanted.items())]
    return sorted(chosen, key=lambda record: record.seed)


def values(records: Iterable[Record], metric: str, **wanted: Any) -> np.ndarray:
    """Return one result of the selected records, by seed: (seeds,) for numbers, (seeds, …) for arrays.

    Raises:
        ValueError: no record has this configuration, or one lacks the result.
    """
    chosen = select(records, **wanted)
    if not chosen:
        raise ValueError(f"no record has {wanted}")
    absent = [r.seed for r in chosen if metric not in r.results]
    if absent:
        raise ValueError(f"{metric} is missing from the records of {wanted}, seeds {absent}")
    return np.array([record.results[metric] for record in chosen])


# Audit


def audit(
    run: Run,
    records: Sequence[Record],
    *,
    metrics: Sequence[str],
    minutes: float,
    seed: int,
    tolerance: float = 4.0,
) -> list[str]:
    """Train a random sample of recorded runs again and compare; return a line for each.

    On the machine of the record the same seed gives the same bits. Elsewhere the rounding differs, and a
    long training amplifies that, so the yardstick is the seed-to-seed spread of the same configuration.

    Args:
        run: the function as it is today. records: those to draw from.
        metrics: results to compare, where a record has them. minutes: stop drawing when the next run would not fit,
            by its record.
        seed: of the draw.
        tolerance: how many standard deviations between seeds a value may move.

    Raises:
        AuditFailed: a value moved further, or the function is no longer the one that was recorded.
    """
    lines, left = [], minutes
    today = fingerprint(run)  # parses the run's source: once, not for every record
    stale = [r for r in records if r.meta["fingerprint"] != today]
    if stale:
        raise AuditFailed(f"{len(stale)} of {len(records)} records of {run.__name__} are stale: train them anew")
    for record in random.Random(seed).sample(list(records), len(records)):
        if record.meta["minutes"] > left:
            continue
        again = _with_threads(record.meta["threads"], lambda r=record: _one(run, _tuples(r.config), r.seed))
        left -= again.meta["minutes"]
        if record.results.get("digest") != again.results.get("digest"):  # sentences read out of installed libraries
            lines.append(f"{record.config} seed {record.seed}: trained on other contents here, so nothing is compared")
            continue
        held = [metric for metric in metrics if metric in record.results]
        lines += [_compare(record, again, records, metric, tolerance) for metric in held]
    return lines


def _tuples(value: Any) -> Any:
    """Undo what JSON does to tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _with_threads(count: int, call: Callable[[], Record]) -> Record:
    """Call with as many threads as the record had: sums are split among them, so their number is in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def _compare(record: Record, again: Record, records: Sequence[Record], metric: str, tolerance: float) -> str:
    old, new = record.results[metric], again.results[metric]
    others = [r.results[metric] for r in select(records, **record.config) if r.seed != record.seed]
    # Whichever of the two values is the wrong one must not widen the yardstick.
    spread = min(float(np.std([*others, value], ddof=1)) for value in (old, new)) if others else 0.0
    line = f"{record.config} seed {record.seed}: {metric} was {old:.6g}, is {new:.6g} (spread {spread:.2g})"
    if new != old and not abs(new - old) <= tolerance * spread:
        raise AuditFailed(line)
    return line
