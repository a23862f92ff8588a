r"""The conditional variational autoencoder (CVAE).

The story it tells about an image, line by line::

    p(z)      = normal(0, I)                   # how it is written: slant, width, size
    p(x|z,y)  = bernoulli(decoder(z, y))       # what is written: y says which class
    q(z|x,y)  = normal(encoder(x, y))          # the guess at z that training needs

and the bound that it is trained on, in nats per image::

    log p(x|y)  >=  E_q[log p(x|z,y)]  -  KL(q(z|x,y) || p(z))  =  elbo

Source: Kingma et al. 2014 (arXiv 1406.5298), equation 6 without the label's own term log p(y);
Sohn, Lee and Yan 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.divergences import gaussian_kl
from vaelab.networks import MLPDecoder, MLPEncoder, one_hot
from vaelab.posteriors import reparametrise, standard_normal


class CVAETerms(NamedTuple):
    """The terms of the bound: nats per image, averaged over the batch."""

    nll: Tensor  # E_q[-log p(x|z,y)], summed over pixels
    kl: Tensor  # KL(q(z|x,y) || p(z)), summed over latent coordinates
    elbo: Tensor  # -(nll + kl), a lower bound on log p(x|y)

    @property
    def loss(self) -> Tensor:
        """What training minimises."""
        return -self.elbo


class CVAE(nn.Module):
    """A CVAE with fully connected networks for small images.

    Args:
        size: images are (N, 1, size, size).
        num_classes, latent_dim: lengths of y and z.
        hidden: widths of the hidden layers, of the encoder and, reversed, of the decoder.
    """

    def __init__(
        self, size: int = 28, num_classes: int = 10, latent_dim: int = 10, hidden: tuple[int, ...] = (256,)
    ):
        super().__init__()
        self.num_classes, self.latent_dim = num_classes, latent_dim
        self.encoder = MLPEncoder(size, num_classes, hidden, latent_dim)
        self.decoder = MLPDecoder(size, num_classes, hidden[::-1], latent_dim)

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> CVAETerms:
        """Return the bound's terms for binary images, with one draw of z each.

        Args:
            x: (N, 1, size, size), zeros and ones; greys are no outcomes of a Bernoulli (see `binarise`).
            y: (N,) int64 labels in [0, num_classes).
            generator: source of the noise in z.
        """
        return cvae_terms(*self.infer(x, y, generator), x)

    def infer(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None):
        """Return mu, logvar (N, latent_dim) and the logits (N, 1, size, size) of the decoded draw."""
        y = one_hot(y, self.num_classes)  # (N,) -> (N, num_classes)
        mu, logvar = self.encoder(x, y)  # (N, latent_dim) each
        z = reparametrise(mu, logvar, generator)
        return mu, logvar, self.decoder(z, y)

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one image for each of (N,) labels: (N, 1, size, size), the pixel means in [0, 1]."""
        y = one_hot(labels, self.num_classes).to(next(self.decoder.parameters()).dtype)  # (N, num_classes)
        return self.decoder(standard_normal(y, self.latent_dim, generator), y).sigmoid()


def cvae_terms(mu: Tensor, logvar: Tensor, logits: Tensor, x: Tensor) -> CVAETerms:
    """Return the bound's terms from what encoder and decoder gave: mu, logvar (N, D); logits, x (N, 1, h, w)."""
    count = x.shape[0]
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / count
    kl = gaussian_kl(mu, logvar).sum() / count
    return CVAETerms(nll, kl, -(nll + kl))


def binarise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a binary image from grey ones in [0, 1], pixel by pixel, afresh at every call.

    A Bernoulli likelihood speaks of zeros and ones; drawing anew at every step also keeps a small
    training set from being seen twice in exactly the same form.
    Source: Salakhutdinov and Murray 2008; "dynamic binarisation" in later papers.
    """
    return (torch.empty_like(x).uniform_(generator=generator) < x).to(x.dtype)
