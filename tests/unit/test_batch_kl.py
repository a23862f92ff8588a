"""The KL of a batch as a whole: against its mathematics, the blog's formula, draws, and in several processes."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair import one_of_two, run_both
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaelab import lab
from vaelab.divergences import BatchKL, gaussian_kl, moment_bias, moment_kl

N, n = 24, 3
VERSIONS = {
    "as written": partial(BatchKL, as_written=True),
    "diagonal": BatchKL,
    "full covariance": partial(BatchKL, full_covariance=True),
}
each_version = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
corrected = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full covariance"])


def codes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal codes."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def skewed(t: int, rows: int = N) -> Tensor:
    """(rows, n) codes of batch t: off centre, correlated, not normal, each batch elsewhere."""
    z = codes(rows, n, seed=t)
    mix = double(1.2, 0.3, 0.0, 0.0, 0.6, 0.2, 0.1, 0.0, 0.9).view(n, n)
    return (z + 0.2 * z**2) @ mix + 0.3 * t - 1


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradient(kl: BatchKL, z: Tensor, *more: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(kl(z, *more).sum(), z)[0]


# The closed forms


@given(st.floats(-3, 3, allow_subnormal=False), st.floats(0.01, 9))
def test_one_coordinate_is_the_kl_of_a_gaussian(mean, variance):
    mean, variance = double(mean), double(variance)
    same(moment_kl(mean, variance), 0.5 * (mean**2 + variance - 1 - variance.log()), 1e-9)
    same(moment_kl(mean, variance[:, None]), moment_kl(mean, variance)[0], 1e-9)


@given(st.integers(1, 6), st.integers(0, 99))
def test_a_covariance_is_torchs_own_kl_and_above_the_sum_over_coordinates(width, seed):
    root, mean = codes(width, width, seed=seed) + torch.eye(width), codes(width, seed=seed + 1)
    covariance = root @ root.T + 0.1 * torch.eye(width)
    standard = MultivariateNormal(torch.zeros(width).double(), torch.eye(width).double())
    kl = moment_kl(mean, covariance)
    same(kl, kl_divergence(MultivariateNormal(mean, covariance), standard), 1e-9)
    assert kl >= moment_kl(mean, covariance.diag()).sum() - 1e-9


def test_a_constant_coordinate_costs_much_but_not_infinitely():
    dead = moment_kl(torch.zeros(2), torch.tensor([0.0, 1.0]))
    same(dead, torch.tensor([(math.log(1e12) - 1) / 2, 0.0]), 1e-5)
    z = codes(N, n)
    z[:, 1] = 3.0
    for full in (False, True):
        assert torch.isfinite(gradient(BatchKL(full_covariance=full), z)).all()


@pytest.mark.parametrize("variance", [torch.ones(3), torch.ones(2, 3), torch.ones(2, 2, 2), torch.ones(())])
def test_moments_of_two_widths_are_refused(variance):
    with pytest.raises(ValueError, match=r"mean has shape \(2,\), variance .*; they must be"):
        moment_kl(torch.zeros(2), variance)


# The bias of a finite number of codes


@pytest.mark.parametrize(
    ("count", "nats"), [(8, 0.1373), (16, 0.0653), (32, 0.0319), (64, 0.0158), (128, 0.0079), (256, 0.0039)]
)
def test_the_bias_table(count, nats):
    assert moment_bias(count) == pytest.approx(nats, abs=5e-5)


def test_the_bias_of_three_codes_in_closed_form():
    assert moment_bias(3) == pytest.approx(0.5 * (1 / 3 + 0.5772156649), abs=1e-9)  # psi(1) = -gamma, ln 1 = 0


@given(st.integers(1, 20))
def test_the_bias_for_many_codes(width):
    assert 1e6 * moment_bias(1e6, width) == pytest.approx(width * (width + 3) / 4, rel=1e-4)


@pytest.mark.parametrize(("count", "width"), [(16, 1), (16, 4), (40, 12)])
def test_the_bias_is_the_mean_over_draws(count, width):
    draws = codes(2000, count, width)
    kl = torch.stack([moment_kl(z.mean(0), z.T.cov().reshape(width, width)) for z in draws])
    assert abs(kl.mean() - moment_bias(count, width)) < 4 * kl.std() / math.sqrt(len(kl))


@pytest.mark.parametrize(("count", "width"), [(1, 1), (5, 5), (4.5, 5), (10, 0), (math.inf, 1), (math.nan, 1)])
def test_a_bias_needs_more_codes_than_coordinates(count, width):
    with pytest.raises(ValueError, match="count is .*, n is .*; n must be"):
        moment_bias(count, width)


@corrected
@pytest.mark.parametrize(("rows", "momentum", "steps"), [(16, 0.0, 1), (64, 0.0, 1), (32, 0.5, 5), (16, 0.9, 8)])
def test_standard_normal_codes_cost_nothing_in_mean(full, rows, momentum, steps):
    width, runs = (4, 200) if full else (5000, 1)
    values = []
    for seed in range(runs):
        kl = BatchKL(momentum, full)
        *before, z = codes(steps, rows, width, seed=seed)
        for earlier in before:
            kl.observe(earlier)
        values.append(kl(z))
    values = torch.stack(values).flatten()
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert values.mean() + moment_bias(kl.count.item(), width if full else 1) > 10 * abs(values.mean())
    assert (values < 0).any()


@corrected
@pytest.mark.parametrize("within", [0.01, 0.4, 0.9, 1.0])
def test_nor_do_means_and_widths_that_make_up_a_standard_normal(full, within):
    rows, width, runs = (64, 4, 200) if full else (64, 5000, 1)
    mu = math.sqrt(1 - within) * codes(runs, rows, width)
    logvar = torch.full((rows, width), math.log(within)).double()
    values = torch.stack([BatchKL(full_covariance=full)(z, logvar) for z in mu]).flatten()
    assert abs(values.mean()) <= 4 * values.std() / math.sqrt(len(values)) + 1e-12
    noise = BatchKL(full_covariance=full)(codes(rows, width)).std() if not full else 1.0
    assert values.std() < noise * (1 - 0.5 * within)  # less noisy than draws


def test_what_is_subtracted_where_the_widths_differ():
    rows, width = 40, 4
    within = double(0.02, 0.1, 0.6, 0.95)
    z, logvar = codes(rows, width), within.log().expand(rows, width)
    between = z.T.cov()
    covariance = between + within.diag()
    a = torch.linalg.solve(covariance, between)
    logs = 2 * moment_bias(rows, width) - width / rows
    share = (a.trace() ** 2 + (a @ a).trace()) / (width * (width + 1))
    expected = moment_kl(z.mean(0), covariance) - (a.trace() / rows + share * logs) / 2
    same(BatchKL(full_covariance=True)(z, logvar), expected, 1e-9)
    a, logs = between.diag() / covariance.diag(), 2 * moment_bias(rows) - 1 / rows
    expected = moment_kl(z.mean(0), covariance.diag()) - (a / rows + a**2 * logs) / 2
    same(BatchKL()(z, logvar), expected, 1e-9)


def test_the_effective_number_of_codes():
    kl, momentum = BatchKL(0.8), 0.8
    lengths = [5, 9, 2, 30]
    for t, rows in enumerate(lengths):
        kl(codes(rows, n, seed=t))
    w = double(*(momentum ** (len(lengths) - 1 - t) for t in range(len(lengths))))
    w = w / w.sum()
    assert kl.count.item() == pytest.approx(1 / (w**2 / torch.tensor(lengths)).sum().item(), rel=1e-12)
    for t in range(200):
        kl(codes(8, n, seed=t))
    assert kl.count.item() == pytest.approx(8 * (1 + momentum) / (1 - momentum), rel=1e-9)


# The blog's version


def blogs_kld(batches: list[Tensor], momentum: float) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """What the formulas give, one unrolled sum per step: sum_b (1 - m) m^(t - b) s_b, and m^t times the start."""
    terms = []
    for t in range(1, len(batches) + 1):
        weights = [(1 - momentum) * momentum ** (t - b) for b in range(1, t + 1)]
        mean = sum(w * z.sum(0) / len(z) for w, z in zip(weights, batches))
        squares = [(z - z.sum(0) / len(z)).pow(2).sum(0) / (len(z) - 1) for z in batches]
        variance = momentum**t + sum(w * v for w, v in zip(weights, squares))
        terms.append((variance + mean**2 - 1 - torch.log(variance)) / 2)
    return terms, (mean, variance)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9])
def test_as_written_it_is_the_blogs_formula_step_by_step(momentum):
    kl, batches = BatchKL(momentum, as_written=True), [skewed(t) for t in range(5)]
    expected, (mean, variance) = blogs_kld(batches, momentum)
    for z, value in zip(batches, expected):
        same(kl(z), value)
    kl.eval()
    test = skewed(7, rows=11)
    m, v = momentum * mean + (1 - momentum) * test.mean(0), momentum * variance + (1 - momentum) * test.var(0)
    for _ in range(2):  # frozen
        same(kl(test), gaussian_kl(m, v.log()))


def test_as_written_the_untrained_module_starts_from_the_prior():
    kl, z = BatchKL(0.9, as_written=True).eval(), skewed(0)
    same(kl(z), gaussian_kl(0.1 * z.mean(0), (0.9 + 0.1 * z.var(0)).log()))


def test_as_written_the_variance_is_clamped_in_the_logarithm():
    same(BatchKL(as_written=True)(torch.ones(4, 1)), torch.tensor([0.5 * (1 - 1 + math.log(1e12))]), 1e-6)


# Gradients


def moving_and_its_derivatives(version: str, momentum: float, z: Tensor) -> tuple[BatchKL, Tensor]:
    """A module whose averages are the moments of z, and dK/dz for these were they z's own."""
    kl = VERSIONS[version](momentum)
    if version == "as written":
        kl.mean, kl.variance = z.mean(0), z.var(0)
        return kl, gradient(lambda z: gaussian_kl(z.mean(0), z.var(0).log()), z)
    for _ in range(30):
        kl.observe(z)
    probe = copy.deepcopy(kl)
    probe(z)
    ratio = (count := probe.count.item()) / (count - 1)

    def plain(z: Tensor) -> Tensor:
        covariance = ratio * z.T.cov(correction=0)
        return moment_kl(z.mean(0), covariance if kl.full_covariance else covariance.diag())

    return kl, gradient(plain, z)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_share_of_the_gradient_that_reaches_the_batch(version, momentum):
    z = skewed(2)
    kl, full = moving_and_its_derivatives(version, momentum, z)
    share = 1 - momentum if version == "as written" else 1.0
    same(gradient(kl, z), share * full, 1e-10)
    assert full.norm() > 0.1


@corrected
def test_the_gradient_is_that_of_the_raw_moments_at_the_averages(full):
    kl = BatchKL(0.7, full)
    for t in range(4):
        kl.observe(skewed(t))
    z = skewed(9)
    ours = gradient(kl, z)
    count = kl.count.item()
    first = kl.mean.clone().requires_grad_()
    second = (kl.between + (torch.outer(first, first) if full else first**2)).detach().requires_grad_()
    variance = count / (count - 1) * (second - (torch.outer(first, first) if full else first**2))
    d_first, d_second = torch.autograd.grad(moment_kl(first, variance).sum(), (first, second))
    pull = z @ (d_second + d_second.T) if full else 2 * z * d_second
    same(ours, (d_first + pull) / N, 1e-10)


@each_version
def test_gradcheck(version):
    z, logvar = skewed(1, rows=6), codes(6, n, seed=5)
    assert torch.autograd.gradcheck(lambda z: version(0.0)(z), z.requires_grad_())
    if version is not VERSIONS["as written"]:  # the bias is a constant to the gradient, so compare without it
        value = partial(within_value, full=version is not BatchKL)
        inputs = (z.detach().requires_grad_(), logvar.requires_grad_())
        assert torch.autograd.gradcheck(value, inputs)
        ours = torch.autograd.grad(version(0.0)(*inputs).sum(), inputs)
        for gradient_, expected in zip(ours, torch.autograd.grad(value(*inputs).sum(), inputs)):
            same(gradient_, expected, 1e-10)


def within_value(mu: Tensor, logvar: Tensor, full: bool) -> Tensor:
    """The KL of the moments of q(z), nothing subtracted."""
    covariance = mu.T.cov() + logvar.exp().mean(0).diag()
    return moment_kl(mu.mean(0), covariance if full else covariance.diag())


def test_a_gradient_step_settles_where_the_batches_stay_and_overshoots_beyond_the_bound():
    bound = (1 - math.sqrt(0.9)) / (1 + math.sqrt(0.9))
    noise = codes(40, 1)
    noise = (noise - noise.mean()) / noise.std(correction=0)
    lowest = {}
    for share in (0.9 * bound, 4 * bound):
        kl, shift = BatchKL(0.9), torch.tensor([2.0]).double().requires_grad_()
        for _ in range(50):  # long ago, so that Adam's correction is over
            kl.observe(noise + 2)
        path = []
        for _ in range(400):
            (slope,) = torch.autograd.grad(kl(noise + shift).sum(), shift)
            shift = (shift - share * slope).detach().requires_grad_()
            path.append(shift.item())
        lowest[share] = min(path)
        assert abs(path[-1]) < 1e-3
    steady, swinging = lowest.values()
    assert steady > -1e-4 and swinging < -0.2


# What it measures


@pytest.mark.parametrize("seed", range(4))
def test_single_points_cost_at_least_the_covariance_and_that_at_least_the_coordinates(seed):
    components, width = 5, 4
    mu, logvar = codes(components, width, seed=seed), codes(components, width, seed=seed + 50) - 1
    which = torch.arange(20_000) % components  # a mixture of Gaussians: each component for one fifth of the data
    z = mu[which] + (logvar[which] / 2).exp() * codes(20_000, width, seed=seed + 99)
    single = gaussian_kl(mu, logvar).sum(1).mean()
    total, each = BatchKL(full_covariance=True)(z), BatchKL()(z)
    assert total.shape == () and each.shape == (width,)
    assert single > total + 0.05 and total > each.sum() + 0.01 and (each > -1e-3).all()
    same(BatchKL()(mu[which], logvar[which]), each, 0.05)
    same(BatchKL(full_covariance=True)(mu[which], logvar[which]), total, 0.05)


def test_the_drift_of_batch_means_is_variance_unless_as_written():
    rho, steps = 0.8, 600
    means = math.sqrt(rho) * codes(steps, 1, 800)
    written, right = BatchKL(0.98, as_written=True), BatchKL(0.98)
    for t, mean in enumerate(means):
        z = mean + math.sqrt(1 - rho) * codes(16, 800, seed=t + 1)
        written.observe(z), right.observe(z)
    assert written.variance.mean().item() == pytest.approx(1 - rho, abs=0.01)
    variance = right.between * right.count / (right.count - 1)
    assert variance.mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_clustered_batches_exceed_the_population_by_the_log_of_their_share(rho):
    z = math.sqrt(rho) * codes(300, 1, 100) + math.sqrt(1 - rho) * codes(300, 64, 100, seed=1)
    each = torch.stack([BatchKL().eval()(batch).mean() for batch in z]).mean()
    assert each.item() == pytest.approx(-0.5 * math.log(1 - rho), abs=0.02)
    assert abs(BatchKL()(z.flatten(0, 1)).mean()) < 0.02


def test_correlation_costs_only_with_the_covariance():
    rho = 0.9
    z = codes(20_000, 2)
    z[:, 1] = rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]
    assert BatchKL(full_covariance=True)(z).item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.03)
    assert BatchKL()(z).abs().max() < 1e-3


def test_the_averages_are_those_of_raw_moments():
    kl, m, batches = BatchKL(0.6), 0.6, [skewed(t, rows=5 + t) for t in range(4)]
    for z in batches:
        value = kl(z)
    w = double(m**3, m**2, m, 1.0)
    w = w / w.sum()
    first = sum(share * z.mean(0) for share, z in zip(w, batches))
    second = sum(share * (z**2).mean(0) for share, z in zip(w, batches))
    count = 1 / sum(share**2 / len(z) for share, z in zip(w, batches)).item()
    expected = moment_kl(first, (second - first**2) * count / (count - 1)) - moment_bias(count)
    same(value, expected, 1e-10)


def test_logvar_adds_its_mean_to_the_averaged_second_moment():
    kl, m = BatchKL(0.6, full_covariance=True), 0.6
    batches = [(skewed(t), codes(N, n, seed=t + 20)) for t in range(3)]
    for z, logvar in batches:
        kl(z, logvar)
    w = double(m**2, m, 1.0)
    same(kl.within, sum(share * logvar.exp().mean(0) for share, (_, logvar) in zip(w / w.sum(), batches)), 1e-10)
    plain = BatchKL(0.6, full_covariance=True)
    for z, _ in batches:
        plain(z)
    same(kl.between, plain.between)
    none = torch.full((N, n), -800.0).double()  # variances that round to 0
    same(BatchKL()(skewed(1), none), BatchKL()(skewed(1)))


@corrected
def test_evaluation_looks_at_the_batch_alone(full):
    kl, fresh = BatchKL(0.9, full), BatchKL(0.0, full)
    for t in range(3):
        kl(skewed(t))
    before = copy.deepcopy(kl.state_dict())
    same(kl.eval()(skewed(8)), fresh(skewed(8)), 1e-12)
    same(gradient(kl, skewed(8)), gradient(fresh, skewed(8)), 1e-12)
    for key, value in kl.state_dict().items():
        assert value.equal(before[key])
    assert not torch.allclose(kl.train()(skewed(8)), fresh(skewed(8)), atol=1e-3)


# State


@each_version
def test_a_state_goes_on_where_it_was_left(version, tmp_path):
    kl = version(0.9)
    for t in range(3):
        kl(skewed(t))
    torch.save(kl.state_dict(), tmp_path / "kl.pt")
    restored = version(0.9)
    restored.load_state_dict(torch.load(tmp_path / "kl.pt"))
    twin = copy.deepcopy(kl)
    expected = kl(skewed(5))
    for other in (restored, twin):
        assert other(skewed(5)).equal(expected)
        assert all(value.equal(kl.state_dict()[key]) for key, value in other.state_dict().items())
    fresh = version(0.9)
    fresh.load_state_dict(version(0.9).state_dict())  # of nothing seen
    fresh(skewed(0))
    kl.reset()
    assert kl(skewed(4)).equal(version(0.9)(skewed(4)))


def test_a_state_of_another_version_is_refused():
    kl = BatchKL(full_covariance=True)
    kl(skewed(0))
    with pytest.raises(RuntimeError, match="size mismatch for between"):
        BatchKL().load_state_dict(kl.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        BatchKL(as_written=True).load_state_dict(kl.state_dict())


@each_version
def test_the_state_holds_no_graph_and_keeps_float32_at_least(version):
    kl = version(0.9).half()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        z = skewed(0).to(dtype).requires_grad_()
        value = kl(z)
        value.sum().backward()
        assert value.dtype == torch.float32 and z.grad.dtype == dtype
    assert all(b.dtype == torch.float32 and not b.requires_grad for b in kl.buffers())
    assert all(b.dtype == torch.float64 for b in kl.double().buffers())
    with torch.autocast("cpu", torch.bfloat16):
        same(version()(skewed(3).float()), version()(skewed(3)).float(), 1e-4)
        kl = version()
        kl.observe(skewed(3).float())
        same(kl.mean, skewed(3).mean(0).float(), 1e-4)
        if not kl.as_written:
            z, logvar = skewed(3), skewed(4)
            same(version()(z.float(), logvar.float()), version()(z, logvar).float(), 1e-4)
            covariance = skewed(3).T.cov(correction=0).float()
            same(kl.between, covariance if kl.full_covariance else covariance.diag(), 1e-4)


def test_far_from_the_origin_no_digits_are_lost():
    kl, near = BatchKL(0.9), BatchKL(0.9)
    for t in range(20):
        z = codes(64, 50, seed=t)
        far = kl((z + 3000).float())
        close = near(z)
    same((kl.between / near.between).double(), torch.ones(50).double(), 2e-3)
    same(far.double() - 3000**2 / 2 - 3000 * near.mean, close, 2.0)  # of 4.5 million nats in float32


def test_what_it_says_of_itself():
    assert repr(BatchKL(0.9)) == "BatchKL(momentum=0.9, diagonal)"
    assert repr(BatchKL(full_covariance=True)) == "BatchKL(momentum=0.0, full_covariance)"
    assert repr(BatchKL(as_written=True)) == "BatchKL(momentum=0.0, as_written)"


# Few codes, and bad input


def test_observed_batches_make_up_for_short_ones():
    kl = BatchKL(0.9, full_covariance=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"covariance is of 3 codes, effectively; .* more than the 5 coordinates"):
            kl(codes(3, 5))
    assert not kl.count  # a batch that is refused leaves no trace
    with pytest.raises(ValueError, match="covariance is of 5 codes"):
        kl.eval()(codes(5, 5))
    for t in range(10):
        kl.observe(codes(3, 5, seed=t))
    assert torch.isfinite(gradient(kl.train(), codes(3, 5))).all() and kl.count > 20
    written = BatchKL(0.9, as_written=True)
    written.observe(skewed(0))
    same(written(skewed(1)), blogs_kld([skewed(0), skewed(1)], 0.9)[0][1])


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan, math.inf])
def test_a_momentum_must_leave_something_to_the_batch(momentum):
    with pytest.raises(ValueError, match=r"momentum is .*; it must lie in \[0, 1\)"):
        BatchKL(momentum)


def test_the_blog_has_neither_covariance_nor_analytic_moments():
    with pytest.raises(ValueError, match="full_covariance is True; as_written"):
        BatchKL(full_covariance=True, as_written=True)
    with pytest.raises(ValueError, match="logvar has shape .*; it must be None"):
        BatchKL(as_written=True)(codes(N, n), codes(N, n))


@each_version
def test_bad_codes_are_refused_and_leave_no_trace(version):
    kl = version(0.9)
    for shape in ((N,), (N, 2, n), (N, 0)):
        with pytest.raises(ValueError, match=r"z has shape .*; it must be \(N, n\)"):
            kl(torch.zeros(shape))
    kl(skewed(0))
    before = copy.deepcopy(kl.state_dict())
    with pytest.raises(ValueError, match=rf"z has shape .*; it must be \(N, {n}\), as before"):
        kl(codes(N, n + 1))
    for rows in (0, 1):
        with pytest.raises(ValueError, match=rf"z has {rows} code\(s\) in all"):
            kl(codes(rows, n))
    for bad in (math.nan, math.inf, -math.inf):
        z = skewed(0)
        z[3, 1] = bad
        with pytest.raises(ValueError, match="not finite"):
            kl(z)
    assert all(value.equal(before[key]) for key, value in kl.state_dict().items())


def test_bad_log_variances_are_refused():
    with pytest.raises(ValueError, match=rf"logvar has shape \({N}, 1\); it must be \({N}, {n}\), as z"):
        BatchKL()(codes(N, n), codes(N, 1))
    with pytest.raises(ValueError, match="not finite"):
        BatchKL()(codes(N, n), torch.full((N, n), math.nan))


# Several processes

SPLITS = {"equal halves": (6, 6), "uneven": (2, 10), "one has a single code": (1, 11)}
KINDS = {**VERSIONS, "with logvar": BatchKL}


def steps(split: tuple[int, ...], rank: int | None, kind: str) -> dict:
    """Two steps on a share of the batches, or on the whole of them: values, gradients, state, an evaluation."""
    kl, result = KINDS[kind](0.7), {"values": [], "gradients": []}
    start, stop = (0, sum(split)) if rank is None else (sum(split[:rank]), sum(split[: rank + 1]))
    for t in range(2):
        inputs = [skewed(t, sum(split))[start:stop].requires_grad_()]
        if kind == "with logvar":
            inputs.append(codes(sum(split), n, seed=t + 7)[start:stop].requires_grad_())
        value = kl(*inputs)
        result["values"].append(value.detach())
        result["gradients"].append(torch.cat(torch.autograd.grad(value.sum(), inputs), 1))
    result["values"].append(kl.eval()(skewed(5, sum(split))[start:stop]))
    return {**result, "state": kl.state_dict()}


def take_a_share(rank: int, folder: str) -> None:
    with one_of_two(rank, folder) as results:
        for name, split in SPLITS.items():
            for kind in KINDS:
                results[name, kind] = steps(split, rank, kind)
        try:
            BatchKL()(codes(1 - rank, n))  # one code in all
        except ValueError as error:
            results["single"] = str(error)
        try:
            BatchKL()(codes(4, n) * (math.nan if rank else 1.0))
        except ValueError as error:
            results["nan"] = str(error)
        x = torch.tensor([1.0 + rank], requires_grad=True)
        total = lab.sum_over_processes(x)
        ((1 + rank) * total).sum().backward()
        results["sum"] = (total.detach(), x.grad)


@pytest.fixture(scope="module")
def shares(processes, tmp_path_factory) -> list[dict]:
    return run_both(processes, tmp_path_factory.mktemp("gloo"), take_a_share)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPLITS)
def test_two_processes_agree_with_one_on_the_joined_batch(shares, name, kind):
    alone, parts = steps(SPLITS[name], None, kind), [share[name, kind] for share in shares]
    for part in parts:
        for value, expected in zip(part["values"], alone["values"]):
            same(value, expected.detach(), 1e-11)
        for key, expected in alone["state"].items():
            same(part["state"][key], expected, 1e-11)
    for t, expected in enumerate(alone["gradients"]):  # each has the gradient of the sum of two equal losses
        same(torch.cat([part["gradients"][t] for part in parts]) / 2, expected, 1e-11)


def test_every_process_refuses_what_one_of_them_has(shares):
    assert all("z has 1 code(s) in all" in share["single"] for share in shares)
    assert all("not finite" in share["nan"] for share in shares)


def test_a_sum_over_processes_and_its_gradient(shares):
    for total, slope in (share["sum"] for share in shares):
        assert total.item() == 3.0 and slope.item() == 3.0  # the weights 1 and 2 of the two losses
    alone = torch.ones(2)
    assert lab.sum_over_processes(alone) is alone
