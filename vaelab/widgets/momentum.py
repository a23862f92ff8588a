"""MomentumExplorer: what a moving average makes of Batch KLD, on a stream of batches from a drifting posterior."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import traitlets

from vaelab.divergences import moment_bias
from vaelab.widgets.base import Slider

ALT = (
    "Curves over 200 steps of training: the KL of each batch's moments as dots, the KL of their moving average as a "
    "line, the population's KL dashed; below, the mean of each batch, its moving average and the population's mean. "
    "Sliders set the momentum, the batch size, how far the mean drifts, and the share of the variance that lies "
    "between batches. The moving average is Batch KLD as written or corrected. Numbers say how large a batch it is "
    "worth, how far it lags, and how much of the gradient flows."
)
RANGES = {"momentum": (0.0, 0.99), "batch_size": (8, 256), "drift": (0.0, 2.0), "rho": (0.0, 0.95),
          "seed": (0, 2**32 - 1)}  # fmt: skip
STEPS = 200


class Stream(NamedTuple):
    """What the figure draws: (200,) each, one number a step; K is in nats per latent dimension."""

    batch_mean: np.ndarray  # of the batch's codes
    batch_kl: np.ndarray  # K of the batch's mean and unbiased variance
    mean: np.ndarray  # the moving average's
    variance: np.ndarray
    kl: np.ndarray  # K of the moving average; corrected: less the bias
    true_mean: np.ndarray  # the population's; its variance is 1
    true_kl: np.ndarray


class Numbers(NamedTuple):
    """What the slider reads out; K is in nats per latent dimension."""

    effective: float  # N (1 + m) / (1 - m): the batch of independent codes whose mean is as certain
    independent: float  # what that is worth where rho of the variance is between batches: by Kish's design effect
    bias: float  # of K, where `effective` independent codes of the prior are taken for the population
    excess: float  # -1/2 log(1 - rho): how far K of one batch lies above the population's, less the bias
    gradient: float  # share of dK/dz that flows: 1 - m as written, 1 corrected
    memory: float  # 1 / (1 - m), steps
    lag: float  # m / (1 - m), mean age of what is averaged, steps; how far behind a steady move it stays
    trail: float  # the furthest that the average is from the drifting mean, once its start is forgotten
    final: float  # K at the last step
    error: float  # root mean square of K less the population's, over the second half


def codes(batch_size: int = 64, drift: float = 1.0, rho: float = 0.0, seed: int = 1) -> np.ndarray:
    r"""Return one latent coordinate of 200 batches from a posterior whose mean drifts: (200, batch_size).

    .. math:: z_{ti} = a \cos(2 \pi t / 200) + \sqrt{\rho}\, u_t + \sqrt{1 - \rho}\, e_{ti},

    u and e standard normal, so the population's variance is 1 at each step. rho is the share of it between batches: 0
    where batches are shuffled, near 0.8 where they are taken in the order of a clip.

    Args:
        batch_size: N, 8 to 256. A larger batch holds a smaller one's draws, and more.
        drift: a, in [0, 2].
        rho: In [0, 0.95].
        seed: A whole number, 0 to 2^32 - 1. The browser draws the same numbers.

    Raises:
        ValueError: When one of these is not so.

    >>> codes(batch_size=8).shape
    (200, 8)
    """
    _check(batch_size=batch_size, drift=drift, rho=rho, seed=seed)
    draws = _normals(seed, (1 + int(batch_size)) * STEPS).reshape(-1, STEPS).T  # (200, 1 + N)
    between, within = draws[:, :1], draws[:, 1:]
    return _true_mean(drift)[:, None] + math.sqrt(rho) * between + math.sqrt(1 - rho) * within


def stream(
    momentum: float = 0.9,
    batch_size: int = 64,
    drift: float = 1.0,
    rho: float = 0.0,
    as_written: bool = True,
    seed: int = 1,
) -> Stream:
    r"""Return Batch KLD along the `codes` of a drifting posterior: K of each batch, and K of their moving average.

    K is the KL from a Gaussian with the moments that were found to the prior, (M^2 + V - 1 - log V) / 2.

    - As written, mean and unbiased variance of each batch are averaged, :math:`M_t = m M_{t-1} + (1 - m) \bar z_t`
      and V likewise, from 0 and 1, the prior's. V never sees how the batches' means differ.
    - Corrected, the raw moments :math:`\bar z_t` and :math:`\overline{z^2_t}` are averaged, and divided by
      :math:`1 - m^{t+1}`, the weight collected so far. :math:`V = (M^{(2)} - M^2) n / (n - 1)` for the n codes that
      the weights are worth, and K is less `vaelab.divergences.moment_bias` of these n; so it may be negative.

    Args:
        momentum: m, in [0, 0.99]; 0 takes each batch by itself.
        batch_size, drift, rho, seed: As in `codes`.
        as_written: Which of the two.

    Raises:
        ValueError: When a number is out of range.

    Both give the values of `vaelab.divergences.BatchKL`, batch after batch.

    Source: the series VAE-GAN, Part 7; the start is corrected as Adam's is (Kingma and Ba 2015, section 3).

    >>> track = stream(momentum=0.0, as_written=True)
    >>> bool(np.allclose(track.kl, track.batch_kl)), round(float(track.true_kl.max()), 3)
    (True, 0.5)
    """
    _check(momentum=momentum)
    z = codes(batch_size, drift, rho, seed)  # (200, N)
    mean, variance = z.mean(1), z.var(1, ddof=1)
    moving = _as_written(mean, variance, momentum) if as_written else _corrected(z, momentum)
    true_mean = _true_mean(drift)
    return Stream(mean, _kl(mean, variance), *moving, true_mean, true_mean**2 / 2)


class MomentumExplorer(Slider):
    """Batch KLD with a moving average, moved by hand: how far K is from the population's, and why.

    A longer memory is worth a larger batch, so it has less noise and less bias. It lags, too, and as written it lets
    less of the gradient through and keeps the variance of the batches for that of the data.

    Args:
        momentum: m, in [0, 0.99].
        batch_size: N, 8 to 256.
        drift: a, in [0, 2]: the population's mean swings from a to -a and back.
        rho: The share of the variance between batches, in [0, 0.95].
        as_written: Whether the moving average is Part 7's, or the corrected one.
        seed: Of the draws, 0 to 2^32 - 1.
        alt: A description for who cannot see the figure.

    Attributes:
        momentum, batch_size, drift, rho, as_written, seed: What the reader picked. Setting them moves the figure.

    Raises:
        ValueError: When a number is out of range.

    >>> numbers = MomentumExplorer(momentum=0.9, batch_size=64).numbers()
    >>> round(numbers.effective), round(numbers.gradient, 3), round(numbers.lag, 3)
    (1216, 0.1, 9.0)
    """

    momentum = traitlets.Float(0.9).tag(sync=True)
    batch_size = traitlets.Int(64).tag(sync=True)
    drift = traitlets.Float(1.0).tag(sync=True)
    rho = traitlets.Float(0.0).tag(sync=True)
    as_written = traitlets.Bool(True).tag(sync=True)
    seed = traitlets.Int(1).tag(sync=True)

    start = traitlets.Dict().tag(sync=True)  # for the browser to go back to

    def __init__(
        self,
        momentum: float = 0.9,
        batch_size: int = 64,
        drift: float = 1.0,
        rho: float = 0.0,
        as_written: bool = True,
        seed: int = 1,
        alt: str = ALT,
    ) -> None:
        setting = {"momentum": momentum, "batch_size": batch_size, "drift": drift, "rho": rho,
                   "as_written": as_written, "seed": seed}  # fmt: skip
        super().__init__(**setting, start=setting, alt=alt)

    def codes(self) -> np.ndarray:
        """Return the codes of the present setting: (200, batch_size)."""
        return codes(self.batch_size, self.drift, self.rho, self.seed)

    def stream(self) -> Stream:
        """Return what the browser draws, for the present setting."""
        return stream(self.momentum, self.batch_size, self.drift, self.rho, self.as_written, self.seed)

    def numbers(self) -> Numbers:
        """Return what the browser reads out, for the present setting."""
        m, N, track = self.momentum, self.batch_size, self.stream()
        effective = N * (1 + m) / (1 - m)
        turn = 1 - np.exp(-2j * math.pi / STEPS)  # the mean swings once in all steps
        half = slice(STEPS // 2, None)
        return Numbers(
            effective=effective,
            independent=effective / (1 + (N - 1) * self.rho),
            bias=moment_bias(effective),
            excess=-math.log1p(-self.rho) / 2,
            gradient=1 - m if self.as_written else 1.0,
            memory=1 / (1 - m),
            lag=m / (1 - m),
            trail=float(self.drift * m * abs(turn) / abs(1 - m + m * turn)),
            final=float(track.kl[-1]),
            error=float(np.sqrt(np.mean((track.kl - track.true_kl)[half] ** 2))),
        )

    def still(self) -> np.ndarray:
        """Return K over the steps, of single batches (grey), the moving average (black), the population (dark):

        (160, 320).
        """
        track, ink = self.stream(), np.zeros((160, 320))
        low, high = min(0.0, track.kl.min()), max(track.batch_kl.max(), track.kl.max(), track.true_kl.max(), 0.05)
        columns = np.linspace(0, STEPS - 1, 320)

        def row(kl: np.ndarray) -> np.ndarray:
            return np.round(155 - 150 * (kl - low) / (high - low)).astype(int)

        ink[row(track.batch_kl), np.round(np.arange(STEPS) * 319 / (STEPS - 1)).astype(int)] = 0.4
        for kl, shade in ((track.true_kl, 0.6), (track.kl, 1.0)):
            line = row(np.interp(columns, np.arange(STEPS), kl))
            upper, lower = np.minimum(line[:-1], line[1:]), np.maximum(line[:-1], line[1:])  # no gaps where it is steep
            rows = np.arange(160)[:, None]
            ink[:, :-1][(upper <= rows) & (rows <= lower)] = shade
        return ink

    @traitlets.validate(*RANGES)
    def _check_number(self, proposal: dict) -> float:
        _check(**{proposal["trait"].name: proposal["value"]})
        return proposal["value"]


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        low, high = RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high}], got {value}")
        if isinstance(low, int) and not float(value).is_integer():
            raise ValueError(f"{name} must be a whole number, got {value}")


def _true_mean(drift: float) -> np.ndarray:
    """Return the population's mean at each step, from drift to -drift and back: (200,)."""
    return drift * np.cos(2 * math.pi * np.arange(STEPS) / STEPS)


def _kl(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return KL(N(mean, variance) || N(0, 1)), nats."""
    return 0.5 * (mean**2 + variance - 1 - np.log(variance))


_bias = lru_cache(maxsize=4 * STEPS)(moment_bias)  # a stream asks for 200, and the next one for the same


def _average(x: np.ndarray, m: float, start: float) -> np.ndarray:
    """Return the exponential moving average of x from start: (200,)."""
    out, value = np.empty_like(x), start
    for t, new in enumerate(x):
        out[t] = value = m * value + (1 - m) * new
    return out


def _as_written(mean: np.ndarray, variance: np.ndarray, m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    M, V = _average(mean, m, 0.0), _average(variance, m, 1.0)
    return M, V, _kl(M, V)


def _corrected(z: np.ndarray, m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left = m ** np.arange(1, STEPS + 1)  # weight still on the start
    n = z.shape[1] * (1 + m) / (1 - m) * (1 - left) / (1 + left)  # N over the sum of the squared weights
    M, square = _average(z.mean(1), m, 0.0) / (1 - left), _average((z**2).mean(1), m, 0.0) / (1 - left)
    V = (square - M**2) * n / (n - 1)
    return M, V, _kl(M, V) - [_bias(count) for count in n.tolist()]


def _normals(seed: int, count: int) -> np.ndarray:
    """Return what kit.js's `gaussian(seed)` draws, mulberry32 then Box and Muller: (count,)."""
    state = np.uint32(seed) + np.arange(1, 2 * count + 1, dtype=np.uint32) * np.uint32(0x6D2B79F5)
    t = (state ^ (state >> np.uint32(15))) * (state | np.uint32(1))  # uint32 wraps as Math.imul does
    t ^= t + (t ^ (t >> np.uint32(7))) * (t | np.uint32(61))
    uniform = ((t ^ (t >> np.uint32(14))) + 1.0) / 2**32  # in (0, 1]
    return np.sqrt(-2 * np.log(uniform[::2])) * np.cos(2 * math.pi * uniform[1::2])
