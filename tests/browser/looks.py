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
