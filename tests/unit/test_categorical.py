"""The two choices of a KL for discrete codes: against torch.distributions, draws, integrals, and at extremes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, OneHotCategorical, RelaxedOneHotCategorical, kl_divergence
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from vaelab.divergences import categorical_entropy, categorical_kl, relaxed_log_density
from vaelab.posteriors import gumbel_log_softmax, straight_through

HALF = [torch.float16, torch.bfloat16]
numbers = st.floats(-30, 30, allow_subnormal=False)  # vaelab has the CPU flush them to zero
singles = st.floats(-100, 100, width=32, allow_subnormal=False)
small = st.floats(-(2**-10), 2**-10, width=32, allow_subnormal=False)


@st.composite
def pairs(draw, values=numbers, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(N, K) logits of q and of the prior."""
    n, k = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    rows = st.lists(st.lists(values, min_size=k, max_size=k), min_size=n, max_size=n)
    return torch.tensor(draw(rows), dtype=dtype), torch.tensor(draw(rows), dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def is_the_mean_of(expected: Tensor, draws: Tensor) -> bool:
    return bool(abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(len(draws)))


# The categorical KL and the entropy


@given(pairs())
def test_kl_and_entropy_are_those_of_torch_distributions(drawn):
    logits, prior = drawn
    close(categorical_kl(logits, prior), kl_divergence(Categorical(logits=logits), Categorical(logits=prior)))
    one_hot = [OneHotCategorical(logits=part) for part in drawn]
    close(categorical_kl(logits, prior), kl_divergence(*one_hot))
    close(categorical_entropy(logits), one_hot[0].entropy())


@given(pairs())
def test_without_a_prior_it_is_the_kl_to_the_uniform_one(drawn):
    logits, _ = drawn
    close(categorical_kl(logits), math.log(logits.shape[-1]) - categorical_entropy(logits))
    assert categorical_kl(logits).equal(categorical_kl(logits, torch.zeros_like(logits)))


@given(st.one_of(pairs(singles, torch.float32), pairs(small, torch.float32)))
def test_kl_and_entropy_are_never_negative_but_for_rounding_in_float32(drawn):
    logits, prior = drawn
    for kl in (categorical_kl(logits, prior), categorical_kl(logits), categorical_kl(logits, logits + prior * 1e-3)):
        assert (kl >= -1e-10).all() and kl.isfinite().all()
    assert (categorical_entropy(logits) >= 0).all()
    assert (categorical_entropy(logits) <= math.log(logits.shape[-1]) + 1e-6).all()


@given(pairs())
def test_it_is_zero_between_equals(drawn):
    logits, _ = drawn
    assert (categorical_kl(logits, logits) == 0).all()
    assert (categorical_kl(torch.zeros_like(logits)) == 0).all()


def test_constants_in_a_row_do_not_matter():
    logits, prior = some_logits(4, 3), some_logits(4, 3, seed=1)
    close(categorical_kl(logits + 5, prior - 3), categorical_kl(logits, prior))
    close(categorical_entropy(logits - 50), categorical_entropy(logits))


def test_it_is_the_mean_log_ratio_of_draws():
    logits, prior, draws = some_logits(6), some_logits(6, seed=1), 100_000
    y = straight_through(logits.expand(draws, 6), 1.0, seeded())
    log_q, log_p = (y @ part.log_softmax(-1) for part in (logits, prior))
    assert is_the_mean_of(categorical_kl(logits, prior), log_q - log_p)
    assert is_the_mean_of(categorical_entropy(logits), -log_q)


def test_the_bound_by_enumeration_needs_the_entropy_with_a_plus():
    logits, losses = some_logits(3, 5), some_logits(3, 5, seed=1).exp()  # losses include no log p(y)
    q = logits.softmax(-1)
    bound = (q * (-losses - math.log(5) - q.log())).sum(-1)
    close(bound, -(q * losses).sum(-1) - categorical_kl(logits))
    close(bound, -(q * (losses + math.log(5))).sum(-1) + categorical_entropy(logits))


def test_only_the_classes_are_summed():
    logits, prior = some_logits(2, 3, 4), some_logits(4, seed=1)
    kl = categorical_kl(logits, prior)
    assert kl.shape == categorical_kl(logits).shape == categorical_entropy(logits).shape == (2, 3)
    close(kl[1, 2], categorical_kl(logits[1, 2], prior))
    close(categorical_entropy(logits)[1, 2], categorical_entropy(logits[1, 2]))
    assert categorical_kl(logits[0, 0]).shape == ()
    assert categorical_kl(torch.zeros(0, 4)).shape == categorical_entropy(torch.zeros(0, 4)).shape == (0,)


def test_gradients_of_kl_and_entropy_are_those_of_finite_differences():
    logits, prior = some_logits(3, 4).requires_grad_(), some_logits(3, 4, seed=1).requires_grad_()
    for function, arguments in ((categorical_kl, (logits, prior)), (categorical_kl, (logits,))):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)
    assert torch.autograd.gradcheck(categorical_entropy, logits)


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
def test_float32_keeps_its_digits_near_the_prior_where_the_naive_formula_does_not(scale):
    logits = scale * some_logits(200, 10, dtype=torch.float32)
    exact = categorical_kl(logits.double())
    log_q = logits.log_softmax(-1)
    naive = (log_q.exp() * (log_q + math.log(10))).sum(-1)
    worst, ours = ((kl.double() - exact).abs().max() for kl in (naive, categorical_kl(logits)))
    second_order = (logits.double() - logits.double().mean(-1, keepdim=True)).square().mean(-1) / 2
    torch.testing.assert_close(exact, second_order, rtol=10 * scale, atol=0)
    assert ours < worst / 10 and ours < 1e-2 * exact.max()


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_kl_and_entropy_are_exact_at_extremes_in_value_and_gradient(dtype):
    logits = torch.tensor([[100, -100, -100], [100, 100, -100], [-100, -100, -100.0]], dtype=dtype).requires_grad_()
    kl, entropy = categorical_kl(logits), categorical_entropy(logits)
    wide = torch.promote_types(dtype, torch.float32)
    assert kl.dtype == entropy.dtype == wide
    close(kl, torch.tensor([3, 1.5, 1], dtype=wide).log(), 1e-6)
    close(entropy, torch.tensor([1, 2, 3], dtype=wide).log(), 1e-6)
    (kl.sum() + entropy.sum()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_between_opposite_certainties_is_their_log_ratio(dtype):
    logits = torch.tensor([100.0, -100.0], dtype=dtype).requires_grad_()
    prior = (-logits.detach()).requires_grad_()
    kl = categorical_kl(logits, prior)
    assert kl == 200  # torch.distributions says infinity, in float32
    kl.backward()
    close(prior.grad, torch.tensor([-1.0, 1.0], dtype=dtype))  # p - q
    assert logits.grad.abs().max() < 1e-30  # a certain q has nowhere to go


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_a_class_without_probability_adds_nothing(dtype):
    never = torch.tensor([0.5, -torch.inf, 0.5], dtype=dtype).requires_grad_()
    both = never.detach().clone().requires_grad_()
    kl, among_two, entropy = categorical_kl(never), categorical_kl(never, both), categorical_entropy(never)
    close(kl, torch.tensor(1.5, dtype=kl.dtype).log(), 1e-6)
    assert among_two == 0
    close(entropy, torch.tensor(2, dtype=kl.dtype).log(), 1e-6)
    (kl + among_two + entropy).backward()
    assert never.grad.isfinite().all() and both.grad.isfinite().all()


def test_a_class_that_only_the_prior_rules_out_costs_infinitely_much():
    prior = torch.tensor([0.0, -torch.inf])
    assert categorical_kl(torch.zeros(2), prior) == torch.inf
    assert categorical_kl(torch.tensor([200.0, -200.0]), prior) == 0  # as float32 sees it, q rules it out too


# The relaxed density


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2 / 3, 1.0, 3.0])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_it_is_the_density_of_torch_distributions_on_the_log_simplex_and_on_the_simplex(k, temperature):
    logits = some_logits(50, k)
    log_x = gumbel_log_softmax(logits, temperature, seeded(1))
    tau = torch.tensor(temperature, dtype=torch.float64)
    ours = relaxed_log_density(log_x, logits, temperature)
    close(ours, ExpRelaxedCategorical(tau, logits=logits).log_prob(log_x))
    simplex = RelaxedOneHotCategorical(tau, logits=logits, validate_args=False).log_prob(log_x.exp())
    kept = log_x.min(-1).values > -300  # where exp and log are inverse to each other
    close((ours - log_x.sum(-1))[kept], simplex[kept], 1e-8)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_over_the_log_ratios_it_integrates_to_one(temperature):
    v = torch.linspace(-60, 60, 601, dtype=torch.float64) / temperature**0.5
    step = v[1] - v[0]
    for logits, grid in (
        (some_logits(2), v.unsqueeze(-1)),  # (601, 1)
        (some_logits(3), torch.cartesian_prod(v, v)),  # (601^2, 2)
    ):
        log_x = torch.cat([grid, torch.zeros(len(grid), 1, dtype=torch.float64)], -1).log_softmax(-1)
        total = relaxed_log_density(log_x, logits, temperature).exp().sum() * step ** grid.shape[1]
        assert abs(total - 1) < 1e-5


def test_its_mean_log_ratio_is_positive_and_at_least_the_categorical_kl():
    logits, prior, draws = some_logits(5), some_logits(5, seed=1), 50_000
    log_y = gumbel_log_softmax(logits.expand(draws, 5), 0.5, seeded(2))
    ratio = relaxed_log_density(log_y, logits, 0.5) - relaxed_log_density(log_y, prior, 0.5)
    assert ratio.mean() - 4 * ratio.std() / math.sqrt(draws) > categorical_kl(logits, prior)
    assert (relaxed_log_density(log_y, logits, 0.5) - relaxed_log_density(log_y, logits, 0.5) == 0).all()


def test_the_mean_of_the_other_ratio_of_densities_is_one():
    logits, prior, draws = 0.3 * some_logits(4), 0.3 * some_logits(4, seed=1), 100_000
    log_y = gumbel_log_softmax(logits.expand(draws, 4), 0.7, seeded(2))
    ratio = (relaxed_log_density(log_y, prior, 0.7) - relaxed_log_density(log_y, logits, 0.7)).exp()
    assert is_the_mean_of(torch.tensor(1.0), ratio)


def test_gradients_of_the_density_are_those_of_finite_differences():
    log_x, logits = some_logits(3, 4).log_softmax(-1).requires_grad_(), some_logits(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: relaxed_log_density(*given, 0.6), (log_x, logits))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 1e3])
def test_the_density_is_finite_at_extremes_in_value_and_gradient(temperature, dtype):
    logits = torch.tensor([[100, -100, 0], [100, 100, -100.0]], dtype=dtype).repeat(20, 1).requires_grad_()
    density = relaxed_log_density(gumbel_log_softmax(logits, temperature, seeded()), logits, temperature)
    density.sum().backward()
    assert density.dtype == torch.promote_types(dtype, torch.float32) and density.shape == (40,)
    assert density.isfinite().all() and logits.grad.isfinite().all()
    exact = logits.detach().double()
    log_y = gumbel_log_softmax(exact.to(density.dtype), temperature, seeded()).double()
    tau = torch.tensor(temperature, dtype=torch.float64)
    expected = ExpRelaxedCategorical(tau, logits=exact, validate_args=False).log_prob(log_y)
    torch.testing.assert_close(density.double(), expected, rtol=1e-3, atol=1e-2)


def test_only_the_classes_are_summed_in_the_density_and_logits_may_serve_all_rows():
    logits = some_logits(4)
    log_x = some_logits(2, 3, 4, seed=1).log_softmax(-1)
    density = relaxed_log_density(log_x, logits, 0.5)
    assert density.shape == (2, 3)
    close(density[1, 2], relaxed_log_density(log_x[1, 2], logits, 0.5))
    close(density, relaxed_log_density(log_x, logits + 9, 0.5))
    assert relaxed_log_density(torch.zeros(0, 4), torch.zeros(4), 0.5).shape == (0,)
    assert relaxed_log_density(torch.zeros(2, 1), torch.zeros(1), 0.5).tolist() == [0, 0]


# Bad input


def test_a_prior_must_have_as_many_classes():
    with pytest.raises(ValueError, match=r"prior_logits has shape \(2, 1\); it must end in the number of classes, 3"):
        categorical_kl(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"logits has shape \(1,\); it must end in the number of classes, 3"):
        relaxed_log_density(torch.zeros(2, 3).log_softmax(-1), torch.zeros(1), 0.5)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_temperature_must_be_positive_and_finite(temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be positive and finite"):
        relaxed_log_density(torch.zeros(2, 3).log_softmax(-1), torch.zeros(3), temperature)


@pytest.mark.parametrize(
    "wrong", [torch.full((2, 3), 1 / 3), torch.eye(3), torch.full((3,), torch.nan), torch.full((3,), -5.0)]
)
def test_samples_must_be_logarithms_of_points_of_the_simplex(wrong):
    with pytest.raises(ValueError, match="log_sample sums to .* each row must sum to 1"):
        relaxed_log_density(wrong, torch.zeros(3), 0.5)


def test_samples_that_half_precision_rounded_are_accepted_and_weighed_in_float32():
    for dtype in HALF:
        log_x, logits = (3 * some_logits(500, 10)).log_softmax(-1).to(dtype), some_logits(10, seed=1).to(dtype)
        density = relaxed_log_density(log_x, logits, 0.5)
        assert density.isfinite().all() and density.equal(relaxed_log_density(log_x.float(), logits.float(), 0.5))
