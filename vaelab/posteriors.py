"""How a code is drawn from the posterior that the encoder describes."""

from __future__ import annotations

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
