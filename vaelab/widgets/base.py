"""What every slider shares: its JavaScript, its style, its still picture."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image

HERE = Path(__file__).parent


class Slider(anywidget.AnyWidget):
    """A figure with controls that computes in the browser: in JupyterLab, in Colab, in the rendered page.

    A slider is a Python module with a JavaScript module of the same name beside it: `latent.py`, `latent.js`.
    Its script is `kit.js` followed by that module.
    Its style is `kit.css` followed by `<name>.css` where there is one.

    Raises:
        FileNotFoundError: When a direct subclass has no JavaScript module beside it.
    """

    alt = traitlets.Unicode(help="what the slider shows, for who cannot see it").tag(sync=True)

    def __init_subclass__(cls, **kwargs: object) -> None:
        if "_esm" not in cls.__dict__:  # anywidget makes each instance a class, whose trait it is
            cls._load_script()
        super().__init_subclass__(**kwargs)

    @classmethod
    def _load_script(cls) -> None:
        source = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or "notebook.py")
        script, style = source.with_suffix(".js"), source.with_suffix(".css")
        if script.is_file():
            cls._esm = _read(HERE / "kit.js") + _read(script)
            cls._css = _read(HERE / "kit.css") + (_read(style) if style.is_file() else "")
        elif not hasattr(cls, "_esm"):
            raise FileNotFoundError(f"{cls.__name__} needs its JavaScript in {script}")

    def still(self) -> np.ndarray | None:
        """Return the figure as it stands, or None: (height, width), ink in [0, 1].

        Viewers that run no widgets (GitHub, a printer) show it instead.
        """
        return None

    # ipywidgets 7 shows itself by this method, past the bundle below; None lets IPython go on to the bundle.
    _ipython_display_ = None

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict] | None:
        """Widget view, description and still picture; a viewer takes the first of these that it can show."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        data["text/plain"] = self.alt
        ink = self.still()
        if ink is not None:
            data["image/png"] = png(ink)
        return data, metadata


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def png(ink: np.ndarray, scale: int = 2) -> bytes:
    """Encode ink in [0, 1], (height, width), as a greyscale PNG, black on white, each pixel `scale` wide."""
    grey = np.round(255 * (1 - np.clip(ink, 0, 1))).astype(np.uint8)
    image = Image.fromarray(grey).resize((grey.shape[1] * scale, grey.shape[0] * scale), Image.NEAREST)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def pack_float16(name: str, arrays: Iterable[np.ndarray]) -> bytes:
    """Pack arrays, one after the other, as little-endian float16: half the size, and 3 decimal digits.

    Raises:
        ValueError: When a number is not finite or too large for float16 (beyond ±65504).

    >>> pack_float16("weights", [np.array([1.0, -2.0])]).hex()
    '003c00c0'
    """
    numbers = np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays])
    with np.errstate(over="ignore"):
        halves = numbers.astype("<f2")
    bad = numbers[~np.isfinite(halves)]
    if bad.size:
        raise ValueError(f"{name} must be finite and within ±65504 (float16), but holds {bad[0]:g}")
    return halves.tobytes()
