"""BalanceExplorer: its numbers against `balance_kl` and autograd, in Python and in the rendered page; its controls.

The first tests need no browser.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from looks import TIME_FRAMES, assert_controls_fit, median_redraw
from pages import settle

from vaelab.divergences import balance_kl, sizes_by_scale
from vaelab.widgets.balance import DIVISORS, BalanceExplorer, Prices


def settings() -> list[dict]:
    """Random settings of every kind, among them groups with no KL, and all groups with none."""
    generator = np.random.default_rng(0)
    cases = []
    for i in range(200):
        count = int(generator.integers(2, 9))
        kl = np.round(generator.uniform(0, 30, count), 1) * (generator.uniform(size=count) > 0.15)
        cases.append({
            "kl": (0 * kl if i % 20 == 0 else kl).tolist(),
            "sizes": generator.choice([16.0, 64.0, 256.0], count).tolist(),
            "divide": DIVISORS[i % 4],
            "strength": float(generator.choice([0.0, 0.35, 1.0])),
            "through": bool(i % 3),
            "floor": float(generator.choice([1e-3, 0.1])),
        })  # fmt: skip
    return cases


def truth(kl: list, sizes: list, divide: str, strength: float, through: bool, floor: float) -> Prices:
    """The same in torch: gamma from the package, prices from autograd, which sees gamma only if it may."""
    sizes = torch.tensor(sizes, dtype=torch.float64)
    by_scale = sizes / (sizes[:, None] == sizes).sum(1)  # sizes_by_scale, which is float32, to more digits
    torch.testing.assert_close(by_scale.float(), sizes_by_scale(sizes))
    a = {"nothing": None, "size": sizes, "scale": by_scale, "typo": 1 / sizes}[divide]
    k = torch.tensor(kl, dtype=torch.float64, requires_grad=True)
    balanced = balance_kl(k[None], a, strength=strength, floor=floor)
    if through:
        a = torch.ones_like(sizes) if a is None else a
        w = k.clamp(min=0)  # in nats: where all are zero, autograd cannot see through a division by their maximum
        share = (w + floor * w.mean() + 1e-150) / (a / a.mean())
        loss = ((1 + strength * (share / share.mean() - 1)) * k).sum()
    else:
        loss = balanced.kl.sum()
    (price,) = torch.autograd.grad(loss, k)
    assert loss.item() == pytest.approx(balanced.kl.item(), rel=1e-12)
    return Prices(balanced.gamma.numpy(), price.numpy(), float(sum(kl)), balanced.kl.item())


def difference(got: Prices, expected: Prices) -> float:
    """The largest relative one of all numbers."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(got, expected)]
    return max(float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))) for a, b in pairs)


def test_python_and_torch_agree():
    assert max(difference(BalanceExplorer(**case).numbers(), truth(**case)) for case in settings()) < 1e-10


@pytest.mark.parametrize("through", [False, True])
def test_groups_without_any_kl_keep_finite_prices(through):
    explorer = BalanceExplorer(kl=(0, 0, 0), sizes=(16, 64, 64), through=through)
    numbers = explorer.numbers()
    np.testing.assert_allclose(numbers.gamma, [2, 0.5, 0.5])
    np.testing.assert_allclose(numbers.price, numbers.gamma)
    assert numbers.plain == numbers.balanced == 0


def test_let_through_a_weak_group_is_paid_to_grow():
    explorer = BalanceExplorer()
    assert explorer.numbers().price.min() > 0
    explorer.through = True
    numbers = explorer.numbers()
    assert numbers.price[1] < -1 and numbers.gamma[1] > 0
    assert numbers.price @ np.array(explorer.kl) == pytest.approx(numbers.balanced)  # Euler: the loss is linear along K


def test_without_strength_it_is_the_plain_bound():
    numbers = BalanceExplorer(strength=0.0, through=True).numbers()
    np.testing.assert_array_equal(numbers.price, 1)
    assert numbers.balanced == numbers.plain == 42


@pytest.mark.parametrize(
    "trait, bad",
    [
        ("kl", [1.0, 2.0]),
        ("kl", [1, 2, 3, 4, 30.1]),
        ("kl", [-0.1, 2, 3, 4, 5]),
        ("kl", [math.nan, 2, 3, 4, 5]),
        ("sizes", [16.0]),
        ("sizes", [0, 16, 16, 16, 16]),
        ("sizes", [math.inf, 16, 16, 16, 16]),
        ("divide", "sizes"),
        ("strength", 1.1),
        ("strength", math.nan),
        ("floor", 0.0),
        ("floor", math.inf),
    ],
)
def test_it_names_what_is_wrong(trait, bad):
    with pytest.raises(ValueError, match=f"^{trait} must"):
        setattr(BalanceExplorer(), trait, bad)
    with pytest.raises(ValueError, match=" must "):
        BalanceExplorer(**{trait: bad})


@pytest.mark.parametrize("count", [0, 1, 9])
def test_it_wants_two_to_eight_groups(count):
    with pytest.raises(ValueError, match=f"kl must hold 2 to 8 numbers, one a group, got {count}"):
        BalanceExplorer(kl=[1.0] * count, sizes=[16] * count)


@pytest.mark.parametrize("kl", [(6, 1, 12, 20, 3), (0, 0, 0, 0, 0), (30, 0, 0, 0, 0)])
def test_the_still_picture_shows_bars_around_two_lines(kl):
    ink = BalanceExplorer(kl=kl).still()
    assert ink.shape == (160, 320) and set(ink.ravel().tolist()) <= {0.0, 0.4, 1.0}
    assert (ink == 1).all(1).sum() == 2


# In the page


def number(text: str) -> float:
    return float(text.replace("\u2212", "-"))


def read_out(page) -> dict:
    """The numbers in and under the figure, once all pending redraws are done."""
    settle(page)
    cells = page.locator(".vk-sums dd").all()
    sums = {re.search(r"vk-(\w+)", cell.get_attribute("class"))[1]: cell.inner_text() for cell in cells}
    bars = {name: [number(text) for text in page.locator(f".vk-{name}-text").all_text_contents()]
            for name in ("gamma", "price", "pays")}  # fmt: skip
    return {**{name: text if text == "–" else number(text) for name, text in sums.items()}, **bars}


def assert_shows(page, **setting: object) -> None:
    """Check every number on the page, as far as its digits go."""
    explorer, shown = BalanceExplorer(**setting), read_out(page)
    expected = explorer.numbers()
    np.testing.assert_allclose(shown["gamma"], expected.gamma, atol=0.0051)
    np.testing.assert_allclose(shown["price"], expected.price, atol=0.0051)
    np.testing.assert_allclose(shown["pays"], expected.gamma * explorer.kl, atol=0.051)
    assert shown["total"] == pytest.approx(len(explorer.kl), abs=6e-4)
    assert (shown["plain"], shown["balanced"]) == pytest.approx((expected.plain, expected.balanced), abs=6e-3)
    assert shown["ratio"] == pytest.approx(expected.balanced / expected.plain, abs=6e-4)


@pytest.mark.browser
def test_browser_and_torch_agree(shown):
    """Random settings, groups without KL among them; and the KL that a button finds makes all coefficients 1."""
    cases = settings()
    page = shown(BalanceExplorer()).page
    drawn = page.evaluate(
        """async ({ esm, cases }) => {
            const text = esm + "\\nexport { balance, allEqual };";   // for this test only
            const { balance, allEqual } =
                await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
            return cases.map((setting) => {
                const kl = allEqual(setting);
                return { ...balance(setting), even: kl, ones: balance({ ...setting, kl, strength: 1 }).gamma };
            });
        }""",
        {"esm": BalanceExplorer._esm, "cases": cases},
    )
    worst = 0.0
    for case, found in zip(cases, drawn):
        numbers = Prices(*(found[name] for name in Prices._fields))
        worst = max(worst, difference(numbers, truth(**case)))
        total = min(sum(case["kl"]) or len(case["kl"]), sum(found["even"]))  # or as much as the sliders hold
        assert sum(found["even"]) == pytest.approx(total) and max(found["even"]) <= 30 + 1e-9
        if min(found["even"]) > 0:
            assert found["ones"] == pytest.approx([1] * len(case["kl"]), abs=1e-9)
    print(f"largest relative difference between browser and torch: {worst:.1e}")
    assert worst < 1e-10


@pytest.mark.browser
def test_every_control_works_by_keyboard(shown):
    opened = shown(BalanceExplorer())
    page = opened.page
    assert_shows(page)
    page.get_by_role("slider", name="KL of group 2").press("ArrowRight")
    setting = {"kl": (6, 1.1, 12, 20, 3)}
    assert_shows(page, **setting)
    page.get_by_role("combobox", name="size of group 1").press("ArrowDown")
    setting["sizes"] = (64, 16, 64, 64, 64)
    assert_shows(page, **setting)
    for divide in ("scale", "typo", "nothing"):  # round and round
        page.get_by_role("group", name="Divide K by").locator("input:checked").press("ArrowRight")
        assert_shows(page, **setting, divide=divide)
    page.get_by_role("slider", name="strength").press("ArrowLeft")
    page.get_by_role("radio", name="stopped").press("ArrowRight")
    assert_shows(page, **setting, divide="nothing", strength=0.95, through=True)
    assert "one more nat costs" in page.get_by_role("img").get_attribute("aria-label")
    assert (opened.errors, opened.elsewhere) == ([], [])


@pytest.mark.browser
def test_who_is_paid_to_grow_is_marked(shown):
    page = shown(BalanceExplorer()).page
    assert page.get_by_text("to grow").count() == 0
    page.get_by_role("radio", name="stopped").press("ArrowRight")
    prices = read_out(page)["price"]
    words = page.locator("text.vk-paid").all_text_contents()[1::2]
    assert [word == "to grow" for word in words] == [price < 0 for price in prices] and min(prices) < 0
    fills = [bar.get_attribute("fill") for bar in page.locator("rect.vk-price").all()]
    assert [fill.startswith("url(") for fill in fills] == [price < 0 for price in prices]
    assert "paid to grow" in page.get_by_role("img").get_attribute("aria-label")


@pytest.mark.browser
def test_the_buttons_level_and_collapse(shown):
    opened = shown(BalanceExplorer())
    page = opened.page
    page.get_by_role("button", name="All equal").press("Enter")
    assert read_out(page)["gamma"] == [1] * 5 and read_out(page)["ratio"] == 1
    assert read_out(page)["plain"] == 42
    collapse = page.get_by_role("button", name="Collapse one")
    collapse.press("Enter")
    assert read_out(page)["gamma"].count(0) == 1
    page.get_by_text("its next nat costs").wait_for(state="attached")
    for _ in range(5):
        collapse.press("Enter")
    empty = read_out(page)  # no KL anywhere, and every number is one
    assert empty["plain"] == empty["balanced"] == 0 and empty["ratio"] == "–"
    assert empty["gamma"] == pytest.approx([1.82, 1.82, 0.45, 0.45, 0.45], abs=0.006)
    page.get_by_text("No group has any KL left.").wait_for(state="attached")
    assert opened.errors == []


@pytest.mark.browser
def test_a_size_of_ones_own_can_be_picked(shown):
    page = shown(BalanceExplorer(kl=(1, 2), sizes=(49, 16))).page
    first, second = page.get_by_role("combobox").all()
    assert first.input_value() == "49" and second.input_value() == "16"
    assert_shows(page, kl=(1, 2), sizes=(49, 16))


@pytest.mark.browser
def test_a_move_redraws_within_a_frame(shown):
    page = shown(BalanceExplorer(through=True), script=TIME_FRAMES).page
    assert median_redraw(page, page.get_by_role("slider", name="KL of group 1")) < 16


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_controls_fit(shown, width, dark):
    page = shown(BalanceExplorer(), width=width, dark=dark).page
    assert_controls_fit(page, width)
    for picker in page.locator("select").all():
        assert picker.get_attribute("data-lm-suppress-shortcuts") == "true"
        assert picker.bounding_box()["height"] >= 24
    ground = "rgb(206, 214, 221)" if dark else "rgb(0, 0, 0)"
    assert page.locator("svg text").first.evaluate("(text) => getComputedStyle(text).fill") == ground
