"""RunExplorer: walk along one knob through recorded runs, and train those that are missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import traitlets

from vaelab.widgets.base import Slider

ALT = (
    "Lines of one run over training; a slider steps through runs that differ in one setting, on axes that stay. "
    "Beside them the run's numbers, below them its pictures where it has any."
)


class Point(NamedTuple):
    """What was recorded at one position of the knob.

    A number that is not finite stands for one that was not recorded: lines break there.
    """

    x: np.ndarray  # (k,) finite, where the curves were measured
    curves: Mapping[str, np.ndarray]  # name -> (k,)
    numbers: Mapping[str, float] = {}  # a table's row, by name
    pictures: np.ndarray | None = None  # (N, height, width), ink, or (N, 3, height, width), red green blue; in [0, 1]
    mark: float | None = None  # where a vertical line stands on the x axis


class RunExplorer(Slider):
    """Recorded runs along one knob: a slider steps through them, and only the lines move.

    The axes hold all recorded points. A candidate that is not recorded stands on the slider too. In a live notebook a
    button trains it; in the rendered page, which has no kernel, a line says how to.

    Args:
        points: What was recorded, by the label of the knob's position.
        knob: What the slider is called, before the label: "balanced for" and "500 steps".
        x_label, y_label: What the axes show.
        log_y: Whether the y axis is logarithmic; what is not positive then lies on its floor.
        mark_label: What stands at each point's mark.
        picture_label: What stands over the pictures.
        columns: How many pictures stand side by side, 1 to 10, on any screen. None: up to 10, on narrow screens 5.
        train: Maps the label of a candidate to its point; called in the kernel, when the reader asks.
        candidates: All labels along the knob in order, recorded or not. None: those of points.
        alt: A description for who cannot see the figure.

    Attributes:
        label: The position that the reader picked. Setting it moves the figure.
        labels: All positions in order.
        asked: Setting it to a label that is not recorded trains it; it is empty again once that is done.
        problem: What went wrong with the last training, or nothing.

    Raises:
        ValueError: When points is empty or a point's arrays do not fit each other; when candidates repeat a label,
            are empty strings or lack a recorded label; when columns is not one of 1 to 10; when label or asked is none
            of labels.

    >>> explorer = RunExplorer({"0": Point([0, 1, 2], {"KL": [4, 2, 1]})}, candidates=["0", "500"])
    >>> explorer.labels, explorer.point("0").curves["KL"]
    (['0', '500'], array([4., 2., 1.], dtype=float32))
    """

    label = traitlets.Unicode().tag(sync=True)
    asked = traitlets.Unicode().tag(sync=True)  # by the browser, of Python
    training = traitlets.Unicode().tag(sync=True)  # Python's answer: it has begun
    problem = traitlets.Unicode().tag(sync=True)
    runs = traitlets.Dict().tag(sync=True)  # label -> packed point

    # Fixed once the slider is made.
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)  # a list: objects in the browser sort keys like "500"
    can_train = traitlets.Bool(False).tag(sync=True)
    knob = traitlets.Unicode().tag(sync=True)
    x_label = traitlets.Unicode().tag(sync=True)
    y_label = traitlets.Unicode().tag(sync=True)
    log_y = traitlets.Bool(False).tag(sync=True)
    mark_label = traitlets.Unicode().tag(sync=True)
    picture_label = traitlets.Unicode().tag(sync=True)
    columns = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(
        self,
        points: Mapping[str, Point],
        knob: str = "balanced for",
        x_label: str = "step",
        y_label: str = "KL, nats",
        log_y: bool = False,
        mark_label: str = "",
        picture_label: str = "Samples",
        train: Callable[[str], Point] | None = None,
        candidates: Sequence[str] | None = None,
        alt: str = ALT,
        columns: int | None = None,
    ) -> None:
        if not points:
            raise ValueError("points must hold at least one recorded point, got none")
        if columns is not None and not (isinstance(columns, int) and 1 <= columns <= 10):
            raise ValueError(f"columns must be a whole number from 1 to 10, or None, got {columns!r}")
        labels = _checked_labels(points, candidates)
        self._train = train
        super().__init__(
            labels=labels,
            runs={label: _pack(label, points[label]) for label in labels if label in points},
            label=next(label for label in labels if label in points),
            can_train=train is not None,
            knob=knob,
            x_label=x_label,
            y_label=y_label,
            log_y=log_y,
            mark_label=mark_label,
            picture_label=picture_label,
            columns=columns,
            alt=alt,
        )

    def point(self, label: str) -> Point:
        """Return a recorded point as the browser has it: in float32, its pictures in 256 steps.

        Raises:
            KeyError: When the label is not recorded.
        """
        run = self.runs[label]
        curves = {name: np.frombuffer(line, "<f4") for name, line in run["curves"]}
        numbers = {name: math.nan if value is None else value for name, value in run["numbers"]}
        pictures = np.frombuffer(run["pictures"], np.uint8).reshape(run["shape"]) / 255 if run["shape"] else None
        return Point(np.frombuffer(run["x"], "<f4"), curves, numbers, pictures, run["mark"])

    def still(self) -> np.ndarray:
        """Return the lines of the middle recorded point, lighter from line to line: (160, 320)."""
        recorded = [label for label in self.labels if label in self.runs]
        x, curves, _, _, mark = self.point(recorded[len(recorded) // 2])
        lines = np.stack(list(curves.values())).astype(float)  # (lines, k)
        if self.log_y:
            lines = np.log10(np.where(lines > 0, lines, np.nan))
        low, high = _span(lines if self.log_y else np.append(lines, 0))
        left, right = _span(x)
        order, columns = np.argsort(x), np.linspace(left, right, 316)
        ink = np.zeros((160, 320))
        for line, strength in zip(lines, np.linspace(1, 0.4, len(lines))):
            seen = order[np.isfinite(line[order])]
            if seen.size:
                rows = np.interp(columns, x[seen], 155 - 152 * (line[seen] - low) / (high - low)).round().astype(int)
                before = np.append(rows[:1], rows[:-1])
                for column, (a, b) in enumerate(zip(np.minimum(rows, before), np.maximum(rows, before))):
                    ink[a : b + 2, 4 + column] = np.maximum(ink[a : b + 2, 4 + column], strength)
        if mark is not None and left <= mark <= right:
            ink[::4, 4 + round(315 * (mark - left) / (right - left))] = 0.6
        ink[158:], ink[:, :2] = 0.6, 0.6  # the axes
        return ink

    @traitlets.observe("asked")
    def _answer(self, change: dict) -> None:
        """Train what the reader asked for, and add it; a failure is told, and leaves the rest as it is."""
        label = change["new"]
        if not label:
            return
        if label not in self.runs:
            self.problem, self.training = "", label
            try:
                if self._train is None:
                    raise RuntimeError("this slider was made without train")
                self.runs = {**self.runs, label: _pack(label, self._train(label))}
            except (Exception, KeyboardInterrupt) as error:  # who interrupts a long training keeps the slider
                self.problem = f"{label}: {type(error).__name__}: {error}".rstrip(": ")
            self.training = ""
        self.asked = ""

    @traitlets.validate("label", "asked")
    def _check_label(self, proposal: dict) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        if self.labels and value not in self.labels and not (name == "asked" and value == ""):
            raise ValueError(f"{name} must be one of {self.labels}, got {value!r}")
        return value


def _checked_labels(points: Mapping[str, Point], candidates: Sequence[str] | None) -> list[str]:
    labels = list(points if candidates is None else candidates)
    missing = [label for label in points if label not in labels]
    if missing:
        raise ValueError(f"candidates must hold all labels along the knob, but recorded {missing[0]!r} is not there")
    if len(set(labels)) != len(labels) or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"candidates must be different strings that are not empty, got {labels}")
    return labels


def _pack(label: str, point: Point) -> dict:
    """Return what travels; pairs, not dictionaries, because the browser would sort keys like "1".

    Numbers that are not finite travel as None, because JSON has no name for them.
    """
    if not isinstance(point, Point):
        raise ValueError(f"points[{label!r}] must be a Point, got {type(point).__name__}")
    x = np.asarray(point.x, dtype="<f4")
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"points[{label!r}].x must hold one finite number or more, got shape {x.shape}")
    curves = [(name, np.asarray(line, dtype="<f4")) for name, line in point.curves.items()]
    for name, line in curves:
        if line.shape != x.shape:
            raise ValueError(f"points[{label!r}].curves[{name!r}] must have x's shape {x.shape}, got {line.shape}")
    if not curves:
        raise ValueError(f"points[{label!r}].curves must hold at least one line, got none")
    numbers = [(name, float(value)) for name, value in point.numbers.items()]
    pixels, shape = _pack_pictures(label, point.pictures)
    return {
        "x": x.tobytes(),
        "curves": [[name, line.tobytes()] for name, line in curves],
        "numbers": [[name, value if math.isfinite(value) else None] for name, value in numbers],
        "pictures": pixels,
        "shape": shape,
        "mark": None if point.mark is None else float(point.mark),
    }


def _pack_pictures(label: str, pictures: np.ndarray | None) -> tuple[bytes | None, list[int]]:
    """Return a byte for each number, and the shape, which tells ink from colour; neither where there are none."""
    if pictures is None:
        return None, []
    values = np.asarray(pictures, dtype=float)
    low, high = (values.min(), values.max()) if values.size else (math.nan, math.nan)
    if not (values.ndim == 3 or values.ndim == 4 and values.shape[1] == 3) or not (low >= 0 and high <= 1):
        raise ValueError(
            f"points[{label!r}].pictures must be (N, height, width) or, in colour, (N, 3, height, width), with values "
            f"in [0, 1], got shape {values.shape} with values from {low:g} to {high:g}"
        )
    return np.round(255 * values).astype(np.uint8).tobytes(), list(values.shape)


def _span(values: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest finite value, a little apart if they are one."""
    finite = np.append(values[np.isfinite(values)], [] if np.isfinite(values).any() else 0.0)
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
