"""Every KL term of the book, in nats.

Each function says whether it sums or averages, over which axes. Nothing here averages over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
