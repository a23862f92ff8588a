"""KL terms against torch.distributions, against draws, and where float32 runs out of digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from vaelab import divergences
from vaelab.divergences import gaussian_kl

means = st.floats(-1e3, 1e3, allow_subnormal=False)  # vaelab has the CPU flush them to zero
logvars = st.floats(-20, 20, allow_subnormal=False)
singles = st.floats(-30, 30, width=32, allow_subnormal=False)


def normal(mu: torch.Tensor, logvar: torch.Tensor) -> Normal:
    return Normal(mu, (0.5 * logvar).exp())


def double(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


@given(means, logvars, means, logvars)
def test_it_is_the_kl_of_torch_distributions(mu, logvar, prior_mu, prior_logvar):
    mu, logvar, prior_mu, prior_logvar = double(mu, logvar, prior_mu, prior_logvar)
    ours = gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    theirs = kl_divergence(normal(mu, logvar), normal(prior_mu, prior_logvar))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@given(means, logvars)
def test_without_a_prior_it_is_the_kl_to_the_standard_normal(mu, logvar):
    mu, logvar = double(mu, logvar)
    torch.testing.assert_close(gaussian_kl(mu, logvar), kl_divergence(normal(mu, logvar), Normal(*double(0, 1))))


@given(singles, singles, singles, singles)
def test_it_is_never_negative_in_float32(mu, logvar, prior_mu, prior_logvar):
    assert gaussian_kl(*(torch.tensor(n, dtype=torch.float32) for n in (mu, logvar, prior_mu, prior_logvar))) >= 0


@given(means, logvars)
def test_it_is_zero_between_equals(mu, logvar):
    mu, logvar = double(mu, logvar)
    assert gaussian_kl(mu, logvar, mu, logvar) == 0


def test_it_is_the_mean_log_ratio_of_draws():
    mu, logvar, prior_mu, prior_logvar = double(0.7, -1.2, -0.3, 0.4)
    q, p = normal(mu, logvar), normal(prior_mu, prior_logvar)
    z = q.sample((200_000,))
    log_ratio = q.log_prob(z) - p.log_prob(z)
    standard_error = log_ratio.std() / math.sqrt(len(z))
    assert abs(log_ratio.mean() - gaussian_kl(mu, logvar, prior_mu, prior_logvar)) < 5 * standard_error


def test_its_gradients_are_those_of_finite_differences():
    arguments = [(0.5 * torch.randn(3, 2, dtype=torch.float64)).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(gaussian_kl, arguments)
    assert torch.autograd.gradgradcheck(gaussian_kl, arguments)


@pytest.mark.parametrize("logvar", [1e-2, 1e-3, 1e-4, -1e-4, -1e-3])
def test_float32_keeps_its_digits_near_the_prior_where_the_naive_formula_does_not(logvar):
    logvar = torch.tensor(logvar, dtype=torch.float32)
    exact = 0.5 * (np.expm1(np.longdouble(logvar.item())) - np.longdouble(logvar.item()))
    naive = 0.5 * (logvar.exp() - 1 - logvar)
    ours = gaussian_kl(torch.tensor(0.0), logvar)
    assert abs(ours.item() / float(exact) - 1) < 2e-3
    assert abs(naive.item() - float(exact)) > 10 * abs(ours.item() - float(exact))


def test_the_naive_formula_can_lose_everything_and_go_negative():
    logvar = torch.linspace(-2e-4, 2e-4, 1001)
    exact = gaussian_kl(torch.zeros(1001, dtype=torch.float64), logvar.double())
    naive = 0.5 * (logvar.exp() - 1 - logvar)
    ours = gaussian_kl(torch.zeros(1001), logvar)
    assert naive.min() < 0 <= ours.min()
    assert (ours - exact).abs().max() < 1e-3 * exact.max() < (naive - exact).abs().max()


def test_nothing_is_summed():
    mu, logvar = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    kl = gaussian_kl(mu, logvar)
    assert kl.shape == (2, 3, 4)
    assert kl[1, 2, 3] == gaussian_kl(mu[1, 2, 3], logvar[1, 2, 3])


def test_a_prior_may_be_a_tensor_for_each_coordinate():
    mu, logvar, prior_mu, prior_logvar = torch.randn(5, 3), torch.randn(5, 3), torch.randn(3), torch.randn(3)
    kl = gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    assert kl.shape == (5, 3)
    expected = kl_divergence(normal(mu, logvar), normal(prior_mu, prior_logvar))
    torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-5)


def test_a_prior_may_be_a_number_and_keeps_the_type():
    for dtype in (torch.float32, torch.float64):
        assert gaussian_kl(torch.ones(2, dtype=dtype), torch.zeros(2, dtype=dtype), 1.0, 0.5).dtype == dtype


@pytest.mark.parametrize(
    "kind, wide",
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32),
     (torch.float64, torch.float64)],
)  # fmt: skip
def test_half_precision_is_widened_and_nothing_narrowed(kind, wide):
    x = torch.tensor([0.5, -2.0], dtype=kind, requires_grad=True)
    widened = divergences.at_least_single(x)
    assert widened.dtype == wide and torch.equal(widened, x.to(wide))
    assert torch.autograd.grad(widened.sum(), x)[0].dtype == kind
