"""RunExplorer: what travels to the page and what it draws; training in a kernel, and without one.

The first tests need no browser.
"""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from looks import TIME_FRAMES, assert_controls_fit, median_redraw
from pages import saved_state, settle

from vaelab.widgets.runs import Point, RunExplorer

KNOB = ["never", "500", "1000", "20"]  # out of the order that a browser would sort them in
X = np.linspace(0, 2000, 41)


def make(label: str) -> Point:
    """A run that any label determines: two lines, three numbers (one missing), two pictures."""
    start = 5.0 * (KNOB.index(label) + 1)
    curves = {"top": start * np.exp(-X / 700), "bottom": 2 + start * X / 2000}
    numbers = {"bound, nats": -90.25 - start, "active": start, "never measured": math.nan}
    pictures = np.linspace(0, 1, 2 * 4 * 3).reshape(2, 4, 3) ** start
    return Point(X, curves, numbers, pictures, None if label == "never" else 100 * start)


def in_colour(label: str) -> Point:
    """The same run, with three pictures whose red, green and blue differ."""
    pictures = np.linspace(0, 1, 3 * 3 * 4 * 2).reshape(3, 3, 4, 2) ** (KNOB.index(label) + 1)
    return make(label)._replace(pictures=pictures)


def explorer(recorded: list[str] = KNOB, **options: object) -> RunExplorer:
    return RunExplorer({label: make(label) for label in recorded}, candidates=KNOB, mark_label="until here", **options)


def test_points_survive_the_journey():
    shown = explorer()
    assert shown.labels == KNOB and shown.label == "never"
    for label in KNOB:
        made, kept = make(label), shown.point(label)
        np.testing.assert_allclose(kept.x, made.x)
        assert list(kept.curves) == ["top", "bottom"]
        for name, line in made.curves.items():
            np.testing.assert_allclose(kept.curves[name], line, rtol=1e-6)
        assert kept.numbers == pytest.approx(made.numbers, nan_ok=True)
        np.testing.assert_allclose(kept.pictures, made.pictures, atol=0.5 / 255 + 1e-9)
        assert kept.mark == made.mark
    json.dumps(saved_state(shown), allow_nan=False)  # no browser reads NaN


def test_colour_and_ink_survive_the_journey_side_by_side():
    points = {"500": in_colour("500"), "never": make("never"), "20": make("20")._replace(pictures=None)}
    shown = RunExplorer(points)
    kept = {label: shown.point(label).pictures for label in points}
    assert kept["500"].shape == (3, 3, 4, 2) and kept["never"].shape == (2, 4, 3) and kept["20"] is None
    for label in ("500", "never"):
        np.testing.assert_allclose(kept[label], points[label].pictures, atol=0.5 / 255 + 1e-9)
    assert len(shown.runs["500"]["pictures"]) == 3 * 3 * 4 * 2  # a byte for each
    one = RunExplorer({"a": make("never")._replace(pictures=np.full((1, 3, 2), 0.5))})
    assert one.point("a").pictures.shape == (1, 3, 2)  # of height 3, not in three colours
    frames = np.arange(18 * 3 * 33 * 33, dtype=np.uint8).reshape(18, 3, 33, 33)
    again = RunExplorer({"a": make("never")._replace(pictures=frames / 255)}, columns=6).point("a").pictures
    np.testing.assert_array_equal(np.round(255 * again), frames)
    json.dumps(saved_state(shown), allow_nan=False)


def test_asking_trains_a_point():
    asked_for = []

    def train(label: str) -> Point:
        asked_for.append((label, shown.training))
        return make(label)

    shown = explorer(["never", "1000"], train=train)
    assert shown.can_train and shown.labels == KNOB
    shown.set_state({"asked": "500"})  # as a browser asks
    assert asked_for == [("500", "500")]
    assert (shown.asked, shown.training, shown.problem) == ("", "", "")
    np.testing.assert_allclose(shown.point("500").curves["top"], make("500").curves["top"], rtol=1e-6)
    shown.asked = "500"  # it is recorded by now
    assert len(asked_for) == 1 and shown.asked == ""


@pytest.mark.parametrize(
    "failure, problem",
    [
        (ValueError("no data"), "500: ValueError: no data"),
        (KeyboardInterrupt(), "500: KeyboardInterrupt"),
        (None, "500: ValueError: points['500'] must be a Point, got NoneType"),
    ],
)
def test_a_training_that_fails_is_told_and_keeps_the_rest(failure, problem):
    def train(label: str) -> None:
        if failure is not None:
            raise failure

    shown = explorer(["never", "1000"], train=train)
    before = shown.runs
    shown.set_state({"asked": "500"})
    assert shown.problem == problem
    assert shown.runs == before and (shown.asked, shown.training) == ("", "")
    shown._train = make
    shown.asked = "500"  # again, and it is well
    assert shown.problem == "" and "500" in shown.runs


def test_without_train_it_says_so():
    shown = explorer(["never"])
    shown.asked = "500"
    assert not shown.can_train and "without train" in shown.problem


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": [[0.0, 1.0]]}, r"points\['a'\].x must hold one finite number or more, got shape \(1, 2\)"),
        ({"x": []}, r"points\['a'\].x must hold"),
        ({"x": [0.0, math.nan]}, r"points\['a'\].x must hold"),
        ({"curves": {}}, r"points\['a'\].curves must hold at least one line"),
        ({"curves": {"KL": [1.0]}}, r"points\['a'\].curves\['KL'\] must have x's shape \(2,\), got \(1,\)"),
        (
            {"pictures": np.zeros((2, 2))},
            r"points\['a'\].pictures must be \(N, height, width\) or, in colour, \(N, 3, height, width\), with values "
            r"in \[0, 1\], got shape \(2, 2\)",
        ),
        ({"pictures": np.zeros((2, 4, 5, 3))}, r"pictures must be .*, got shape \(2, 4, 5, 3\)"),
        ({"pictures": np.zeros((2, 1, 4, 5))}, r"pictures must be .*, got shape \(2, 1, 4, 5\)"),
        ({"pictures": np.zeros((1, 2, 3, 4, 5))}, r"pictures must be .*, got shape"),
        ({"pictures": np.zeros((0, 3, 4, 5))}, r"pictures must be .*, got shape \(0, 3, 4, 5\)"),
        ({"pictures": np.full((1, 3, 2, 2), 255)}, r"pictures must be .* with values from 255 to 255"),
        ({"pictures": np.full((1, 3, 2, 2), -0.1)}, r"pictures must be .* with values from -0.1 to -0.1"),
        ({"pictures": np.full((1, 2, 2), 1.5)}, r"points\['a'\].pictures must be"),
        ({"pictures": np.full((1, 2, 2), math.nan)}, r"points\['a'\].pictures must be"),
    ],
)
def test_it_names_what_is_wrong_with_a_point(change, message):
    point = Point([0.0, 1.0], {"KL": [1.0, math.nan]})._replace(**change)
    with pytest.raises(ValueError, match=message):
        RunExplorer({"a": point})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"points": {}}, "points must hold at least one"),
        ({"points": {"a": 3}}, r"points\['a'\] must be a Point, got int"),
        ({"candidates": ["b"]}, "recorded 'a' is not there"),
        ({"candidates": ["a", "b", "b"]}, "candidates must be different"),
        ({"candidates": ["a", ""]}, "candidates must be different strings that are not empty"),
        ({"candidates": ["a", 5]}, "candidates must be different strings"),
        ({"columns": 0}, "columns must be a whole number from 1 to 10, or None, got 0"),
        ({"columns": 11}, "columns must be a whole number"),
        ({"columns": 6.0}, "columns must be a whole number"),
    ],
)
def test_it_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunExplorer(**{"points": {"a": Point([0.0], {"KL": [1.0]})}, **arguments})


@pytest.mark.parametrize("trait, bad", [("label", "b"), ("label", ""), ("asked", "b")])
def test_it_refuses_labels_that_it_does_not_have(trait, bad):
    with pytest.raises(ValueError, match=f"{trait} must be one of"):
        setattr(explorer(), trait, bad)


@pytest.mark.parametrize("log_y", [False, True])
def test_the_still_picture_shows_the_lines_of_the_middle_point(log_y):
    ink = explorer(log_y=log_y).still()
    assert ink.shape == (160, 320)
    assert (ink[:158, 4:] == 1).any(0).all()  # the first line, from end to end
    flat = RunExplorer({"a": Point([3.0], {"KL": [0.0], "lost": [math.nan]})}, log_y=log_y).still()
    assert np.isfinite(flat).all()


# In the page


def lines(page) -> list[np.ndarray]:
    """The plot's lines: (k, 2) in the figure's units each, none for what is not drawn."""
    settle(page)
    paths = [path.get_attribute("d") for path in page.locator(".vr-figure .vr-line").all()]
    return [np.array([pair.split() for pair in path[1:].split("L")], float) for path in paths if path]


def numbers(page) -> list[str]:
    return page.locator(".vr-numbers td").all_inner_texts()


def ticks(page) -> list[str]:
    return page.locator(".vr-figure g").first.locator("text").all_text_contents()


@pytest.mark.browser
def test_a_move_changes_lines_numbers_and_pictures_but_not_the_axes(shown):
    opened = shown(explorer())
    page, axes = opened.page, ticks(opened.page)
    assert axes == ["0", "5", "10", "15", "20", "0", "500", "1000", "1500", "2000"]
    slider = page.get_by_role("slider", name="balanced for")
    for label in KNOB:
        point, drawn = make(label), lines(page)
        assert page.locator("output").inner_text() == label == slider.get_attribute("aria-valuetext")
        up = 166 / (1.04 * 22 - 0.04 * min(make(name).curves["top"].min() for name in KNOB))  # units a nat: 4 % of room
        for line, curve in zip(drawn, point.curves.values()):
            np.testing.assert_allclose(line[:, 0], 42 + 310 * X / 2000, atol=0.06)
            np.testing.assert_allclose(line[:, 1], 200 - up * curve, atol=0.06)
        start = point.numbers["active"]
        assert numbers(page) == [f"\u2212{90.25 + start:.2f}", f"{start:.0f}", "–"]
        assert page.locator(".vr-mark").evaluate("(line) => line.style.display") == ("none" if label == "never" else "")
        inks = [canvas.evaluate("(c) => Array.from(c.getContext('2d').getImageData(0, 0, 3, 4).data)")
                for canvas in page.locator(".vr-row canvas").all()]  # fmt: skip
        np.testing.assert_allclose(np.array(inks)[:, 3::4], 255 * point.pictures.reshape(2, 12), atol=1)
        assert ticks(page) == axes
        slider.press("ArrowRight")
    assert "top ends at" in page.get_by_role("img").first.get_attribute("aria-label")
    assert page.locator(".vr-ask").is_hidden()  # all is recorded
    assert (opened.errors, opened.elsewhere) == ([], [])


def pixels(page) -> np.ndarray:
    """All pictures of the page as they are drawn, before any filter: (N, pixels, 4)."""
    settle(page)
    read = """(canvases) => canvases.map((c) =>
        Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data))"""
    drawn = page.locator(".vr-row canvas").evaluate_all(read)
    return np.array(drawn).reshape(len(drawn), -1, 4)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_stay_what_they_are_and_ink_follows_the_page(shown, dark):
    points = {"500": in_colour("500"), "never": make("never"), "1000": in_colour("1000")}
    opened = shown(RunExplorer(points), dark=dark)
    page, filters = opened.page, []
    for label, point in points.items():
        drawn = pixels(page)
        if label == "never":
            assert drawn[..., :3].max() == 0
            np.testing.assert_allclose(drawn[..., 3], 255 * point.pictures.reshape(2, 12), atol=1)
        else:
            assert drawn[..., 3].min() == 255
            expected = np.round(255 * point.pictures.reshape(3, 3, 8)).transpose(0, 2, 1)  # (N, pixels, channels)
            np.testing.assert_array_equal(drawn[..., :3], expected)
        canvases = page.locator(".vr-row canvas")
        filters.append(canvases.first.evaluate("(canvas) => getComputedStyle(canvas).filter"))
        names = [canvas.get_attribute("aria-label") for canvas in canvases.all()]
        assert names == [f"Samples, {i + 1} of {len(point.pictures)}" for i in range(len(point.pictures))]
        page.get_by_role("slider").press("ArrowRight")
    assert filters == ["none", "invert(1)" if dark else "none", "none"]
    assert (opened.errors, opened.elsewhere) == ([], [])


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("columns", [None, 6])
def test_rows_are_as_long_as_they_are_asked_to_be_on_any_screen(shown, columns, width):
    frames = np.random.default_rng(0).uniform(size=(17, 3, 33, 33))
    page = shown(RunExplorer({"a": make("never")._replace(pictures=frames)}, columns=columns), width=width).page
    assert_controls_fit(page, width)
    canvases = page.locator(".vr-row canvas")
    corners = [(box["x"], box["y"]) for box in (canvas.bounding_box() for canvas in canvases.all())]
    row = columns or (10 if width == 1280 else 5)
    xs, ys = (sorted(set(places)) for places in zip(*corners))
    assert corners == [(xs[i % row], ys[i // row]) for i in range(17)]
    last = canvases.last.get_attribute("aria-label")
    assert last == ("Samples, row 3 of 3, 5 of 5" if columns else "Samples, 17 of 17")


@pytest.mark.browser
def test_a_page_without_a_kernel_says_what_to_do(shown):
    opened = shown(explorer(["never", "1000"], train=make))
    page, slider = opened.page, opened.page.get_by_role("slider")
    assert len(lines(page)) == 2
    slider.press("ArrowRight")
    assert lines(page) == [] and numbers(page) == ["–"] * 3
    assert page.locator("p[role=status]").inner_text() == "not recorded: run this chapter to train it"
    assert page.get_by_role("button").count() == 0
    assert slider.get_attribute("aria-valuetext") == "500, not recorded"
    slider.press("ArrowRight")
    assert len(lines(page)) == 2 and page.locator("p[role=status]").inner_text() == "recorded"
    assert opened.errors == []


@pytest.mark.browser
def test_a_logarithmic_axis_keeps_what_is_not_positive_on_its_floor(shown):
    curve = [100.0, 10.0, 1.0, 0.01, 0.0]
    slider = RunExplorer({"a": Point(range(5), {"KL": curve, "broken": [1, 1, math.nan, 1, math.inf]})}, log_y=True)
    page = shown(slider).page
    settle(page)
    whole, broken = [path.get_attribute("d") for path in page.locator(".vr-figure .vr-line").all()]
    heights = [float(pair.split()[1]) for pair in whole[1:].split("L")]
    np.testing.assert_allclose(np.diff(heights[:4]), np.array([1, 1, 2]) * (heights[1] - heights[0]), atol=0.2)
    assert heights[4] == 200 and broken.count("M") == 2
    assert ticks(page)[:5] == ["0.01", "0.1", "1", "10", "100"]
    assert page.locator(".vr-numbers").is_hidden() and page.locator(".vr-pictures").is_hidden()


LIVE = """async ({ esm, state }) => {
    class Model {   // as in Jupyter: nothing says that it is not live
        constructor() { this.state = state; this.heard = []; this.asked = []; }
        get(name) { return this.state[name]; }
        set(name, value) {
            this.state[name] = value;
            this.heard.filter(([event]) => event === "change:" + name).forEach(([, callback]) => callback());
        }
        on(event, callback) { this.heard.push([event, callback]); }
        off() {}
        save_changes() { this.asked.push(this.state.asked); }
    }
    const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    window.unpack = (runs) => Object.fromEntries(Object.entries(runs).map(([label, run]) => [label, { ...run,
        x: bytes(run.x), curves: run.curves.map(([name, line]) => [name, bytes(line)]) }]));
    state.runs = unpack(state.runs);
    window.model = new Model();
    const { default: widget } = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
    const el = document.createElement("div");
    document.body.replaceChildren(el);
    widget.render({ model, el });
}"""


def sendable(slider: RunExplorer) -> dict:
    """The slider's traits as JSON, bytes as base64; without pictures."""
    def encode(value: object) -> object:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, dict):
            return {key: encode(part) for key, part in value.items()}
        return [encode(part) for part in value] if isinstance(value, list) else value

    names = [name for name in slider.traits(sync=True) if not name.startswith(("_", "layout", "tabbable", "tooltip"))]
    return {name: encode(getattr(slider, name)) for name in names}


@pytest.mark.browser
def test_where_a_kernel_answers_a_button_trains(shown):
    """The kernel's part is played by the test: what Python does is tested above."""
    points = {label: make(label)._replace(pictures=None) for label in KNOB}
    less, more = (
        RunExplorer({label: points[label] for label in KNOB[:count]}, candidates=KNOB, train=make) for count in (1, 2)
    )
    opened = shown(less)
    page = opened.page
    page.evaluate(LIVE, {"esm": RunExplorer._esm, "state": sendable(less)})
    page.evaluate("() => window.setTimeout = ((wait) => (f, ms) => wait(f, ms / 10))(window.setTimeout)")
    status, button = page.locator("p[role=status]"), page.get_by_role("button", name="Train this point")
    assert status.inner_text() == "recorded" and button.count() == 0
    page.get_by_role("slider").press("ArrowRight")
    settle(page)
    assert status.inner_text() == "not trained yet" and page.locator(".vr-figure").inner_text().count("not trained yet")
    assert_controls_fit(page, 1280)
    button.press("Enter")
    settle(page)
    assert status.inner_text() == "asking the kernel …"
    assert page.evaluate("model.asked.at(-1)") == "500"
    page.get_by_text("no answer yet").wait_for()
    page.evaluate("model.set('training', '500')")
    settle(page)
    assert status.inner_text() == "training 500 …" and button.is_disabled()
    page.evaluate("model.set('problem', '500: ValueError: no data'); model.set('training', ''); model.set('asked', '')")
    settle(page)
    assert status.inner_text() == "500: ValueError: no data" and button.is_enabled()
    page.evaluate("(runs) => { model.set('problem', ''); model.set('runs', unpack(runs)); }", sendable(more)["runs"])
    assert len(lines(page)) == 2
    assert status.inner_text() == "recorded" and button.count() == 0
    assert opened.errors == []


@pytest.mark.browser
def test_a_move_redraws_within_a_frame(shown):
    """At the size of a chapter: 25 points, ten lines of 200 numbers, eight pictures."""
    x = np.linspace(0, 20000, 200)
    point = Point(x, {f"group {i}": i + np.sin(x / 900) for i in range(10)}, {"KL": 1.0}, np.full((8, 28, 28), 0.5))
    page = shown(RunExplorer({str(i): point for i in range(25)}), script=TIME_FRAMES).page
    assert median_redraw(page, page.get_by_role("slider")) < 16


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_controls_fit(shown, width, dark):
    page = shown(explorer(["never", "1000"], train=make), width=width, dark=dark).page
    assert_controls_fit(page, width)
    ground = "rgb(206, 214, 221)" if dark else "rgb(0, 0, 0)"
    assert page.locator(".vr-figure text").first.evaluate("(text) => getComputedStyle(text).fill") == ground
    ink = page.locator(".vr-row canvas").first.evaluate("(canvas) => getComputedStyle(canvas).filter")
    assert ink == ("invert(1)" if dark else "none")
