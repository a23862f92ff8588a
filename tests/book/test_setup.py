"""What is installed: loosely asked for by the package, exactly pinned for the book, the same for conda users."""

from __future__ import annotations

import re
import sys
from importlib import metadata

import pytest
import yaml

from vaelab.book import BOOK

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = BOOK.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text()))


@pytest.mark.parametrize("name", ["torch", "torchvision", "numpy"])
def test_the_package_takes_the_torch_it_finds(name):
    assert name in PROJECT["dependencies"]  # the bare name: on Colab nothing may be reinstalled


def test_the_package_accepts_the_ipywidgets_of_colab():
    assert "ipywidgets>=7.7" in PROJECT["dependencies"]


def test_the_pinned_torch_is_the_one_that_the_pinned_torchvision_was_built_for():
    assert metadata.version("torch").split("+")[0] == PINS["torch"]
    assert metadata.version("torchvision").split("+")[0] == PINS["torchvision"]
    needs = [re.sub(r"[() ]", "", need) for need in metadata.requires("torchvision")]
    assert f"torch=={PINS['torch']}" in needs


def test_every_direct_requirement_is_pinned():
    asked = PROJECT["dependencies"] + [n for extra in PROJECT["optional-dependencies"].values() for n in extra]
    names = {re.match(r"[\w.-]+", need).group().lower().replace("_", "-") for need in asked}
    assert names - {"tomli"} <= {name.lower() for name in PINS}


def test_conda_users_get_the_same():
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert next(part["pip"] for part in parts if isinstance(part, dict)) == [
        "--constraint constraints.txt",
        "--editable .[book,test]",
    ]
