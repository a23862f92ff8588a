r"""The conditional generative adversarial network (CGAN).

A generator turns noise and a label into an image; a discriminator says how real it finds an image *of this label*::

    z ~ normal(0, I)                  # how it is drawn
    x = generator(z, y)               # what is drawn: y says which class
    sigmoid(discriminator(x, y))      # its guess that x is a real image of class y

They play against each other: the discriminator minimises its two cross-entropies, the generator the cross-entropy
of having its images taken for real ones ("non-saturating": its gradient does not fade while it loses).

Source: Goodfellow et al. 2014 (arXiv 1406.2661), section 3; Mirza and Osindero 2014 (arXiv 1411.1784), equation 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.posteriors import standard_normal
from vaelab.training import Step


class CGANTerms(NamedTuple):
    """The two losses, each a mean over the batch, in nats. A discriminator that cannot tell has 2 log 2 = 1.386."""

    loss_d: Tensor  # -E[log D(x|y)] - E[log(1 - D(G(z|y)|y))]
    loss_g: Tensor  # -E[log D(G(z|y)|y)]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the sum of the discriminator's mean cross-entropies on real and on drawn images; (N,) logits each.

    >>> discriminator_loss(torch.zeros(3), torch.zeros(3))
    tensor(1.3863)
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()  # -log sigmoid(u) = softplus(-u)


def generator_loss(fake: Tensor) -> Tensor:
    """Return the mean cross-entropy of taking drawn images for real ones, from their (N,) logits.

    >>> generator_loss(torch.zeros(3))
    tensor(0.6931)
    """
    return F.softplus(-fake).mean()


class CGAN(nn.Module):
    """A generator and a discriminator, their weights drawn from N(0, 0.02^2) and their biases zero.

    Args:
        generator: z (N, latent_dim) and y (N,) int64 -> images (N, 1, h, w); it has an attribute `latent_dim`.
        discriminator: images and y -> logits (N,).

    Source of the weights: Radford, Metz and Chintala 2016 (arXiv 1511.06434), section 4.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def noise(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a code for each of (N,) labels: (N, latent_dim), standard normal."""
        return standard_normal(labels, self.generator.latent_dim, generator)

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one image for each of (N,) labels: (N, 1, h, w).

        The network is in eval mode meanwhile: batch normalisation uses its running averages, and an image
        depends on its own code and label alone.

        Raises:
            ValueError: a label outside the generator's range.
        """
        before = self.generator.training
        self.generator.eval()
        try:
            return self.generator(self.noise(labels, generator), labels)
        finally:
            self.generator.train(before)

    @torch.no_grad()
    def sample_in_train_mode(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one image for each of (N,) labels as one batch, normalised by its own statistics: (N, 1, h, w).

        This is what happens to who forgets `eval()`: an image then depends on its neighbours in the batch. The
        running averages stay as they are.

        Raises:
            ValueError: fewer than two labels, which have no statistics, or one outside the generator's range.
        """
        if len(labels) < 2:
            raise ValueError(f"labels has {len(labels)} entries; the statistics of a batch need at least two")
        return copy.deepcopy(self.generator).train()(self.noise(labels, generator), labels)


def alternate(
    model: CGAN,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    optimiser_d: torch.optim.Optimizer,
    optimiser_g: torch.optim.Optimizer,
    told: Callable[[Tensor], Tensor] = lambda y: y,
) -> Step:
    """Return the step that moves the discriminator once and then the generator once.

    Args:
        batch: takes the step number, returns real images (N, 1, h, w) and their (N,) labels.
        optimiser_d, optimiser_g: of the discriminator's and of the generator's parameters.
        told: what the discriminator is told about (N,) labels, of real and of drawn images; default: the truth.
    """

    def step(t: int) -> CGANTerms:
        x, y = batch(t)
        seen, drawn = told(y), model.generator(model.noise(y), y)
        judged = [model.discriminator(images, seen) for images in (x, drawn.detach())]  # real and drawn apart
        loss_d = discriminator_loss(*judged)
        _follow(optimiser_d, loss_d)
        model.discriminator.requires_grad_(False)  # the generator's turn: no gradients for the other's weights
        loss_g = generator_loss(model.discriminator(drawn, seen))
        _follow(optimiser_g, loss_g)
        model.discriminator.requires_grad_(True)
        return CGANTerms(loss_d, loss_g)

    return step


def _follow(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
