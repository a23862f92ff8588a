"""SimplexExplorer in the rendered page: its points against `gumbel_softmax`, its controls, its size.

What it computes in Python is tested without a browser, in tests/unit/test_widget_simplex.py.
"""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch
from looks import TIME_FRAMES, assert_controls_fit, median_redraw
from pages import settle

from vaelab import posteriors
from vaelab.widgets import SimplexExplorer

pytestmark = pytest.mark.browser

PLACES = [(34, 294), (326, 294), (180, 294 - 292 * 0.75**0.5)]  # where simplex.js puts the corners


def number(text: str) -> float:
    return float(text.replace("\u2212", "-"))


def read_out(page) -> dict:
    """The numbers beside the figure, once all pending redraws are done."""
    settle(page)
    columns = {name: [number(text) for text in page.locator(f".vx-{name}").all_text_contents()]
               for name in ("probability", "share")}  # fmt: skip
    return {**columns, "largest": number(page.locator(".vx-largest").inner_text())}


def drawn_points(page) -> np.ndarray:
    """The dots in the figure, (draws, 2), class by class."""
    settle(page)
    paths = [path.get_attribute("d") or "" for path in page.locator(".vx-dots").all()]
    return np.array([list(map(float, place)) for d in paths for place in re.findall(r"M([\d.]+) ([\d.]+)h0", d)])


def assert_shows(page, **setting: object) -> None:
    """Check every number and every dot on the page, as far as their digits go."""
    explorer, shown = SimplexExplorer(**setting), read_out(page)
    expected = explorer.numbers()
    np.testing.assert_allclose(shown["probability"], expected.probabilities, atol=6e-4)
    np.testing.assert_allclose(shown["share"], expected.share, atol=6e-4)
    assert shown["largest"] == pytest.approx(expected.largest, abs=6e-4)
    explorer.hard = False
    soft = explorer.samples()
    order = np.argsort(soft.argmax(1), kind="stable")
    np.testing.assert_allclose(drawn_points(page), soft[order] @ np.array(PLACES), atol=0.051)


def test_browser_and_torch_agree(shown, monkeypatch):
    """The points of `gumbel_softmax` on the same noise, for random settings, the coldest and the hottest among them."""
    explorer = SimplexExplorer()
    noise = torch.from_numpy(np.frombuffer(explorer.noise, "<f4").reshape(-1, 3).copy())
    generator = np.random.default_rng(0)
    cases = [{"logits": generator.uniform(-4, 4, 3).tolist(), "temperature": t}
             for t in [0.05, 20.0, *np.exp(generator.uniform(np.log(0.05), np.log(20), 18)).tolist()]]  # fmt: skip
    drawn = shown(explorer).page.evaluate(
        """async ({ esm, noise, cases }) => {
            const text = esm + "\\nexport { decodeRows, drawAll };";   // for this test only
            const { decodeRows, drawAll } =
                await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
            const rows = decodeRows(Uint8Array.from(atob(noise), (c) => c.charCodeAt(0)));
            return cases.map((setting) => drawAll(rows, setting));
        }""",
        {"esm": SimplexExplorer._esm, "noise": base64.b64encode(explorer.noise).decode(), "cases": cases},
    )
    monkeypatch.setattr(posteriors, "gumbel", lambda like, generator=None: noise.to(like))
    worst = 0.0
    for case, found in zip(cases, drawn):
        logits = torch.tensor([case["logits"]], dtype=torch.float64).expand(300, 3)
        soft = posteriors.gumbel_softmax(logits, case["temperature"])
        worst = max(worst, (torch.tensor(found["soft"], dtype=torch.float64) - soft).abs().max().item())
        hard = posteriors.straight_through(logits, case["temperature"])
        assert found["classes"] == hard.argmax(1).tolist()
        np.testing.assert_allclose(found["share"], hard.mean(0), atol=1e-12)
        np.testing.assert_allclose(found["probabilities"], logits[0].softmax(0), atol=1e-12)
        assert found["largest"] == pytest.approx(soft.max(1).values.mean().item(), abs=1e-12)
    print(f"largest difference between browser and torch: {worst:.1e}")
    assert worst < 1e-6


def test_every_control_works_by_keyboard(shown):
    opened = shown(SimplexExplorer())
    page = opened.page
    assert_shows(page)
    temperature = page.get_by_role("slider", name="temperature")
    temperature.press("ArrowLeft")
    setting = {"temperature": 10**-0.02}
    assert_shows(page, **setting)
    assert page.locator("output").first.inner_text() == temperature.get_attribute("aria-valuetext") == "0.95"
    page.get_by_role("slider", name="logit of class 2").press("ArrowRight")
    page.get_by_role("slider", name="logit of class 3").press("ArrowLeft")
    setting["logits"] = (1.0, 0.1, -0.6)
    assert_shows(page, **setting)
    page.get_by_role("radio", name="soft").press("ArrowRight")
    assert page.get_by_role("radio", name="hard (straight-through)").is_checked()
    assert_shows(page, **setting, hard=True)
    assert "on the corner of its class" in page.get_by_role("img").get_attribute("aria-label")
    assert (opened.errors, opened.elsewhere) == ([], [])


def test_the_temperature_slider_reaches_both_ends(shown):
    page = shown(SimplexExplorer()).page
    temperature, share = page.get_by_role("slider", name="temperature"), read_out(page)["share"]
    for key, text, low, high in (("Home", "0.05", 0.97, 1), ("End", "20.0", 1 / 3, 0.37)):
        temperature.press(key)
        numbers = read_out(page)
        assert page.locator("output").first.inner_text() == text
        assert low < numbers["largest"] <= high and numbers["share"] == share


def test_hard_draws_are_tied_to_their_soft_twins(shown):
    page = shown(SimplexExplorer(temperature=0.7)).page
    assert [disc.get_attribute("r") for disc in page.locator(".vx-disc").all()] == ["0"] * 3
    soft = drawn_points(page)
    page.get_by_role("radio", name="soft").press("ArrowRight")
    np.testing.assert_array_equal(drawn_points(page), soft)  # the twins stay
    lines = [re.findall(r"M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)", path.get_attribute("d"))
             for path in page.locator(".vx-lines").all()]  # fmt: skip
    np.testing.assert_array_equal(np.array([line[:2] for part in lines for line in part], dtype=float), soft)
    for part, corner in zip(lines, PLACES):
        np.testing.assert_allclose(np.array([line[2:] for line in part], dtype=float), [corner] * len(part))
    areas = np.array([float(disc.get_attribute("r")) for disc in page.locator(".vx-disc").all()]) ** 2
    np.testing.assert_allclose(areas / areas.sum(), read_out(page)["share"], atol=0.01)


def test_names_stand_at_the_corners_and_are_only_text(shown):
    names = ("a <b>trouser</b>", "an ankle boot", "a bag")
    opened = shown(SimplexExplorer(names=names))
    page = opened.page
    assert page.locator("svg text").all_text_contents() == list(names)
    assert page.locator(".vx-table tbody th").all_text_contents() == list(names)
    assert page.get_by_role("slider", name="logit of an ankle boot").count() == 1 and opened.errors == []


def test_a_move_redraws_within_a_frame(shown):
    page = shown(SimplexExplorer(hard=True, draws=1000), script=TIME_FRAMES).page
    assert median_redraw(page, page.get_by_role("slider", name="temperature")) < 16


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_controls_fit(shown, width, dark):
    page = shown(SimplexExplorer(names=("a trouser", "an ankle boot", "a bag")), width=width, dark=dark).page
    assert_controls_fit(page, width)
    assert page.locator(".vx-table").bounding_box()["width"] <= width
    ground = "rgb(206, 214, 221)" if dark else "rgb(0, 0, 0)"
    assert page.locator("svg text").first.evaluate("(text) => getComputedStyle(text).fill") == ground
