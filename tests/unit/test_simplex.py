"""SimplexExplorer in Python: its points against the package's draws, its numbers, its errors, its still picture."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab import posteriors
from vaelab.posteriors import gumbel_softmax, straight_through
from vaelab.widgets.simplex import CORNERS, Draws, SimplexExplorer

SETTINGS = [((1.0, 0.0, -0.5), 1.0), ((0.0, 0.0, 0.0), 0.05), ((4.0, -4.0, 0.3), 20.0), ((-0.7, 2.2, 1.9), 0.31)]


def noise_of(explorer: SimplexExplorer) -> torch.Tensor:
    """What travels to the browser: (draws, 3)."""
    return torch.from_numpy(np.frombuffer(explorer.noise, "<f4").reshape(-1, 3).copy())


@pytest.mark.parametrize("logits, temperature", SETTINGS)
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_its_points_are_the_packages_draws_on_its_noise(monkeypatch, logits, temperature, hard):
    explorer = SimplexExplorer(logits=logits, temperature=temperature, hard=hard)
    monkeypatch.setattr(posteriors, "gumbel", lambda like, generator=None: noise_of(explorer).to(like))
    expected = (straight_through if hard else gumbel_softmax)(
        torch.tensor([logits], dtype=torch.float64).expand(300, 3), temperature
    )
    np.testing.assert_allclose(explorer.samples(), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("draw, hard", [(gumbel_softmax, False), (straight_through, True)])
def test_the_same_seed_gives_the_same_points(draw, hard):
    explorer = SimplexExplorer(logits=(0.5, 0.0, -1.0), temperature=0.8, hard=hard, draws=50, seed=7)
    logits = torch.tensor([[0.5, 0.0, -1.0]]).expand(50, 3)
    expected = draw(logits, 0.8, torch.Generator().manual_seed(7))
    np.testing.assert_allclose(explorer.samples(), expected.numpy(), atol=1e-5)  # float32


def test_probabilities_are_exact_and_shares_close_to_them():
    explorer = SimplexExplorer(logits=(1.0, 0.0, -0.5), draws=1000)
    numbers = explorer.numbers()
    assert isinstance(numbers, Draws)
    expected = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64).softmax(0).numpy()
    np.testing.assert_allclose(numbers.probabilities, expected, rtol=1e-12)
    assert numbers.share.sum() == pytest.approx(1)
    error = np.sqrt(expected * (1 - expected) / 1000)
    assert (np.abs(numbers.share - expected) < 4 * error).all()


def test_the_temperature_moves_the_largest_entry_but_not_which_it_is():
    explorer = SimplexExplorer()
    share, largest = explorer.numbers().share, []
    for temperature in (0.05, 0.3, 1.0, 5.0, 20.0):
        explorer.temperature = temperature
        np.testing.assert_array_equal(explorer.numbers().share, share)
        largest.append(explorer.numbers().largest)
    assert largest == sorted(largest, reverse=True) and largest[0] > 0.97 and 1 / 3 < largest[-1] < 0.37


def test_hard_points_lie_on_the_corner_nearest_to_their_twins():
    explorer = SimplexExplorer(temperature=3.0)
    soft, largest = explorer.samples(), explorer.numbers().largest
    explorer.hard = True
    hard = explorer.samples()
    np.testing.assert_array_equal(hard, np.eye(3)[soft.argmax(1)])
    to_corners = np.linalg.norm((soft @ CORNERS)[:, None] - CORNERS, axis=-1)  # (draws, 3)
    np.testing.assert_array_equal(to_corners.argmin(1), hard.argmax(1))
    assert explorer.numbers().largest == largest  # of the soft draws, still


@pytest.mark.parametrize(
    "trait, bad",
    [
        ("logits", [0.0, 1.0]),
        ("logits", [0.0, 0.0, 4.1]),
        ("logits", [0.0, 0.0, math.nan]),
        ("temperature", 0.0),
        ("temperature", 0.049),
        ("temperature", 21.0),
        ("temperature", math.nan),
    ],
)
def test_it_names_what_is_wrong(trait, bad):
    with pytest.raises(ValueError, match=f"^{trait} must be"):
        setattr(SimplexExplorer(), trait, bad)
    with pytest.raises(ValueError, match=f"^{trait} must be"):
        SimplexExplorer(**{trait: bad})


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", " "), ("a", "b", "c", "d")])
def test_it_wants_three_names(names):
    with pytest.raises(ValueError, match="names must hold three names"):
        SimplexExplorer(names=names)


@pytest.mark.parametrize("draws", [9, 1001, -1])
def test_it_wants_some_draws_but_not_too_many(draws):
    with pytest.raises(ValueError, match=rf"draws must be in \[10, 1000\], got {draws}"):
        SimplexExplorer(draws=draws)


@pytest.mark.parametrize("draws", [10, 1000])
def test_all_its_noise_travels(draws):
    explorer = SimplexExplorer(draws=draws)
    assert len(explorer.noise) == 12 * draws and explorer.samples().shape == (draws, 3)


def test_what_the_browser_sends_can_be_read():
    explorer = SimplexExplorer()
    explorer.set_state({"logits": [1, 0, -2], "temperature": 1, "hard": True})  # a browser writes 1.0 as 1
    assert (explorer.logits, explorer.temperature, explorer.hard) == ([1.0, 0.0, -2.0], 1.0, True)


def test_the_still_picture_moves_with_temperature_and_hardness():
    explorer = SimplexExplorer(logits=(0, 0, 0))
    middle = (slice(85, 125), slice(80, 104))  # around the centre: rows 105.8 and column 92
    explorer.temperature = 20.0
    hot = explorer.still()
    assert hot.shape == (164, 184) and set(hot.ravel().tolist()) == {0.0, 0.5, 1.0}
    assert (hot[middle] == 1).sum() > 0.9 * (hot == 1).sum() > 0
    explorer.temperature = 0.05
    assert (explorer.still()[middle] == 1).sum() < 10
    explorer.temperature, explorer.hard = 1.0, True
    hard = explorer.still()
    assert set(hard.ravel().tolist()) == {0.0, 0.25, 0.5, 1.0}
    assert (hard[middle] < 1).all() and (hard[middle] == 0.25).any()


def test_a_disc_is_as_large_as_its_number_of_draws():
    explorer = SimplexExplorer(logits=(1.0, 0.0, -0.5), hard=True)
    black = explorer.still() == 1
    areas = [black[130:, :40].sum(), black[130:, 140:].sum(), black[:30].sum()]
    np.testing.assert_allclose(areas, 100 * math.pi * explorer.numbers().share, rtol=0.15)  # in pixels, so roughly


def test_viewers_without_widgets_get_words_and_a_picture():
    data, _ = SimplexExplorer(alt="Points in a triangle.")._repr_mimebundle_()
    assert data["text/plain"] == "Points in a triangle."
    assert Image.open(io.BytesIO(data["image/png"])).size == (368, 328)
    assert "</script" not in SimplexExplorer._esm.lower()
