"""Discrete codes, relaxed or straight through: the right law, gradients, limits, and no NaN in any type."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from vaelab.posteriors import gumbel, gumbel_log_softmax, gumbel_softmax, hard_code, straight_through

DRAWS = [gumbel_softmax, straight_through]
SAMPLERS = [*DRAWS, gumbel_log_softmax]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TEMPERATURES = [1e-3, 0.1, 1.0, 30.0, 1e3]
LOGITS = torch.tensor([1.5, 0.0, -1.0, -2.5, 0.3], dtype=torch.float64)
EXTREME = torch.tensor([[100.0, -100.0, 0.0], [100.0, 100.0, -100.0], [-100.0, -100.0, -100.0]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def gradient(draw, logits: Tensor, temperature: float, weight: Tensor, seed: int = 0) -> Tensor:
    """Return the gradient of a weighted sum of one draw."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad((weight * draw(logits, temperature, seeded(seed))).sum(), logits)[0]


def with_uniform(monkeypatch, value: float) -> None:
    """Let every uniform draw come out as one number."""
    monkeypatch.setattr(Tensor, "uniform_", lambda self, *_, **__: self.fill_(value))


# The noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_has_a_standard_gumbel_law(dtype):
    g = gumbel(torch.zeros(200_000, dtype=dtype), seeded()).double()
    u = torch.exp(-torch.exp(-g))  # its distribution function: uniform
    assert abs(g.mean() - 0.5772156649) < 4 * math.pi / math.sqrt(6 * len(g))
    assert abs(g.var() / (math.pi**2 / 6) - 1) < 4 * math.sqrt((5.4 - 1) / len(g))  # its kurtosis is 5.4
    expected = torch.linspace(0, 1, len(g) + 1, dtype=torch.float64)[1:]
    assert (u.sort().values - expected).abs().max() < 1.95 / math.sqrt(len(g))  # Kolmogorov and Smirnov, 1 in 1000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_the_noise_is_finite_even_at_the_ends_of_the_uniform_draw(monkeypatch, dtype, uniform):
    with_uniform(monkeypatch, uniform)
    g = gumbel(torch.zeros(3, dtype=dtype))
    assert g.isfinite().all() and g.dtype == dtype
    assert (g < -4).all() if uniform == 0 else (g > 16).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_noise_of_every_type_is_finite_and_that_of_float32_rounded(dtype):
    g = gumbel(torch.zeros(500_000, dtype=dtype), seeded())
    assert g.isfinite().all() and g.dtype == dtype
    if dtype != torch.float64:
        assert g.equal(gumbel(torch.zeros(500_000), seeded()).to(dtype))


def test_the_noise_has_the_shape_and_the_device_of_its_model_and_knows_no_gradient():
    assert gumbel(torch.zeros(2, 3, 4, requires_grad=True), seeded()).shape == (2, 3, 4)
    assert not gumbel(torch.zeros(2, requires_grad=True)).requires_grad
    assert gumbel(torch.zeros(())).shape == ()
    assert gumbel(torch.zeros(2, device="meta"), seeded()).device.type == "meta"  # the generator is on the CPU
    assert gumbel(torch.zeros(3).expand(2, 3), seeded())[0].ne(gumbel(torch.zeros(3).expand(2, 3), seeded())[1]).all()


@pytest.mark.parametrize("draw", SAMPLERS)
def test_the_noise_comes_from_the_generator_given(draw):
    logits, before = some_logits(50, 4), torch.get_rng_state()
    first = draw(logits, 0.7, seeded(1))
    assert first.equal(draw(logits, 0.7, seeded(1)))
    assert not first.equal(draw(logits, 0.7, seeded(2)))
    assert torch.get_rng_state().equal(before)
    generator = seeded(1)
    assert draw(logits, 0.7, generator).equal(first) and not draw(logits, 0.7, generator).equal(first)


@pytest.mark.parametrize("draw", SAMPLERS)
def test_without_a_generator_the_noise_comes_from_torchs_own(draw):
    logits, draws = some_logits(50, 4), []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(draw(logits, 0.7))
    assert draws[0].equal(draws[1]) and not draws[0].equal(draw(logits, 0.7))


@pytest.mark.parametrize("draw", SAMPLERS)
def test_a_generator_on_the_cpu_serves_logits_on_another_device(draw):
    here, there = seeded(), seeded()
    draw(torch.zeros(2, 3), 0.7, here)
    assert draw(torch.zeros(2, 3, device="meta"), 0.7, there).device.type == "meta"
    assert here.get_state().equal(there.get_state())  # it made the noise, of which a meta tensor keeps no values


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("draw", SAMPLERS)
def test_one_generator_draws_alike_for_every_device(draw):
    logits = some_logits(50, 4, dtype=torch.float32)
    there = draw(logits.cuda(), 0.7, seeded())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), draw(logits, 0.7, seeded()))


# The law of the draws


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("draw", DRAWS)
def test_the_largest_entry_is_that_of_an_exact_draw_at_any_temperature(draw, temperature):
    draws = 40_000
    frequency = hard_code(draw(LOGITS.expand(draws, 5), temperature, seeded())).mean(0)
    p = LOGITS.softmax(-1)
    assert ((frequency - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 1e3, 1e6])
def test_straight_through_is_exact_where_the_soft_sample_rounds_to_ties(dtype, temperature):
    draws, logits = 40_000, LOGITS.to(dtype)
    frequency = straight_through(logits.expand(draws, 5), temperature, seeded()).double().mean(0)
    p = logits.double().softmax(-1)
    assert ((frequency - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()


def test_every_row_and_every_code_is_drawn_on_its_own():
    codes = straight_through(torch.zeros(20_000, 2, 3), 1.0, seeded()).argmax(-1)
    together = (3 * codes[:, 0] + codes[:, 1]).bincount(minlength=9) / len(codes)
    assert ((together - 1 / 9).abs() < 4 * math.sqrt(8 / 81 / len(codes))).all()


def test_logits_are_meant_up_to_a_constant():
    logits = some_logits(50, 4)
    torch.testing.assert_close(gumbel_softmax(logits + 7, 0.5, seeded()), gumbel_softmax(logits, 0.5, seeded()))


def test_the_soft_sample_is_the_softmax_of_the_noisy_logits_over_the_temperature():
    logits = some_logits(3, 6, 4)
    for temperature in (0.3, 1.0, 4.0):
        expected = ((logits + gumbel(logits, seeded())) / temperature).softmax(-1)
        torch.testing.assert_close(gumbel_softmax(logits, temperature, seeded()), expected, rtol=1e-12, atol=1e-14)
        logarithm = gumbel_log_softmax(logits, temperature, seeded())
        torch.testing.assert_close(logarithm, expected.log(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_class_that_is_ruled_out_is_never_drawn(draw):
    logits = torch.tensor([0.0, -torch.inf, 0.0]).expand(100, 3).clone().requires_grad_()
    y = draw(logits, 0.5, seeded())
    y.square().sum().backward()
    assert (y[:, 1] == 0).all() and logits.grad.isfinite().all()


# Limits and extremes


def test_near_temperature_zero_the_soft_sample_is_the_one_hot_of_its_class():
    logits = some_logits(500, 6)
    torch.testing.assert_close(gumbel_softmax(logits, 1e-9, seeded()), straight_through(logits, 1.0, seeded()))


def test_towards_an_infinite_temperature_it_is_uniform():
    soft = gumbel_softmax(some_logits(500, 6), 1e9, seeded())
    torch.testing.assert_close(soft, torch.full_like(soft, 1 / 6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("draw", SAMPLERS)
def test_extremes_give_no_nan_in_value_or_gradient(draw, temperature, dtype):
    logits = EXTREME.to(dtype).repeat(50, 1).requires_grad_()
    y = draw(logits, temperature, seeded())
    (y * torch.tensor([1.0, -2.0, 0.5], dtype=y.dtype)).sum().backward()
    assert y.isfinite().all() and logits.grad.isfinite().all()
    simplex = y.exp() if draw is gumbel_log_softmax else y
    assert (simplex >= 0).all()
    torch.testing.assert_close(simplex.double().sum(-1), torch.ones(150).double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("temperature", [1e-3, 1.2e-38])
@pytest.mark.parametrize("draw", DRAWS)
def test_no_quotient_overflows(draw, temperature):
    logits = torch.tensor([[3e37, -3e37, 3e37]]).repeat(20, 1).requires_grad_()
    y = draw(logits, temperature, seeded())
    y[:, 0].sum().backward()
    assert y.isfinite().all() and logits.grad.isfinite().all() and (y[:, 1] == 0).all()


def test_half_precision_is_computed_in_float32():
    logits = some_logits(100, 5).half()
    for draw in DRAWS:
        assert draw(logits, 0.2, seeded()).equal(draw(logits.float(), 0.2, seeded()).half())
    logarithm = gumbel_log_softmax(logits, 1e-3, seeded())  # far below the least float16, -65504
    assert logarithm.equal(gumbel_log_softmax(logits.float(), 1e-3, seeded()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 3), (2, 1)])
def test_shape_and_type_are_kept(shape, dtype):
    logits = torch.zeros(shape, dtype=dtype)
    for y in (gumbel_softmax(logits, 1.0), straight_through(logits, 1.0), hard_code(logits)):
        assert y.shape == shape and y.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert gumbel_log_softmax(logits, 1.0).shape == shape and gumbel_log_softmax(logits, 1.0).dtype == wide


# Gradients


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("draw", [gumbel_softmax, gumbel_log_softmax])
def test_gradients_are_those_of_finite_differences(draw, temperature):
    logits = some_logits(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: draw(logits, temperature, seeded()), logits)


def test_the_gradient_is_the_jacobian_of_softmax_over_the_temperature():
    logits, weight, temperature = some_logits(6, 4), some_logits(6, 4, seed=1), 0.4
    y = gumbel_softmax(logits, temperature, seeded())
    expected = y * (weight - (weight * y).sum(-1, keepdim=True)) / temperature
    torch.testing.assert_close(gradient(gumbel_softmax, logits, temperature, weight), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_straight_through_is_exactly_one_hot_with_the_gradient_of_the_soft_sample(temperature, dtype):
    logits, weight = some_logits(200, 7).to(dtype), some_logits(200, 7, seed=1).to(dtype)
    y = straight_through(logits, temperature, seeded())
    assert ((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all()
    assert y.equal(hard_code(logits.to(torch.promote_types(dtype, torch.float32)) + noise(logits)).to(dtype))
    soft = gradient(gumbel_softmax, logits, temperature, weight)
    assert gradient(straight_through, logits, temperature, weight).equal(soft) and (soft != 0).any()


def noise(logits: Tensor) -> Tensor:
    return gumbel(logits.to(torch.promote_types(logits.dtype, torch.float32)), seeded())


def test_straight_through_evaluates_its_consumer_at_the_one_hot():
    logits, costs = some_logits(200, 4), some_logits(4, seed=1)
    y = straight_through(logits, 0.5, seeded())
    leaf = logits.clone().requires_grad_()
    (straight_through(leaf, 0.5, seeded()) * costs).sum(-1).square().sum().backward()
    upstream = 2 * (y * costs).sum(-1, keepdim=True) * costs  # of the square, at the one-hot
    torch.testing.assert_close(leaf.grad, gradient(gumbel_softmax, logits, 0.5, upstream))


def test_both_draws_take_the_same_arguments():
    assert inspect.signature(gumbel_softmax) == inspect.signature(straight_through)


# For evaluation


def test_the_hard_code_is_the_one_hot_of_the_most_likely_class():
    logits = some_logits(2, 3, 5).requires_grad_()
    y = hard_code(logits)
    assert y.argmax(-1).equal(logits.argmax(-1)) and (y.sum(-1) == 1).all() and (y.max(-1).values == 1).all()
    assert not y.requires_grad
    assert hard_code(torch.zeros(2, 3)).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert hard_code(torch.tensor([1.0, 2.0]).expand(2, 2)).tolist() == [[0, 1], [0, 1]]


# Bad input


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, 1e-39, math.nan, math.inf, -math.inf])  # in float32, 1e-39 is 0
@pytest.mark.parametrize("draw", SAMPLERS)
def test_a_temperature_must_be_positive_and_finite(draw, temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be positive and finite"):
        draw(torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("draw", SAMPLERS)
def test_logits_must_be_floating_point_with_an_axis_of_classes(draw):
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3\) and type torch.int64; they must be .*floating"):
        draw(torch.zeros(2, 3, dtype=torch.long), 1.0)
    with pytest.raises(ValueError, match=r"logits have shape \(\) and type torch.float32; they must be \(\.\.\., K\)"):
        draw(torch.tensor(0.0), 1.0)
