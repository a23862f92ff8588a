r"""A variational autoencoder put together from three parts, for whatever data its parts understand.

The story, and the bound in nats per example::

    p(z)   = normal(0, I)
    p(x|z) = decoder(z)                        # here: strong enough to do without z
    q(z|x) = posterior(*encoder(x))            # what the encoder says, normalised or not

    log p(x)  >=  E_q[log p(x|z)]  -  KL(q(z|x) || p(z))  =  elbo

What is exchanged between runs is mostly the posterior: the module between encoder and bound.

Source: Kingma and Welling 2014; with a strong decoder, Bowman et al. 2016 (arXiv 1511.06349).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelab.divergences import gaussian_kl
from vaelab.posteriors import Gaussian, GaussianPosterior, reparametrise


class Bound(NamedTuple):
    """The bound's terms for every example, in nats."""

    nll: Tensor  # (N,) -log p(x|z) for one draw of z, summed over words or pixels
    kl: Tensor  # (N, n) KL(q(z|x) || p(z)) of every latent coordinate

    @property
    def elbo(self) -> Tensor:
        """(N,) lower bounds on log p(x), each from one draw."""
        return -(self.nll + self.kl.sum(1))


class VAE(nn.Module):
    """A VAE of an encoder, a posterior and a decoder.

    Args:
        encoder: `encoder(x) -> (mu, spread)`, (N, n) each.
        posterior: `posterior(mu, spread) -> Gaussian`; None takes both as they are, the spread as log-variance.
        decoder: `decoder(x, z) -> (N,)`, the cost -log p(x|z) of every example, in nats.
    """

    def __init__(self, encoder: nn.Module, posterior: nn.Module | None, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.posterior = GaussianPosterior() if posterior is None else posterior

    def encode(self, x: Any) -> Gaussian:
        """Return q(z|x): mu and logvar, (N, n) each."""
        return self.posterior(*self.encoder(x))

    def forward(self, x: Any, generator: torch.Generator | None = None) -> Bound:
        """Return the bound's terms of N examples, with one draw of z each; `generator` is the noise's source."""
        mu, logvar = self.encode(x)
        return Bound(self.decoder(x, reparametrise(mu, logvar, generator)), gaussian_kl(mu, logvar))

    @torch.no_grad()
    def log_weights(self, x: Any, draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Return (draws, N) log p(x, z_k) - log q(z_k|x), for `metrics.importance_weighted_bound`.

        In evaluation mode, or the batch decides what an example weighs.

        Raises:
            ValueError: no draws.
        """
        if draws < 1:
            raise ValueError(f"draws is {draws}; it must be at least 1")
        mu, logvar = self.encode(x)
        weights = []
        for _ in range(draws):
            z = reparametrise(mu, logvar, generator)
            log_ratio = log_normal(z, mu, logvar) - log_normal(z, torch.zeros_like(mu), torch.zeros_like(mu))
            weights.append(-self.decoder(x, z) - log_ratio.sum(1))
        return torch.stack(weights)


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the log density of N(mu, exp(logvar)) at z for every coordinate, in nats; all of one shape.

    >>> log_normal(torch.zeros(1), torch.zeros(1), torch.zeros(1))  # -log(2 pi) / 2
    tensor([-0.9189])
    """
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).pow(2) * torch.exp(-logvar))
