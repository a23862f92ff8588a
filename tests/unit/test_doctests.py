"""The examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import vaelab

MODULES = ["vaelab", *(module.name for module in pkgutil.walk_packages(vaelab.__path__, "vaelab."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_say_what_happens(name, capsys):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed = doctest.testmod(importlib.import_module(name), optionflags=flags).failed
    assert failed == 0, capsys.readouterr().out


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(examples) >= 10
