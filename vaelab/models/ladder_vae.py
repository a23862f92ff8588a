r"""A small hierarchical ("ladder") variational autoencoder: latent groups from coarse to fine.

The story it tells about an image, line by line::

    p(z_1)          = normal(m_1, s_1)                   # top group: a few numbers for the whole image
    p(z_i|z_<i)     = normal(m_i(z_<i), s_i(z_<i))       # each group refines what those above have drawn
    p(x|z)          = bernoulli(decoder(z_1, ..., z_G))
    q(z_i|z_<i, x)  = normal(m_i + dm_i, s_i * ds_i)     # the guess, told as a change of the prior

and its bound, in nats per image, with one KL for each of the G groups::

    log p(x)  >=  E_q[log p(x|z)]  -  sum_i E_q[KL(q(z_i|z_<i, x) || p(z_i|z_<i))]  =  elbo

A group may say nothing (its KL is zero) and the bound may be fine all the same: that is collapse, group by group.

Sources: Sonderby et al. 2016 (arXiv 1602.02282) for the shared top-down pass; Vahdat and Kautz 2020
(arXiv 2007.03898), section 3, for residual normal posteriors and the order of scales. Written from the papers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.divergences import gaussian_kl
from vaelab.posteriors import reparametrise


class LadderTerms(NamedTuple):
    """The terms of the bound, image by image, in nats."""

    nll: Tensor  # (N,) E_q[-log p(x|z)], one draw, summed over pixels
    kl: Tensor  # (N, G) KL of each group, summed over its channels and positions, top group first

    @property
    def elbo(self) -> Tensor:
        """(N,) lower bounds on log p(x)."""
        return -(self.nll + self.kl.sum(1))


class Group(NamedTuple):
    """One latent group in one pass."""

    z: Tensor  # (N, latent, side, side), like all that follow
    m: Tensor  # the prior's mean ...
    logvar: Tensor  # ... and log-variance, given the groups above
    dm: Tensor  # how the posterior changes the mean ...
    dlogvar: Tensor  # ... and the log-variance; both zero for a group that does not see the image

    @property
    def kl(self) -> Tensor:
        """(N, latent, side, side) KL of posterior and prior, nats."""
        return gaussian_kl(self.dm, self.logvar + self.dlogvar, 0.0, self.logvar)

    @property
    def log_ratio(self) -> Tensor:
        """(N, latent, side, side) log q(z|x) - log p(z) of this draw: its mean over draws is the KL."""
        q = _log_normal(self.z, self.m + self.dm, self.logvar + self.dlogvar)
        return q - _log_normal(self.z, self.m, self.logvar)


class LadderVAE(nn.Module):
    """A top-down hierarchical VAE for small binary images.

    Args:
        size: images are (N, 1, size, size).
        groups: how many latent groups each scale has, coarsest scale first; the side doubles from scale to scale.
        base: side of the coarsest scale.
        width, latent: channels of the features and of each latent group.

    Attributes:
        sides: (G,) side of each group's map, top group first.
        sizes: (G,) float tensor, positions of each group (side squared): what `divergences.balance_kl` divides by.

    Raises:
        ValueError: no groups, or scales that outgrow the image.
    """

    sizes: Tensor

    def __init__(
        self, size: int = 28, groups: tuple[int, ...] = (2, 4), base: int = 4, width: int = 24, latent: int = 4
    ):
        super().__init__()
        padded = max(1, base)
        while padded < size:
            padded *= 2
        finest = base * 2 ** (len(groups) - 1)
        if base < 1 or not groups or min(groups) < 1 or finest > padded // 2:
            raise ValueError(f"groups are {groups} from side {base} up; name one or more for each scale, "
                             f"and scales no finer than half of {padded} pixels")
        self.size, self.padded, self.groups, self.latent = size, padded, tuple(groups), latent
        self.sides = tuple(base * 2**s for s, count in enumerate(groups) for _ in range(count))
        self.register_buffer("sizes", torch.tensor([float(side * side) for side in self.sides]), persistent=False)
        patch = padded // finest  # pixels along the side of one position of the finest scale
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(patch * patch, width, 3, padding=1))
        self.bottom_up = nn.ModuleList(_cell(width) for _ in groups)  # finest scale first
        self.down = nn.ModuleList(_halve(width, width) for _ in groups[1:])
        self.top = nn.Parameter(torch.zeros(1, width, base, base))
        self.prior = nn.ModuleList(_zero(nn.Conv2d(width, 2 * latent, 1)) for _ in self.sides)
        self.posterior = nn.ModuleList(nn.Conv2d(2 * width, 2 * latent, 1) for _ in self.sides)
        self.read = nn.ModuleList(nn.Conv2d(latent, width, 1) for _ in self.sides)
        self.cells = nn.ModuleList(_cell(width) for _ in self.sides)
        self.up = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in groups[1:])
        self.image = nn.Sequential(nn.SiLU(), nn.Conv2d(width, patch * patch, 3, padding=1), nn.PixelShuffle(patch))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> LadderTerms:
        """Return the bound's terms for binary images (N, 1, size, size), with one draw of every group.

        Raises:
            ValueError: images of another size.
        """
        logits, groups = self.infer(x, generator)
        return LadderTerms(_nll(logits, x), torch.stack([group.kl.sum((1, 2, 3)) for group in groups], 1))

    def infer(
        self, x: Tensor, generator: torch.Generator | None = None, told: int | None = None
    ) -> tuple[Tensor, list[Group]]:
        """Draw the groups from the posterior and decode them: logits (N, 1, size, size) and the G groups.

        Args:
            told: only the first `told` groups see the image, the others are drawn from the prior; None: all see it.
        """
        features = self._features(x)
        told = len(self.sides) if told is None else told
        return self._top_down(len(x), features, told, generator, 1.0)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw images from the prior: (count, 1, size, size) pixel means; `temperature` scales every sigma."""
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be positive and finite")
        logits, _ = self._top_down(count, [], 0, generator, temperature)
        return logits.sigmoid()

    @torch.no_grad()
    def log_weights(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return (N,) log p(x, z) - log q(z|x) for one draw of z each: unbiased weights of p(x), in nats."""
        logits, groups = self.infer(x, generator)
        return -_nll(logits, x) - sum(group.log_ratio.sum((1, 2, 3)) for group in groups)

    def _features(self, x: Tensor) -> list[Tensor]:
        """What the groups may see of the images: (N, width, side, side) for each scale, coarsest first."""
        if x.shape[1:] != (1, self.size, self.size):
            raise ValueError(f"x is {tuple(x.shape)}; this model takes (N, 1, {self.size}, {self.size})")
        margin = self.padded - self.size
        x = F.pad(x, (margin // 2, margin - margin // 2) * 2)  # (N, 1, padded, padded)
        h = self.stem((2 * x - 1).contiguous(memory_format=torch.channels_last))
        features = []
        for i, cell in enumerate(self.bottom_up):
            h = cell(h if i == 0 else self.down[i - 1](h))
            features.append(h)
        return features[::-1]

    def _top_down(
        self, count: int, features: list[Tensor], told: int, generator: torch.Generator | None, temperature: float
    ) -> tuple[Tensor, list[Group]]:
        h, groups, i = self.top.expand(count, -1, -1, -1), [], 0
        for scale, many in enumerate(self.groups):
            if scale:
                h = self.up[scale - 1](F.interpolate(h, scale_factor=2))
            for _ in range(many):
                seen = features[scale] if i < told else None
                groups.append(self._group(i, h, seen, generator, temperature))
                h = self.cells[i](h + self.read[i](groups[-1].z))  # (N, width, side, side)
                i += 1
        margin = (self.padded - self.size) // 2
        logits = self.image(h)[..., margin : margin + self.size, margin : margin + self.size]
        return logits.contiguous(), groups

    def _group(
        self, i: int, h: Tensor, seen: Tensor | None, generator: torch.Generator | None, temperature: float
    ) -> Group:
        m, logvar = _moments(self.prior[i](F.silu(h)))
        if seen is None:
            z = reparametrise(m, logvar + 2 * math.log(temperature), generator)
            return Group(z, m, logvar, torch.zeros_like(m), torch.zeros_like(m))
        dm, dlogvar = _moments(self.posterior[i](torch.cat([seen, h], 1)))
        return Group(reparametrise(m + dm, logvar + dlogvar, generator), m, logvar, dm, dlogvar)


def _moments(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Split (N, 2 latent, h, w) into a mean and a log-variance, bounded smoothly: |mu| < 5, |log sigma| < 5."""
    mu, logvar = parameters.chunk(2, 1)
    return 5 * torch.tanh(mu / 5), 10 * torch.tanh(logvar / 10)


def _nll(logits: Tensor, x: Tensor) -> Tensor:
    """(N,) -log p(x|z) of images (N, 1, size, size), summed over pixels."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))


def _log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log density of N(mu, exp(logvar)) without the constant that q and p share."""
    return -0.5 * (logvar + (z - mu).pow(2) * torch.exp(-logvar))


class _Residual(nn.Module):
    """x + 0.3 f(x): many cells in a row stay close to the identity at first, so depth does no harm."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.f(x)


def _cell(width: int) -> nn.Module:
    """A residual cell, (N, width, h, w) -> the same: widen, look around channel by channel, narrow."""
    return _Residual(nn.Sequential(
        nn.SiLU(), nn.Conv2d(width, 2 * width, 1),
        nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
        nn.SiLU(), nn.Conv2d(2 * width, width, 1),
    ))  # fmt: skip


def _halve(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
