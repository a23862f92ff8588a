"""Encoders, decoders and classifiers: what maps what to what, without a loss.

Every network states its shapes; what a network is trained for stands with the model in `vaelab.models`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return Linear and ReLU in turn, ending in a Linear: (..., inputs) -> (..., outputs).

    >>> mlp(3, (5,), 2)(torch.zeros(7, 3)).shape
    torch.Size([7, 2])
    """
    widths = (inputs, *hidden)
    layers = [m for a, b in zip(widths, widths[1:]) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return (N, num_classes) float32 indicators of (N,) int64 labels.

    Raises:
        ValueError: a label outside [0, num_classes).
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels span [{low}, {high}]; they must lie in [0, {num_classes})")
    return F.one_hot(labels, num_classes).float()


class MLPEncoder(nn.Module):
    """Map images and labels to the mean and log-variance of a diagonal Gaussian.

    x (N, 1, size, size) and y (N, num_classes) -> mu (N, latent_dim), logvar (N, latent_dim)
    """

    def __init__(self, size: int, num_classes: int, hidden: tuple[int, ...], latent_dim: int):
        super().__init__()
        self.net = mlp(size * size + num_classes, hidden, 2 * latent_dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        xy = torch.cat([x.flatten(1), y], dim=1)  # (N, size*size + num_classes)
        mu, logvar = self.net(xy).chunk(2, dim=1)
        return mu, logvar


class MLPDecoder(nn.Module):
    """Map codes and labels to the logits of a Bernoulli image.

    z (N, latent_dim) and y (N, num_classes) -> logits (N, 1, size, size)
    """

    def __init__(self, size: int, num_classes: int, hidden: tuple[int, ...], latent_dim: int):
        super().__init__()
        self.size, self.num_classes, self.latent_dim = size, num_classes, latent_dim
        self.net = mlp(latent_dim + num_classes, hidden, size * size)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        zy = torch.cat([z, y], dim=1)  # (N, latent_dim + num_classes)
        return self.net(zy).view(-1, 1, self.size, self.size)


class LeNet(nn.Module):
    """A small convolutional classifier; its 64 penultimate activations serve as features.

    x (N, 1, 28, 28) -> logits (N, num_classes). After LeCun et al. 1998, with ReLU and max-pooling.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),  # (N, 16, 14, 14)
            nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),            # (N, 32, 5, 5)
            nn.Flatten(), nn.Linear(800, 128), nn.ReLU(),
            nn.Linear(128, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))
