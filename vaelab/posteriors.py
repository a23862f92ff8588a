"""How a code is drawn from the posterior that the encoder describes."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaelab.divergences import at_least_single
from vaelab.lab import several_processes, sum_over_processes


def reparametrise(mu: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw z = mu + sigma epsilon with epsilon from N(0, I), so that gradients reach mu and logvar.

    Args:
        mu, logvar: any one shape; logvar is the log of the variance, natural logarithm.
        generator: source of the noise, on whatever device, so that one on the CPU draws alike on every
            machine; None takes torch's default one.

    Returns:
        A sample of that shape.

    Source: Kingma and Welling 2014, section 2.4.
    """
    place = generator.device if generator else mu.device
    epsilon = torch.empty_like(mu, device=place).normal_(generator=generator).to(mu.device)
    return mu + torch.exp(0.5 * logvar) * epsilon


def standard_normal(like: Tensor, length: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a row of standard normal numbers for each row of `like`: (N, ...) -> (N, length).

    Args:
        like: decides the number of rows, the device and, if it is floating point, the type; else that is float32.
        length: how many numbers a row has.
        generator: source of the noise, on whatever device, as in `reparametrise`.

    >>> standard_normal(torch.tensor([3, 1]), 5).shape
    torch.Size([2, 5])
    """
    place = generator.device if generator else like.device
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.randn(len(like), length, generator=generator, dtype=dtype, device=place).to(like.device)


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise, -log(-log U), with the shape, type and device of `like`.

    Every draw is finite. Half precision is drawn in float32 and then rounded: among its own few uniform
    numbers are 0 and 1, whose noise is infinite.

    Args:
        like: floating point, any shape.
        generator: source of the noise, on whatever device, as in `reparametrise`.

    Source: Gumbel 1954; for codes, Jang et al. 2017 (arXiv 1611.01144), section 2.1.

    >>> gumbel(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """
    place = generator.device if generator else like.device
    wide = torch.promote_types(like.dtype, torch.float32)
    # Not exponential_, which has generators of its own on some processors: draws alike on every machine.
    u = torch.empty_like(like, dtype=wide, device=place).uniform_(generator=generator)
    u = u.clamp(torch.finfo(wide).tiny, 1 - torch.finfo(wide).eps / 2)
    return -torch.log(-torch.log(u)).to(like)


def gumbel_log_softmax(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw the logarithm of a Gumbel-softmax sample, which stays finite where the sample itself rounds to 0.

    .. math:: \log y_k = (\ell_k + g_k) / \tau - \log \sum_j \exp\big( (\ell_j + g_j) / \tau \big)

    This is what `divergences.relaxed_log_density` takes; exp of it is the draw of `gumbel_softmax` from the
    same generator. Arguments and errors are those of `gumbel_softmax`.

    Returns:
        (..., K) log of a point of the simplex; float32 for logits in half precision, which would overflow.

    Source: Maddison et al. 2017 (arXiv 1611.00712), appendix: an ExpConcrete variable.
    """
    return _relaxed(_perturbed(logits, generator), temperature)


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw a point of the simplex, softmax((logits + Gumbel noise) / temperature): gradients reach the logits.

    Its largest entry is that of an exact draw from Categorical(softmax(logits)), at any temperature. Near
    temperature 0 the point is the one-hot of that class, near infinity it is (1/K, ..., 1/K).

    `straight_through` has the same signature: a model takes either as an argument.

    Args:
        logits: (..., K) log-probabilities, up to a constant for each row. Not probabilities.
        temperature: positive and finite.
        generator: source of the noise, on whatever device, as in `reparametrise`.

    Returns:
        (..., K) non-negative, each row sums to 1; of the type of the logits, computed in float32 at least.

    Raises:
        ValueError: the temperature is not positive and finite; the logits are not floating point or have no axis.

    Source: Jang et al. 2017 (arXiv 1611.01144), equation 2; Maddison et al. 2017 (arXiv 1611.00712), definition 1.

    >>> gumbel_softmax(torch.tensor([[-100.0, 100.0]]), temperature=0.5)
    tensor([[0., 1.]])
    """
    return gumbel_log_softmax(logits, temperature, generator).exp().to(logits.dtype)


def straight_through(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw a one-hot from Categorical(softmax(logits)), with the gradient of `gumbel_softmax` on the same noise.

    The draw is exact at any temperature, which only shapes the gradient; that gradient is biased. Arguments
    and errors are those of `gumbel_softmax`.

    Returns:
        (..., K) exactly one-hot, of the type of the logits.

    Source: Jang et al. 2017 (arXiv 1611.01144), section 2.2.

    >>> straight_through(torch.zeros(2, 5), temperature=1.0).sum(-1)
    tensor([1., 1.])
    """
    noisy = _perturbed(logits, generator)
    soft = _relaxed(noisy, temperature).exp().to(logits.dtype)
    # The largest of the noisy logits: in the soft sample, at a high temperature, several may round to one number.
    # x - x is exactly 0, so the value is exactly one-hot.
    return hard_code(noisy).to(logits.dtype) + (soft - soft.detach())


def hard_code(logits: Tensor) -> Tensor:
    """Return the one-hot of the most likely class, (..., K) -> (..., K), without noise or gradient: for evaluation.

    The first of several equals wins.

    >>> hard_code(torch.tensor([0.1, 2.0, -1.0]))
    tensor([0., 1., 0.])
    """
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1)


def _perturbed(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return logits plus Gumbel noise, in float32 at least."""
    if not logits.is_floating_point() or logits.ndim == 0:
        shape, dtype = tuple(logits.shape), logits.dtype
        raise ValueError(f"logits have shape {shape} and type {dtype}; they must be (..., K), floating point")
    logits = at_least_single(logits)
    return logits + gumbel(logits, generator)


def _relaxed(noisy: Tensor, temperature: float) -> Tensor:
    """Return log softmax(noisy / temperature) over the last axis."""
    least = torch.finfo(torch.float32).tiny  # what lies below is 0 to float32: an annealing that went on too long
    if not least <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive and finite, {least:.2g} at least")
    # The largest is moved to 0 first, so that no quotient overflows upwards, whatever the temperature.
    return ((noisy - noisy.detach().amax(-1, keepdim=True)) / temperature).log_softmax(-1)


# Gaussian posteriors, as modules: from what an encoder says to a distribution


class Gaussian(NamedTuple):
    """A diagonal Gaussian for every example."""

    mu: Tensor  # (..., n)
    logvar: Tensor  # (..., n), natural log of the variance


class GaussianPosterior(nn.Module):
    """The usual posterior: the encoder's two outputs are the mean and the log-variance, as they are."""

    def forward(self, mu: Tensor, spread: Tensor) -> Gaussian:
        """Return both, (..., n) each, unchanged."""
        return Gaussian(mu, spread)


class FloorEscaped(UserWarning):
    """A batch-normalised posterior whose input hardly varies: its floor under the KL no longer holds."""


class BatchNormPosterior(nn.Module):
    r"""A posterior whose KL to N(0, I), averaged over a batch, cannot vanish: batch normalisation holds it up.

    Two versions, one of which must be chosen. With :math:`\hat x` the encoder's output, standardised over the batch:

    `gamma=0.6`, the paper's: the mean is :math:`\hat\mu = \gamma \hat x + \beta` with gamma fixed and beta learned; the
    second output of the encoder is the log-variance, untouched. Then, in nats, summed over the n coordinates,

    .. math:: \mathbb{E}[\mathrm{KL}] \ge \tfrac12 \sum_j (\gamma^2 + \beta_j^2),

    with equality where every variance is 1.

    `tau=0.5`, Su's: mean and standard deviation are both standardised, without beta, and scaled by

    .. math:: \gamma_\mu^2 = \tau + (1 - \tau) s(\theta), \qquad \gamma_\sigma^2 = (1 - \tau) s(-\theta), \qquad
              \gamma_\mu^2 + \gamma_\sigma^2 = 1,

    where s is the logistic function and theta (n,) is learned, one vector for both. So the aggregate posterior has the
    prior's first two moments. By Jensen's inequality the floor is :math:`-\tfrac12 \sum_j \log \gamma_{\sigma,j}^2`,
    at least :math:`-\tfrac n2 \log (1 - \tau)`, both but for some n `variance_floor`. The standard deviation is
    centred and therefore signed: its square counts, and `variance_floor` is added to it, because it passes through
    zero.

    Args:
        latent_dim: n. gamma: positive. tau: in (0, 1).
        eps: added to the batch's variance v. It is the hole in the floor: what holds is the floor times
            v / (v + eps), and Adam will shrink v to get there (see `ratio`). Keep it tiny.
        momentum: weight of a batch in the running statistics, which replace the batch's in evaluation mode.
        variance_floor: Su's version alone, see above.

    Batch statistics are taken over all processes, when `torch.distributed` runs. Computed in float32 at least, also
    under autocast.

    Raises:
        ValueError: neither or both of gamma and tau, or one of the numbers out of its range.

    Source: Zhu et al. 2020 (arXiv 2004.12585), equations 5 to 8, algorithm 1; Su 2020 (kexue.fm/archives/7381).

    >>> posterior = BatchNormPosterior(8, gamma=0.5)
    >>> round(posterior.floor().item(), 6)  # n gamma^2 / 2
    1.0
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        gamma: float | None = None,
        tau: float | None = None,
        eps: float = 1e-8,
        momentum: float = 0.1,
        variance_floor: float = 1e-4,
    ):
        super().__init__()
        _check_batch_norm(latent_dim, gamma, tau, eps, momentum, variance_floor)
        self.latent_dim, self.tau, self.variance_floor = latent_dim, tau, variance_floor
        # Su's mean and standard deviation go through it side by side: one pass is half the price of two.
        self.standard = _Standardise(latent_dim if tau is None else 2 * latent_dim, eps, momentum)
        if tau is None:
            self.register_buffer("gamma", torch.full((latent_dim,), float(gamma)))
            self.beta = nn.Parameter(torch.zeros(latent_dim))
        else:
            self.theta = nn.Parameter(torch.zeros(latent_dim))
        self._calls, self._warned = 0, False

    @property
    def gamma_mu(self) -> Tensor:
        """(n,) scale of the standardised mean."""
        return self.gamma if self.tau is None else (self.tau + (1 - self.tau) * self.theta.sigmoid()).sqrt()

    @property
    def gamma_sigma(self) -> Tensor:
        """(n,) scale of the standardised standard deviation, in Su's version.

        Raises:
            AttributeError: the paper's version has none.
        """
        if self.tau is None:
            raise AttributeError("gamma_sigma")  # torch puts its own words in place of any that stand here
        return ((1 - self.tau) * (-self.theta).sigmoid()).sqrt()

    @property
    def ratio(self) -> Tensor:
        """(n,) v / (v + eps) of the last training batch, the smaller of mean and standard deviation: 1 is sound.

        Before the first batch v counts as 1.
        """
        return torch.stack(self.standard.ratio.split(self.latent_dim)).amin(0)

    def floor(self, observed: bool = False) -> Tensor:
        """Return the least mean KL over a batch, in nats, summed over latents: a scalar, with its gradient.

        Args:
            observed: with the shares v / (v + eps) of the last training batch, below which its KL cannot lie
                (but for rounding); else the floor that the module is built for.
        """
        ratio_mu, *ratio_sigma = self.standard.ratio.split(self.latent_dim) if observed else (1.0, 1.0)
        if self.tau is None:
            return 0.5 * (self.gamma_mu**2 * ratio_mu + self.beta**2).sum()
        variance = self.gamma_sigma**2 * ratio_sigma[0] + self.variance_floor  # (n,) mean of sigma^2 over the batch
        return 0.5 * (self.gamma_mu**2 * ratio_mu + variance - 1 - variance.log()).sum()

    def forward(self, mu: Tensor, spread: Tensor, mask: Tensor | None = None) -> Gaussian:
        """Return the posterior of what the encoder gave.

        Args:
            mu: (N, n), or (N, T, n) for codes in time, whose steps then count as examples.
            spread: the same shape; the log-variance in the paper's version, the standard deviation in Su's.
            mask: (N,) or (N, T), True where there is an example and no padding: the others are normalised, but
                do not count. None: all count.

        Raises:
            ValueError: shapes that do not fit; fewer than two examples to train on.
        """
        self._check(mu, spread, mask)
        with torch.autocast(mu.device.type, enabled=False):
            posterior = self._normalised(mu, spread, mask)
        if self.training:
            self._watch()
        return posterior

    def _normalised(self, mu: Tensor, spread: Tensor, mask: Tensor | None) -> Gaussian:
        if self.tau is None:
            mu = self.standard(mu, mask) * self.gamma_mu + self.beta
            return Gaussian(mu, spread.to(mu.dtype))
        mu, sigma = self.standard(torch.cat([mu, spread], -1), mask).chunk(2, -1)  # (..., n) each
        variance = (sigma * self.gamma_sigma) ** 2 + self.variance_floor
        return Gaussian(mu * self.gamma_mu, variance.log())

    @torch.no_grad()
    def calibrate(self, mu: Tensor, spread: Tensor, mask: Tensor | None = None) -> None:
        """Set the running statistics to those of a whole training set, given the encoder's outputs for all of it.

        Those gathered while training are of a network that has moved on since. Do this before reporting.

        Raises:
            ValueError: as for `forward`.
        """
        self._check(mu, spread, mask)
        self.standard.calibrate(mu if self.tau is None else torch.cat([mu, spread], -1), mask)

    def extra_repr(self) -> str:
        """Say which version it is."""
        version = f"gamma={self.gamma[0]:.3g}" if self.tau is None else f"tau={self.tau}"
        return f"{self.latent_dim}, {version}, eps={self.standard.eps}"

    def _check(self, mu: Tensor, spread: Tensor, mask: Tensor | None) -> None:
        if mu.ndim < 2 or mu.shape[-1] != self.latent_dim or spread.shape != mu.shape:
            raise ValueError(
                f"mu is {tuple(mu.shape)}, spread is {tuple(spread.shape)}; both must be (..., {self.latent_dim})"
            )
        if mask is not None and (mask.shape != mu.shape[:-1] or mask.dtype != torch.bool):  # numbers would pick rows
            given, wanted = f"{tuple(mask.shape)} {mask.dtype}", f"{tuple(mu.shape[:-1])} torch.bool"
            raise ValueError(f"mask is {given}; it must be {wanted}, one for each example")

    def _watch(self) -> None:
        """Warn, once, when the floor is being escaped. Looking costs a GPU a wait, so only every hundredth batch."""
        look, self._calls = self._calls % 100 == 0 and not self._warned, self._calls + 1
        if look and (least := self.ratio.min().item()) < 0.99:
            self._warned = True
            warnings.warn(
                f"the encoder's output hardly varies over the batch: v / (v + eps) is {least:.2g}, and the floor under "
                f"the KL is {self.floor(observed=True).item():.3g} nats in place of {self.floor().item():.3g}. "
                "Take a smaller eps, or a larger initialisation of the encoder's last layer.",
                FloorEscaped,
                stacklevel=5,  # whoever calls the module: between stand torch's two
            )


def _check_batch_norm(latent_dim, gamma, tau, eps, momentum, variance_floor) -> None:
    if (gamma is None) == (tau is None):
        raise ValueError(f"gamma is {gamma}, tau is {tau}; give gamma (the paper's version) or tau (Su's), not both")
    if gamma is not None and not 0 < gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; it must be positive and finite")
    if tau is not None and not 0 < tau < 1:
        raise ValueError(f"tau is {tau}; it must lie between 0 and 1, the ends excluded")
    if latent_dim < 1 or not 0 < eps < math.inf or not 0 < variance_floor < math.inf:
        sizes = f"latent_dim is {latent_dim}, eps {eps}, variance_floor {variance_floor}"
        raise ValueError(f"{sizes}; all must be positive")
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum is {momentum}; it must lie in (0, 1]")


class _Standardise(nn.Module):
    """Batch normalisation without scale and shift, over all axes but the last; see `BatchNormPosterior`.

    Not torch's own, for the sake of the ratio v / (v + eps), the mask, float32 under autocast, processes whose
    batches differ in length, and running statistics that can be set exactly.
    """

    def __init__(self, width: int, eps: float, momentum: float):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("last_var", torch.ones(width), persistent=False)  # of the last training batch

    @property
    def ratio(self) -> Tensor:
        """(width,) v / (v + eps) of the last training batch: worked out when asked for, not at every step."""
        return self.last_var / (self.last_var + self.eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = at_least_single(x)
        if not self.training:
            return (x - self.running_mean) * (self.running_var + self.eps).rsqrt()
        mean, var, count = _moments(x if mask is None else x[mask])  # (width,), (width,), over all processes
        with torch.no_grad():
            self.last_var = var.detach()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        return (x - mean) * (var + self.eps).rsqrt()

    def calibrate(self, x: Tensor, mask: Tensor | None) -> None:
        x = at_least_single(x)
        mean, var, _ = _moments(x if mask is None else x[mask])
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)  # of all there is, so nothing to correct


def _moments(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance (n,) over all axes but the last, over all processes, and the number of rows."""
    x = x.flatten(0, -2)  # (..., n) -> (rows, n)
    total, count = x.sum(0), len(x)
    if several_processes():
        sums = sum_over_processes(torch.cat([total, total.new_tensor([count])]))  # (n + 1,)
        total, count = sums[:-1], sums[-1].item()
    if count < 2:
        raise ValueError(
            f"the batch has {int(count)} example(s); statistics need two at least. "
            "Drop the last short batch, or call .eval() to use the running statistics."
        )
    mean = total / count
    squares = (x - mean).pow(2).sum(0)
    return mean, sum_over_processes(squares) / count, count
