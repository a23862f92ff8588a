"""What the author's order of updates costs the VAE-GAN against one pass for all losses, measured in one run.

    make bench

A step is every forward and backward pass and every Adam step, on 32 frames of 33 x 33 pixels, with the networks of
Parts 4 to 7 (64 latents) and a fixed beta:

    together   each network passed once, all gradients at the same parameters, then three Adam steps
    author     one loss after the other, each from fresh passes, the network moved before the next

with and without images of codes from the prior (two more losses), for the KL of single posteriors and of the batch.
What is compared takes turns, many rounds; the figures are medians, the ratio that of medians.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from clock import medians

from vaelab import device, explosion
from vaelab.explosion import Setup
from vaelab.models import vae_gan

BATCH, ROUNDS = 32, 60
CASES = [(kl, prior_fakes) for kl in ("single", "batch") for prior_fakes in (False, True)]


def training_step(kl: str, prior_fakes: bool, order: str) -> Callable[[], object]:
    """Return a function that trains the chapters' VAE-GAN for one step."""
    torch.manual_seed(0)
    model = explosion.build(Setup(kl=kl, momentum=0.9)).to(device(), memory_format=torch.channels_last)
    x = 2 * torch.rand(BATCH, 3, 33, 33, device=device()) - 1
    x = x.contiguous(memory_format=torch.channels_last)
    recipe = vae_gan.Recipe(prior_fakes=prior_fakes)
    step = vae_gan.alternate(model, lambda t: x, vae_gan.adam(model), recipe=recipe, order=order)
    return lambda: step(0)


def main() -> None:
    torch.set_num_threads(1)
    print(f"KL      prior fakes  {'  '.join(f'{order:>8s}' for order in vae_gan.ORDERS)}    ratio")
    for kl, prior_fakes in CASES:
        contestants = {order: training_step(kl, prior_fakes, order) for order in vae_gan.ORDERS}
        taken = medians(contestants, ROUNDS, warm_up=3)
        times = "  ".join(f"{1e3 * taken[order]:5.1f} ms" for order in vae_gan.ORDERS)
        print(f"{kl:7s} {'yes' if prior_fakes else 'no':11s}  {times}  {taken['author'] / taken['together']:7.2f}")


if __name__ == "__main__":
    main()
