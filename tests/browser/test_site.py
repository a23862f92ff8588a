"""The rendered book as its readers have it: in a real browser, on wide and narrow screens, cut off from the net."""

from __future__ import annotations

import pytest

from vaelab.book import chapters

pytestmark = pytest.mark.browser

PAGES = ["index", "making", "api", "references", *(path.stem for path in chapters())]
NOT_OURS = ("THEBE_JS_URL", "invalid theme mode")  # noise of the theme, on every page, without effect
PICTURE = "canvas"
PARTS = ["part4", "part5_6", "part7"]
MOMENTUM = [path.stem for path in chapters() if "MomentumExplorer(" in path.read_text(encoding="utf-8")]


def ours(errors: list[str]) -> list[str]:
    return [error for error in errors if not any(noise in error for noise in NOT_OURS)]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_no_other_host_and_fits_its_screen(site, open_page, name, width, dark):
    opened = open_page((site / "book" / f"{name}.html").as_uri(), width, dark)
    opened.page.wait_for_load_state("networkidle")
    assert opened.elsewhere == []
    assert ours(opened.errors) == []
    assert opened.page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", [path.stem for path in chapters()])
def test_every_link_within_the_book_leads_somewhere(site, open_page, name):
    page = site / "book" / f"{name}.html"
    opened = open_page(page.as_uri())
    links = opened.page.eval_on_selector_all("article a[href]", "all => all.map(a => a.getAttribute('href'))")
    local = [link.split("#")[0] for link in links if "://" not in link]
    assert [link for link in local if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["elbo", "day12", "day13", "day14", "day15", "kl_balancing", "bn_vae", *PARTS])
def test_mathematics_is_typeset(site, open_page, name):
    opened = open_page((site / "book" / f"{name}.html").as_uri())
    opened.page.wait_for_selector("mjx-container")
    assert opened.page.locator("mjx-merror").count() == 0


@pytest.mark.parametrize("name", [path.stem for path in chapters()])
def test_every_figure_has_words(site, open_page, name):
    opened = open_page((site / "book" / f"{name}.html").as_uri())
    alts = opened.page.eval_on_selector_all("article .cell_output img", "all => all.map(i => i.alt)")
    assert all(len(alt.split()) >= 8 for alt in alts)


def test_the_slider_of_day_12_draws_another_digit_when_moved_by_keyboard(site, open_page):
    opened = open_page((site / "book" / "day12.html").as_uri())
    slider = opened.page.locator(".vaelab-slider").first
    slider.scroll_into_view_if_needed()
    picture = slider.locator(PICTURE).first

    def pixels():
        opened.page.wait_for_timeout(100)
        return picture.evaluate("c => c.toDataURL()")

    seen = [pixels()]
    slider.locator("input[type=range]").first.focus()
    for _ in range(5):
        opened.page.keyboard.press("ArrowRight")
    seen.append(pixels())
    slider.locator("input[type=radio]").first.focus()
    opened.page.keyboard.press("ArrowRight")
    seen.append(pixels())
    assert len(set(seen)) == 3
    assert ours(opened.errors) == [] and opened.elsewhere == []


def stepped_through(explorer) -> set[tuple[str, str]]:
    """Line and numbers of a run explorer at the first eight stops of its knob, moved by keyboard."""
    explorer.scroll_into_view_if_needed()
    knob, line, seen = explorer.locator("input[type=range]"), explorer.locator(".vr-line").first, set()
    knob.press("Home")
    for _ in range(8):
        explorer.page.wait_for_timeout(50)
        seen.add((line.get_attribute("d"), explorer.locator(".vr-numbers").inner_text()))
        knob.press("ArrowRight")
    return seen


def test_the_sliders_of_kl_balancing_follow_the_keyboard(site, open_page):
    """The first computes prices in the page, the second steps through recorded runs; no kernel answers either."""
    opened = open_page((site / "book" / "kl_balancing.html").as_uri())
    prices, windows = opened.page.locator(".vaelab-slider").all()
    prices.scroll_into_view_if_needed()
    before = prices.locator(".vk-sums").inner_text()
    prices.locator("input[type=range]").first.focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    opened.page.wait_for_timeout(100)
    assert prices.locator(".vk-sums").inner_text() != before

    assert len(stepped_through(windows)) >= 6  # five recorded windows, and the ones that are not recorded
    assert windows.get_by_role("button").count() == 0  # nothing here can train
    assert ours(opened.errors) == [] and opened.elsewhere == []


def test_the_sliders_of_bn_vae_follow_the_keyboard(site, open_page):
    """The first steps through recorded runs over gamma, the second computes moments and floors in the page."""
    opened = open_page((site / "book" / "bn_vae.html").as_uri())
    gammas, moments = opened.page.locator(".vaelab-slider").all()
    assert len(stepped_through(gammas)) >= 7  # the recorded runs differ from one to the next
    assert gammas.get_by_role("button").count() == 0  # nothing here can train

    moments.scroll_into_view_if_needed()
    theta, floor = moments.get_by_label("theta", exact=True), moments.locator("dd.vm-floor")
    before = floor.inner_text(), moments.locator("path.vm-single").first.get_attribute("d")
    for _ in range(3):
        theta.press("ArrowRight")
    opened.page.wait_for_timeout(100)
    after = floor.inner_text(), moments.locator("path.vm-single").first.get_attribute("d")
    assert before[0] != after[0] and before[1] != after[1]
    assert moments.locator("dd.vm-aggregate").inner_text().startswith("1.000")  # whatever theta is
    assert ours(opened.errors) == [] and opened.elsewhere == []


@pytest.mark.parametrize("name", MOMENTUM)
def test_the_momentum_slider_follows_the_keyboard(site, open_page, name):
    opened = open_page((site / "book" / f"{name}.html").as_uri())
    slider = opened.page.locator(".vo-slider").first
    slider.scroll_into_view_if_needed()
    gradient, line = slider.locator("dd.vo-gradient"), slider.locator("path.vo-kl-moving")
    slider.get_by_role("slider", name="momentum m").press("Home")
    opened.page.wait_for_timeout(100)
    before = line.get_attribute("d")
    assert gradient.inner_text() == "100%"
    for _ in range(50):
        opened.page.keyboard.press("ArrowRight")
    opened.page.wait_for_timeout(100)
    assert gradient.inner_text() == ("50%" if slider.get_by_role("radio", name="as written").is_checked() else "100%")
    assert line.get_attribute("d") != before
    assert ours(opened.errors) == [] and opened.elsewhere == []
