"""What every slider is asked in a real browser: how fast it follows the hand, and whether its controls fit."""

from __future__ import annotations

import statistics

TIME_FRAMES = """window.frames_ms = [];
const ask = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => ask((time) => {
    const start = performance.now(); draw(time); window.frames_ms.push(performance.now() - start); });"""


def median_redraw(page, slider) -> float:
    """Move a slider twenty times by keyboard; return the median of the frames' milliseconds.

    The page must have been opened with the script TIME_FRAMES.
    """
    for _ in range(20):
        count = page.evaluate("frames_ms.length")
        slider.press("ArrowRight")
        page.wait_for_function(f"frames_ms.length > {count}", polling=20)
    median = statistics.median(page.evaluate("frames_ms"))
    print(f"median redraw: {median:.1f} ms")
    return median


def assert_controls_fit(page, width: int) -> None:
    """Check that nothing is wider than the screen, controls are large enough, and none loses its keys to JupyterLab."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    controls = page.locator(".vaelab-slider input, .vaelab-slider button").all()
    # JupyterLab takes the arrow keys from any control without this mark.
    assert all(control.get_attribute("data-lm-suppress-shortcuts") == "true" for control in controls)
    boxes = [control.bounding_box() for control in controls]
    assert min(min(box["width"], box["height"]) for box in boxes) >= 24
    assert max(box["x"] + box["width"] for box in boxes) <= width


def assert_sliders_follow_the_keyboard(page, setting: dict, sliders: dict, steps: dict, ranges: dict, shows) -> None:
    """Press an arrow, Home and End on every slider, and check what the page shows after each.

    Args:
        setting: trait -> value at first, with one for every slider. sliders: trait -> accessible name.
        steps: trait -> what an arrow adds. ranges: trait -> (least, largest).
        shows: `shows(page, **setting)` asserts that the page shows a setting.
    """
    setting = dict(setting)
    for trait, name in sliders.items():
        slider = page.get_by_role("slider", name=name, exact=True)
        slider.press("ArrowRight")
        setting[trait] += steps[trait]
        shows(page, **setting)
        for key, end in (("Home", ranges[trait][0]), ("End", ranges[trait][1])):
            slider.press(key)
            shows(page, **{**setting, trait: end})
            assert slider.evaluate("(input) => input === document.activeElement")
        slider.fill(str(setting[trait]))
    shows(page, **setting)
