"""Everything public says what it is, and is named by a test."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import vaelab

MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(vaelab.__path__, "vaelab.")]
TESTS = [path for path in Path(__file__).parent.parent.rglob("test_*.py") if path != Path(__file__)]


def public(module: ModuleType) -> Iterator[object]:
    """Yield the functions and classes that a module defines under a public name."""
    for name, item in vars(module).items():
        defined_here = getattr(item, "__module__", None) == module.__name__
        if defined_here and not name.startswith("_") and (inspect.isfunction(item) or inspect.isclass(item)):
            yield item


def methods(cls: type) -> Iterator[object]:
    """Yield the methods and properties that a class defines itself; `forward` is told by its class."""
    for name, item in vars(cls).items():
        function = getattr(item, "__func__", item.fget if isinstance(item, property) else item)
        if not name.startswith("_") and name != "forward" and inspect.isfunction(function):
            yield function


ITEMS = [item for module in MODULES for item in public(module)]
METHODS = [method for item in ITEMS if inspect.isclass(item) for method in methods(item)]


def identifier(item) -> str:
    return f"{item.__module__}.{item.__qualname__}"


@pytest.mark.parametrize("item", [*MODULES, *ITEMS, *METHODS], ids=lambda i: getattr(i, "__qualname__", i.__name__))
def test_everything_public_has_a_docstring(item):
    written = (item.__doc__ or "").strip()
    generated = written.startswith(f"{item.__name__}(")  # a named tuple describes itself by its fields
    assert written and not generated


def named_in(path: Path) -> set[str]:
    """Return what a test file names of vaelab: `from vaelab.data import load`, or `data.load`, not just "load"."""
    tree, modules, named = ast.parse(path.read_text(encoding="utf-8")), {}, set()

    def note(alias: str, item) -> None:
        if isinstance(item, ModuleType):
            modules[alias] = item
        elif hasattr(item, "__qualname__"):
            named.add(identifier(item))

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vaelab":
                    note(alias.asname or "vaelab", importlib.import_module(alias.name if alias.asname else "vaelab"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vaelab":
            for alias in node.names:
                if getattr(found := importlib.import_module(node.module), alias.name, None) is None:
                    importlib.import_module(f"{node.module}.{alias.name}")
                note(alias.asname or alias.name, getattr(found, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            note("", getattr(modules[node.value.id], node.attr, None))
    return named


@pytest.fixture(scope="module")
def named() -> set[str]:
    return set().union(*map(named_in, TESTS))


@pytest.mark.parametrize("item", ITEMS, ids=identifier)
def test_everything_public_is_named_by_a_test(item, named):
    assert identifier(item) in named


def test_the_package_offers_what_it_lists():
    assert all(hasattr(vaelab, name) for name in vaelab.__all__)
    assert {module.__name__ for module in MODULES} >= {"vaelab.lab", "vaelab.models.cvae", "vaelab.widgets.latent"}
