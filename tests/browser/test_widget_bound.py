"""BoundExplorer: its numbers against torch, in Python and in the rendered page; its controls; its size.

The first tests need no browser.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from looks import TIME_FRAMES, assert_controls_fit, median_redraw
from pages import settle
from torch.distributions import Normal, kl_divergence

from vaelab.widgets import BoundExplorer
from vaelab.widgets.bound import DECODERS, Bound


@pytest.mark.parametrize("x, s, mu, log_sigma", [(1.5, 1.0, 0.0, 0.0), (-2.0, 0.3, 1.2, -1.5), (0.4, 3.0, -2.5, 0.7)])
def test_a_straight_decoder_has_a_gaussian_posterior(x, s, mu, log_sigma):
    bound = BoundExplorer(x=x, s=s, mu=mu, log_sigma=log_sigma).numbers()
    assert isinstance(bound, Bound)
    q, prior = Normal(torch.tensor(mu).double(), math.exp(log_sigma)), Normal(torch.tensor(0.0).double(), 1.0)
    posterior = Normal(x / (1 + s**2), s / math.sqrt(1 + s**2))
    assert bound.log_px == pytest.approx(Normal(0.0, math.sqrt(1 + s**2)).log_prob(torch.tensor(x)).item(), abs=1e-5)
    assert bound.gap == pytest.approx(kl_divergence(q, posterior).item(), abs=1e-5)
    assert bound.kl == pytest.approx(kl_divergence(q, prior).item(), abs=1e-6)


@pytest.mark.parametrize("decoder", ["f(z) = z", "f(z) = z + z²/2", "f(z) = 0"])
def test_both_readings_are_one_number(decoder):
    explorer = BoundExplorer(x=2.0, s=0.5, mu=0.7, log_sigma=-0.9)
    explorer.decoder = decoder
    bound = explorer.numbers()
    assert bound.elbo == pytest.approx(bound.log_px - bound.gap, abs=1e-9)
    assert bound.elbo == pytest.approx(bound.reconstruction - bound.kl, abs=1e-12)


def test_a_silent_decoder_is_best_served_by_the_prior():
    explorer = BoundExplorer(decoders={"silent": (0.0, 0.0)})
    assert explorer.numbers().gap == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "trait, bad",
    [("s", 0.0), ("s", -1.0), ("x", math.nan), ("mu", math.inf), ("log_sigma", -math.inf), ("decoder", "g")],
)
def test_it_names_what_is_wrong(trait, bad):
    with pytest.raises(ValueError, match=trait):
        setattr(BoundExplorer(), trait, bad)


def test_it_wants_a_decoder():
    with pytest.raises(ValueError, match="decoders must hold at least one"):
        BoundExplorer(decoders={})


def test_the_still_picture_shows_three_curves():
    ink = BoundExplorer(x=2.0, mu=-1.0, log_sigma=-0.5).still()
    assert ink.shape == (120, 320)
    assert {0.0, 0.3, 0.5, 1.0} == set(ink.ravel().tolist())


# In the page


def read_out(page) -> dict[str, float]:
    """The numbers under the figure, once all pending redraws are done."""
    settle(page)
    cells = page.locator(".vb-sums dd").all()
    return {
        re.search(r"vb-(\w+)", cell.get_attribute("class"))[1]: float(cell.inner_text().replace("\u2212", "-"))
        for cell in cells
    }


def truth(x: float, s: float, mu: float, log_sigma: float, w: float, b: float) -> dict[str, float]:
    """The same numbers in torch, everything by quadrature and nothing in closed form."""
    one = torch.tensor(1.0, dtype=torch.float64)

    def log_joint(z):
        return Normal(w * z + b * z**2, s * one).log_prob(torch.tensor(x).double()), Normal(0 * one, one).log_prob(z)

    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)  # (G,)
    log_px = torch.logsumexp(sum(log_joint(grid)), 0) + (grid[1] - grid[0]).log()
    q = Normal(mu * one, math.exp(log_sigma) * one)
    z = mu + math.exp(log_sigma) * grid  # (G,)
    weight = q.log_prob(z).exp() * (z[1] - z[0])
    likelihood, prior = log_joint(z)
    reconstruction, kl = (weight * likelihood).sum(), (weight * (q.log_prob(z) - prior)).sum()
    gap = (weight * (q.log_prob(z) - likelihood - prior + log_px)).sum()
    names = ("log_px", "gap", "elbo", "reconstruction", "kl")
    return {k: v.item() for k, v in zip(names, (log_px, gap, reconstruction - kl, reconstruction, kl))}


@pytest.mark.browser
def test_browser_and_torch_agree(shown):
    """Random settings of every decoder; also, no q of a million beats the one that the button finds."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([6.0, 2.8, 6.0, 4.0], dtype=torch.float64)
    settings = torch.rand(40, 4, generator=generator, dtype=torch.float64) * scale + torch.tensor([-3, 0.2, -3, -3])
    cases = [(*row, *DECODERS[name]) for row in settings.tolist() for name in DECODERS]
    page = shown(BoundExplorer()).page
    drawn = page.evaluate(
        """async ({ esm, cases }) => {
            const text = esm + "\\nexport { boundNumbers, bestQ };";   // for this test only
            const { boundNumbers, bestQ } =
                await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
            return cases.map(([x, s, mu, log_sigma, w, b]) => {
                const setting = { x, s, mu, log_sigma, w, b, sigma: Math.exp(log_sigma) };
                return { ...boundNumbers(setting), best: bestQ(setting) };
            });
        }""",
        {"esm": BoundExplorer._esm, "cases": cases},
    )
    worst = 0.0
    for case, numbers in zip(cases, drawn):
        for name, value in truth(*case).items():
            worst = max(worst, abs(numbers[name] - value) / max(1.0, abs(value)))
        assert numbers["best"]["mu"] == pytest.approx(best_mu(*case), abs=0.02), case
    print(f"largest relative difference between browser and torch: {worst:.1e}")
    assert worst < 1e-6


def best_mu(x: float, s: float, _mu: float, _log_sigma: float, w: float, b: float) -> float:
    """The mean of the best q, by trying a grid of means and widths."""
    mu = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None]  # (M, 1)
    v = torch.linspace(-7, 1, 801, dtype=torch.float64).exp()  # (V,)
    error = (x - w * mu - b * (mu**2 + v)) ** 2 + (w + 2 * b * mu) ** 2 * v + 2 * b**2 * v**2
    elbo = -error / (2 * s**2) - 0.5 * (mu**2 + v - 1 - v.log())  # (M, V)
    return mu[elbo.max(1).values.argmax()].item()


@pytest.mark.browser
def test_every_control_works_by_keyboard(shown):
    opened = shown(BoundExplorer(x=1.5, s=1.0))
    page, before = opened.page, read_out(opened.page)
    assert before == pytest.approx(truth(1.5, 1.0, 0.0, 0.0, 1.0, 0.0), abs=6e-4)
    outline = page.locator(".vb-q").get_attribute("d")
    page.get_by_role("slider", name="mean μ").press("ArrowRight")
    assert read_out(page) == pytest.approx(truth(1.5, 1.0, 0.05, 0.0, 1.0, 0.0), abs=6e-4)
    assert page.locator(".vb-q").get_attribute("d") != outline
    page.get_by_role("slider", name="log σ").press("ArrowLeft")
    page.get_by_role("slider", name="data x").press("ArrowRight")
    page.get_by_role("slider", name="noise s").press("ArrowLeft")
    assert read_out(page) == pytest.approx(truth(1.6, 0.9, 0.05, -0.05, 1.0, 0.0), abs=6e-4)
    page.get_by_role("radio", name="f(z) = z", exact=True).press("ArrowRight")
    assert read_out(page) == pytest.approx(truth(1.6, 0.9, 0.05, -0.05, 1.0, 0.5), abs=6e-4)
    assert "the gap" in page.get_by_role("img").get_attribute("aria-label")
    assert (opened.errors, opened.elsewhere) == ([], [])


@pytest.mark.browser
def test_the_best_q_closes_the_gap_where_it_can_be_closed(shown):
    page = shown(BoundExplorer(x=1.5, s=0.5, mu=-1.0)).page
    page.get_by_role("button", name="Best q").press("Enter")
    assert read_out(page)["gap"] == 0.0
    page.get_by_text("The best q: ELBO").wait_for(state="attached")
    page.get_by_role("radio", name="f(z) = z", exact=True).press("ArrowRight")  # bent: the posterior is no Gaussian
    page.get_by_role("button", name="Best q").press("Enter")
    assert read_out(page)["gap"] > 0.001
    page.get_by_role("button", name="q = prior").press("Enter")
    assert read_out(page)["kl"] == 0.0


@pytest.mark.browser
def test_a_move_redraws_within_a_frame(shown):
    page = shown(BoundExplorer(), script=TIME_FRAMES).page
    slider = page.get_by_role("slider", name="mean μ")
    assert median_redraw(page, slider) < 16


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_controls_fit(shown, width, dark):
    page = shown(BoundExplorer(), width=width, dark=dark).page
    assert_controls_fit(page, width)
    ground = "rgb(206, 214, 221)" if dark else "rgb(0, 0, 0)"
    assert page.locator("svg text").first.evaluate("(text) => getComputedStyle(text).fill") == ground
