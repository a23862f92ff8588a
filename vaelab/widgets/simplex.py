"""SimplexExplorer: warm and cool Gumbel-softmax draws of three classes on their triangle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import traitlets

from vaelab.posteriors import gumbel
from vaelab.widgets.base import Slider

ALT = (
    "A triangle whose corners are three classes, with a few hundred Gumbel-softmax draws as points in it. A slider "
    "sets the temperature: cold, the points lie on the corners; hot, in the centre. Others set the logits of the "
    "classes, and a switch puts every point on its nearest corner, with a line to where it was."
)
COLDEST, HOTTEST = 0.05, 20.0  # ends of the slider, which is logarithmic
STEEPEST = 4.0  # a logit's slider runs from minus this to this
FEWEST, MOST = 10, 1000  # draws
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])  # (3, 2): x to the right, y up


class Draws(NamedTuple):
    """What the slider reads out."""

    probabilities: np.ndarray  # (3,) softmax(logits), exact
    share: np.ndarray  # (3,) of the draws whose largest entry is class k: the same at every temperature
    largest: float  # mean over draws of the soft sample's largest entry, in (1/3, 1]


class SimplexExplorer(Slider):
    """Gumbel-softmax draws of a three-class code on the simplex: `vaelab.posteriors.gumbel_softmax`, moved by hand.

    A point is y = softmax((logits + g) / temperature). The Gumbel noise g is drawn once, so every point keeps its
    own and glides as temperature or logits move. Hard points are the forward value of `straight_through`.

    Args:
        logits: (3,) log-probabilities up to a constant, each in [-4, 4].
        temperature: In [0.05, 20].
        hard: Whether points are shown on their corners, tied to their soft twins.
        names: (3,) names of the classes, short: they stand at the corners.
        draws: How many points, 10 to 1000.
        seed: Of the noise; the points are those of `gumbel_softmax` on float32 logits (draws, 3) and a CPU generator
            with this seed.
        alt: A description for who cannot see the figure.

    Attributes:
        logits, temperature, hard: What the reader picked. Setting them moves the figure.

    Raises:
        ValueError: When logits or names are not three, when a number is out of range, when a name is empty.

    Source: Jang et al. 2017 (arXiv 1611.01144), figure 1; Maddison et al. 2017 (arXiv 1611.00712), figure 2.

    >>> explorer = SimplexExplorer(logits=(1, 0, 0), temperature=0.05)
    >>> explorer.samples().shape, explorer.numbers().probabilities.round(3)
    ((300, 3), array([0.576, 0.212, 0.212]))
    >>> cold, share = explorer.numbers().largest, explorer.numbers().share
    >>> explorer.temperature = 20.0
    >>> cold > 0.95, explorer.numbers().largest < 0.4, bool((explorer.numbers().share == share).all())
    (True, True, True)
    """

    logits = traitlets.List(traitlets.Float()).tag(sync=True)
    temperature = traitlets.Float(1.0).tag(sync=True)
    hard = traitlets.Bool(False).tag(sync=True)

    # What the browser needs to draw; fixed once the slider is made.
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    noise = traitlets.Bytes().tag(sync=True)  # (draws, 3) Gumbel noise, little-endian float32

    def __init__(
        self,
        logits: Sequence[float] = (1.0, 0.0, -0.5),
        temperature: float = 1.0,
        hard: bool = False,
        names: Sequence[str] = ("class 1", "class 2", "class 3"),
        draws: int = 300,
        seed: int = 0,
        alt: str = ALT,
    ) -> None:
        names = [str(name).strip() for name in names]
        if len(names) != 3 or not all(names):
            raise ValueError(f"names must hold three names, one a class, none empty, got {names}")
        if not FEWEST <= draws <= MOST:
            raise ValueError(f"draws must be in [{FEWEST}, {MOST}], got {draws}")
        g = gumbel(torch.zeros(draws, 3), torch.Generator().manual_seed(seed))  # (draws, 3)
        super().__init__(
            logits=[float(logit) for logit in logits],
            temperature=temperature,
            hard=hard,
            names=names,
            noise=g.numpy().astype("<f4").tobytes(),
            alt=alt,
        )

    def samples(self) -> np.ndarray:
        """Return the points shown, soft or hard: (draws, 3), each row sums to 1."""
        noisy = self._noisy()
        return np.eye(3)[noisy.argmax(1)] if self.hard else self._soft(noisy)

    def numbers(self) -> Draws:
        """Return what the browser reads out, for the present setting."""
        logits, noisy = np.array(self.logits), self._noisy()
        odds = np.exp(logits - logits.max())
        share = np.bincount(noisy.argmax(1), minlength=3) / len(noisy)
        return Draws(odds / odds.sum(), share, float(self._soft(noisy).max(1).mean()))

    def still(self) -> np.ndarray:
        """Return the triangle (grey) and its points (black), hard ones as discs with light lines: (164, 184)."""
        twins, t = self._soft(self._noisy()) @ CORNERS, np.linspace(0, 1, 400)[:, None, None]  # (draws, 2)
        ink, pixel = np.zeros((164, 184)), 1 / 160
        _dot(ink, CORNERS + t * (np.roll(CORNERS, 1, axis=0) - CORNERS), 0.5)  # (400, 3, 2)
        if not self.hard:
            square = np.mgrid[0:2, 0:2].reshape(2, 4).T * pixel  # (4, 2)
            _dot(ink, twins[:, None] + square, 1.0)
            return ink
        _dot(ink, twins + t * (self.samples() @ CORNERS - twins), 0.25)  # (400, draws, 2)
        square = np.mgrid[-10:11, -10:11].reshape(2, -1).T  # (441, 2)
        for corner, share in zip(CORNERS, self.numbers().share):  # the area of a disc is its number of draws
            _dot(ink, corner + pixel * square[(square**2).sum(1) <= 100 * share], 1.0)
        return ink

    def _noisy(self) -> np.ndarray:
        """Return logits + g: (draws, 3)."""
        return np.array(self.logits) + np.frombuffer(self.noise, dtype="<f4").reshape(-1, 3)

    def _soft(self, noisy: np.ndarray) -> np.ndarray:
        """Return softmax(noisy / temperature), row by row: (draws, 3)."""
        y = np.exp((noisy - noisy.max(1, keepdims=True)) / self.temperature)
        return y / y.sum(1, keepdims=True)

    @traitlets.validate("logits")
    def _check_logits(self, proposal: dict) -> list[float]:
        value = proposal["value"]
        if len(value) != 3 or not all(abs(logit) <= STEEPEST for logit in value):
            raise ValueError(f"logits must be three numbers in [-{STEEPEST:g}, {STEEPEST:g}], got {value}")
        return value

    @traitlets.validate("temperature")
    def _check_temperature(self, proposal: dict) -> float:
        if not COLDEST <= proposal["value"] <= HOTTEST:
            raise ValueError(f"temperature must be in [{COLDEST:g}, {HOTTEST:g}], got {proposal['value']}")
        return proposal["value"]


def _dot(ink: np.ndarray, points: np.ndarray, strength: float) -> None:
    """Ink the pixels nearest to points, (..., 2) in the unit triangle's coordinates, at least this strongly."""
    columns, rows = np.moveaxis(np.round([12, 152] + points * [160, -160]).astype(int), -1, 0)
    ink[rows, columns] = np.maximum(ink[rows, columns], strength)
