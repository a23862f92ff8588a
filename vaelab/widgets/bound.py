"""BoundExplorer: move q under the evidence and watch the bound, its gap and its two halves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import traitlets

from vaelab.widgets.base import Slider

ALT = (
    "Three curves over a latent coordinate z: the prior, the exact posterior of one observation x, and q, which two "
    "sliders move and widen. Below, two bars end at the evidence lower bound: one from log p(x), as long as the gap, "
    "and one from the reconstruction term, as long as the KL to the prior."
)
DECODERS = {"f(z) = z": (1.0, 0.0), "f(z) = z + z²/2": (1.0, 0.5), "f(z) = 0": (0.0, 0.0)}
EDGE, POINTS = 9.0, 1801  # quadrature over z, and over (z - mu) / sigma: the browser uses the same


class Bound(NamedTuple):
    """What the slider reads out, in nats; elbo = log_px - gap = reconstruction - kl."""

    log_px: float
    elbo: float
    gap: float  # KL( q || p(z | x) )
    reconstruction: float  # E_q log p(x | z)
    kl: float  # KL( q || p(z) )


class BoundExplorer(Slider):
    """The evidence lower bound of one observation, on a model small enough to know everything about it.

    The model: z ~ N(0, 1), x | z ~ N(f(z), s²), f(z) = w z + b z²; and q = N(mu, sigma²).
    log p(x) and the gap come from quadrature, the rest is closed; a button jumps to the best q.

    Args:
        x, s: The observation and the standard deviation of its noise.
        mu, log_sigma: Mean and log standard deviation of q.
        decoders: Pairs (w, b) by the name that the reader picks them by; the first is the one shown.
        alt: A description for who cannot see the figure.

    Attributes:
        x, s, mu, log_sigma, decoder: What the reader picked; decoder is a name. Setting them moves the figure.

    Raises:
        ValueError: When decoders is empty, when decoder is none of them, when s is not positive,
            when a number is not finite.

    >>> explorer = BoundExplorer(x=1.5, s=1.0, mu=0.75, log_sigma=-0.5 * math.log(2))  # q is the posterior
    >>> f"{explorer.numbers().log_px:.4f}  {explorer.numbers().gap:.4f}"
    '-1.8280  0.0000'
    """

    x = traitlets.Float(1.5).tag(sync=True)
    s = traitlets.Float(1.0).tag(sync=True)
    mu = traitlets.Float(0.0).tag(sync=True)
    log_sigma = traitlets.Float(0.0).tag(sync=True)
    decoder = traitlets.Unicode().tag(sync=True)
    decoders = traitlets.Dict().tag(sync=True)  # name -> [w, b]; fixed once the slider is made

    def __init__(
        self,
        x: float = 1.5,
        s: float = 1.0,
        mu: float = 0.0,
        log_sigma: float = 0.0,
        decoders: Mapping[str, tuple[float, float]] = DECODERS,
        alt: str = ALT,
    ) -> None:
        if not decoders:
            raise ValueError("decoders must hold at least one pair (w, b), got none")
        pairs = {name: [float(w), float(b)] for name, (w, b) in decoders.items()}
        super().__init__(
            decoders=pairs, decoder=next(iter(pairs)), x=x, s=s, mu=mu, log_sigma=log_sigma, alt=alt
        )

    def numbers(self) -> Bound:
        """Return what the browser reads out, for the present setting."""
        sigma = math.exp(self.log_sigma)
        log_px = self._log_px()
        t = np.linspace(-EDGE, EDGE, POINTS)
        log_q = -0.5 * t**2 - 0.5 * math.log(2 * math.pi) - self.log_sigma  # (POINTS,)
        log_posterior = self._log_joint(self.mu + sigma * t) - log_px
        gap = max(0.0, float((np.exp(log_q) * (log_q - log_posterior)).sum() * sigma * (t[1] - t[0])))
        (w, b), v = self.decoders[self.decoder], sigma**2
        mean, variance = w * self.mu + b * (self.mu**2 + v), (w + 2 * b * self.mu) ** 2 * v + 2 * b**2 * v**2
        error = (self.x - mean) ** 2 + variance  # E_q (x - f(z))²
        reconstruction = -0.5 * math.log(2 * math.pi * self.s**2) - error / (2 * self.s**2)
        kl = 0.5 * (math.expm1(2 * self.log_sigma) - 2 * self.log_sigma + self.mu**2)
        return Bound(log_px, reconstruction - kl, gap, reconstruction, kl)

    def still(self) -> np.ndarray:
        """Return prior (light), q (grey) and posterior (black) over z in [-4, 4]: (120, 320)."""
        z = np.linspace(-4, 4, 320)
        posterior = np.exp(self._log_joint(z) - self._log_px())
        sigma = math.exp(self.log_sigma)
        q = np.exp(-0.5 * ((z - self.mu) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        prior = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        top, rows = 1.25 * max(posterior.max(), prior.max()), np.arange(120)[::-1, None]
        ink = np.where(rows < 119 * q / top, 0.3, 0.0)  # (120, 320)
        for density, strength in ((prior, 0.5), (posterior, 1.0)):
            height = 119 * density / top  # (320,)
            low, high = np.minimum(height, np.roll(height, 1)), np.maximum(height, np.roll(height, 1))
            ink = np.maximum(ink, strength * ((rows >= low - 1) & (rows <= high + 1)))
        return ink

    def _log_joint(self, z: np.ndarray) -> np.ndarray:
        """Return log p(x, z): (points,) -> (points,)."""
        w, b = self.decoders[self.decoder]
        error = (self.x - w * z - b * z**2) / self.s
        return -0.5 * (error**2 + z**2) - math.log(2 * math.pi * self.s)

    def _log_px(self) -> float:
        z = np.linspace(-EDGE, EDGE, POINTS)
        return float(np.logaddexp.reduce(self._log_joint(z)) + math.log(z[1] - z[0]))

    @traitlets.validate("x", "mu", "log_sigma", "s")
    def _check_number(self, proposal: dict) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        if not math.isfinite(value) or (name == "s" and value <= 0):
            raise ValueError(f"{name} must be finite{' and positive' * (name == 's')}, got {value}")
        return value

    @traitlets.validate("decoder")
    def _check_decoder(self, proposal: dict) -> str:
        if self.decoders and proposal["value"] not in self.decoders:
            raise ValueError(f"decoder must be one of {list(self.decoders)}, got {proposal['value']!r}")
        return proposal["value"]
