"""Every KL term of the book, in nats, with the entropy and the relaxed density that discrete codes need.

Each function says whether it sums or averages, over which axes. No term here is averaged over the batch;
`balance_kl` takes batch means for its coefficients alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from vaelab.lab import several_processes, sum_over_processes


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


def moment_kl(mean: Tensor, variance: Tensor) -> Tensor:
    r"""Return KL( N(mean, variance) || N(0, I) ) of given moments, in nats.

    .. math:: \tfrac12 (M^2 + V - 1 - \ln V) \quad\text{or}\quad
              \tfrac12 (M^\top M + \mathrm{tr}\,V - n - \ln\det V)

    Args:
        mean: (n,), M.
        variance: (n,) for each coordinate by itself, or a symmetric (n, n) covariance for all of them at once. In
            the logarithm, variances (eigenvalues of the covariance) below 1e-12 count as 1e-12, without a gradient:
            a coordinate that is constant costs 13.3 nats, not infinitely many.

    Returns:
        (n,) nats per coordinate for (n,) variances, () nats in total for a covariance.

    Raises:
        ValueError: the mean is not (n,), the variance neither (n,) nor (n, n).

    The sum over the coordinates is never above the total; the difference is what their correlation costs.

    >>> moment_kl(torch.tensor([1.0, 0.0]), torch.ones(2))
    tensor([0.5000, 0.0000])
    >>> moment_kl(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))  # -1/2 ln(1 - 0.8^2)
    tensor(0.5108)
    """
    if mean.ndim != 1 or variance.shape not in (mean.shape, 2 * mean.shape):
        shapes = f"mean has shape {tuple(mean.shape)}, variance {tuple(variance.shape)}"
        raise ValueError(f"{shapes}; they must be (n,), and (n,) or (n, n)")
    if variance.ndim == 1:
        return gaussian_kl(mean, variance.clamp(min=LEAST_VARIANCE).log())
    eigenvalues = torch.linalg.eigvalsh(variance).clamp(min=LEAST_VARIANCE)  # (n,)
    return 0.5 * mean.square().sum() + gaussian_kl(torch.zeros_like(mean), eigenvalues.log()).sum()


LEAST_VARIANCE = 1e-12  # only guards the logarithm of a variance


def moment_bias(count: float, n: int = 1) -> float:
    r"""Return the mean of `moment_kl` of `count` independent standard normal codes, whose KL is 0, in nats.

    .. math:: \tfrac12 \Big( \frac{n}{N} + n \ln\frac{N - 1}{2} - \sum_{i=1}^n \psi\Big(\frac{N - i}{2}\Big) \Big)

    About 1/N for one coordinate, (n + 3) n / 4N for n of them with their covariance.

    Args:
        count: N, how many codes the mean and the unbiased variance (or covariance) are taken of; for averages with
            unequal weights w_i their effective number, 1 / sum w_i^2.
        n: how many coordinates have a covariance together. 1: nats for one coordinate by itself.

    Raises:
        ValueError: `n` is below 1, or `count` is not above n and finite.

    Source: mean of the logarithm of a chi-squared variable, and of a Wishart determinant (Bishop 2006, B.81).

    >>> [round(moment_bias(count), 4) for count in (8, 16, 32, 64, 128, 256)]
    [0.1373, 0.0653, 0.0319, 0.0158, 0.0079, 0.0039]
    """
    return 0.5 * (n / count + _log_det_bias(count, n))


def _log_det_bias(count: float, n: int) -> float:
    """Return by how much the log determinant of an unbiased (n, n) covariance of `count` codes is too low in mean."""
    if n < 1 or not n < count < math.inf:
        raise ValueError(f"count is {count}, n is {n}; n must be at least 1, count above n and finite")
    halves = (count - torch.arange(1, n + 1, dtype=torch.float64)) / 2  # (n,)
    return n * math.log((count - 1) / 2) - torch.digamma(halves).sum().item()


class _Moments(NamedTuple):
    """What `BatchKL` knows of a batch, or of the average over batches."""

    mean: Tensor  # (n,)
    between: Tensor  # (n,) or (n, n), mean of (z - mean)^2, of (z - mean)(z - mean)^T: divided by N
    within: Tensor  # (n,) mean of exp(logvar), 0 where codes are samples
    count: float  # N, or the effective number of codes


class BatchKL(nn.Module):
    r"""KL of a batch of codes as a whole: KL( N(M, V) || N(0, I) ) with M and V the batch's mean and variance.

    With V = (n,) variances, K is (n,) nats per coordinate, neither summed nor averaged; with the (n, n) covariance
    it is () nats in total:

    .. math:: K = \tfrac12 (M^2 + V - 1 - \ln V), \qquad
              K = \tfrac12 (M^\top M + \mathrm{tr}\,V - n - \ln\det V)

    It looks at two moments of the aggregate posterior q(z) alone. In the limit of many codes,

    .. math:: \mathbb{E}_x\,\mathrm{KL}(q(z|x)\,|\,p) \ge \mathrm{KL}(q(z)\,|\,p) \ge K_\text{full} \ge \sum_k K_k,

    so it does not bound what a code says of its example, and no posterior need have any width. Unlike the KL of
    single points, it can be driven to 0 without losing a nat.

    Called with z (N, n) in training mode it averages over batches too, with weights that fall by `momentum` m from
    batch to batch and sum to 1 from the first batch on (Adam's correction; there is no initial value). What is
    averaged is E[z] and E[z z^T], so V = E[z z^T] - E[z] E[z]^T has in it how the batches' means differ.

    - The value is that of the averages, less `moment_bias` at their effective number of codes, 1 / sum w_i^2 over
      the weights of the codes: N (1 + m) / (1 - m) in the long run. So its mean is 0 for standard normal codes, and
      it may be slightly negative. Exact for equal weights, else up to terms of the order of its inverse square.
    - The gradient is that of K as a function of E[z] and E[z z^T], taken at the averages, and reaches the batch in
      full (straight-through), where a plain average passes on 1 - m of it.
    - Evaluation mode (`.eval()`) looks at the batch alone, and leaves the averages as they are.

    A stale gradient can overshoot. Where a step of the encoder's takes a share s off the distance of its moments to
    the best ones, they approach these steadily for s up to (1 - sqrt m) / (1 + sqrt m), about (1 - m) / 4; beyond,
    they swing around them, the swings shrinking by sqrt(m) a step. So 1 / (1 - m) should be short against the
    encoder's time scale.

    When `torch.distributed` runs, moments are those of all processes' batches, which may differ in length, and the
    gradients are what averaging over processes, as DistributedDataParallel does, expects. Each process must call
    this.

    Args:
        momentum: m, from 0 (each batch by itself) to below 1.
        full_covariance: price correlations too. Takes more codes than coordinates.
        as_written: the blog's version, for comparison: mean and unbiased variance within batches, averaged from 0
            and 1 on; 1 - m of the gradient; nothing subtracted; in evaluation mode the averages of training make up
            m of the moments.

    `forward` takes z, (N, n) codes drawn from their posteriors, and returns K; in half precision it is float32.
    Given `logvar` too, (N, n) logarithms of the variances, z are the means instead, and exp(logvar) is added to the
    second moment: the same moments in mean, without the noise of the draws. Means scatter less than draws, so less
    is subtracted. With A = V^{-1} Cov[mu], the term n / N of `moment_bias` becomes tr A / N, and the rest of it is
    taken (tr(A)^2 + tr(A^2)) / (n (n + 1)) times (per coordinate: A / N, and A^2 times). Nothing where all means
    are alike; exact for A = 1; between them, where widths vary little over examples, to leading order in 1 / N.

    Raises:
        ValueError: a momentum outside [0, 1); as written with a covariance or with `logvar`; codes that are not
            (N, n), of another n than before, or fewer than two in all processes; moments that are not finite;
            a covariance of no more codes, counted effectively, than coordinates (see `observe`).

    Source: Ulyanov et al. 2018 (arXiv 1704.02304), AGE, for the term, without averages; the blog post
    "VAE-GAN Part 7: Batch KLD" for these; Rezende and Viola 2018 (arXiv 1810.00597) for an average in the value alone.

    >>> z = torch.tensor([[-1.0, 3.0], [1.0, 5.0]])  # variance 2, and the second has mean 4
    >>> (BatchKL()(z) + moment_bias(2)).round(decimals=4)  # 1/2 (1 - ln 2), and 4^2 / 2 = 8 more
    tensor([0.1534, 8.1534])
    """

    def __init__(self, momentum: float = 0.0, full_covariance: bool = False, as_written: bool = False):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        if as_written and full_covariance:
            raise ValueError("full_covariance is True; as_written it must be False, the blog has variances only")
        self.momentum, self.full_covariance, self.as_written = momentum, full_covariance, as_written
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        device = next((buffer.device for buffer in self.buffers()), None)
        # Without elements until the first batch tells n: so is nothing seen told from something.
        self.register_buffer("mean", torch.zeros(0, device=device))  # (n,)
        if self.as_written:
            self.register_buffer("variance", torch.zeros(0, device=device))  # (n,)
            return
        empty = torch.zeros((0, 0) if self.full_covariance else 0, device=device)
        self.register_buffer("between", empty)  # (n,) or (n, n), and so on as in _Moments
        self.register_buffer("within", torch.zeros(0, device=device))  # (n,)
        self.register_buffer("weight", torch.zeros((), device=device))  # 1 - m^t after t batches
        self.register_buffer("count", torch.zeros((), device=device))  # effective number of codes

    def forward(self, z: Tensor, logvar: Tensor | None = None) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            batch = self._batch(z, logvar)
            return self._as_written(batch) if self.as_written else self._corrected(batch)

    def _corrected(self, batch: _Moments) -> Tensor:
        if not self.training:
            return self._kl(batch)
        average, weight = self._averaged(batch)
        kl = self._kl(self._straight_through(average, batch))
        self._keep(average, weight)  # last, as batches that are refused leave no trace
        return kl

    @torch.no_grad()
    def observe(self, z: Tensor, logvar: Tensor | None = None) -> None:
        """Take a batch into the averages and no more, in whichever mode; arguments and errors as for the call.

        With this, a covariance gets enough codes where one batch has fewer than coordinates.
        """
        with torch.autocast(z.device.type, enabled=False):
            batch = self._batch(z, logvar)
        if self.as_written:
            self.mean, self.variance = self._blogs_averages(batch)
        else:
            self._keep(*self._averaged(batch))

    def extra_repr(self) -> str:
        """Say which version it is."""
        kind = "as_written" if self.as_written else "full_covariance" if self.full_covariance else "diagonal"
        return f"momentum={self.momentum}, {kind}"

    def _batch(self, z: Tensor, logvar: Tensor | None) -> _Moments:
        """Return the moments of a batch, over all processes, having refused what has none."""
        if z.ndim != 2 or not z.shape[1] or len(self.mean) not in (0, z.shape[1]):
            wanted = f"(N, {len(self.mean)}), as before" if len(self.mean) else "(N, n), n at least 1"
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be {wanted}")
        if logvar is not None and (self.as_written or logvar.shape != z.shape):
            wanted = "None where as_written, the blog takes draws" if self.as_written else f"{tuple(z.shape)}, as z"
            raise ValueError(f"logvar has shape {tuple(logvar.shape)}; it must be {wanted}")
        batch = _batch_moments(z, logvar, self.full_covariance)
        if not all(bool(torch.isfinite(moment).all()) for moment in batch[:3]):  # alike in all processes
            raise ValueError("z or logvar has moments that are not finite; all codes must be finite, and below 1e18")
        return batch

    def _averaged(self, batch: _Moments) -> tuple[_Moments, float]:
        """Return the average over all batches, this one the last, and the sum 1 - m^t of the plain weights."""
        weight = self.momentum * self.weight.item() + 1 - self.momentum
        batch = _Moments(*(moment.detach() for moment in batch[:3]), batch.count)
        if not len(self.mean):
            return batch, weight
        a = (1 - self.momentum) / weight  # the share of this batch
        step = batch.mean - self.mean  # (n,); E[zz^T] - E[z]E[z]^T without the difference of large numbers:
        between = (1 - a) * self.between + a * batch.between + a * (1 - a) * self._square(step)
        within = (1 - a) * self.within + a * batch.within
        count = 1 / ((1 - a) ** 2 / self.count.item() + a**2 / batch.count)
        return _Moments(self.mean + a * step, between, within, count), weight

    def _keep(self, average: _Moments, weight: float) -> None:
        self.mean, self.between, self.within, count = average
        self.weight, self.count = self.mean.new_tensor(weight), self.mean.new_tensor(count)

    def _straight_through(self, average: _Moments, batch: _Moments) -> _Moments:
        """Return the average's values with the gradients that the batch's raw moments have."""
        about = batch.between + self._square(batch.mean - average.mean)  # E[(z - M)^2], M the average and constant
        pairs = zip(average, (batch.mean, about, batch.within))
        return _Moments(*(value + (way - way.detach()) for value, way in pairs), average.count)

    def _square(self, x: Tensor) -> Tensor:
        return x[:, None] * x if self.full_covariance else x.square()

    def _kl(self, moments: _Moments) -> Tensor:
        n, count = len(moments.mean), moments.count
        if self.full_covariance and count <= n:
            raise ValueError(
                f"the covariance is of {count:.4g} codes, effectively; it must be more than the {n} coordinates. "
                "Take larger batches, or a momentum and batches for the averages first (`observe`)."
            )
        between = moments.between * (count / (count - 1))  # unbiased
        variance = between + (moments.within.diag() if self.full_covariance else moments.within)
        kl = moment_kl(moments.mean, variance)
        if not moments.within.any():
            return kl - moment_bias(count, n if self.full_covariance else 1)
        return kl - self._bias(between.detach(), variance.detach(), count)

    def _bias(self, between: Tensor, variance: Tensor, count: float) -> Tensor:
        """Return the mean of K where q(z) is standard normal, but only `between` of its variance scatters."""
        n = len(between)
        if not self.full_covariance:
            a = between / variance.clamp(min=LEAST_VARIANCE)  # (n,)
            return 0.5 * (a / count + a.square() * _log_det_bias(count, 1))
        a = torch.linalg.pinv(variance, hermitian=True) @ between  # (n, n)
        trace, square = a.trace(), (a * a.T).sum()
        return 0.5 * (trace / count + (trace**2 + square) / (n * (n + 1)) * _log_det_bias(count, n))

    def _blogs_averages(self, batch: _Moments) -> tuple[Tensor, Tensor]:
        m, variance = self.momentum, batch.between * (batch.count / (batch.count - 1))
        before = (self.mean, self.variance) if len(self.mean) else (0.0, 1.0)
        return m * before[0] + (1 - m) * batch.mean, m * before[1] + (1 - m) * variance

    def _as_written(self, batch: _Moments) -> Tensor:
        mean, variance = self._blogs_averages(batch)
        if self.training:
            self.mean, self.variance = mean.detach(), variance.detach()
        return -0.5 * (1 + variance.clamp(min=LEAST_VARIANCE).log() - mean.square() - variance)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        """Take on the shapes of the state: only the first batch tells n."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            state = state_dict.get(prefix + name)
            if isinstance(state, Tensor) and state.ndim == buffer.ndim:
                setattr(self, name, torch.empty_like(state, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _batch_moments(z: Tensor, logvar: Tensor | None, full_covariance: bool) -> _Moments:
    """Return the moments of (N, n) codes over all processes, in float32 at least."""
    z, n = at_least_single(z), z.shape[1]
    widths = torch.zeros_like(z) if logvar is None else at_least_single(logvar).exp()  # (N, n)
    sums = sum_over_processes(torch.cat([z.sum(0), widths.sum(0), z.new_tensor([len(z)])]))  # (2n + 1,)
    count = sums[-1].item()
    if count < 2:
        raise ValueError(f"z has {int(count)} code(s) in all; a variance needs two at least")
    mean = sums[:n] / count
    z = z - mean
    squares = sum_over_processes(z.T @ z if full_covariance else z.square().sum(0))  # (n, n) or (n,)
    return _Moments(mean, squares / count, sums[n:-1] / count, count)
