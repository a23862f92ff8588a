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


class ConditionalMLP(nn.Module):
    """An MLP of an input and a condition that broadcast against each other: K conditions cost one look at the input.

    a (..., inputs) and b (..., conditions) -> (..., outputs)

    Its first layer is one Linear over both, applied to each apart and then added. With a of shape (N, 1, inputs) and b
    of shape (K, conditions), the product with a, dear for an image, is worked out N times instead of N K times.

    Args:
        inputs, conditions: lengths of a and b; with `conditions=0` there is no b.
        hidden, outputs: widths of the hidden layers (at least one) and of what is returned.
        batch_norm: normalise each hidden layer before its ReLU, over all leading axes together.
    """

    def __init__(
        self, inputs: int, conditions: int, hidden: tuple[int, ...], outputs: int, batch_norm: bool = False
    ):
        super().__init__()
        self.inputs = inputs
        self.first = nn.Linear(inputs + conditions, hidden[0])
        layers: list[nn.Module] = []
        for width, after in zip(hidden, (*hidden[1:], outputs)):
            layers += [nn.BatchNorm1d(width)] if batch_norm else []
            layers += [nn.ReLU(), nn.Linear(width, after)]
        self.rest = nn.Sequential(*layers)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        weight = self.first.weight  # (hidden, inputs + conditions)
        h = F.linear(a, weight[:, : self.inputs], self.first.bias)
        if b is not None:
            h = h + F.linear(b, weight[:, self.inputs :])  # (..., hidden), broadcast
        leading = h.shape[:-1]
        return self.rest(h.flatten(0, -2)).unflatten(0, leading)  # batch norm takes rows


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return (N, num_classes) float32 indicators of (N,) int64 labels.

    Raises:
        ValueError: a label outside [0, num_classes).
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels span [{low}, {high}]; they must lie in [0, {num_classes})")
    return F.one_hot(labels, num_classes).float()


def one_hot_planes(y: Tensor, height: int, width: int, num_classes: int = 10) -> Tensor:
    """Return labels as pictures: (N,) int64 -> (N, num_classes, height, width) float32.

    Plane k of an image is one everywhere if k is its label, and zero everywhere otherwise, so that a
    convolution sees the label at every pixel.

    Raises:
        ValueError: no labels, a label outside [0, num_classes), or a height or width below 1.

    >>> one_hot_planes(torch.tensor([1]), 2, 2, num_classes=2)[0].tolist()
    [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]
    """
    if not len(y):
        raise ValueError("y is empty; planes need at least one label")
    if height < 1 or width < 1:
        raise ValueError(f"height is {height}, width is {width}; both must be at least 1")
    return one_hot(y, num_classes)[:, :, None, None].expand(-1, -1, height, width)  # (N, K) -> (N, K, h, w)


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


class ConvGenerator(nn.Module):
    """Map codes and labels to images of 28 x 28.

    z (N, latent_dim) and y (N,) int64 -> images (N, 1, 28, 28) in [0, 1]

    Two dense layers, then two transposed convolutions; batch normalisation after each but the last.
    After the generator of InfoGAN (Chen et al. 2016, appendix C.1), to which `width` = 1 corresponds.

    Args:
        num_classes, latent_dim: lengths of the one-hot label and of the code.
        width: scales all layers: 1024 units, then 128 and 64 channels, times this.

    Raises:
        ValueError: a width that leaves a layer without a channel.
    """

    def __init__(self, num_classes: int = 10, latent_dim: int = 62, width: float = 1.0):
        super().__init__()
        self.num_classes, self.latent_dim = num_classes, latent_dim
        units, wide, narrow = _scaled(width, 1024, 128, 64)
        self.net = nn.Sequential(
            nn.Linear(latent_dim + num_classes, units), nn.BatchNorm1d(units), nn.ReLU(),
            nn.Linear(units, wide * 49), nn.BatchNorm1d(wide * 49), nn.ReLU(),
            nn.Unflatten(1, (wide, 7, 7)),
            nn.ConvTranspose2d(wide, narrow, 4, 2, 1), nn.BatchNorm2d(narrow), nn.ReLU(),  # (N, narrow, 14, 14)
            nn.ConvTranspose2d(narrow, 1, 4, 2, 1), nn.Sigmoid(),                          # (N, 1, 28, 28)
        )  # fmt: skip

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([z, one_hot(y, self.num_classes)], dim=1))


class ConvDiscriminator(nn.Module):
    """Say of 28 x 28 images whether they are real ones of their labels.

    x (N, 1, 28, 28) and y (N,) int64 -> logits (N,), above zero: real

    Three parts follow each other, and the label joins the input of one of them: `planes`, two convolutions, where it
    comes as pictures; `dense`, a layer of units on their features; `late`, a head with one hidden layer.
    All else is the same; at `width` 1 the label costs 10240, 10240 or 5120 of 7.1 million weights.
    The first two parts are those of InfoGAN's discriminator (Chen et al. 2016, appendix C.1), which has batch
    normalisation in both; here the dense layer has it only if asked for.

    Args:
        num_classes: length of the one-hot label.
        width: scales all layers: 64 and 128 channels, 1024 and 512 units, times this.
        label_at: "planes", "dense" or "late".
        dense_norm: whether the dense layer is batch-normalised.

    Raises:
        ValueError: another place, or a width that leaves a layer without a channel.
    """

    def __init__(
        self, num_classes: int = 10, width: float = 1.0, label_at: str = "planes", dense_norm: bool = False
    ):
        super().__init__()
        if label_at not in ("planes", "dense", "late"):
            raise ValueError(f"label_at is {label_at!r}; it must be 'planes', 'dense' or 'late'")
        self.num_classes, self.label_at = num_classes, label_at
        narrow, wide, units, head = _scaled(width, 64, 128, 1024, 512)
        planes, dense, late = (num_classes * (label_at == place) for place in ("planes", "dense", "late"))
        norm = [nn.BatchNorm1d(units)] if dense_norm else []
        self.parts = nn.ModuleDict({
            "planes": nn.Sequential(
                nn.Conv2d(1 + planes, narrow, 4, 2, 1), nn.LeakyReLU(0.2),                  # (N, narrow, 14, 14)
                nn.Conv2d(narrow, wide, 4, 2, 1), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2),  # (N, wide, 7, 7)
                nn.Flatten(),
            ),
            "dense": nn.Sequential(nn.Linear(wide * 49 + dense, units), *norm, nn.LeakyReLU(0.2)),
            "late": nn.Sequential(nn.Linear(units + late, head), nn.ReLU(), nn.Linear(head, 1)),
        })  # fmt: skip

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for place, part in self.parts.items():
            if place == self.label_at:
                planes = x.ndim == 4  # pictures beside a picture, numbers beside numbers
                joined = one_hot_planes(y, *x.shape[2:], self.num_classes) if planes else one_hot(y, self.num_classes)
                x = torch.cat([x, joined], dim=1)
            x = part(x)
        return x.squeeze(1)  # (N, 1) -> (N,)


def _scaled(width: float, *counts: int) -> list[int]:
    """Return layer sizes times a width."""
    sizes = [round(width * count) for count in counts]
    if min(sizes) < 1:
        raise ValueError(f"width is {width}; it must leave every layer at least one channel of {counts}")
    return sizes
