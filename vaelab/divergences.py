"""Every KL term of the book, in nats, with the entropy and the relaxed density that discrete codes need.

Each function says whether it sums or averages, over which axes. No term here is averaged over the batch;
`balance_kl` takes batch means for its coefficients alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from vaelab.lab import several_processes


def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | float = 0.0, prior_logvar: Tensor | float = 0.0
) -> Tensor:
    r"""Return KL( N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar)) ) for every coordinate, in nats.

    Nothing is summed: the shape is that of `mu`. For the KL of a diagonal Gaussian, sum the last axis.

    .. math:: \tfrac12\Big(\frac{\sigma^2 + (\mu - m)^2}{s^2} - 1 - \log\frac{\sigma^2}{s^2}\Big)

    Source: Kingma and Welling 2014, appendix B, for a standard normal prior.

    >>> gaussian_kl(torch.tensor([1.0]), torch.tensor([0.0]))  # a shift by one standard deviation
    tensor([0.5000])
    """
    log_ratio = logvar - prior_logvar
    # expm1 keeps the difference of two nearly equal numbers exact near the prior, where collapse lives.
    shift = (mu - prior_mu).pow(2) * torch.exp(-torch.as_tensor(prior_logvar, dtype=mu.dtype))
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + shift)


def categorical_kl(logits: Tensor, prior_logits: Tensor | None = None) -> Tensor:
    r"""Return KL( softmax(logits) || softmax(prior_logits) ) for every code, in nats: (..., K) -> (...).

    Summed over the K classes and nothing else: a row of 20 codes, (N, 20, K), gives (N, 20).

    .. math:: \sum_k q_k \log (q_k / p_k)

    A class that q gives no probability adds 0, also where the prior gives it none; a class that the prior
    alone rules out makes the KL infinite. Never negative but for rounding: near the prior too, digits are kept.

    This is the KL of the discrete model. With codes from `posteriors.gumbel_softmax` the bound then mixes a
    relaxed likelihood with a discrete KL (Jang et al.'s choice, no bound on either model until it is
    evaluated at one-hot codes); the other choice is `relaxed_log_density`.

    Args:
        logits: (..., K) log-probabilities of q, up to a constant for each row.
        prior_logits: the same of the prior, (K,) or (..., K). None: the uniform prior, whose KL is ln K - H(q).

    Returns:
        (...) nats; float32 for logits in half precision.

    Raises:
        ValueError: the prior has another number of classes.

    Source: Jang et al. 2017 (arXiv 1611.01144), section 4.2, for the choice.

    >>> categorical_kl(torch.tensor([[100.0, -100.0], [0.0, 0.0]]))  # ln 2 for a certain code, 0 for none
    tensor([0.6931, 0.0000])
    """
    prior_logits = torch.zeros_like(logits) if prior_logits is None else prior_logits
    _check_classes(logits, "prior_logits", prior_logits)
    log_q, log_p = _log_softmax(logits), _log_softmax(prior_logits)
    q, p = log_q.exp(), log_p.exp()
    r = (log_q - log_p).masked_fill((q == 0) & (p == 0), 0).clamp(min=torch.finfo(log_q.dtype).min)
    # As q and p both sum to 1, so does q r - q + p to the KL; no term of it is negative. With q = p exp(r) it is
    # written from the larger of the two, as nothing overflows there, and by expm1, which keeps the digits.
    more, less = r.clamp(min=0), r.clamp(max=0)
    terms = q * (more + torch.expm1(-more)) + p * (less * torch.exp(less) - torch.expm1(less))  # (..., K)
    return terms.sum(-1)


def categorical_entropy(logits: Tensor) -> Tensor:
    r"""Return the entropy of softmax(logits) for every code, in nats: (..., K) -> (...), from 0 to ln K.

    Summed over the K classes and nothing else. A class without probability adds 0.

    .. math:: -\sum_k q_k \log q_k

    Returns:
        (...) nats; float32 for logits in half precision.

    Source: Shannon 1948. In the bound it stands with a plus (Kingma et al. 2014, equation 7), in a loss with a minus.

    >>> categorical_entropy(torch.zeros(2))
    tensor(0.6931)
    """
    log_q = _log_softmax(logits)
    q = log_q.exp()
    return (q * -log_q.masked_fill(q == 0, 0)).sum(-1)


def relaxed_log_density(log_sample: Tensor, logits: Tensor, temperature: float) -> Tensor:
    r"""Return the log density of Gumbel-softmax samples, taken at their logarithms: (..., K) -> (...), in nats.

    With x a point of the simplex, l its logarithm, alpha the exponentials of the logits and tau the temperature,

    .. math:: \log \Gamma(K) + (K - 1) \log \tau + \sum_k (\log \alpha_k - \tau l_k)
              - K \log \sum_k \exp(\log \alpha_k - \tau l_k),

    the density on the log-simplex (ExpConcrete), over the K - 1 numbers log(x_k / x_K). The density on the
    simplex itself (Concrete), over x_1 to x_{K-1}, is this minus `log_sample.sum(-1)`: it overflows where a
    class rounds to 0, so it is not offered. In a ratio of two densities the space does not matter.

    The KL of the relaxed model, from one draw, in the place of `categorical_kl` ::

        log_y = gumbel_log_softmax(logits, tau)
        kl = relaxed_log_density(log_y, logits, tau) - relaxed_log_density(log_y, prior_logits, prior_tau)

    It may be negative, as any estimate from a draw; its mean is at least the categorical KL.

    Args:
        log_sample: (..., K) from `posteriors.gumbel_log_softmax`: logarithms, whose exponentials sum to 1.
        logits: (..., K) or (K,), finite, up to a constant for each row.
        temperature: positive and finite.

    Returns:
        (...) nats, summed over the classes; float32 for half precision.

    Raises:
        ValueError: the temperature is not positive and finite; another number of classes; samples that are not
            logarithms of points of the simplex.

    Source: Maddison et al. 2017 (arXiv 1611.00712), definition 1 for the simplex, appendix for the log-simplex.

    >>> half = torch.tensor([0.5, 0.5]).log()  # two equal classes at temperature 1: uniform on the simplex
    >>> relaxed_log_density(half, torch.zeros(2), temperature=1.0) - half.sum(-1)
    tensor(0.)
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")
    _check_classes(log_sample, "logits", logits)
    log_sample, logits = at_least_single(log_sample), at_least_single(logits)
    totals = log_sample.detach().logsumexp(-1)
    if not (totals.abs() < 0.1).all():  # a bfloat16 sample comes to 0.01; a sample without its logarithm to ln K
        raise ValueError(f"log_sample sums to {totals.exp().tolist()}, exponentiated; each row must sum to 1")
    k = log_sample.shape[-1]
    log_scale = math.lgamma(k) + (k - 1) * math.log(temperature)
    return (logits - temperature * log_sample).log_softmax(-1).sum(-1) + log_scale


def at_least_single(tensor: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is.

    >>> at_least_single(torch.zeros(1, dtype=torch.float16)).dtype, at_least_single(torch.zeros(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over the last axis, in float32 at least."""
    return at_least_single(logits).log_softmax(-1)


def _check_classes(first: Tensor, name: str, second: Tensor) -> None:
    """Refuse a second tensor that has another number of classes, also where it would broadcast."""
    if first.shape[-1:] != second.shape[-1:]:
        shape, classes = tuple(second.shape), first.shape[-1]
        raise ValueError(f"{name} has shape {shape}; it must end in the number of classes, {classes}")


class Balanced(NamedTuple):
    """What `balance_kl` returns."""

    kl: Tensor  # (N,) what to put in the place of kl.sum(1): sum over groups of gamma_i K_i, nats
    gamma: Tensor  # (G,) the coefficients: detached, positive, their sum is G
    kl_groups: Tensor  # (G,) mean KL of each group over the whole batch, nats, detached: for the log


def balance_kl(
    kl: Tensor, sizes: Tensor | Sequence[float] | None = None, *, strength: float = 1.0, floor: float = 1e-3
) -> Balanced:
    r"""Weigh the KL terms of latent groups so that groups with much KL pay more, groups with little pay less.

    In the objective of any hierarchical VAE, replace the sum over groups by one line::

        loss = nll + beta * balance_kl(kl, sizes, strength=balancing_phase(t, until=warm_up)).kl

    With w_i the batch mean of K_i, held at zero or above and lifted by the floor, and a_i the sizes,

    .. math:: \gamma_i = G \, \frac{w_i / a_i}{\sum_j w_j / a_j}, \qquad
              \texttt{kl} = \sum_i \gamma_i K_i, \qquad \gamma_i \leftarrow 1 + \texttt{strength} \, (\gamma_i - 1).

    No gradient flows through gamma: it only sets the price of a nat in each group. While `strength` is above
    zero the sum is not the KL of the bound; at zero it is exactly `kl.sum(1)`.

    Args:
        kl: (N, G) KL of each of G groups for each of N examples, nats, summed within the group. Estimates
            from single draws, which may be negative, are welcome. Half precision is summed in float32.
        sizes: (G,) positive sizes to divide by, up to a common factor: the positions of each group's map
            (NVAE's maintainer), `sizes_by_scale` of them (NVAE as shipped). None: all alike (DVAE++).
        strength: 1 balances, 0 leaves the bound alone, between them is between; see `balancing_phase`.
        floor: share of the mean w added to each w, so that a group with no KL at all keeps a price. Relative,
            so that it does not matter whether KL is counted in nats, in bits or per pixel.

    When `torch.distributed` is running, w is the mean over the batches of all processes; each of them must
    call this, at any strength.

    Raises:
        ValueError: `kl` is not (N, G) with N and G at least 1, or its means are not finite; sizes of another
            length, or not positive; a strength outside [0, 1]; a floor that is not positive.

    Source: Vahdat et al. 2018 (arXiv 1802.04920), section H; Vahdat and Kautz 2020 (arXiv 2007.03898),
    appendix A; the form by the maintainer of NVAE in its issue 26. Not to be confused with "KL balancing"
    in DreamerV2, which splits one KL between prior and posterior.

    >>> balance_kl(torch.tensor([[3.0, 1.0]]), floor=1e-9)
    Balanced(kl=tensor([5.]), gamma=tensor([1.5000, 0.5000]), kl_groups=tensor([3., 1.]))
    """
    kl, a = _checked_groups(kl, sizes)
    if not 0 <= strength <= 1 or not 0 < floor < float("inf"):
        raise ValueError(f"strength is {strength}, floor is {floor}; one must lie in [0, 1], the other be positive")
    kl_groups = _mean_over_processes(kl.detach())  # (G,)
    if not torch.isfinite(kl_groups).all():
        raise ValueError(f"the mean KL of the groups is {kl_groups.tolist()}; it must be finite")
    if strength == 0:
        return Balanced(kl.sum(1), torch.ones_like(kl_groups), kl_groups)
    w = kl_groups.clamp(min=0)
    w = w / w.max().clamp(min=torch.finfo(w.dtype).tiny)  # only ratios matter; huge ones must not overflow
    price = (w + floor * w.mean() + torch.finfo(w.dtype).tiny ** 0.5) / a  # never all zero
    gamma = 1 + strength * (price / price.mean() - 1)
    return Balanced(kl @ gamma, gamma, kl_groups)


def _checked_groups(kl: Tensor, sizes: Tensor | Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Return (N, G) KL, in float32 at least, and (G,) sizes with mean 1 beside it."""
    if kl.ndim != 2 or 0 in kl.shape:
        raise ValueError(f"kl has shape {tuple(kl.shape)}; it must be (batch, groups), one or more of each")
    kl = at_least_single(kl) if kl.is_floating_point() else kl
    if sizes is None:
        return kl, torch.ones_like(kl[0].detach())
    a = torch.as_tensor(sizes, dtype=kl.dtype, device=kl.device)
    if a.shape != kl.shape[1:] or not bool((a > 0).all() and torch.isfinite(a.sum())):
        raise ValueError(f"sizes are {a.tolist()}; there must be {kl.shape[1]} of them, all positive and finite")
    return kl, a / a.mean()


def _mean_over_processes(kl: Tensor) -> Tensor:
    """Return the (G,) mean of (N, G) over the batch: over those of all processes, if several train."""
    if not several_processes():
        return kl.mean(0)
    total = torch.cat([kl.sum(0), kl.new_tensor([len(kl)])])  # (G + 1,), so batches may differ in length
    distributed.all_reduce(total)
    return total[:-1] / total[-1]


def sizes_by_scale(sizes: Tensor | Sequence[float]) -> Tensor:
    """Divide each group's size by the number of groups of that size: (G,) -> (G,) float32.

    With these, `balance_kl` prices a group as if all groups of its scale said as much as it does, as NVAE's
    code does; with the plain sizes by what it says itself, as its maintainer's simplification does. The two
    agree where every scale has equally many groups.

    Raises:
        ValueError: sizes that are not one row.

    >>> sizes_by_scale([16, 64, 64])
    tensor([16., 32., 32.])
    """
    a = torch.as_tensor(sizes, dtype=torch.float32)
    if a.ndim != 1:
        raise ValueError(f"sizes has shape {tuple(a.shape)}; it must be one row, one size for each group")
    return a / (a[:, None] == a).sum(1)


def balancing_phase(step: int, until: int, fade: int = 0) -> float:
    """Return the strength of balancing at a step: 1 before `until`, then 0, or a line down to 0 over `fade` steps.

    It asks for the phase of training and not whether beta is below 1, as NVAE's code does: with a final beta
    below 1 that gate never closes, and without a warm-up it never opens.

    Raises:
        ValueError: `until` or `fade` is negative.

    >>> [balancing_phase(t, until=2, fade=2) for t in range(5)]
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    if until < 0 or fade < 0:
        raise ValueError(f"until is {until}, fade is {fade}; both count steps and must be at least 0")
    if step < until:
        return 1.0
    return max(0.0, 1 - (step - until) / fade) if fade else 0.0
