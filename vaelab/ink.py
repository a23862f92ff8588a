"""Clips of drifting ink splats, drawn: colour frames whose correlation in time is a parameter.

What makes a frame is a vector of standard normal factors: hues, wave vectors, positions, radii, ... In a clip
every factor is a stationary AR(1) process, so that a frame's distribution does not depend on the correlation
between frames. The drawing is separable in x and y wherever it can be, so that frames are matrix products.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelab import files

CORRELATION = 0.98  # of the fast factors between neighbouring frames
CLASS_NAMES = ("red", "gold", "lime", "green", "cyan", "blue", "violet", "pink")
WAVES, SPLATS, LOBES = 5, 6, 6  # LOBES is the most that a splat has; the fewest are 3
INK = (0, 0, 1, 0, 0, 1)  # the ink of each splat in the order of painting: more of the first, so that it can be told
SLOW = {"hue": 2, "ground_hue": 2, "light": 2, "waves": 2 * WAVES, "phases": 2 * WAVES, "lobes": SPLATS}
FAST = {"pan": 2, "places": 2 * SPLATS, "radii": SPLATS, "turns": 2 * SPLATS, "reaches": SPLATS * LOBES}
SLOWNESS = 50  # slow factors take this many times longer to forget than fast ones

_RECIPE = repr((WAVES, SPLATS, LOBES, INK, SLOW, FAST, SLOWNESS))


def draw(
    clips: int, frames: int = 32, size: int = 33, seed: int = 0, correlation: float = CORRELATION
) -> tuple[Tensor, Tensor]:
    """Draw clips of ink splats on a textured ground.

    Clip k depends on the seed and k alone, and its first frames not on how many follow. The arithmetic is in
    double precision and rounded to 8 bits, so that another processor hardly ever changes a pixel, and then by 1.

    Args:
        clips: how many clips.
        frames: frames of a clip.
        size: side in pixels, odd and at least 17; a larger size shows the same scene, finer.
        seed: decides all draws.
        correlation: of the fast factors (positions, radii, panning) between neighbouring frames; the slow ones
            (palette, waves, number of lobes) have correlation ** (1 / 50). 0 gives independent frames.

    Returns:
        Frames (clips * frames, 3, size, size), uint8, and labels (clips * frames,), int64: the octant of the first
        ink's hue, see `CLASS_NAMES`. Rows are in clip order: row // frames is the clip.

    Raises:
        ValueError: a count below 1, a size that is even or below 17, a correlation outside [0, 1).

    >>> images, labels = draw(clips=2, frames=3, size=17)
    >>> images.shape, images.dtype, labels.shape
    (torch.Size([6, 3, 17, 17]), torch.uint8, torch.Size([6]))
    """
    _check(clips, frames, size, correlation)
    images = torch.empty(clips * frames, 3, size, size, dtype=torch.uint8)
    labels = torch.empty(clips * frames, dtype=torch.int64)
    f = factors(clips, frames, seed, correlation).flatten(0, 1)  # (N, d)
    chunk = max(1, 2**16 // size**2)  # small enough to stay in the processor's cache
    with _one_thread():
        for rows in torch.arange(len(f)).split(chunk):
            scene = dict(zip(SLOW | FAST, f[rows].split(list((SLOW | FAST).values()), dim=1), strict=True))
            images[rows] = (_frames(scene, size) * 255).round().to(torch.uint8)
            labels[rows] = (_angle(scene["hue"]) * 8 / math.tau).round().long().remainder(8).squeeze(1)
    return images, labels


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Work on one thread: on a busy machine, threads that wait for each other after every small step take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(clips: int, frames: int, size: int, correlation: float) -> None:
    if clips < 1 or frames < 1:
        raise ValueError(f"clips is {clips}, frames is {frames}; both must be at least 1")
    if size < 17 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd and at least 17")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation is {correlation}; it must be at least 0 and below 1")


def factors(clips: int, frames: int, seed: int, correlation: float) -> Tensor:
    """Return the factors (clips, frames, d), float64: standard normal, AR(1) along the frames, slow ones first."""
    slow, fast = sum(SLOW.values()), sum(FAST.values())
    noise = [np.random.default_rng((seed, clip)).standard_normal((frames, slow + fast)) for clip in range(clips)]
    f = torch.from_numpy(np.stack(noise))  # (clips, frames, d)
    c = torch.tensor([correlation ** (1 / SLOWNESS)] * slow + [correlation] * fast, dtype=torch.float64)  # (d,)
    for t in range(1, frames):
        f[:, t] = c * f[:, t - 1] + (1 - c**2).sqrt() * f[:, t]
    return f


def _angle(f: Tensor) -> Tensor:
    """(n, 2 m) normal -> (n, m) uniform on the circle."""
    x, y = f.unflatten(1, (-1, 2)).unbind(-1)
    return torch.atan2(y, x)


def _between(low: float, high: float, f: Tensor) -> Tensor:
    """Normal -> uniform between two bounds."""
    return low + (high - low) * torch.special.ndtr(f)


def _frames(scene: dict[str, Tensor], size: int) -> Tensor:
    """Return frames (n, 3, size, size) in [0, 1]: the ground, then the splats painted over it one by one."""
    x = torch.linspace(-0.5, 0.5, size, dtype=torch.float64)  # the side is 1, in both directions
    texture = _texture(scene, x)  # (n, h, w)
    cover, inks = torch.ones_like(texture), [torch.zeros_like(texture) for _ in range(2)]
    for ink, opacity in zip(INK, _splats(scene, x).unbind(1), strict=True):
        for layer in (cover, *inks):
            layer -= layer * opacity
        inks[ink] += opacity
    parts = torch.stack([cover * texture, cover - cover * texture, *inks], dim=1)  # (n, 4, h, w), they sum to 1
    return (_palette(scene) @ parts.flatten(2)).unflatten(2, texture.shape[1:])  # (n,3,4) (n,4,hw) -> (n,3,h,w)


def _texture(scene: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the share of the light ground colour (n, h, w): a panning sum of plane waves, squashed."""
    k = 0.9 * math.tau * scene["waves"].unflatten(1, (WAVES, 2))  # (n, waves, 2), about 0.9 cycles a side
    phase = _angle(scene["phases"]) - (k * 0.5 * scene["pan"].unsqueeze(1)).sum(-1)  # (n, waves)
    across, down = k[..., :1] * x + phase.unsqueeze(-1), k[..., 1:] * x  # (n, waves, w), (n, waves, h)
    # cos(a + b) = cos a cos b - sin a sin b
    waves = down.cos().mT @ across.cos() - down.sin().mT @ across.sin()  # (n, h, w)
    return (waves * (1.5 * math.sqrt(2 / WAVES))).tanh() / 2 + 0.5


def _splats(scene: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the opacity of every splat (n, splats, h, w): a body and its lobes are Gaussian bumps, cut softly."""
    place = _between(-0.45, 0.45, scene["places"]).unflatten(1, (SPLATS, 2)).unsqueeze(-1)  # (n, splats, 2, 1)
    radius = _between(0.08, 0.2, scene["radii"]).unsqueeze(-1)  # (n, splats, 1)
    lobes = _between(3, LOBES + 1, scene["lobes"]).floor().clamp(max=LOBES).unsqueeze(-1)  # (n, splats, 1)
    j = torch.arange(LOBES)
    angle = _angle(scene["turns"]).unsqueeze(-1) + math.tau * j / lobes  # (n, splats, lobes)
    reach = radius * _between(0.5, 1.1, scene["reaches"].unflatten(1, (SPLATS, LOBES)))
    bumps = place + reach.unsqueeze(2) * torch.stack([angle.cos(), angle.sin()], dim=2)  # (n, splats, 2, lobes)
    centre = torch.cat([place, bumps], dim=3)  # (n, splats, 2, 1 + lobes)
    width = radius * torch.tensor([0.55] + [0.32] * LOBES, dtype=torch.float64)  # (n, splats, 1 + lobes)
    gauss = torch.exp(-(((x - centre.unsqueeze(-1)) / width[:, :, None, :, None]) ** 2) / 2)  # (n,splats,2,1+lobes,w)
    there = torch.cat([torch.ones_like(radius), (j < lobes).double()], dim=2).unsqueeze(-1)
    field = (gauss[:, :, 1] * there).mT @ gauss[:, :, 0]  # (n, splats, h, w)
    return torch.sigmoid(12 * (field - 0.5))


def _palette(scene: dict[str, Tensor]) -> Tensor:
    """Return the colours (n, 3, 4): light ground, dark ground, first ink and second, complementary ink."""
    ground, hue = _angle(scene["ground_hue"]), _angle(scene["hue"])  # (n, 1)
    light = _between(0.7, 1.0, scene["light"][:, :1])
    dark = _between(0.1, 0.4, scene["light"][:, 1:])
    hues = torch.cat([ground, ground + 1.0, hue, hue + math.pi], dim=1).unsqueeze(1)  # (n, 1, 4)
    values = torch.cat([light, dark, torch.ones_like(hue), torch.full_like(hue, 0.8)], dim=1).unsqueeze(1)
    saturations = torch.tensor([0.35, 0.6, 0.95, 0.95], dtype=torch.float64)
    primaries = torch.arange(3, dtype=torch.float64).view(3, 1) * (math.tau / 3)  # red, green, blue
    return values * (1 - saturations * (1 - torch.cos(hues - primaries)) / 2)


# Kept on disk


def kept(
    folder: str | Path, clips: int, frames: int = 32, size: int = 33, seed: int = 0, correlation: float = CORRELATION
) -> tuple[Tensor, Tensor]:
    """Return what `draw` returns, read from `folder` if an earlier call has left it there, else left there.

    The name of the file, `ink-<fingerprint>.npz`, follows from the code that draws and from the arguments.
    A damaged file is drawn anew.
    """
    _check(clips, frames, size, correlation)
    path = Path(folder) / f"ink-{_fingerprint(clips, frames, size, seed, correlation)}.npz"
    found = _read(path, (clips * frames, 3, size, size))
    if found is None:
        found = draw(clips, frames, size, seed, correlation)
        _keep(path, *found)
    return found


def _fingerprint(*arguments: float) -> str:
    code = map(inspect.getsource, (draw, factors, _angle, _between, _frames, _texture, _splats, _palette))
    return hashlib.sha256("\n".join([repr(arguments), _RECIPE, *code]).encode()).hexdigest()[:16]


def _read(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """Return images and labels; None if they are not there or damaged, which the checksum of zip tells."""
    try:
        with np.load(path, allow_pickle=False) as found:
            images, labels = torch.from_numpy(found["images"]), torch.from_numpy(found["labels"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return None
    kinds = (images.shape, images.dtype, labels.shape, labels.dtype)
    return (images, labels) if kinds == (shape, torch.uint8, shape[:1], torch.int64) else None


def _keep(path: Path, images: Tensor, labels: Tensor) -> None:
    content = io.BytesIO()
    np.savez(content, images=images.numpy(), labels=labels.numpy())
    try:
        files.write_whole(path, content.getvalue())
    except OSError as error:
        warnings.warn(f"the ink frames could not be kept and will be drawn again next time: {error}", stacklevel=3)
