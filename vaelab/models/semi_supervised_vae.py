r"""The semi-supervised variational autoencoder M2: labels where there are some, guesses where there are none.

The story, with y for what is drawn and z for how::

    p(y)      = categorical(1/K, ..., 1/K)
    p(z)      = normal(0, I)
    p(x|y,z)  = likelihood(decoder(z, y))
    q(y|x)    = categorical(softmax(classifier(x)))     # the guess at a missing label
    q(z|x,y)  = normal(encoder(x, y))

With a label the bound is that of a CVAE and the label's own term; without one, y is averaged over::

    log p(x,y)  >=  E_q(z|x,y)[log p(x|y,z)] - KL(q(z|x,y) || p(z)) + log p(y)        =  -L(x,y)
    log p(x)    >=  sum_y q(y|x) (-L(x,y))  +  H(q(y|x))                              =  -U(x)

The entropy H enters the bound with a plus. Together with the -log K inside L it is -KL(q(y|x) || p(y)), which is
how the terms below carry it.

Source: Kingma et al. 2014 (arXiv 1406.5298), equations 6 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vaelab.divergences import categorical_kl, gaussian_kl, relaxed_log_density
from vaelab.networks import ConditionalMLP, one_hot
from vaelab.posteriors import gumbel_log_softmax, gumbel_softmax, standard_normal

Likelihood = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[Tensor, float, "torch.Generator | None"], Tensor]


class BoundTerms(NamedTuple):
    """The terms of a bound: nats per image, averaged over the batch."""

    nll: Tensor  # E_q[-log p(x|y,z)], summed over pixels
    kl: Tensor  # E_q(y|x) KL(q(z|x,y) || p(z)), summed over latent coordinates
    kl_y: Tensor  # KL(q(y|x) || p(y)) = log K - H(q(y|x)); log K where the label is given
    elbo: Tensor  # -(nll + kl + kl_y): bounds log p(x), or log p(x,y) where the label is given


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Return -log Bernoulli(x; sigmoid(logits)), summed over the last axis: (..., P) and (..., P) -> (...), nats.

    For x in {0, 1}. Of two shapes that broadcast, neither is copied out. Half precision is summed in float32, as the
    sums over an image may overflow in float16.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits, x = logits.to(wide), x.to(wide)
    return F.softplus(logits).sum(-1) - torch.einsum("...p,...p->...", logits, x)


def squared_error(logits: Tensor, x: Tensor) -> Tensor:
    r"""Return \|x - sigmoid(logits)\|^2, summed over the last axis: (..., P) and (..., P) -> (...).

    Up to the constant (P/2) log pi it is -log Normal(x; sigmoid(logits), 1/2), so it counts in nats as well.
    """
    return (x - logits.sigmoid()).square().sum(-1)


class StyleEncoder(nn.Module):
    """Map flat images and labels to the mean and log-variance of a diagonal Gaussian, broadcasting.

    x (..., pixels) and y (..., K) -> mu (..., latent_dim), logvar (..., latent_dim)

    Args:
        sees_label: whether q(z|x,y) depends on y. If not, the result has the leading axes of x alone.
        noisy: squash logvar into (0, 1), so that sigma lies between 1 and 1.65, as the code of Day 13 does.
    """

    def __init__(
        self,
        pixels: int,
        num_classes: int,
        hidden: tuple[int, ...],
        latent_dim: int,
        sees_label: bool = True,
        noisy: bool = False,
        batch_norm: bool = False,
    ):
        super().__init__()
        self.sees_label, self.noisy = sees_label, noisy
        self.net = ConditionalMLP(pixels, num_classes * sees_label, hidden, 2 * latent_dim, batch_norm)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.net(x, y if self.sees_label else None).chunk(2, dim=-1)
        return mu, logvar.sigmoid() if self.noisy else logvar


class SemiSupervisedVAE(nn.Module):
    """M2 over any three networks.

    Args:
        classifier: images (N, 1, h, w) -> logits (N, K) of q(y|x).
        encoder: x (..., pixels), y (..., K) -> mu, logvar (..., latent_dim), broadcasting; see `StyleEncoder`.
        decoder: z (..., latent_dim), y (..., K) -> logits (..., pixels), broadcasting; see `networks.ConditionalMLP`.
        num_classes, latent_dim: lengths K and D of y and z.
        likelihood: (logits, x) -> -log p(x|y,z); `bernoulli_nll` for binary images, `squared_error` for grey ones.
    """

    def __init__(
        self,
        classifier: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        num_classes: int = 10,
        latent_dim: int = 50,
        likelihood: Likelihood = bernoulli_nll,
    ):
        super().__init__()
        self.classifier, self.encoder, self.decoder = classifier, encoder, decoder
        self.num_classes, self.latent_dim, self.likelihood = num_classes, latent_dim, likelihood

    def labelled(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> BoundTerms:
        """Return the terms of -L(x,y) for images (N, 1, h, w) and labels (N,) int64 in [0, K).

        Raises:
            ValueError: a label outside the range.
        """
        y = one_hot(y, self.num_classes).to(x.dtype)  # (N, K)
        nll, kl = self.costs(x.flatten(1), y, self._noise(x, generator))  # (N,) each
        return _terms(nll, kl, torch.full_like(kl, math.log(self.num_classes)))

    def unlabelled(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        classes_at_once: int | None = None,
        view: Tensor | None = None,
    ) -> BoundTerms:
        """Return the terms of -U(x) for images (N, 1, h, w), the expectation over y worked out exactly.

        All classes go through the networks in one call. They share the noise of z, which leaves every
        expectation as it is and takes noise out of the differences between classes, from which q(y|x) learns.

        Args:
            classes_at_once: how many classes at a time; their activations are dropped and worked out again in the
                backward pass, so that memory does not grow with K. None: all. (With batch norm in the decoder the
                statistics are then those of each part, and the running ones are updated in both passes.)
            view: (N, 1, h, w) what the classifier looks at in place of x, a distorted copy for instance. The bound
                holds for any q(y|.), however it comes by its guess.

        Raises:
            ValueError: `classes_at_once` < 1.
        """
        logits = self.classifier(x if view is None else view)  # (N, K)
        nll, kl = self._costs_of_all(x.flatten(1)[:, None], self._noise(x, generator)[:, None], classes_at_once)
        q = logits.softmax(1)  # (N, K)
        return _terms((q * nll).sum(1), (q * kl).sum(1), categorical_kl(logits))

    def unlabelled_loop(self, x: Tensor, generator: torch.Generator | None = None) -> BoundTerms:
        """Return what `unlabelled` returns, class by class, as the pseudocode of Day 13 has it; for comparison.

        It encodes the images and draws z anew for each class. With batch norm in the decoder it computes something
        else: a batch in which all labels are equal, so that the label is subtracted with the batch's mean.
        """
        logits = self.classifier(x)  # (N, K)
        q, rows = logits.softmax(1), torch.eye(self.num_classes, dtype=x.dtype, device=x.device)
        nll = kl = 0
        for k, y in enumerate(rows):  # y (K,)
            nll_k, kl_k = self.costs(x.flatten(1), y.expand(len(x), -1), self._noise(x, generator))  # (N,) each
            nll, kl = nll + q[:, k] * nll_k, kl + q[:, k] * kl_k
        return _terms(nll, kl, categorical_kl(logits))

    def unlabelled_sampled(
        self, x: Tensor, temperature: float, draw: Draw = gumbel_softmax, generator: torch.Generator | None = None
    ) -> BoundTerms:
        """Return an estimate of -U(x) from one draw of y for each image, with the exact categorical KL.

        With `posteriors.straight_through` as the draw the value is an unbiased estimate of the bound and the gradient
        is biased. With `posteriors.gumbel_softmax` the decoder sees a mixture of classes, and the value bounds nothing.

        Source: Jang et al. 2017 (arXiv 1611.01144), section 4.3 and the note on the KL in appendix B.
        """
        logits = self.classifier(x)  # (N, K)
        y = draw(logits, temperature, generator)  # (N, K)
        nll, kl = self.costs(x.flatten(1), y, self._noise(x, generator))  # (N,) each
        return _terms(nll, kl, categorical_kl(logits))

    def unlabelled_relaxed(
        self, x: Tensor, temperature: float, prior_temperature: float, generator: torch.Generator | None = None
    ) -> BoundTerms:
        """Return an estimate of a bound on the relaxed model, in which y is a point of the simplex.

        Its `kl_y` is the log-ratio of two Concrete densities at the point drawn: unlike the categorical KL it has no
        upper end at log K, may be negative for a single draw, and belongs to a true bound, though on another model.

        Source: Maddison et al. 2017 (arXiv 1611.00712), section 3.3.
        """
        logits = self.classifier(x)  # (N, K)
        log_y = gumbel_log_softmax(logits, temperature, generator)  # (N, K)
        y = log_y.exp().to(logits.dtype)  # (N, K)
        nll, kl = self.costs(x.flatten(1), y, self._noise(x, generator))  # (N,) each
        prior = relaxed_log_density(log_y, torch.zeros_like(logits), prior_temperature)  # (N,)
        return _terms(nll, kl, relaxed_log_density(log_y, logits, temperature) - prior)

    def costs(self, x: Tensor, y: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        """Return nll and kl (...) for flat images x (..., pixels), codes y (..., K) and noise (..., latent_dim).

        Leading axes broadcast: what does not depend on y is worked out once.
        """
        mu, logvar = self.encoder(x, y)  # (..., D) each
        z = mu + torch.exp(0.5 * logvar) * epsilon
        nll = self.likelihood(self.decoder(z, y), x)  # (..., pixels) -> (...)
        return nll, gaussian_kl(mu, logvar).sum(-1).expand_as(nll)

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one flat image for each of (N,) labels: (N, pixels), the pixel means in [0, 1].

        In the mode that the model is in: call `eval()` first, where there is batch norm.
        """
        y = one_hot(labels, self.num_classes).to(next(self.decoder.parameters()).dtype)  # (N, K)
        return self.decoder(self._noise(y, generator), y).sigmoid()

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (N, D) standard normal draws."""
        return standard_normal(x, self.latent_dim, generator)

    def _costs_of_all(self, x: Tensor, epsilon: Tensor, classes_at_once: int | None) -> tuple[Tensor, Tensor]:
        """Return (N, K) nll and kl of x (N, 1, pixels) under every class."""
        classes = torch.eye(self.num_classes, dtype=x.dtype, device=x.device)
        if classes_at_once is None:
            return self.costs(x, classes, epsilon)
        if classes_at_once < 1:
            raise ValueError(f"classes_at_once is {classes_at_once}; it must be at least 1, or None for all")
        parts = classes.split(classes_at_once)
        costs = [checkpoint(self.costs, x, part, epsilon, use_reentrant=False) for part in parts]
        nll, kl = (torch.cat(each, dim=1) for each in zip(*costs))  # (N, K) each
        return nll, kl


def _terms(nll: Tensor, kl: Tensor, kl_y: Tensor) -> BoundTerms:
    """Average (N,) terms over the batch."""
    nll, kl, kl_y = nll.mean(), kl.mean(), kl_y.mean()
    return BoundTerms(nll, kl, kl_y, -(nll + kl + kl_y))
