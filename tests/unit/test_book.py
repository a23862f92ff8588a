"""The notebooks: fingerprinted, executed, audited."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import IPython.display
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vaelab import book, data, runs


@pytest.fixture
def small_book(tmp_path, monkeypatch) -> Path:
    """An empty book of our own."""
    folder = tmp_path / "repository" / "book"
    folder.mkdir(parents=True)
    monkeypatch.setattr(book, "BOOK", folder)
    return folder


def notebook(*cells: str):
    return new_notebook(cells=[new_code_cell(textwrap.dedent(cell)) for cell in cells])


def write(folder: Path, name: str, *cells: str) -> Path:
    nbformat.write(notebook(*cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


# Chapters and fingerprints


def test_chapters_are_the_books_notebooks_by_name(small_book):
    paths = [write(small_book, name, "1") for name in ("day2", "day1")]
    assert book.chapters() == sorted(paths)
    assert book.chapters(["day2"]) == [small_book / "day2.ipynb"]


def test_a_chapter_that_is_not_there_is_refused_with_those_that_are(small_book):
    write(small_book, "day1", "1")
    with pytest.raises(ValueError, match="no chapter day9, day8; there are day1"):
        book.chapters(["day9", "day1", "day8"])


def test_the_fingerprint_changes_with_the_code_and_with_nothing_else():
    original = notebook("a = 1", "b = 2")
    before = book.code_fingerprint(original)
    original.cells[0].outputs = [new_output("stream", text="1")]
    original.cells[0].execution_count = 7
    original.cells.insert(1, new_markdown_cell("Some prose."))
    original.metadata["vaelab"] = {"fingerprint": before}
    assert book.code_fingerprint(original) == before
    others = [notebook("a = 1", "b = 3"), notebook("a = 1"), notebook("b = 2", "a = 1"), notebook("a = 1\nb = 2")]
    assert len({before, *map(book.code_fingerprint, others)}) == 5


def test_say_shows_markdown(monkeypatch):
    shown: list = []
    monkeypatch.setattr(IPython.display, "display", lambda *items: shown.extend(items))
    book.say("The distance is **3.2**.")
    (item,) = shown
    assert isinstance(item, IPython.display.Markdown) and item.data == "The distance is **3.2**."


# Execution

CELLS = (
    """
    import os
    said = [os.environ[name] for name in ("VAELAB_PRESET", "VAELAB_QUIET", "VAELAB_FRESH")]
    print(said, os.path.basename(os.getcwd()))
    """,
    """
    from IPython.display import Image, display
    display(Image(bytes([137]) + b"PNG", format="png", metadata={"alt": "a dot"}))
    """,
)


def test_execute_writes_outputs_alternatives_and_the_fingerprint_of_the_code(small_book):
    path = write(small_book, "day1", *CELLS)
    before = nbformat.read(path, as_version=4)
    book.execute(path, preset="smoke")
    done = nbformat.read(path, as_version=4)
    assert [cell.source for cell in done.cells] == [cell.source for cell in before.cells]
    assert done.cells[0].outputs[0].text == "['smoke', '1', ''] book\n"
    assert done.cells[1].metadata["mystnb"] == {"image": {"alt": "a dot"}}
    assert "execution" not in done.cells[0].metadata
    assert done.metadata["vaelab"]["fingerprint"] == book.code_fingerprint(before)
    assert done.metadata["vaelab"]["preset"] == "smoke"
    nbformat.validate(done)


def test_on_an_error_execute_leaves_the_file_as_it_was(small_book):
    path = write(small_book, "day1", "print('fine')", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        book.execute(path)
    assert path.read_bytes() == before and [p.name for p in small_book.iterdir()] == [path.name]


@pytest.mark.parametrize("place", [
    lambda folder: folder.parent, lambda folder: Path.home(), lambda folder: sys.prefix,
], ids=["repository", "home", "environment"])  # fmt: skip
def test_an_output_with_a_path_of_this_machine_is_not_written(small_book, monkeypatch, place):
    path = write(small_book, "day1", "1")
    before = path.read_bytes()

    class Client:
        def __init__(self, executed, **_):
            self.notebook = executed

        def execute(self):
            self.notebook.cells[0].outputs = [new_output("stream", text=f"read {place(small_book)}/data/x\n")]

    monkeypatch.setattr("nbclient.NotebookClient", Client)
    with pytest.raises(ValueError, match="day1.ipynb: an output holds a path of this machine .*; nothing was written"):
        book.execute(path)
    assert path.read_bytes() == before


# Definitions

DEFINITIONS = (
    """
    import os
    if "COLAB" in os.environ:
        %pip install something
        !git clone somewhere
    import torch
    from torch import nn
    """,
    """
    %matplotlib inline
    import vaelab
    lab = vaelab.start()
    STEPS, NAME, SIZES = 100, "digits", (8, (4, 2))
    RATE = 1e-3
    FLOOR = -5.0
    device = lab.device
    raise RuntimeError("this cell was run")
    """,
    """
    class Net(nn.Module):
        def forward(self, x):
            return x * RATE

    def run(config, seed):
        "Say what it does."
        return {"x": helper(seed) + config["a"]}

    def helper(x):
        return x * STEPS  # a remark

    @torch.no_grad()
    def at_run_time(x, where=device):
        return x

    def uses_it(x):
        return at_run_time(x)

    run({}, 0)
    """,
)


@pytest.fixture
def defined(small_book):
    return book.definitions(write(small_book, "day1", *DEFINITIONS))


def test_definitions_hold_imports_constants_functions_and_classes(defined):
    assert (defined.STEPS, defined.NAME, defined.SIZES, defined.RATE) == (100, "digits", (8, (4, 2)), 1e-3)
    assert defined.run({"a": 1}, 2) == {"x": 201}
    assert defined.Net()(2.0) == 2e-3
    assert defined.uses_it


def test_a_negative_number_is_a_constant_too(defined):
    assert defined.FLOOR == -5.0


def test_definitions_run_nothing_and_leave_out_what_only_a_run_can_know(defined):
    assert not hasattr(defined, "lab") and not hasattr(defined, "device") and not hasattr(defined, "at_run_time")


def test_definitions_have_the_fingerprint_that_the_notebook_has(small_book, defined, tmp_path):
    script = """
    def run(config, seed):
        return {'x': helper(seed) + config['a']}

    def helper(x):
        return x * STEPS
    """
    same = book.definitions(write(tmp_path, "same", "STEPS = 100", script))
    other = book.definitions(write(tmp_path, "other", "STEPS = 100", script.replace("x * STEPS", "x + STEPS")))
    assert runs.fingerprint(same.run) == runs.fingerprint(defined.run) != runs.fingerprint(other.run)


def test_a_line_that_goes_on_with_a_percent_sign_is_no_magic(small_book):
    path = write(small_book, "day1", "def run(config, seed):\n    return {'x': (17 + seed\n        % 5)}")
    assert book.definitions(path).run({}, 7) == {"x": 19}


# Audit

RUN = """
    import torch
    SCALE = 2.0

    def run(config, seed):
        return {"x": config["a"] + SCALE * float(torch.rand(())), "note": "text"}
    """


@pytest.fixture
def recorded(small_book) -> Path:
    """A chapter with six recorded runs."""
    path = write(small_book, "day1", RUN)
    run = book.definitions(path).run
    runs.sweep(run, runs.grid(a=[1, 2]), range(3), chapter="day1", folder=small_book / "runs")
    return path


def tamper(folder: Path, change) -> None:
    path = sorted((folder / "runs" / "day1").iterdir())[0]
    runs.save(change(runs.read(path)), path)


def test_an_honest_chapter_passes_its_audit(recorded):
    lines = list(book.audit([recorded], minutes=1, seed=5))
    assert lines[0] == "audit: seed 5, 1 minutes"
    assert lines[1] == "day1.run: 6 records, 0 without their data here"
    assert len(lines) == 8 and all("x was" in line for line in lines[2:])


def test_a_tampered_record_fails_the_audit(small_book, recorded):
    tamper(small_book, lambda record: record._replace(results={"x": 1e6}))
    with pytest.raises(runs.AuditFailed):
        list(book.audit([recorded], minutes=1, seed=5))


def test_every_number_is_audited_but_the_times(small_book, recorded):
    def change(record):
        return record._replace(results=record.results | {"seconds_step": 1e6})

    for path in (small_book / "runs" / "day1").iterdir():  # whatever a machine takes, it is no fault of the record
        runs.save(change(runs.read(path)), path)
    lines = list(book.audit([recorded], minutes=1, seed=5))
    assert len(lines) == 8 and all("x was" in line for line in lines[2:])


def test_changed_code_fails_the_audit(recorded, small_book):
    write(small_book, "day1", RUN.replace("2.0", "2.5"))
    with pytest.raises(runs.AuditFailed, match="6 of 6 records of run"):
        list(book.audit([recorded], minutes=1))


def test_records_whose_data_are_not_here_are_counted_and_not_trained(recorded, monkeypatch):
    monkeypatch.setattr(data, "at_hand", lambda name: False)
    lines = list(book.audit([recorded], minutes=1, seed=5))
    assert lines[1:] == ["day1.run: 6 records, 6 without their data here"]


def test_the_audit_reads_the_records_of_preset_book(recorded, monkeypatch):
    monkeypatch.setenv("VAELAB_PRESET", "smoke")
    assert len(list(book.audit([recorded], minutes=1, seed=5))) == 8


# The command line


def test_the_command_line_executes_the_chapters_named(small_book, monkeypatch, capsys):
    for name in ("day1", "day2"):
        write(small_book, name, "1")
    executed: list = []
    monkeypatch.setattr(book, "execute", lambda *arguments: executed.append(arguments))
    book.main(["execute", "--chapter", "day2", "--preset", "smoke", "--fresh"])
    book.main(["execute"])
    assert executed == [
        (small_book / "day2.ipynb", "smoke", True),
        (small_book / "day1.ipynb", "book", False),
        (small_book / "day2.ipynb", "book", False),
    ]
    assert "executing day2.ipynb at preset smoke" in capsys.readouterr().out


def test_the_command_line_audits(recorded, capsys):
    book.main(["audit", "--minutes", "1", "--seed", "5"])
    assert capsys.readouterr().out.splitlines() == list(book.audit([recorded], 1.0, seed=5))


@pytest.mark.parametrize("arguments", [[], ["publish"], ["execute", "--preset", "fast"]])
def test_the_command_line_refuses_what_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit):
        book.main(arguments)
    assert "usage: python -m vaelab.book" in capsys.readouterr().err
