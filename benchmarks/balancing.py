"""What KL balancing costs, and what the ladder VAE's memory format brings, as ratios measured in one run.

    make bench

    balancing        `balance_kl` with its gradient, beyond the plain sum over groups, per training step of the
                     chapter's ladder VAE (seven groups, batch 64)
    channels_last    a training step with feature maps laid out channel by channel in place of pixel by pixel

What is compared takes turns, many rounds; the ratios are those of medians.
"""

from __future__ import annotations

import torch
from clock import medians

from vaelab import device
from vaelab.divergences import balance_kl
from vaelab.models.ladder_vae import LadderVAE

BATCH, ROUNDS = 64, 60


def training_step(layout: torch.memory_format):
    """Return a function that trains the chapter's ladder VAE for one step."""
    torch.manual_seed(0)
    model = LadderVAE(28, (1, 2, 4), base=2).to(device(), memory_format=layout)
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    x = (torch.rand(BATCH, 1, 28, 28, device=device()) < 0.2).float()

    def step():
        terms = model(x)
        optimiser.zero_grad(set_to_none=True)
        (terms.nll + terms.kl.sum(1)).mean().backward()
        optimiser.step()

    return step


def charge(balanced: bool):
    """Return a function that charges for a batch's KL, forward and backward, ten times."""
    kl = torch.rand(BATCH, 7, device=device(), requires_grad=True)
    sizes = torch.tensor([4.0, 16.0, 16.0, 64.0, 64.0, 64.0, 64.0], device=device())

    def ten_times():
        for _ in range(10):
            total = balance_kl(kl, sizes).kl if balanced else kl.sum(1)
            total.mean().backward()

    return ten_times


def main() -> None:
    contestants = {
        "step": training_step(torch.channels_last),
        "contiguous": training_step(torch.contiguous_format),
        "balanced": charge(True),
        "plain": charge(False),
    }
    median = medians(contestants, ROUNDS, warm_up=3)
    extra = (median["balanced"] - median["plain"]) / 10
    print(f"a training step takes {1e3 * median['step']:.1f} ms, balancing adds {1e3 * extra:.3f} ms: "
          f"{extra / median['step']:.2%} (target at most 1 %)")
    print(f"channels_last runs {median['contiguous'] / median['step']:.2f} times as fast as contiguous maps")


if __name__ == "__main__":
    main()
