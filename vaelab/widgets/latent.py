"""LatentExplorer: pick a class, move two latent coordinates, watch a trained decoder draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import traitlets
from torch import nn

from vaelab.widgets.base import Slider, pack_float16

ALT = (
    "A trained decoder draws one picture for each class, all from the same latent code; "
    "two sliders move two coordinates of the code."
)


class LatentExplorer(Slider):
    """A decoder p(x | z, y) that runs in the browser: sliders for two coordinates of z, a button for each y.

    All classes are drawn at the same z, so what z holds (style) is seen to carry over from class to class.
    A decoder is a module with attributes `latent_dim`, `num_classes` and `net`.
    `net` is an `nn.Sequential` of `nn.Linear` and `nn.ReLU` in turn, ending with `nn.Linear`,
    from z and the one-hot label, (B, latent_dim + num_classes), to a square picture's logits, (B, side²).

    Args:
        decoders: One or several of the same shape, by the name that the reader picks them by.
        axes: The two coordinates of z that get a slider, counted from 0; readers see z₁, z₂, …, as in the text.
        class_names: A name for each class; its number where None.
        choice_label: What the names of the decoders say about them.
        alt: A description for who cannot see the figure.

    Attributes:
        label, choice, z: What the reader picked: the class, the decoder's name, the code (latent_dim numbers).
            Setting them moves the figure.

    Raises:
        ValueError: When decoders are missing, not of the kind above or not all of one shape;
            when weights do not fit float16; when axes, class_names, label, choice or z are out of range.
    """

    label = traitlets.Int(0).tag(sync=True)
    choice = traitlets.Unicode().tag(sync=True)
    z = traitlets.List(traitlets.Float()).tag(sync=True)

    # What the browser needs to draw; fixed once the slider is made.
    weights = traitlets.Bytes().tag(sync=True)  # all decoders' layers: (in, out) weights, then (out,) biases
    widths = traitlets.List(traitlets.Int()).tag(sync=True)  # latent_dim + num_classes, hidden …, side²
    choices = traitlets.List(traitlets.Unicode()).tag(sync=True)
    choice_label = traitlets.Unicode().tag(sync=True)
    class_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    axes = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        decoders: Mapping[str, nn.Module],
        axes: Sequence[int] = (0, 1),
        class_names: Sequence[str] | None = None,
        choice_label: str = "Trained on",
        alt: str = ALT,
    ) -> None:
        widths, latent_dim, num_classes = _common_shape(decoders)
        packed = [pack_float16(f"decoders[{name!r}]", _arrays(decoder)) for name, decoder in decoders.items()]
        super().__init__(
            weights=b"".join(packed),
            widths=widths,
            choices=list(decoders),
            choice=next(iter(decoders)),
            choice_label=choice_label,
            class_names=_checked_names(class_names, num_classes),
            z=[0.0] * latent_dim,
            axes=_checked_axes(axes, latent_dim),
            alt=alt,
        )

    def pixels(self, choice: str, z: Sequence[float], label: int) -> np.ndarray:
        """Return what the browser draws: (side, side), in [0, 1], from the float16 weights."""
        numbers = np.frombuffer(self.weights, dtype="<f2").astype(np.float32)
        numbers = np.split(numbers, len(self.choices))[self.choices.index(choice)]
        onehot = np.eye(len(self.class_names))[label]
        x = np.concatenate([z, onehot]).astype(np.float32)  # (latent_dim + num_classes,)
        for width in self.widths[1:]:
            cut = len(x) * width
            weight, bias, numbers = np.split(numbers, [cut, cut + width])
            logits = x @ weight.reshape(len(x), width) + bias  # (in,) -> (out,)
            x = np.maximum(logits, 0)
        side = math.isqrt(self.widths[-1])
        return (0.5 * (1 + np.tanh(0.5 * logits))).reshape(side, side)  # (side²,) -> (side, side)

    def still(self) -> np.ndarray:
        """Return every class at the present z, a row for each decoder: (decoders · side, classes · side)."""
        labels = range(len(self.class_names))
        return np.block([[self.pixels(choice, self.z, label) for label in labels] for choice in self.choices])

    @traitlets.validate("label")
    def _check_label(self, proposal: dict) -> int:
        if self.class_names and not 0 <= proposal["value"] < len(self.class_names):
            raise ValueError(f"label must be in 0 … {len(self.class_names) - 1}, got {proposal['value']}")
        return proposal["value"]

    @traitlets.validate("choice")
    def _check_choice(self, proposal: dict) -> str:
        if self.choices and proposal["value"] not in self.choices:
            raise ValueError(f"choice must be one of {self.choices}, got {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("z")
    def _check_z(self, proposal: dict) -> list[float]:
        value, latent_dim = proposal["value"], (self.widths or [0])[0] - len(self.class_names)
        if len(value) != latent_dim or not all(map(math.isfinite, value)):
            raise ValueError(f"z must hold {latent_dim} finite numbers, got {value}")
        return value


def _checked_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    if class_names is None:
        return [str(label) for label in range(num_classes)]
    if len(class_names) != num_classes:
        raise ValueError(f"class_names must hold {num_classes} names, one a class, got {len(class_names)}")
    return list(class_names)


def _checked_axes(axes: Sequence[int], latent_dim: int) -> list[int]:
    axes = [int(axis) for axis in axes]
    if len(set(axes)) != 2 or len(axes) != 2 or not all(0 <= axis < latent_dim for axis in axes):
        raise ValueError(f"axes must be two different coordinates in 0 … {latent_dim - 1}, got {tuple(axes)}")
    return axes


def _common_shape(decoders: Mapping[str, nn.Module]) -> tuple[list[int], int, int]:
    """Return (widths, latent_dim, num_classes), the same for all decoders."""
    if not decoders:
        raise ValueError("decoders must hold at least one decoder, got none")
    shapes = {name: _shape(name, decoder) for name, decoder in decoders.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(
                "decoders must all have the same (widths, latent_dim, num_classes), "
                f"but {first!r} has {shapes[first]} and {name!r} has {shape}"
            )
    return shapes[first]


def _shape(name: str, decoder: nn.Module) -> tuple[list[int], int, int]:
    layers = list(decoder.net)
    kinds = [nn.ReLU if i % 2 else nn.Linear for i in range(len(layers))]
    has_biases = all(getattr(layer, "bias", None) is not None for layer in layers[::2])
    if len(layers) % 2 == 0 or not all(map(isinstance, layers, kinds)) or not has_biases:
        allowed = "Linear, ReLU, …, Linear with biases"
        raise ValueError(f"decoders[{name!r}].net must be {allowed}, got {decoder.net}")
    widths = [layers[0].in_features] + [layer.out_features for layer in layers[::2]]
    inputs = decoder.latent_dim + decoder.num_classes
    if widths[0] != inputs or math.isqrt(widths[-1]) ** 2 != widths[-1]:
        raise ValueError(
            f"decoders[{name!r}].net must map latent_dim + num_classes = {inputs} numbers "
            f"to a square picture, got {widths[0]} to {widths[-1]}"
        )
    return widths, decoder.latent_dim, decoder.num_classes


def _arrays(decoder: nn.Module) -> list[np.ndarray]:
    """Return weights, transposed to (in, out) as the browser walks them, and biases, layer by layer."""
    layers = [layer for layer in decoder.net if isinstance(layer, nn.Linear)]
    tensors = [tensor for layer in layers for tensor in (layer.weight.T, layer.bias)]
    return [tensor.detach().float().cpu().numpy() for tensor in tensors]
