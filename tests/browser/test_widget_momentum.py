"""MomentumExplorer in the rendered page: its numbers and its curves against Python, its controls, its size.

What it computes in Python is tested without a browser, in tests/unit/test_momentum_explorer.py.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from looks import TIME_FRAMES, assert_controls_fit, assert_sliders_follow_the_keyboard, median_redraw
from pages import settle

from vaelab.widgets import MomentumExplorer
from vaelab.widgets.momentum import RANGES

pytestmark = pytest.mark.browser

SLIDERS = {"momentum": "momentum m", "batch_size": "batch size N", "drift": "drift a of the mean",
           "rho": "clip share rho, of the variance"}  # fmt: skip
STEP = {"momentum": 0.01, "batch_size": 8, "drift": 0.05, "rho": 0.05}
DIGITS = {"effective": 0, "bias": 5, "excess": 3, "final": 3, "error": 3}
PANELS = {"kl": (58, 252), "mean": (292, 410)}  # top and foot of each, as in momentum.js
COMPUTE = """async ({ esm, cases }) => {
    const text = esm + "\\nexport { opened, streamOf, numbersOf };";   // for this test only
    const { opened, streamOf, numbersOf } =
        await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    const draws = opened(), plain = (x) => Array.from(x);
    return cases.map((setting) => {
        const track = streamOf(setting, draws(setting.seed)), numbers = numbersOf(setting, track);
        return { numbers, track: Object.fromEntries(Object.entries(track).map(([name, x]) => [name, plain(x)])) };
    });
}"""


def settings() -> list[dict]:
    """Random settings of both versions, draws kept and not kept, and both ends of every slider."""
    generator, cases = np.random.default_rng(0), []
    for i in range(60):
        at = [0.0, 1.0][i // 2] if i < 4 else generator.uniform(size=5)
        low, high = np.array(list(RANGES.values())).T
        values = dict(zip(RANGES, (low * (1 - at) + high * at).tolist()))
        whole = {"batch_size": round(values["batch_size"]), "seed": round(values["seed"]) if i % 3 else 1}
        cases.append({**values, **whole, "as_written": i % 2 == 0})
    return cases


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").split()[0].rstrip("%"))


def axis(page, name: str) -> tuple[float, float]:
    """The ends of the axis of a panel, which a path's name begins with."""
    low, high = (page.locator(f"text.vo-{name.split('-')[0]}-{end}").text_content() for end in ("low", "high"))
    return number(low or "0"), number(high)  # no label where the axis ends at zero


def pixel(page, name: str) -> float:
    """How much one pixel of the panel's height is."""
    (low, high), (top, foot) = axis(page, name), PANELS[name.split("-")[0]]
    return (high - low) / (foot - top)


def drawn_curve(page, name: str) -> np.ndarray:
    """(points, 2): step and value of each point of a path."""
    path = page.locator(f"path.vo-{name}").get_attribute("d")
    x, y = np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path), dtype=float).reshape(-1, 2).T
    foot = PANELS[name.split("-")[0]][1]
    return np.stack([(x - 36) / 310 * 199, axis(page, name)[0] + pixel(page, name) * (foot - y)], 1)


def assert_shows(page, **setting: object) -> None:
    """Check every number on the page, as far as its digits go, and all curves."""
    settle(page)
    explorer = MomentumExplorer(**setting)
    numbers, track = explorer.numbers()._asdict(), explorer.stream()
    texts = {
        name: page.locator(f"dd.vo-{name}").inner_text() for name in (*DIGITS, "independent", "gradient", "memory")
    }
    for name, digits in DIGITS.items():
        assert number(texts[name]) == pytest.approx(numbers[name], abs=0.51 * 10**-digits)
    assert number(texts["independent"]) == pytest.approx(numbers["independent"], abs=0.51)
    assert number(texts["gradient"]) == pytest.approx(100 * numbers["gradient"], abs=0.51)
    memory, lag = re.fullmatch(r"([\d.]+) and ([\d.]+) steps", texts["memory"]).groups()
    assert (float(memory), float(lag)) == pytest.approx((numbers["memory"], numbers["lag"]), abs=0.051)
    for name, values in {"kl-moving": track.kl, "kl-true": track.true_kl, "mean-moving": track.mean,
                         "mean-true": track.true_mean, "mean-dots": track.batch_mean}.items():  # fmt: skip
        step, height = drawn_curve(page, name).T
        np.testing.assert_allclose(step, np.arange(200), atol=0.04)
        np.testing.assert_allclose(height, values, atol=0.06 * pixel(page, name))


def test_browser_and_python_agree(shown):
    """All numbers and all curves, for random settings and the ends of the sliders."""
    cases = settings()
    page = shown(MomentumExplorer()).page
    worst = 0.0
    for case, got in zip(cases, page.evaluate(COMPUTE, {"esm": MomentumExplorer._esm, "cases": cases})):
        explorer = MomentumExplorer(**case)
        numbers, track = explorer.numbers()._asdict(), explorer.stream()._asdict()
        assert set(got["numbers"]) == set(numbers) and set(got["track"]) == set(track)
        for name, b in [*numbers.items(), *track.items()]:
            a = (got["numbers"] | got["track"])[name]
            assert np.shape(a) == np.shape(b)
            worst = max(worst, np.max(np.abs(np.subtract(a, b)) / np.maximum(1, np.abs(b))))
    print(f"largest relative difference between browser and Python: {worst:.1e}")
    assert worst < 1e-11


@pytest.mark.parametrize("as_written", [True, False], ids=["as written", "corrected"])
def test_every_slider_works_by_keyboard(shown, as_written):
    setting = {"momentum": 0.8, "batch_size": 32, "drift": 0.5, "rho": 0.4, "as_written": as_written}
    opened = shown(MomentumExplorer(**setting))
    page = opened.page
    assert_shows(page, **setting)
    assert page.get_by_role("slider").count() == 4
    assert_sliders_follow_the_keyboard(page, setting, SLIDERS, STEP, RANGES, assert_shows)
    assert (opened.errors, opened.elsewhere) == ([], [])


def test_versions_draws_and_reset_work_by_keyboard(shown):
    opened = shown(MomentumExplorer(momentum=0.7, rho=0.5, seed=2**32 - 1))
    page, setting = opened.page, {"momentum": 0.7, "rho": 0.5}
    for as_written in (False, True, False):
        page.get_by_role("group", name="Moving average").locator("input:checked").press("ArrowRight")
        assert_shows(page, **setting, as_written=as_written, seed=2**32 - 1)
    for seed in (0, 1):  # round and round
        page.get_by_role("button", name="New draw").press("Enter")
        assert_shows(page, **setting, as_written=False, seed=seed)
    page.get_by_text("draw 1.").wait_for(state="attached")
    page.get_by_role("slider", name="batch size N").press("Home")
    assert_shows(page, **setting, as_written=False, seed=1, batch_size=8)
    page.get_by_role("button", name="Reset").press("Enter")
    assert_shows(page, **setting, seed=2**32 - 1)
    assert page.get_by_role("radio", name="as written").is_checked()
    page.get_by_text("as it was at the start").wait_for(state="attached")
    assert (opened.errors, opened.elsewhere) == ([], [])


def test_batches_above_the_axis_are_marked_and_counted(shown):
    page = shown(MomentumExplorer(rho=0.8)).page
    settle(page)
    batches, (_, high) = MomentumExplorer(rho=0.8).stream().batch_kl, axis(page, "kl")
    above, inside = np.flatnonzero(batches > high), np.flatnonzero(batches <= high)
    assert 0 < len(above) <= 10
    step, height = drawn_curve(page, "kl-dots").T
    np.testing.assert_allclose(step, inside, atol=0.04)
    np.testing.assert_allclose(height, batches[inside], atol=0.01 * high)
    np.testing.assert_allclose(drawn_curve(page, "kl-beyond")[:, 0] + 3 / 310 * 199, above, atol=0.04)
    assert f"▴ {len(above)} above" in page.locator("svg").text_content()


def test_the_note_says_what_the_setting_shows(shown):
    page = shown(MomentumExplorer()).page
    picture, note = page.get_by_role("img"), page.locator(".vo-note")

    def says(*phrases: str) -> bool:
        settle(page)
        text = note.inner_text()
        return all(phrase in text for phrase in phrases) and text in picture.get_attribute("aria-label")

    slider = {trait: page.get_by_role("slider", name=name, exact=True) for trait, name in SLIDERS.items()}
    assert says("Only 10% of the gradient", "10 times as large", "starts from the prior", "by up to 0.27")
    slider["momentum"].fill("0.4")
    assert says("60% of the gradient", "1.7 times as large", "from 149 independent codes, which alone makes it 0.007")
    assert "Only" not in note.inner_text()
    slider["momentum"].fill("0.5")
    assert says("Only 50% of the gradient", "must be 2 times as large")
    slider["batch_size"].press("Home")
    assert says("as from only 24 independent codes.")
    assert page.locator("dd.vo-effective").inner_text() == page.locator("dd.vo-independent").inner_text() == "24 codes"
    for trait, value in {"momentum": 0.95, "batch_size": 8, "rho": 0.05}.items():
        slider[trait].fill(str(value))
    assert says("from 231 independent codes.")  # not with the bias of 312, the effective batch
    for trait, value in {"momentum": 0.9, "batch_size": 64, "rho": 0.8}.items():
        slider[trait].fill(str(value))
    variance = MomentumExplorer(rho=0.8).stream().variance[-1]
    assert says(f"keeps that: {variance:.2f} at the last step", "This alone makes K too high", "from only 23.7")
    page.get_by_role("radio", name="as written").press("ArrowRight")
    variance = MomentumExplorer(rho=0.8, as_written=False).stream().variance[-1]
    assert says("the whole batch’s", f"differ: the variance is {variance:.2f} at the last step", "weight collected")
    assert "too high" not in note.inner_text() and "Only" not in note.inner_text()
    slider["momentum"].fill("0.2")
    assert says("A memory of 1.3 steps sees little of how the batches’ means differ")
    slider["momentum"].press("Home")
    assert says("Without momentum", "0.80 nats too high on average")
    slider["rho"].press("Home")
    slider["drift"].press("Home")
    slider["momentum"].press("End")
    assert says("noisy as from 12736 independent codes.")
    assert "trails" not in note.inner_text() and "clips" not in note.inner_text()
    slider["drift"].press("End")
    assert says("99 steps old in the long run", "counts as variance")


def test_a_move_redraws_within_a_frame(shown):
    page = shown(MomentumExplorer(momentum=0.5), script=TIME_FRAMES).page
    assert median_redraw(page, page.get_by_role("slider", name="momentum m")) < 10


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("as_written", [True, False], ids=["as written", "corrected"])
def test_controls_fit(shown, as_written, width, dark):
    page = shown(MomentumExplorer(as_written=as_written, rho=0.8), width=width, dark=dark).page
    assert_controls_fit(page, width)
    texts = [text.bounding_box() for text in page.locator("svg text, dd, dt, .vo-note, .vo-sums").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in texts)
    ground = "rgb(206, 214, 221)" if dark else "rgb(0, 0, 0)"
    assert page.locator("svg text").first.evaluate("(text) => getComputedStyle(text).fill") == ground
