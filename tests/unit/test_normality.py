"""How far codes are from N(0, I): each number of the report against a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from vaelab import metrics
from vaelab.divergences import BatchKL, moment_bias

NAMES = ("mean_rms", "variance", "kl", "kl_covariance", "correlation_rms", "kurtosis", "mmd2")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=seeded(seed), dtype=torch.float64)


def whitened(rows: int, width: int) -> Tensor:
    """Codes whose mean is 0 and whose unbiased covariance is the identity, but for rounding."""
    z = normal(rows, width)
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T


def mean_report(runs: int, draw) -> tuple[Tensor, Tensor]:
    """(7,) mean of the reports on draw(0), draw(1) and so on, and its standard error."""
    reports = torch.tensor([metrics.normality(draw(seed)) for seed in range(runs)], dtype=torch.float64)
    return reports.mean(0), reports.std(0) / math.sqrt(runs)


@pytest.mark.parametrize(("rows", "width"), [(24, 3), (200, 16)])
def test_standard_normal_codes_score_0_in_mean_whatever_their_number(rows, width):
    mean, error = mean_report(300, lambda seed: normal(rows, width, seed))
    for i, (name, expected) in enumerate(zip(NAMES, (None, 1, 0, 0, None, 0, 0))):
        if expected is not None:
            assert abs(mean[i] - expected) < 4 * error[i], name
            assert error[i] < 0.2 / math.sqrt(rows), name
    assert mean[0].item() == pytest.approx(1 / math.sqrt(rows), rel=0.1)
    assert mean[4].item() == pytest.approx(1 / math.sqrt(rows - 1), rel=0.1)


def test_the_moments_of_a_correlated_gaussian_off_centre():
    covariance = torch.tensor([[2.0, 0.9, 0.0], [0.9, 0.5, 0.1], [0.0, 0.1, 1.0]], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
    report = metrics.normality(whitened(4000, 3) @ torch.linalg.cholesky(covariance).T + mean)
    assert report._fields == NAMES and all(isinstance(value, float) for value in report)
    assert report.mean_rms == pytest.approx(0.5 / math.sqrt(3), rel=1e-9)
    assert report.variance == pytest.approx(3.5 / 3, rel=1e-9)
    squares = 2 * (0.9**2 / (2.0 * 0.5) + 0.1**2 / 0.5)
    assert report.correlation_rms == pytest.approx(math.sqrt(squares / 6), rel=1e-9)
    diagonal = (0.5**2 + 3.5 - 3 - math.log(2.0 * 0.5 * 1.0)) / 2
    full = (0.5**2 + 3.5 - 3 - torch.logdet(covariance).item()) / 2
    assert report.kl == pytest.approx(diagonal / 3 - moment_bias(4000), abs=1e-9)
    assert report.kl_covariance == pytest.approx((full - moment_bias(4000, 3)) / 3, abs=1e-9)
    assert report.kl_covariance > report.kl + 0.1


def test_both_kl_are_those_of_the_batch():
    z = normal(50, 4) * 1.3 + 0.1
    report = metrics.normality(z)
    assert report.kl == pytest.approx(BatchKL()(z).mean().item(), rel=1e-9)
    assert report.kl_covariance == pytest.approx(BatchKL(full_covariance=True)(z).item() / 4, rel=1e-9)


@pytest.mark.parametrize(
    ("draw", "kurtosis", "tolerance"),
    [
        (lambda u: u, -1.2, 0.02),
        (lambda u: (u - 0.5).sign(), -2.0, 0.001),
        (lambda u: (u - 0.5).sign() * torch.log(1 - 2 * (u - 0.5).abs()), 3.0, 0.2),
    ],
    ids=["uniform", "two points", "Laplace"],
)
def test_the_kurtosis_of_known_distributions(draw, kurtosis, tolerance):
    u = torch.rand(50_000, 8, generator=seeded(), dtype=torch.float64)
    z = draw(u) * torch.logspace(-2, 2, 8) + 3  # neither scale nor place matter
    assert metrics.normality(z).kurtosis == pytest.approx(kurtosis, abs=tolerance)


def test_the_kurtosis_of_few_codes_is_scipys_unbiased_one():
    z = normal(8, 5).exp()
    assert metrics.normality(z).kurtosis == pytest.approx(stats.kurtosis(z.numpy(), bias=False).mean(), rel=1e-9)


def mmd2_of_scaled(scale: float, shift: float, n: int) -> float:
    """The squared MMD between N(shift 1, scale^2 I) and N(0, I): every expectation is a Gaussian integral."""

    def mean_kernel(s: float, variance: float, distance2: float) -> float:
        return (s / (s + variance)) ** (n / 2) * math.exp(-distance2 / (2 * (s + variance)))

    total = 0.0
    for s in (n / 4, n / 2, n, 2 * n, 4 * n):
        total += mean_kernel(s, 2 * scale**2, 0) + mean_kernel(s, 2, 0)
        total -= 2 * mean_kernel(s, scale**2 + 1, n * shift**2)
    return total / 5


@pytest.mark.parametrize(("scale", "shift", "n"), [(0.5, 0.0, 2), (1.0, 0.3, 8), (1.6, 0.0, 8), (0.0, 0.0, 3)])
def test_the_mmd_of_scaled_and_shifted_gaussians_is_the_closed_form_in_mean(scale, shift, n):
    mean, error = mean_report(200, lambda seed: scale * normal(60, n, seed) + shift)
    assert abs(mean[6] - mmd2_of_scaled(scale, shift, n)) <= 4 * error[6] + 1e-9
    assert mean[6] > 10 * error[6]


def test_the_mmd_agrees_with_draws_from_the_prior():
    z, prior, n = normal(400, 2).exp() - 1, normal(4000, 2, seed=1), 2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b).square()
        return sum(torch.exp(-squares / (2 * s * n)) for s in (0.25, 0.5, 1, 2, 4)) / 5

    own = (kernel(z, z).sum() - len(z)) / (len(z) * (len(z) - 1))
    expected = own - 2 * kernel(z, prior).mean() + kernel(prior[:2000], prior[2000:]).mean()
    assert metrics.normality(z).mmd2 == pytest.approx(expected.item(), abs=3e-3) and expected > 0.01


def test_only_the_mmd_and_the_kurtosis_see_a_shape():
    corners = normal(4000, 2).sign()
    report = metrics.normality(corners - corners.mean(0))
    assert abs(report.kl) < 1e-3 and abs(report.kl_covariance) < 1e-3
    assert report.kurtosis < -1.9 and report.mmd2 > 0.01


def test_many_rows_are_thinned_for_the_mmd_alone():
    z = 1.3 * normal(600, 5)
    whole, first, again = (metrics.normality(z, seeded(seed), most=200) for seed in (0, 0, 1))
    everything = metrics.normality(z)
    assert whole == first and whole.mmd2 != again.mmd2
    assert whole[:6] == again[:6] == everything[:6]
    assert whole.mmd2 == pytest.approx(everything.mmd2, abs=0.02)
    state = torch.get_rng_state()
    assert metrics.normality(z) == everything and torch.get_rng_state().equal(state)  # nothing drawn
    metrics.normality(z, seeded(), most=200)
    assert torch.get_rng_state().equal(state)


def test_the_default_takes_two_thousand_rows_at_most():
    z = normal(2001, 2)
    assert metrics.normality(z, seeded(0)).mmd2 != metrics.normality(z, seeded(1)).mmd2
    assert metrics.normality(z[:2000], seeded(0)).mmd2 == metrics.normality(z[:2000], seeded(1)).mmd2


def test_too_few_codes_for_a_covariance_are_told():
    report = metrics.normality(normal(8, 8))
    assert math.isnan(report.kl_covariance) and math.isfinite(report.kl)
    assert "| KL of the covariance, nats per coordinate | not defined | 0 |" in report._repr_markdown_()
    assert math.isfinite(metrics.normality(normal(9, 8)).kl_covariance)
    assert math.isnan(metrics.normality(normal(3, 1)).kurtosis)


def test_the_table_of_a_notebook():
    report = metrics.NormalityReport(0.1, 1.0, 0.25, 0.5, 0.2, -1.0, 0.125)
    rows = report._repr_markdown_().splitlines()
    assert rows[0] == "| | codes | N(0, I) |" and len(rows) == 2 + len(NAMES)
    assert rows[3] == "| mean variance | 1.0000 | 1 |" and rows[-1] == "| MMD² | 0.1250 | 0 |"


def test_constant_coordinates_are_left_out_of_what_they_do_not_have():
    z = normal(500, 3)
    report = metrics.normality(torch.cat([z, torch.full((500, 2), 0.1).double()], 1))
    alone = metrics.normality(z)
    assert report.kurtosis == pytest.approx(alone.kurtosis, rel=1e-9)
    assert report.correlation_rms**2 * 20 == pytest.approx(alone.correlation_rms**2 * 6, rel=1e-9)
    assert math.isfinite(report.kl_covariance) and report.kl > 5
    collapsed = metrics.normality(torch.zeros(10, 2))
    assert math.isnan(collapsed.kurtosis) and collapsed.correlation_rms == 0 and collapsed.variance == 0


def test_one_coordinate_has_nobody_to_correlate_with():
    report = metrics.normality(normal(100, 1))
    assert report.correlation_rms == 0 and report.kl == pytest.approx(report.kl_covariance, rel=1e-9)


@pytest.mark.parametrize("z", [torch.zeros(5), torch.zeros(1, 3), torch.zeros(4, 0)])
def test_codes_must_be_rows(z):
    with pytest.raises(ValueError, match="z has shape .*; it must be"):
        metrics.normality(z)


def test_other_bad_input_is_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="z holds .*; it must be finite"):
            metrics.normality(torch.tensor([[0.0], [bad]]))
    with pytest.raises(ValueError, match="most is 1; it must be at least 2"):
        metrics.normality(normal(5, 2), most=1)
