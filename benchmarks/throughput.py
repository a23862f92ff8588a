"""What the training loop costs, as ratios measured in one run.

    make bench

Steps a second of the same plain VAE (784-400-20, batch 128, MNIST or, without it, as many random images):

    bare      forward, backward and optimiser step on one preloaded batch, nothing else
    vaelab    `training.fit` over `data.Shuffle` batches: fresh batches, history, checks, progress
    loader    the usual loop over torchvision's data set and `torch.utils.data.DataLoader`

The three take turns, several rounds, so that a machine whose speed drifts slows all of them alike; the ratios
are medians over rounds.
"""

from __future__ import annotations

import statistics

import torch
from clock import seconds
from torch.utils.data import DataLoader, TensorDataset

from vaelab import data, device
from vaelab.models.cvae import CVAE
from vaelab.training import descend, fit

BATCH, STEPS, ROUNDS = 128, 400, 7


def images() -> data.Split:
    """MNIST's training images, binarised once: what is measured is the loop, not the draw."""
    try:
        split = data.load("mnist").train
    except data.Unavailable:
        print("MNIST is not at hand: random images of the same shape instead")
        split = data.Split(torch.rand(60000, 1, 28, 28, device=device()), torch.randint(10, (60000,), device=device()))
    return data.Split((split.images > 0.5).float(), split.labels)


def fresh():
    torch.manual_seed(0)
    model = CVAE(28, 10, latent_dim=20, hidden=(400,)).to(device())
    return model, torch.optim.Adam(model.parameters())


def bare(split: data.Split):
    model, optimiser = fresh()
    x, y = split[torch.arange(BATCH)]

    def go(steps):
        for _ in range(steps):
            loss = model(x, y).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    return go


def ours(split: data.Split):
    model, optimiser = fresh()
    batches = data.Shuffle(len(split), BATCH, device=split.labels.device)
    step = descend(lambda t: model(*split[batches(t)]), optimiser)
    return lambda steps: fit(step, steps)


def loader(split: data.Split):
    """As in the usual tutorial: per-sample conversion in the data set, collation, one `.item()` a step."""
    model, optimiser = fresh()
    dataset = Uint8Images(split)
    batches = DataLoader(dataset, BATCH, shuffle=True, drop_last=True)

    def go(steps):
        total = 0.0
        for _, (x, y) in zip(range(steps), batches):
            loss = model(x.to(device()), y.to(device())).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()

    return go


class Uint8Images(TensorDataset):
    """What torchvision's MNIST does for every sample: bytes to a PIL image, and `ToTensor`."""

    def __init__(self, split: data.Split):
        from torchvision.transforms import ToTensor

        super().__init__((split.images[:, 0] * 255).to(torch.uint8).cpu(), split.labels.cpu())
        self.transform = ToTensor()

    def __getitem__(self, row):
        from PIL import Image

        image, label = super().__getitem__(row)
        return self.transform(Image.fromarray(image.numpy())), int(label)


def main() -> None:
    split = images()
    contestants = {"bare": bare(split), "vaelab": ours(split), "loader": loader(split)}
    for go in contestants.values():
        go(STEPS)  # warm up
    times = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, go in contestants.items():
            times[name].append(seconds(go, STEPS))
    for name, t in times.items():
        print(f"{name:8s} {1e3 * statistics.median(t) / STEPS:7.3f} ms a step")
    of_bare = statistics.median(b / v for b, v in zip(times["bare"], times["vaelab"]))
    to_loader = statistics.median(d / v for d, v in zip(times["loader"], times["vaelab"]))
    print(f"vaelab runs at {of_bare:.3f} of the bare minimum (target 0.95)")
    print(f"vaelab runs at {to_loader:.2f} times the DataLoader loop (target 2)")


if __name__ == "__main__":
    main()
