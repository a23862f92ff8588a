"""MomentExplorer: how wide batch normalisation makes the aggregate posterior, and how much KL it forces."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import traitlets

from vaelab.widgets.base import Slider

ALT = (
    "The density of one latent coordinate's aggregate posterior, a mixture of 64 Gaussians, beside the standard normal "
    "prior; below, seven of the 64. Sliders set the scales of the posterior's mean and standard deviation as BN-VAE "
    "and Su's extension normalise them, and the number of latents. Numbers say how wide the mixture is, and how many "
    "nats the KL is at least."
)
VERSIONS, CODES = ("su", "paper", "logvar"), ("gaussian", "clusters")  # the browser has their long names
RANGES = {"tau": (0.05, 0.95), "theta": (-6.0, 6.0), "gamma": (0.1, 1.5), "variance": (0.01, 1.0), "latents": (1, 64)}
COUNT = 64  # posteriors in the mixture


class Moments(NamedTuple):
    """What the normalisation decides; the moments are those of one coordinate, the nats those of all n."""

    gamma_mu: float  # standard deviation of mu over the data; its mean is 0
    gamma_sigma: float | None  # that of what is normalised second: sigma (su), log sigma^2 (logvar), nothing (paper)
    variance: float  # E[sigma^2]
    aggregate: float  # variance of the aggregate posterior: gamma_mu^2 + E[sigma^2]
    floor: float  # n gamma_mu^2 / 2, the least mean KL that the means alone leave, nats
    kl: float  # the least mean KL given E[sigma^2] too (logvar: the mean KL of Gaussian log-variances), nats
    information: float  # n/2 log(1 + gamma_mu^2 / E[sigma^2]), of a Gaussian channel, nats


def moments(
    version: str = "su",
    tau: float = 0.5,
    theta: float = 0.0,
    gamma: float = 0.6,
    variance: float = 1.0,
    n: int = 8,
) -> Moments:
    r"""Return the moments, the floors on the mean KL and the information of n batch-normalised latents.

    Batch normalisation gives mu mean 0 and standard deviation :math:`\gamma_\mu` over the data, so the mean KL is

    .. math:: \frac{n}{2} \big( \gamma_\mu^2 + E[\sigma^2] - E[\log \sigma^2] - 1 \big) \geq \frac{n}{2} \gamma_\mu^2,

    since x - log x >= 1. Where E[sigma^2] is known, Jensen puts its logarithm in place of E[log sigma^2], a sharper
    bound, reached where all sigma^2 are alike.

    - "su" normalises sigma too, the standard deviation itself, so signed: E[sigma^2] = gamma_sigma^2, with
      gamma_mu^2 = tau + (1 - tau) sigmoid(theta) and gamma_sigma^2 = (1 - tau) sigmoid(-theta). Their sum is 1. The
      sharper bound, -n/2 log gamma_sigma^2, is never below -n/2 log(1 - tau).
    - "paper" normalises mu alone, with gamma; E[sigma^2] is whatever the encoder makes it: `variance`.
    - "logvar" takes Su's scales, but normalises log sigma^2. Its mean is 0, so for Gaussian log-variances
      E[sigma^2] = exp(gamma_sigma^2 / 2), above 1: the aggregate is wider than the prior at any setting.

    Args:
        version: "su", "paper" or "logvar".
        tau: In (0, 1), the least gamma_mu^2; "su" and "logvar".
        theta: Finite; what training moves in "su" and "logvar".
        gamma: Positive, the fixed scale of mu; "paper".
        variance: Positive, E[sigma^2]; "paper".
        n: How many latents, at least 1.

    Raises:
        ValueError: When one of these is not so, whether or not the version uses it.

    Source: Zhu et al. 2020 (arXiv 2004.12585) for "paper"; Su 2020 (kexue.fm/archives/7381) for "su". The module that
    does so to an encoder's outputs is `vaelab.posteriors.BatchNormPosterior`.

    >>> su = moments("su", tau=0.5, theta=0.0, n=8)
    >>> round(su.aggregate, 9), su.floor, round(su.kl, 3), round(su.information, 3)
    (1.0, 3.0, 5.545, 5.545)
    >>> round(moments("paper", gamma=0.6, variance=1.0).aggregate, 9)
    1.36
    """
    _check(version, tau, theta, gamma, variance, n)
    # Logarithms throughout: gamma_sigma^2 itself rounds to 0 where theta is large.
    log_scale = math.log1p(-tau) - _softplus(theta)  # log gamma_sigma^2
    gamma_sigma = None if version == "paper" else math.exp(log_scale / 2)
    signal = gamma**2 if version == "paper" else tau + (1 - tau) * math.exp(-_softplus(-theta))  # E[mu^2]
    log_variance = {"su": log_scale, "paper": math.log(variance), "logvar": math.exp(log_scale) / 2}[version]
    noise = math.exp(log_variance)  # E[sigma^2]
    mean_log = 0.0 if version == "logvar" else log_variance  # E[log sigma^2]; by Jensen, no larger than this
    aggregate = signal + noise
    return Moments(
        gamma_mu=math.sqrt(signal),
        gamma_sigma=gamma_sigma,
        variance=noise,
        aggregate=aggregate,
        floor=n / 2 * signal,
        kl=n / 2 * (aggregate - mean_log - 1),
        information=n / 2 * (math.log(aggregate) - log_variance),
    )


class MomentExplorer(Slider):
    """Batch normalisation of a VAE's posterior, moved by hand: the aggregate posterior of 64 data points, the KL.

    Su's version keeps the aggregate's variance at 1, the prior's, wherever its sliders stand. Only two moments are
    matched: with two clusters of codes the shape is another one.

    Args:
        tau: In [0.05, 0.95]; the least gamma_mu^2.
        theta: In [-6, 6]; moves variance from sigma to mu.
        gamma: In [0.1, 1.5]; the scale of mu in the version "paper".
        latents: n, 1 to 64.
        version: "su", "paper" or "logvar", as in `moments`.
        variance: E[sigma^2] in the version "paper", in [0.01, 1].
        codes: How the 64 mu lie: "gaussian", at the quantiles of a Gaussian, or "clusters", in two of them.
        alt: A description for who cannot see the figure.

    Attributes:
        tau, theta, gamma, latents, version, variance, codes: What the reader picked. Setting them moves the figure.

    Raises:
        ValueError: When a number is out of range, or version or codes is none of those.

    >>> explorer = MomentExplorer(tau=0.5, theta=0.0, latents=8)
    >>> mu, sigma = explorer.posteriors()
    >>> mu.shape, round(float((mu**2 + sigma**2).mean()), 9), round(explorer.numbers().aggregate, 9)
    ((64,), 1.0, 1.0)
    """

    tau = traitlets.Float(0.5).tag(sync=True)
    theta = traitlets.Float(0.0).tag(sync=True)
    gamma = traitlets.Float(0.6).tag(sync=True)
    latents = traitlets.Int(8).tag(sync=True)
    version = traitlets.Unicode("su").tag(sync=True)
    variance = traitlets.Float(1.0).tag(sync=True)
    codes = traitlets.Unicode("gaussian").tag(sync=True)

    # What the browser needs to draw and to go back; fixed once the slider is made.
    units = traitlets.Dict().tag(sync=True)  # (64,) each, mean 0 and variance 1: the mu by `codes`, and log sigma^2
    start = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        tau: float = 0.5,
        theta: float = 0.0,
        gamma: float = 0.6,
        latents: int = 8,
        version: str = "su",
        variance: float = 1.0,
        codes: str = "gaussian",
        alt: str = ALT,
    ) -> None:
        setting = {"tau": tau, "theta": theta, "gamma": gamma, "latents": latents, "version": version,
                   "variance": variance, "codes": codes}  # fmt: skip
        super().__init__(**setting, units=_units(), start=setting, alt=alt)

    def numbers(self) -> Moments:
        """Return what the browser reads out, for the present setting."""
        return moments(self.version, self.tau, self.theta, self.gamma, self.variance, self.latents)

    def posteriors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mu and sigma of the Gaussians in the mixture: (64,) each.

        All sigma are alike but in the version "logvar", where their logarithms lie at the quantiles of a Gaussian:
        64 of these have a mean square up to 1.4% below E[sigma^2].
        """
        numbers = self.numbers()
        mu = numbers.gamma_mu * np.array(self.units[self.codes])
        if self.version == "logvar":
            return mu, np.exp(0.5 * numbers.gamma_sigma * np.array(self.units["logvar"]))
        return mu, np.full(COUNT, math.sqrt(numbers.variance))

    def density(self, z: np.ndarray) -> np.ndarray:
        """Return the aggregate posterior's density at z, mean over the data of N(mu, sigma^2): of the shape of z."""
        mu, sigma = self.posteriors()
        return _normal(np.asarray(z, dtype=float)[..., None], mu, sigma).mean(-1)

    def still(self) -> np.ndarray:
        """Return the aggregate's density (grey) with the prior's (a black line), over -5 to 5: (160, 320)."""
        z = (np.arange(320) + 0.5) / 32 - 5
        aggregate, prior = self.density(z), _normal(z, 0.0, 1.0)  # (320,)
        per_unit = 150 / max(0.5, aggregate.max())
        height = np.arange(160)[::-1, None]  # of each row above the foot
        ink = np.where(height < per_unit * aggregate, 0.4, 0.0)  # (160, 320)
        line = np.round(per_unit * prior)
        # From each column's height to the next one's, so that a steep line has no gaps.
        low, high = np.minimum(line, np.roll(line, -1)), np.maximum(line, np.roll(line, -1))
        ink[(low <= height) & (height <= high)] = 1.0
        return ink

    @traitlets.validate(*RANGES)
    def _check_number(self, proposal: dict) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        low, high = RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
        return value

    @traitlets.validate("version", "codes")
    def _check_choice(self, proposal: dict) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        _check_among(name, value, VERSIONS if name == "version" else CODES)
        return value


def _check(version: str, tau: float, theta: float, gamma: float, variance: float, n: int) -> None:
    _check_among("version", version, VERSIONS)
    if not 0 < tau < 1:
        raise ValueError(f"tau must be in (0, 1), got {tau}")
    if not math.isfinite(theta):
        raise ValueError(f"theta must be finite, got {theta}")
    for name, value in (("gamma", gamma), ("variance", variance)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and positive, got {value}")
    if n < 1 or not float(n).is_integer():
        raise ValueError(f"n must be a whole number, 1 at least, got {n}")


def _check_among(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def _softplus(x: float) -> float:
    """Return log(1 + exp(x)), which is -log sigmoid(-x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _normal(z: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the density of N(mu, sigma^2) at z; the shapes broadcast."""
    return np.exp(-0.5 * ((z - mu) / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)


def _units() -> dict[str, list[float]]:
    """Return numbers of mean 0 and variance 1, symmetric about 0 but for the log-variances: (64,) each."""
    half = _quantiles(COUNT // 2)
    # Both of a pair mu, -mu get one log-variance, so the aggregate stays symmetric; an odd stride shuffles them.
    shuffled = half[15 * np.arange(COUNT // 2) % (COUNT // 2)]
    arrays = {
        "gaussian": _quantiles(COUNT),
        "clusters": np.concatenate([0.25 * half - 1, 0.25 * half + 1]),
        "logvar": np.concatenate([shuffled, shuffled[::-1]]),
    }
    return {name: ((u - u.mean()) / u.std()).tolist() for name, u in arrays.items()}


def _quantiles(count: int) -> np.ndarray:
    """Return the standard normal's quantiles at the middles of `count` equal slices: (count,)."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
