"""MomentExplorer in Python: its numbers against closed forms, Monte Carlo and the posterior module; its errors."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab import posteriors
from vaelab.widgets.moment import CODES, VERSIONS, MomentExplorer, Moments, moments

SCALES = [(0.5, 0.0), (0.05, -6.0), (0.95, 6.0), (0.3, 1.7)]


def mean_kl(mu: np.ndarray, sigma: np.ndarray) -> float:
    """Mean over the data of KL(N(mu, sigma^2) || N(0, 1)), nats."""
    return 0.5 * (mu**2 + sigma**2 - np.log(sigma**2) - 1).mean()


def normalised(x: np.ndarray, scale: float) -> np.ndarray:
    return scale * (x - x.mean()) / x.std()


@pytest.mark.parametrize("tau, theta", SCALES)
def test_su_keeps_the_variance_at_one_whatever_the_scales(tau, theta):
    su, s = moments("su", tau, theta, n=5), 1 / (1 + math.exp(-theta))
    assert isinstance(su, Moments)
    assert su.gamma_mu**2 == pytest.approx(tau + (1 - tau) * s, rel=1e-12)
    assert su.variance == pytest.approx((1 - tau) * (1 - s), rel=1e-12)
    assert su.gamma_sigma**2 == pytest.approx(su.variance, rel=1e-12)
    assert su.aggregate == pytest.approx(1, rel=1e-12)
    assert su.floor == pytest.approx(2.5 * su.gamma_mu**2, rel=1e-12)
    assert su.kl == pytest.approx(-2.5 * math.log(su.variance), rel=1e-12)
    assert su.information == pytest.approx(su.kl, rel=1e-12)  # no nat is paid for a wrong width
    assert su.kl > -2.5 * math.log(1 - tau) > 2.5 * tau and su.kl > su.floor > 2.5 * tau


def test_su_at_its_ends():
    low, high = moments("su", 0.5, -60.0, n=8), moments("su", 0.5, 1000.0, n=8)
    assert low.kl == pytest.approx(-4 * math.log(0.5), rel=1e-12) and low.floor == pytest.approx(2)
    assert high.kl == pytest.approx(4 * (1000 + math.log(2)), rel=1e-12)  # grows without bound; gamma_sigma^2 is 0
    assert (high.variance, high.aggregate, high.floor, high.information) == (0, 1, 4, pytest.approx(high.kl))


@pytest.mark.parametrize("gamma, variance", [(0.6, 1.0), (0.6, 0.64), (1.5, 0.01), (0.1, 1.0), (1.2, 3.0)])
def test_the_papers_floor_is_reached_where_sigma_is_one(gamma, variance):
    paper = moments("paper", gamma=gamma, variance=variance, n=32)
    assert (paper.gamma_mu, paper.gamma_sigma) == (pytest.approx(gamma), None)
    assert paper.variance == pytest.approx(variance)
    assert paper.aggregate == pytest.approx(gamma**2 + variance)
    assert paper.floor == pytest.approx(16 * gamma**2)
    assert paper.information == pytest.approx(16 * math.log(1 + gamma**2 / variance))
    assert paper.kl == pytest.approx(16 * (gamma**2 + variance - math.log(variance) - 1))
    assert (paper.kl == pytest.approx(paper.floor)) == (variance == 1)
    # What is left is the KL from N(0, aggregate) to the prior: the price of the width.
    width = 16 * (paper.aggregate - 1 - math.log(paper.aggregate))
    assert paper.kl - paper.information == pytest.approx(width, abs=1e-9)


@pytest.mark.parametrize("tau, theta", SCALES)
def test_a_normalised_log_variance_is_always_too_wide(tau, theta):
    su, wrong = moments("su", tau, theta), moments("logvar", tau, theta)
    assert (wrong.gamma_mu, wrong.gamma_sigma, wrong.floor) == (su.gamma_mu, su.gamma_sigma, su.floor)
    assert wrong.variance == pytest.approx(math.exp(su.gamma_sigma**2 / 2))
    assert wrong.aggregate == pytest.approx(su.gamma_mu**2 + wrong.variance) and wrong.aggregate > 1 + tau
    assert wrong.kl == pytest.approx(4 * (wrong.aggregate - 1))


@pytest.mark.parametrize("tau, theta", SCALES)
@pytest.mark.parametrize("version", VERSIONS)
def test_monte_carlo_agrees(version, tau, theta):
    """A million encoder outputs, normalised as the version says: moments of z, and the bounds on the mean KL."""
    generator, count = np.random.default_rng(0), 1_000_000
    numbers = moments(version, tau, theta, gamma=0.7, variance=0.8, n=1)
    mu, raw = normalised(generator.exponential(size=count), numbers.gamma_mu), generator.normal(size=count)
    if version == "logvar":
        sigma = np.exp(0.5 * normalised(raw, numbers.gamma_sigma))
        assert mean_kl(mu, sigma) == pytest.approx(numbers.kl, abs=4e-3)
    else:
        sigma = normalised(raw, math.sqrt(numbers.variance))  # signed, as from batch normalisation
        alike = np.sign(raw) * math.sqrt(numbers.variance)
        assert mean_kl(mu, alike) == pytest.approx(numbers.kl, rel=1e-9)
        assert mean_kl(mu, sigma) > numbers.kl + 0.3  # Jensen: Gaussian sigma pay (log 2 + 0.577)/2 more
    z = mu + sigma * generator.normal(size=count)
    assert z.mean() == pytest.approx(0, abs=6e-3)
    assert z.var() == pytest.approx(numbers.aggregate, abs=0.02)
    assert mean_kl(mu, sigma) >= numbers.floor


@pytest.mark.parametrize("tau, theta", SCALES)
def test_the_posterior_module_has_the_same_scales_and_floor(tau, theta):
    module = posteriors.BatchNormPosterior(6, tau=tau, eps=1e-20, variance_floor=1e-20).double()
    torch.nn.init.constant_(module.theta, theta)
    su = moments("su", tau, theta, n=6)
    assert module.gamma_mu[0].item() == pytest.approx(su.gamma_mu, rel=1e-9)
    assert module.gamma_sigma[0].item() == pytest.approx(su.gamma_sigma, rel=1e-9)
    assert module.floor().item() == pytest.approx(su.kl, rel=1e-9)
    paper = posteriors.BatchNormPosterior(6, gamma=0.6).double()
    assert paper.floor().item() == pytest.approx(moments("paper", gamma=0.6, n=6).floor, rel=1e-6)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_mixture_drawn_has_these_moments(version, codes):
    explorer = MomentExplorer(tau=0.3, theta=0.4, gamma=1.2, version=version, variance=0.5, codes=codes)
    (mu, sigma), numbers = explorer.posteriors(), explorer.numbers()
    assert mu.shape == sigma.shape == (64,) and (sigma > 0).all()
    assert mu.mean() == pytest.approx(0, abs=1e-12) and mu.std() == pytest.approx(numbers.gamma_mu, rel=1e-12)
    z = np.linspace(-20, 20, 40001)
    density = explorer.density(z)
    assert density.sum() * 1e-3 == pytest.approx(1, abs=1e-9)
    tolerance = 0.014 if version == "logvar" else 1e-9  # 64 quantiles have lighter tails than a Gaussian
    assert (z**2 * density).sum() * 1e-3 == pytest.approx(numbers.aggregate, rel=tolerance)
    np.testing.assert_allclose(density, density[::-1], atol=1e-12)
    assert mean_kl(mu, sigma) * 8 == pytest.approx(numbers.kl, rel=0.02 if version == "logvar" else 1e-9)
    if version == "logvar":
        assert np.log(sigma**2).mean() == pytest.approx(0, abs=1e-12)
        assert np.log(sigma**2).std() == pytest.approx(numbers.gamma_sigma, rel=1e-12)


def test_two_clusters_have_the_priors_moments_but_not_its_shape():
    spread, clusters = (MomentExplorer(tau=0.9, theta=0.0, codes=codes) for codes in CODES)
    prior = 1 / math.sqrt(2 * math.pi)
    assert spread.density(0.0) == pytest.approx(prior, rel=0.01)
    assert clusters.density(0.0) < 0.2 * prior and clusters.density(0.95) > 1.5 * spread.density(0.95)
    z = np.linspace(-8, 8, 1601)
    np.testing.assert_allclose(spread.density(z), np.exp(-0.5 * z**2) * prior, atol=0.02)


BAD = [("tau", 0.0), ("tau", 1.0), ("tau", math.nan), ("theta", math.inf), ("theta", math.nan),
       ("gamma", 0.0), ("gamma", -0.6), ("gamma", math.inf), ("variance", 0.0), ("variance", math.nan)]  # fmt: skip


@pytest.mark.parametrize(
    "name, value", [*BAD, ("n", 0), ("n", 2.5), ("n", math.nan), ("n", math.inf), ("version", "Su"), ("version", "")]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_moments_name_what_is_wrong(version, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
        moments(**{"version": version, name: value})


BEYOND = [("tau", 0.049), ("tau", 0.951), ("theta", -6.1), ("theta", 6.1), ("gamma", 0.09), ("gamma", 1.51),
          ("variance", 0.009), ("variance", 1.01), ("latents", 0), ("latents", 65), ("version", "Su"),
          ("codes", "two clusters")]  # fmt: skip


@pytest.mark.parametrize("trait, value", [*BAD, *BEYOND])
def test_the_slider_names_what_is_wrong(trait, value):
    with pytest.raises(ValueError, match=f"^{trait} must be .*, got"):
        MomentExplorer(**{trait: value})
    with pytest.raises(ValueError, match=f"^{trait} must be .*, got"):
        setattr(MomentExplorer(), trait, value)


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_of_the_sliders_can_be_set(end):
    ends = {"tau": (0.05, 0.95), "theta": (-6, 6), "gamma": (0.1, 1.5), "latents": (1, 64), "variance": (0.01, 1)}
    setting = {name: pair[end] for name, pair in ends.items()}
    explorer = MomentExplorer(**setting)
    assert {name: getattr(explorer, name) for name in setting} == setting
    assert all(map(math.isfinite, explorer.numbers()))


def test_what_the_browser_sends_can_be_read():
    explorer = MomentExplorer()
    explorer.set_state({"theta": 1, "latents": 12, "version": "paper", "variance": 1})  # a browser writes 1.0 as 1
    assert explorer.numbers() == moments("paper", 0.5, 1.0, 0.6, 1.0, 12)
    assert explorer.start == {"tau": 0.5, "theta": 0.0, "gamma": 0.6, "latents": 8, "version": "su", "variance": 1.0,
                              "codes": "gaussian"}  # fmt: skip


def test_the_still_picture_shows_the_mixture_under_the_priors_line():
    widths = {}
    for version in ("su", "paper"):
        ink = MomentExplorer(version=version, gamma=1.5).still()
        assert ink.shape == (160, 320) and set(ink.ravel().tolist()) == {0.0, 0.4, 1.0}
        assert (ink == 1).any(0).all()  # the line crosses every column
        widths[version] = (ink[150] > 0).sum()  # the width at a low height
    assert widths["paper"] > 1.3 * widths["su"]
    su = MomentExplorer().still()
    assert (su[40:] == 0.4).any() and not (su[:35] > 0).any()  # the peak, 0.4 of an axis to 0.5, is row 40


def test_viewers_without_widgets_get_words_and_a_picture():
    data, _ = MomentExplorer(alt="A mixture beside its prior.")._repr_mimebundle_()
    assert data["text/plain"] == "A mixture beside its prior."
    assert Image.open(io.BytesIO(data["image/png"])).size == (640, 320)
    assert "</script" not in MomentExplorer._esm.lower()
