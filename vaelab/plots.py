"""Pictures, in one house style.

Figures have a transparent ground and mid-grey lettering, so that they read on a white page and on a dark one.
Colours are those of Okabe and Ito (2008), which stay apart without colour vision; lines differ in marker too.
Every figure is shown through `show`, which asks for its text alternative.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.colors
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vaelab.ledger import Interval, mean_interval
from vaelab.metrics import GroupReport, effective_groups

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#7a7a7a"  # contrast above 4:1 on white and on the dark theme's ground

_STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "legend.labelcolor": INK,
    "font.size": 10.5, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": INK, "grid.alpha": 0.25, "grid.linewidth": 0.6,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "lines.linewidth": 1.8, "image.cmap": "gray",
}  # fmt: skip

matplotlib.rcParams.update(_STYLE)  # for good: legends and titles take their style when they are made


def subplots(rows: int = 1, columns: int = 1, width: float = 7.2, height: float = 3.0) -> tuple[Figure, np.ndarray]:
    """Return a figure in the house style and its axes as an array (rows, columns); sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(figure: Figure, alt: str) -> None:
    """Display a figure as PNG together with its text alternative.

    Args:
        alt: what the picture shows, for those who do not see it. Not what it means: the text says that.

    Raises:
        ValueError: no text alternative.
    """
    if not alt.strip():
        raise ValueError("alt is empty; say what the figure shows")
    from IPython.display import Image, display

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    width = int(figure.get_figwidth() * 100)
    display(Image(content.getvalue(), format="png", width=width, metadata={"alt": " ".join(alt.split())}))


def tile(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Lay images in [0, 1], grey (N, 1, h, w) or red, green, blue (N, 3, h, w), out in rows of `columns`.

    Returns:
        (rows * (h + gap) - gap, columns * (w + gap) - gap, channels + 1) float32: colour and opacity, 0 in the gaps.

    Raises:
        ValueError: images with another number of channels.
    """
    count, channels, h, w = images.shape
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels; 1 (grey) or 3 (red, green, blue) can be shown")
    rows = -(-count // columns)
    canvas = np.zeros((rows * (h + gap), columns * (w + gap), channels + 1), dtype=np.float32)
    for i, image in enumerate(images.detach().cpu().clamp(0, 1).numpy()):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = np.stack([*image, np.ones((h, w))], axis=-1)
    return canvas[:-gap, :-gap] if gap else canvas


def image_grid(axes: Axes, images: Tensor, columns: int, title: str = "") -> None:
    """Draw images in [0, 1], (N, 1, h, w) grey or (N, 3, h, w) in colour, into axes, in rows of `columns`."""
    *colour, opacity = np.moveaxis(tile(images, columns), -1, 0)
    axes.imshow(np.stack([*(colour if len(colour) == 3 else colour * 3), opacity], axis=-1), interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def curves(axes: Axes, x: Sequence[float], series: Mapping[str, np.ndarray], band: bool = True) -> None:
    """Draw one line per name, mean over seeds, with the band from the lowest to the highest seed.

    Args:
        x: (points,). series: name -> (seeds, points).
    """
    _enough_colours(series)
    for (name, values), colour, marker in zip(series.items(), COLOURS, MARKERS):
        axes.plot(x, values.mean(0), color=colour, marker=marker, markersize=4, label=name)
        if band and len(values) > 1:
            axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)


def intervals(
    axes: Axes, ticks: Sequence[str], series: Mapping[str, Sequence[np.ndarray]], joined: bool = True
) -> None:
    """Draw, at every tick, every seed as a faint dot and their mean with its 95 % interval as a bar.

    Args:
        ticks: names along the axis. series: name -> one array (seeds,) for each tick.
        joined: whether a line joins the means; not where the ticks are names without an order.
    """
    _enough_colours(series)
    for k, (name, groups) in enumerate(series.items()):
        x = np.arange(len(ticks)) + 0.18 * (k - (len(series) - 1) / 2)  # side by side
        means: list[Interval] = [mean_interval(values) for values in groups]
        for position, values in zip(x, groups):
            axes.plot(np.full(len(values), position), values, ".", color=COLOURS[k], alpha=0.35, markersize=6)
        y = np.array([m.mean for m in means])
        bars = [y - [m.low for m in means], [m.high for m in means] - y]
        style = {"fmt": MARKERS[k] + "-" * joined, "color": COLOURS[k], "capsize": 3, "markersize": 5, "linewidth": 1.2}
        axes.errorbar(x, y, bars, label=name, **style)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)


def group_portrait(
    at: Sequence[float], kl_groups: np.ndarray, sides: Sequence[int], report: GroupReport, until: float | None = None
) -> Figure:
    """Return one picture of a hierarchical model's latent groups: KL in all and per unit, effective groups, dead ones.

    Args:
        at: (k,) steps, ascending. kl_groups: (k, G) KL of each group then, nats, top group first.
        sides: (G,) side of each group's map, for the labels. report: the groups at the end of training.
        until: a step to mark in every panel over time, such as the end of balancing.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    kl_groups = np.asarray(kl_groups, dtype=float)
    count = len(report.kl)
    if kl_groups.shape != (len(at), count) or len(sides) != count:
        raise ValueError(f"kl_groups is {kl_groups.shape}, with {len(at)} steps, {len(sides)} sides, {count} groups")
    figure, axes = subplots(2, 2, width=9.0, height=1.9 + 0.42 * count)
    names = [f"{i}: {side}×{side}" for i, side in enumerate(sides, 1)]
    _group_map(axes[0, 0], at, kl_groups, names, "KL of a group, nats", (0.1, 30.0))
    _group_map(axes[0, 1], at, kl_groups / report.units.numpy(), names, "KL per unit, nats", (0.003, 1.0))
    axes[1, 0].plot(at, [effective_groups(torch.from_numpy(kl)) for kl in kl_groups], color=COLOURS[0])
    axes[1, 0].set(title=f"Effective groups, of {count}", xlabel="step", ylim=(0, count + 0.3))
    for ax in (axes[0, 0], axes[0, 1], axes[1, 0]):
        ax.set_xlim(at[0], at[-1])
        if until is not None:
            ax.axvline(until, color=INK, linestyle=":", linewidth=1.6)
    _active_bars(axes[1, 1], names, report)
    return figure


def _group_map(
    axes: Axes, at: Sequence[float], values: np.ndarray, names: Sequence[str], title: str, limits: tuple[float, float]
) -> None:
    """Draw (k, G) values as colours over time, the top group in the top row."""
    edges = np.concatenate([[at[0]], (np.asarray(at[1:]) + np.asarray(at[:-1])) / 2, [at[-1]]])  # (k + 1,)
    norm = matplotlib.colors.LogNorm(*limits, clip=True)
    mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), values.T, norm=norm, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30).outline.set_visible(False)
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set(title=title, xlabel="step")


def _active_bars(axes: Axes, names: Sequence[str], report: GroupReport) -> None:
    """Draw the share of active units of each group, and say which groups are dead."""
    share = (report.active / report.units).numpy()
    places = np.arange(len(names))
    axes.barh(places, share, color=COLOURS[2], height=0.7)
    for i, (active, units) in enumerate(zip(report.active.tolist(), report.units.tolist())):
        dead = "  dead" if i + 1 in report.dead else ""
        axes.text(share[i] + 0.02, i, f"{active} of {units}{dead}", va="center", fontsize=9)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set(title="Share of active units at the end", xlim=(0, 1.45), xticks=(0, 0.5, 1))


def _enough_colours(series: Mapping) -> None:
    if len(series) > len(COLOURS):
        raise ValueError(f"series has {len(series)} names; there are colours for {len(COLOURS)}")


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images in [0, 1] as bytes, for small records: (N, channels, h, w) float -> the same in uint8."""
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def from_uint8(images: np.ndarray) -> Tensor:
    """Undo `to_uint8`: (N, channels, h, w) uint8 -> float32 in [0, 1]."""
    return torch.from_numpy(images).float() / 255
