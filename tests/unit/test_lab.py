"""Where a run happens: preset, device, seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from vaelab import lab


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_preset_is_book_unless_said_otherwise(monkeypatch):
    monkeypatch.delenv("VAELAB_PRESET")
    assert lab.preset() == "book"


@pytest.mark.parametrize("name", ["smoke", "book", "paper"])
def test_the_preset_is_the_one_in_the_environment(monkeypatch, name):
    monkeypatch.setenv("VAELAB_PRESET", name)
    assert lab.preset() == name
    assert lab.start().preset == name


@pytest.mark.parametrize("value, meant", [("1", True), ("true", True), ("", False), ("0", False), ("False", False)])
def test_a_flag_is_set_unless_it_says_no(monkeypatch, value, meant):
    monkeypatch.setenv("A_FLAG", value)
    assert lab.flag("A_FLAG") is meant


def test_an_unknown_preset_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("VAELAB_PRESET", "fast")
    with pytest.raises(ValueError, match="VAELAB_PRESET is 'fast'; it must be one of smoke, book, paper"):
        lab.start()


@pytest.mark.parametrize("preset, expected", [("smoke", 1), ("book", 2), ("paper", 3)])
def test_pick_takes_the_value_of_the_preset(preset, expected):
    assert lab.Lab(preset, torch.device("cpu"), 0).pick(smoke=1, book=2, paper=3) == expected


def test_pick_takes_the_books_value_where_the_papers_is_missing_but_not_where_it_is_zero():
    paper = lab.Lab("paper", torch.device("cpu"), 0)
    assert paper.pick(smoke=1, book=2) == 2
    assert paper.pick(smoke=1, book=2, paper=0) == 0


def test_the_device_is_the_one_in_the_environment_else_one_that_is_there(monkeypatch):
    monkeypatch.setenv("VAELAB_DEVICE", "meta")
    assert lab.device() == torch.device("meta")
    monkeypatch.delenv("VAELAB_DEVICE")
    assert lab.device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_same_seed_gives_the_same_draws_from_every_generator():
    lab.seed_everything(7)
    first = draws()
    lab.start(seed=7)
    assert draws() == first
    lab.seed_everything(8)
    assert all(a != b for a, b in zip(draws(), first))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_cannot_take_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}; it must lie in \[0, 2\*\*32\)"):
        lab.seed_everything(seed)


def test_start_says_where_it_runs(capsys):
    started = lab.start(seed=3)
    said = capsys.readouterr().out
    assert started == lab.Lab("book", torch.device("cpu"), 3)
    for part in ("preset book", "CPU", f"torch {torch.__version__}", "1 threads", "seed 3"):
        assert part in said
    assert "No GPU" not in said


def test_start_warns_of_the_papers_sizes_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setenv("VAELAB_PRESET", "paper")
    lab.start()
    assert "No GPU found: preset paper will take hours here" in capsys.readouterr().out


def test_an_epoch_draws_the_same_whenever_it_is_asked():
    first = torch.rand(3, generator=lab.epoch_generator(0, epoch=1))
    assert torch.equal(first, torch.rand(3, generator=lab.epoch_generator(0, epoch=1)))
    for seed, epoch in ((0, 2), (1, 1)):
        assert not torch.equal(first, torch.rand(3, generator=lab.epoch_generator(seed, epoch)))


def test_this_process_trains_alone():
    assert lab.several_processes() is False
