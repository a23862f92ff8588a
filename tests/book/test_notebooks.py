"""The committed notebooks: whole, in order, of the code that stands in them, and told in words too."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from vaelab.book import BOOK, chapters, code_fingerprint

NOTEBOOKS = chapters()
REPOSITORY = yaml.safe_load((BOOK.parent / "_config.yml").read_text())["repository"]
LONGEST_CELL = 16  # lines of code that a reader has to take in at once


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]


def test_outputs_are_of_the_code_that_stands_in_the_notebook(notebook):
    made = notebook.metadata["vaelab"]
    assert made["preset"] == "book"
    assert made["fingerprint"] == code_fingerprint(notebook), "execute it again: make chapters CHAPTER=…"


def test_every_cell_was_run_once_and_in_order(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert any(cell.outputs for cell in code_cells(notebook))


def test_nothing_failed_or_complained(notebook):
    for _, output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.get("text")


def test_no_output_holds_a_path_of_the_machine_that_made_it(path):
    found = re.findall(r"(?:/home/\w+|/root|/Users/\w+|site-packages|/tmp)/[\w./-]*", path.read_text())
    assert not found


def test_every_picture_says_in_words_what_it_shows(notebook):
    for cell, output in outputs(notebook):
        if "image/png" in output.get("data", {}) and "application/vnd.jupyter.widget-view+json" not in output["data"]:
            alt = output.metadata.get("image/png", {}).get("alt", "")
            assert len(alt.split()) >= 8, f"no words for the figure of: {cell.source[:80]}"
            assert cell.metadata["mystnb"]["image"]["alt"] == alt


def test_a_cell_shows_at_most_one_picture(notebook):
    for cell in code_cells(notebook):
        assert sum("image/png" in output.get("data", {}) for output in cell.outputs) <= 1


def test_cells_are_short(notebook):
    lengths = {cell.source.splitlines()[0]: len(cell.source.splitlines()) for cell in code_cells(notebook)}
    assert {first: length for first, length in lengths.items() if length > LONGEST_CELL} == {}


def test_marks_for_comparing_outputs_stand_alone_on_their_line_where_nbval_sees_them(notebook):
    for cell in code_cells(notebook):
        lines = [line.strip() for line in cell.source.splitlines() if "NBVAL_CHECK_OUTPUT" in line]
        assert all(line == "# NBVAL_CHECK_OUTPUT" for line in lines)


def test_the_colab_badge_and_the_setup_cell_point_here(path, notebook):
    owner = REPOSITORY["url"].removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{owner}/blob/{REPOSITORY['branch']}/book/{path.name}"
    assert f"]({target})" in notebook.cells[0].source
    assert REPOSITORY["url"] in notebook.cells[1].source and "import vaelab" in notebook.cells[1].source


def test_widgets_are_saved_with_their_state(notebook):
    views = [o for _, o in outputs(notebook) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    saved = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for view in views:
        assert saved[view.data["application/vnd.jupyter.widget-view+json"]["model_id"]]["state"]["_esm"]


def test_every_notebook_is_in_the_table_of_contents():
    listed = set(re.findall(r"book/(\w+)", (BOOK.parent / "_toc.yml").read_text()))
    assert {path.stem for path in NOTEBOOKS} <= listed
