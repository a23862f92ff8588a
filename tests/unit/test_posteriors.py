"""How a code is drawn: the right distribution, from the right generator, with gradients."""

from __future__ import annotations

import math

import pytest
import torch

from vaelab import posteriors
from vaelab.posteriors import reparametrise


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_draws_have_the_mean_and_the_variance_asked_for():
    mu, logvar, draws = torch.tensor([-1.0, 0.0, 3.0]), torch.tensor([-2.0, 0.0, 1.5]), 200_000
    z = reparametrise(mu.expand(draws, 3), logvar.expand(draws, 3), seeded(0)).double()
    sigma = logvar.double().mul(0.5).exp()
    assert ((z.mean(0) - mu).abs() < 5 * sigma / math.sqrt(draws)).all()
    assert ((z.var(0) / sigma**2 - 1).abs() < 5 * math.sqrt(2 / draws)).all()


def test_the_draws_are_normal_and_independent():
    z = reparametrise(torch.zeros(100_000, 2), torch.zeros(100_000, 2), seeded(0)).double()
    assert abs(z.pow(3).mean()) < 5 * math.sqrt(15 / z.numel())
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / z.numel())
    assert abs((z[:, 0] * z[:, 1]).mean()) < 5 / math.sqrt(len(z))


def test_the_noise_comes_from_the_generator_given():
    mu = torch.zeros(5)
    before = torch.get_rng_state()
    assert reparametrise(mu, mu, seeded(1)).equal(reparametrise(mu, mu, seeded(1)))
    assert not reparametrise(mu, mu, seeded(1)).equal(reparametrise(mu, mu, seeded(2)))
    assert torch.get_rng_state().equal(before)


def test_without_a_generator_the_noise_comes_from_torchs_own():
    mu, draws = torch.zeros(5), []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(reparametrise(mu, mu))
    assert draws[0].equal(draws[1]) and not draws[0].equal(reparametrise(mu, mu))


def test_gradients_reach_mu_and_logvar_as_the_formula_says():
    mu = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64)
    z = reparametrise(mu, logvar, seeded(0))
    (weight * z).sum().backward()
    torch.testing.assert_close(mu.grad, weight)
    torch.testing.assert_close(logvar.grad, weight * 0.5 * (z - mu).detach())  # sigma eps / 2 = (z - mu) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_shape_and_type_are_kept(shape, dtype):
    z = reparametrise(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
    assert z.shape == shape and z.dtype == dtype


def test_without_variance_the_draw_is_the_mean():
    mu = torch.randn(5)
    assert reparametrise(mu, torch.full((5,), -torch.inf)).equal(mu)


def test_standard_normal_rows_are_those_of_the_generator_in_the_type_of_their_pattern():
    expected = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    one, two = seeded(0), seeded(0)
    assert posteriors.standard_normal(torch.tensor([7, 8, 9]), 5, one).equal(expected)
    assert posteriors.standard_normal(torch.zeros(3, 1, 2, 2), 5, two).equal(expected)
    assert posteriors.standard_normal(torch.zeros(2, 4, dtype=torch.float64), 1).dtype == torch.float64
