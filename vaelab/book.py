"""The notebooks themselves: executed, fingerprinted, checked::

    python -m vaelab.book execute --preset book [--chapter day12] [--fresh]
    python -m vaelab.book audit --minutes 2 [--chapter day12]

`execute` runs chapters in a fresh kernel and writes their outputs back, with the state of their sliders and
a fingerprint of the code that made them. `audit` trains a sample of the recorded runs again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import vaelab
from vaelab import data, files, runs

BOOK = Path(__file__).resolve().parent.parent / "book"


def say(text: str) -> None:
    """Show a sentence with numbers in it as prose, wherever the notebook is read.

    Numbers in the book's prose come from the run. A sentence written as `say(f"… {fid:.1f} …")` shows the
    committed run's numbers in the printed book and the reader's own in a live notebook.
    """
    from IPython.display import Markdown, display

    display(Markdown(text))


def chapters(names: Sequence[str] = ()) -> list[Path]:
    """Return the paths of the book's notebooks, or of those named.

    Raises:
        ValueError: there is no chapter of that name.
    """
    found = {path.stem: path for path in sorted(BOOK.glob("*.ipynb"))}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"no chapter {', '.join(unknown)}; there are {', '.join(found)}")
    return [found[name] for name in names or found]


def code_fingerprint(notebook) -> str:
    """Return a hash of a notebook's code cells: outputs are of this code, or they are stale."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def execute(path: Path, preset: str = "book", fresh: bool = False) -> None:
    """Run a notebook in a fresh kernel and write its outputs back; on an error the file stays as it was."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    environment = {"VAELAB_PRESET": preset, "VAELAB_QUIET": "1", "VAELAB_FRESH": "1" if fresh else ""}
    os.environ.update(environment)
    timeout = 120 if preset == "smoke" else None  # a cell may hold a sweep of hours
    client = NotebookClient(notebook, timeout=timeout, startup_timeout=120, kernel_name="python3",
                            resources={"metadata": {"path": str(path.parent)}}, store_widget_state=True)  # fmt: skip
    client.execute()
    _tidy(notebook)
    notebook.metadata["vaelab"] = {
        "fingerprint": code_fingerprint(notebook),
        "preset": preset,
        "version": vaelab.__version__,
    }
    text = nbformat.writes(notebook) + "\n"
    _refuse_paths(path, text)
    files.write_whole(path, text)


def _tidy(notebook) -> None:
    """Drop what differs from run to run without meaning, and hand alternative texts on to the renderer."""
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alt}


def _refuse_paths(path: Path, text: str) -> None:
    for leak in {str(BOOK.parent), str(Path.home()), sys.prefix} - {"/"}:
        if f"{leak}/" in text:
            raise ValueError(f"{path.name}: an output holds a path of this machine ({leak}); nothing was written")


# Audit


def definitions(path: Path) -> ModuleType:
    """Return a module with a notebook's imports, functions, classes and plain constants, and nothing run."""
    import nbformat

    kept = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            kept += [ast.unparse(node) for node in ast.parse(_without_magics(cell.source)).body if _defines(node)]
    return _module(path.stem, "\n\n".join(kept))


def _without_magics(source: str) -> str:
    """Put `pass` in place of shell lines and magics, which are no Python."""
    try:
        ast.parse(source)
        return source
    except SyntaxError:
        return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)


def _defines(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        plain = (ast.Constant, ast.Tuple, ast.Load, ast.UnaryOp, ast.USub)
        return all(isinstance(part, plain) for part in ast.walk(node.value))
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


_folders: list[tempfile.TemporaryDirectory] = []


def _module(name: str, source: str) -> ModuleType:
    """Make a module from source that `inspect` can find again; what needs a value only a run has is left out."""
    _folders.append(tempfile.TemporaryDirectory())  # goes when the process does; until then `inspect` reads from it
    path = Path(_folders[-1].name) / f"{name}_definitions.py"
    path.write_text(source)
    module = sys.modules[path.stem] = ModuleType(path.stem)
    module.__file__ = str(path)
    for node in ast.parse(source).body:
        try:
            exec(compile(ast.Module([node], []), path, "exec"), module.__dict__)
        except NameError:
            continue
    return module


def audit(paths: Sequence[Path], minutes: float, seed: int | None = None) -> Iterator[str]:
    """Train a random sample of the chapters' records again, and yield a line for each result compared.

    Records whose data set is not on this machine are counted, not trained.

    Raises:
        runs.AuditFailed: a result moved further than seeds explain.
    """
    seed = random.randrange(2**32) if seed is None else seed
    yield f"audit: seed {seed}, {minutes} minutes"
    os.environ["VAELAB_PRESET"] = "book"
    groups = [(path, name, group) for path in paths for name, group in _groups(path.stem)]
    for path, name, group in groups:
        available = [record for record in group if data.at_hand(record.config.get("dataset", "digits"))]
        yield f"{path.stem}.{name}: {len(group)} records, {len(group) - len(available)} without their data here"
        if available:
            run = getattr(definitions(path), name)
            metrics = _comparable(available)
            yield from runs.audit(run, available, metrics=metrics, minutes=minutes / len(groups), seed=seed)


def _comparable(records: Sequence[runs.Record]) -> list[str]:
    """Name the results that can be compared: plain numbers, but no times (`seconds...`), which a machine decides."""
    names = {name for r in records for name, value in r.results.items() if isinstance(value, float)}
    return sorted(name for name in names if not name.startswith("seconds"))


def _groups(chapter: str) -> list[tuple[str, list[runs.Record]]]:
    records = runs.read_all(chapter, BOOK / "runs")
    names = sorted({record.meta["function"] for record in records})
    return [(name, [r for r in records if r.meta["function"] == name]) for name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m vaelab.book", description="Execute or audit the book's notebooks.")
    parser.add_argument("command", choices=("execute", "audit"))
    parser.add_argument("--chapter", action="append", default=[], help="a notebook's name; default: all")
    parser.add_argument("--preset", default="book", choices=("smoke", "book", "paper"))
    parser.add_argument("--fresh", action="store_true", help="train also what a record holds")
    parser.add_argument("--minutes", type=float, default=5.0, help="time for the audit")
    parser.add_argument("--seed", type=int, default=None, help="which records the audit draws")
    options = parser.parse_args(arguments)
    if options.command == "audit":
        for line in audit(chapters(options.chapter), options.minutes, options.seed):
            print(line, flush=True)
        return
    for path in chapters(options.chapter):
        print(f"executing {path.name} at preset {options.preset}", flush=True)
        execute(path, options.preset, options.fresh)


if __name__ == "__main__":
    main()
