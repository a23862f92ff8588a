"""How a code is drawn from the posterior that the encoder describes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits + gumbel(logits, generator)


def _relaxed(noisy: Tensor, temperature: float) -> Tensor:
    """Return log softmax(noisy / temperature) over the last axis."""
    least = torch.finfo(torch.float32).tiny  # what lies below is 0 to float32: an annealing that went on too long
    if not least <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive and finite, {least:.2g} at least")
    # The largest is moved to 0 first, so that no quotient overflows upwards, whatever the temperature.
    return ((noisy - noisy.detach().amax(-1, keepdim=True)) / temperature).log_softmax(-1)
