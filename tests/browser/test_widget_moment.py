"""MomentExplorer in the rendered page: its numbers and its picture against Python, its controls, its size.

What it computes in Python is tested without a browser, in tests/unit/test_moment.py.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from looks import TIME_FRAMES, assert_controls_fit, assert_sliders_follow_the_keyboard, median_redraw
from pages import settle

from vaelab.widgets import MomentExplorer
from vaelab.widgets.moment import CODES, RANGES, VERSIONS, Moments

pytestmark = pytest.mark.browser

SLIDERS = {"tau": "tau", "theta": "theta", "gamma": "gamma", "variance": "mean posterior variance",
           "latents": "number of latents"}  # fmt: skip
MOVED = {"su": ["tau", "theta", "latents"], "paper": ["gamma", "variance", "latents"]}
DIGITS = dict(zip(Moments._fields, (3, 3, 4, 3, 2, 2, 2)))
Z = np.linspace(-5, 5, 101)


def settings() -> list[dict]:
    """Random settings of every version and codes, and both ends of every slider."""
    generator, cases = np.random.default_rng(0), []
    for i in range(60):
        at = [0.0, 1.0][i // 6] if i < 12 else generator.uniform(size=5)
        values = dict(zip(RANGES, np.array([low for low, _ in RANGES.values()]) * (1 - at)
                          + np.array([high for _, high in RANGES.values()]) * at))  # fmt: skip
        numbers = {name: float(value) for name, value in values.items()} | {"latents": round(values["latents"])}
        cases.append({**numbers, "version": VERSIONS[i % 3], "codes": CODES[i // 3 % 2]})
    return cases


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").removesuffix(" nats"))


def assert_shows(page, **setting: object) -> None:
    """Check every number on the page, as far as its digits go, and the curve of the mixture."""
    settle(page)
    explorer = MomentExplorer(**setting)
    for name, value in explorer.numbers()._asdict().items():
        text = page.locator(f"dd.vm-{name}").inner_text()
        assert text == "free" if value is None else number(text) == pytest.approx(value, abs=0.51 * 10 ** -DIGITS[name])
    z, heights = drawn_curve(page, "aggregate")
    limit = number(page.locator("text.vm-limit").text_content())
    assert limit >= explorer.density(z).max() - 1e-3
    np.testing.assert_allclose(limit * heights, explorer.density(z), atol=0.02 * limit)  # z has one digit of a pixel


def drawn_curve(page, name: str) -> tuple[np.ndarray, np.ndarray]:
    """z and height, as a share of the axis, of each point of a path; moment.js has these places."""
    points = re.findall(r"([\d.-]+) ([\d.-]+)", page.locator(f"path.vm-{name}").get_attribute("d"))
    x, y = np.array(points, dtype=float).T
    return (x - 30) / 324 * 10 - 5, (196 - y) / 162


def test_browser_and_python_agree(shown):
    """All numbers, all Gaussians of the mixture and its density, for random settings and the ends of the sliders."""
    explorer, cases = MomentExplorer(), settings()
    found = shown(explorer).page.evaluate(
        """async ({ esm, units, cases, zs }) => {
            const text = esm + "\\nexport { moments, posteriors, mixtureDensity };";   // for this test only
            const { moments, posteriors, mixtureDensity } =
                await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
            return cases.map((setting) => {
                const numbers = moments(setting), mixture = posteriors(setting, units, numbers);
                return { numbers, mixture, density: zs.map((z) => mixtureDensity(z, mixture)) };
            });
        }""",
        {"esm": MomentExplorer._esm, "units": explorer.units, "cases": cases, "zs": Z.tolist()},
    )
    worst = 0.0
    for case, got in zip(cases, found):
        explorer = MomentExplorer(**case)
        numbers, (mu, sigma) = explorer.numbers()._asdict(), explorer.posteriors()
        nones = [name for name, value in numbers.items() if value is None]
        assert nones == [name for name in numbers if got["numbers"][name] is None]
        assert nones == ["gamma_sigma"] * (case["version"] == "paper")
        pairs = [([got["numbers"][name] or 0.0], [value or 0.0]) for name, value in numbers.items()]
        pairs += [(got["mixture"]["mu"], mu), (got["mixture"]["sigma"], sigma), (got["density"], explorer.density(Z))]
        for a, b in pairs:
            worst = max(worst, np.max(np.abs(np.subtract(a, b)) / np.maximum(1, np.abs(b))))
    print(f"largest relative difference between browser and Python: {worst:.1e}")
    assert worst < 1e-11


@pytest.mark.parametrize("version", MOVED)
def test_every_slider_works_by_keyboard(shown, version):
    opened = shown(MomentExplorer(version=version, variance=0.5))
    page, setting = opened.page, {"version": version, "variance": 0.5}
    assert_shows(page, **setting)
    assert page.get_by_role("slider").count() == 3
    sliders = {trait: SLIDERS[trait] for trait in MOVED[version]}
    steps = dict.fromkeys(sliders, 0.01) | {"theta": 0.1, "latents": 1}
    first = {trait: getattr(MomentExplorer(**setting), trait) for trait in sliders} | setting
    assert_sliders_follow_the_keyboard(page, first, sliders, steps, RANGES, assert_shows)
    assert (opened.errors, opened.elsewhere) == ([], [])


def test_versions_codes_and_reset_work_by_keyboard(shown):
    opened = shown(MomentExplorer(tau=0.7, theta=1.5, gamma=0.8, latents=32))
    page, setting = opened.page, {"tau": 0.7, "theta": 1.5, "gamma": 0.8, "latents": 32}
    described = set()
    for version in ("paper", "logvar", "su", "paper"):  # round and round
        page.get_by_role("group", name="Version").locator("input:checked").press("ArrowRight")
        assert_shows(page, **setting, version=version)
        described.add(page.get_by_role("img").get_attribute("aria-label"))
    assert len(described) == 3
    for codes in ("clusters", "gaussian", "clusters"):
        page.get_by_role("group", name="Codes").locator("input:checked").press("ArrowRight")
        assert_shows(page, **setting, version="paper", codes=codes)
    page.get_by_role("slider", name="gamma").press("End")
    page.get_by_role("slider", name="number of latents").press("Home")
    assert_shows(page, **{**setting, "version": "paper", "codes": "clusters", "gamma": 1.5, "latents": 1})
    page.get_by_role("button", name="Reset").press("Enter")
    assert_shows(page, **setting)
    assert page.get_by_role("radio", name="Su: μ and σ").is_checked()
    page.get_by_text("as it was at the start").wait_for(state="attached")
    assert (opened.errors, opened.elsewhere) == ([], [])


def test_the_picture_is_told_in_words_that_change(shown):
    page = shown(MomentExplorer()).page
    picture, note = page.get_by_role("img"), page.locator(".vm-note")
    for trait in ("tau", "theta"):
        page.get_by_role("slider", name=trait).press("End")
        settle(page)
        assert "variance 1.000;" in picture.get_attribute("aria-label") and "wherever the sliders" in note.inner_text()
    page.get_by_role("radio", name="Su: μ and σ").press("ArrowRight")
    settle(page)
    assert "variance 1.360;" in picture.get_attribute("aria-label") and "Wider than the prior" in note.inner_text()
    page.get_by_role("slider", name="mean posterior variance").fill("0.64")
    settle(page)
    assert "variance 1.000;" in picture.get_attribute("aria-label") and "nothing keeps it" in note.inner_text()
    page.get_by_role("slider", name="gamma").press("Home")
    settle(page)
    assert "variance 0.650;" in picture.get_attribute("aria-label") and "Narrower" in note.inner_text()


def test_single_posteriors_lie_where_they_should(shown):
    page = shown(MomentExplorer(version="logvar", theta=-6.0)).page
    settle(page)
    mu, sigma = MomentExplorer(version="logvar", theta=-6.0).posteriors()
    peaks = []
    for path in page.locator("path.vm-single").all():
        points = np.array(re.findall(r"([\d.]+) ([\d.]+)", path.get_attribute("d")), dtype=float)
        top = points[points[:, 1].argmin()]
        peaks.append(((top[0] - 30) / 32.4 - 5, (292 - top[1]) / 58))
    shown_ones = [4, 13, 22, 31, 41, 50, 59]
    np.testing.assert_allclose([z for z, _ in peaks], mu[shown_ones], atol=0.05)
    np.testing.assert_allclose([height for _, height in peaks], sigma.min() / sigma[shown_ones], atol=0.01)
    rug = re.findall(r"M([\d.]+) ", page.locator("path.vm-rug").get_attribute("d"))
    np.testing.assert_allclose((np.array(rug, dtype=float) - 30) / 32.4 - 5, mu, atol=0.002)
    z, heights = drawn_curve(page, "prior")
    np.testing.assert_allclose(0.5 * heights, np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), atol=1e-3)


def test_a_move_redraws_within_a_frame(shown):
    page = shown(MomentExplorer(), script=TIME_FRAMES).page
    assert median_redraw(page, page.get_by_role("slider", name="theta")) < 16


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("version", VERSIONS)
def test_controls_fit(shown, version, width, dark):
    page = shown(MomentExplorer(version=version), width=width, dark=dark).page
    assert_controls_fit(page, width)
    assert page.locator(".vm-sums").bounding_box()["width"] <= width
    texts = [text.bounding_box() for text in page.locator("svg text, dd, dt, .vm-note").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in texts)
    ground = "rgb(206, 214, 221)" if dark else "rgb(0, 0, 0)"
    assert page.locator("svg text").first.evaluate("(text) => getComputedStyle(text).fill") == ground
