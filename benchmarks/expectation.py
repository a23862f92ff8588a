"""What the exact expectation over the class costs in Days 13 to 15, as ratios measured in one run.

    make bench

A step is forward, backward and Adam, on 64 images, of Day 13's M2 without batch norm and convolutions:

    exact      `unlabelled`: all classes in one call, the image encoded once
    loop       `unlabelled_loop`: class by class
    in parts   `unlabelled` with ten classes at a time, their activations worked out again in the backward pass
    Gumbel     `unlabelled_sampled`: one soft draw of the class
    CVAE       the step of a plain CVAE of the same size, with a label

What is compared takes turns, many rounds; the ratios are those of medians. Two tables say where the time goes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from clock import medians
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from vaelab import device
from vaelab.models.cvae import CVAE
from vaelab.models.semi_supervised_vae import BoundTerms, SemiSupervisedVAE, StyleEncoder
from vaelab.networks import ConditionalMLP, mlp

PIXELS, HIDDEN, LATENT, BATCH, CLASSES = 784, (256,), 6, 64, 10
GROWING = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
Step = Callable[[], None]
BOUNDS: dict[str, Callable[[SemiSupervisedVAE, Tensor], BoundTerms]] = {
    "exact": lambda model, x: model.unlabelled(x),
    "loop": lambda model, x: model.unlabelled_loop(x),
    "in parts": lambda model, x: model.unlabelled(x, classes_at_once=10),
    "Gumbel": lambda model, x: model.unlabelled_sampled(x, temperature=0.5),
}


def images() -> Tensor:
    return (torch.rand(BATCH, 1, 28, 28, device=device()) < 0.2).float()


def descending(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Return a function that takes one step of Adam down a loss."""
    optimiser = torch.optim.Adam(model.parameters(), fused=True)

    def step():
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()

    return step


def m2(bound: str, classes: int = CLASSES) -> Step:
    """Return a function that trains Day 13's model on images without labels for one step."""
    torch.manual_seed(0)
    model = SemiSupervisedVAE(
        nn.Sequential(nn.Flatten(), mlp(PIXELS, HIDDEN, classes)),
        StyleEncoder(PIXELS, classes, HIDDEN, LATENT),
        ConditionalMLP(LATENT, classes, HIDDEN, PIXELS),
        classes,
        LATENT,
    ).to(device())
    x = images()
    return descending(model, lambda: -BOUNDS[bound](model, x).elbo)


def cvae() -> Step:
    """Return a function that trains a CVAE on images with labels for one step."""
    torch.manual_seed(0)
    model, x = CVAE(28, CLASSES, LATENT, HIDDEN).to(device()), images()
    y = torch.randint(CLASSES, (BATCH,), device=device())
    return descending(model, lambda: model(x, y).loss)


def show_profile(name: str, step: Step, steps: int = 20, top: int = 7) -> None:
    """Print the operators that take most of the CPU's time themselves."""
    step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as measured:
        for _ in range(steps):
            step()
    rows = sorted(measured.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"{name}: {total / steps / 1e3:.1f} ms of operators a step, {sum(row.count for row in rows) // steps} calls")
    for row in rows[:top]:
        print(f"    {row.self_cpu_time_total / total:6.1%}  {row.count // steps:5d} calls  {row.key}")


def first_where(gains: dict[int, float], factor: float) -> str:
    """Name the smallest number of classes at which a gain exceeds a factor."""
    enough = [classes for classes, gain in gains.items() if gain > factor]
    return f"from K = {min(enough)} on" if enough else f"nowhere up to K = {max(gains)}"


def compare() -> None:
    contestants = {name: m2(name) for name in ("exact", "loop", "in parts", "Gumbel")} | {"CVAE": cvae()}
    taken = medians(contestants, rounds=80, warm_up=2)
    print(f"K = {CLASSES}: an exact step takes {1e3 * taken['exact']:.1f} ms, "
          f"{taken['exact'] / taken['CVAE']:.1f} times a labelled CVAE step")
    print(f"it runs {taken['loop'] / taken['exact']:.2f} times as fast as the loop over classes (target 2)")
    for name in ("exact", "loop"):
        show_profile(name, contestants[name])


def grow() -> None:
    print("   K     exact  in parts    Gumbel   exact / Gumbel   in parts / exact")
    gains = {}
    for classes in GROWING:
        contestants = {name: m2(name, classes) for name in ("exact", "in parts", "Gumbel")}
        taken = medians(contestants, rounds=max(3, min(30, 600 // classes)), warm_up=2)
        exact, parts, drawn = taken.values()
        gains[classes] = exact / drawn
        print(f"{classes:4d} {1e3 * exact:6.1f} ms {1e3 * parts:6.1f} ms {1e3 * drawn:6.1f} ms "
              f"{exact / drawn:16.1f} {parts / exact:18.2f}")
    for factor in (1, 2, 10):
        print(f"a Gumbel step is more than {factor} times cheaper {first_where(gains, factor)}"
              if factor > 1 else f"a Gumbel step is cheaper than the exact one {first_where(gains, factor)}")


def main() -> None:
    print(f"{torch.get_num_threads()} threads on {device()}")
    compare()
    grow()


if __name__ == "__main__":
    main()
