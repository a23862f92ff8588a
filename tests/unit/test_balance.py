"""Balancing the KL of latent groups: against its mathematics, at its edges, and in several processes."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pair import one_of_two, run_both
from torch import Tensor

from vaelab.divergences import Balanced, balance_kl, balancing_phase, sizes_by_scale

TINY = 1e-14  # a floor that only keeps zero from zero
LAYOUTS = {  # NVAE's official runs: how many groups each scale has, coarsest scale first
    "CIFAR-10": (30,),
    "MNIST": (5, 10),
    "CelebA-64": (5, 10, 20),
    "FFHQ-256": (4, 4, 4, 8, 16),
}
nats = st.floats(1e-2, 1e3)
positions = st.floats(0.1, 1e3)
exponents = st.floats(-6, 6, allow_subnormal=False)  # vaelab has the CPU flush them to zero
estimates = st.floats(-10, 1e3, allow_subnormal=False)  # by single draws, which may be negative
strengths = st.floats(0, 1, allow_subnormal=False)
layouts = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def groups(draw, values=nats, least: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(N, G) KL and (G,) sizes."""
    n, g = draw(st.integers(1, 4)), draw(st.integers(least, 6))
    kl = draw(st.lists(st.lists(values, min_size=g, max_size=g), min_size=n, max_size=n))
    sizes = draw(st.lists(positions, min_size=g, max_size=g))
    return torch.tensor(kl, dtype=dtype), torch.tensor(sizes, dtype=dtype)


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


def simplified(kl: Tensor, sizes: Tensor, floor: float = 1e-3, times_total: bool = False) -> Tensor:
    """The coefficients as the maintainer wrote them, step by step; the code has the line `times_total`."""
    w = kl.mean(0)
    w = w + floor * w.mean()
    c = w / sizes
    if times_total:
        c = c * w.sum()
    return c / c.sum() * len(c)


def sides_squared(layout: tuple[int, ...]) -> Tensor:
    """(G,) positions of each group's map, top group first; the side doubles from scale to scale."""
    return double(*(16.0 * 4**s for s, many in enumerate(layout) for _ in range(many)))


def shipped(kl: Tensor, layout: tuple[int, ...]) -> Tensor:
    """The coefficients as NVAE ships them: c_i = w_i / alpha_i times the total, over the mean of c."""
    w = kl.mean(0)
    alpha = double(*(4**s / many for s, many in enumerate(layout) for _ in range(many)))
    c = w / (alpha / alpha.min()) * w.sum()
    return c / c.mean()


def some_kl(count: int, seed: int = 0, batch: int = 3) -> Tensor:
    """(N, G) KL, lognormal around a few nats."""
    noise = torch.randn(batch, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1 + noise).exp()


# The coefficients


@given(groups())
def test_the_coefficients_are_those_of_the_formula(drawn):
    kl, sizes = drawn
    close(balance_kl(kl, sizes).gamma, simplified(kl, sizes), 1e-12)
    close(balance_kl(kl).gamma, simplified(kl, torch.ones_like(sizes)), 1e-12)
    close(balance_kl(kl, sizes, floor=0.5).gamma, simplified(kl, sizes, floor=0.5), 1e-12)


def test_numbers_by_hand():
    kl = double(6, 2, 4).expand(2, 3) * double(0.5, 1.5).unsqueeze(1)  # means are 6, 2, 4
    terms = balance_kl(kl, [1, 2, 4], floor=TINY)  # prices 6, 1, 1
    close(terms.gamma, double(18 / 8, 3 / 8, 3 / 8))
    close(terms.kl, double(0.5, 1.5) * (6 * 18 + 2 * 3 + 4 * 3) / 8)
    close(terms.kl_groups, double(6, 2, 4))


@given(groups(), st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-6)]))
def test_a_factor_of_the_total_kl_changes_neither_coefficients_nor_loss_nor_gradients(drawn, precision):
    dtype, tolerance = precision
    kl, sizes = (part.to(dtype) for part in drawn)
    kl.requires_grad_()
    terms = balance_kl(kl, sizes)
    gamma = simplified(kl.detach(), sizes, times_total=True)
    loss = (gamma * kl).sum(1)
    close(terms.gamma, gamma, tolerance)
    torch.testing.assert_close(terms.kl, loss, rtol=2 * tolerance, atol=0)
    ours, theirs = (torch.autograd.grad(value.mean(), kl)[0] for value in (terms.kl, loss))
    close(ours, theirs, tolerance)


@given(groups(values=estimates), strengths)
def test_they_sum_to_the_number_of_groups_and_are_positive(drawn, strength):
    for gamma in (balance_kl(*drawn).gamma, balance_kl(*drawn, strength=strength).gamma):
        close(gamma.sum(), double(len(gamma))[0])
        assert (gamma > 0).all()


@given(groups(), strengths)
def test_the_balanced_kl_is_their_weighted_sum_example_by_example(drawn, strength):
    kl, sizes = drawn
    terms = balance_kl(kl, sizes, strength=strength)
    assert isinstance(terms, Balanced) and terms._fields == ("kl", "gamma", "kl_groups")
    assert terms.kl.shape == kl.shape[:1] and terms.gamma.shape == kl.shape[1:]
    close(terms.kl, torch.stack([(example * terms.gamma).sum() for example in kl]), 1e-12)


@given(groups())
def test_balanced_minus_plain_is_the_covariance_of_coefficient_and_kl(drawn):
    kl, sizes = drawn
    terms = balance_kl(kl, sizes)
    mean, gamma = kl.mean(0), terms.gamma
    covariance = ((gamma - gamma.mean()) * (mean - mean.mean())).mean()
    torch.testing.assert_close((terms.kl - kl.sum(1)).mean(), len(gamma) * covariance, rtol=1e-9, atol=1e-8)


@given(groups(least=2))
def test_groups_of_one_size_pay_more_than_plain_in_all(drawn):
    kl, _ = drawn
    assert balance_kl(kl).kl.mean() >= kl.sum(1).mean() * (1 - 1e-12)


@given(groups(least=2), st.data(), st.floats(0.1, 100))
def test_a_groups_coefficient_rises_with_its_own_kl(drawn, data, more):
    kl, sizes = drawn
    i = data.draw(st.integers(0, kl.shape[1] - 1))
    richer = kl.clone()
    richer[:, i] += more
    assert balance_kl(richer, sizes).gamma[i] > balance_kl(kl, sizes).gamma[i]


@given(groups(least=2), st.data(), st.floats(1.01, 100))
def test_a_groups_coefficient_falls_with_its_own_size(drawn, data, factor):
    kl, sizes = drawn
    i = data.draw(st.integers(0, kl.shape[1] - 1))
    larger = sizes.clone()
    larger[i] *= factor
    assert balance_kl(kl, larger).gamma[i] < balance_kl(kl, sizes).gamma[i]


def test_much_kl_costs_more_than_one_and_little_less():
    gamma = balance_kl(double(9, 3, 1, 3).unsqueeze(0)).gamma
    assert gamma[0] > 1 > gamma[1] > gamma[2] and gamma[1] == gamma[3]


@given(groups(), st.data())
def test_the_order_of_groups_and_examples_does_not_matter(drawn, data):
    kl, sizes = drawn
    order = data.draw(st.permutations(range(kl.shape[1])))
    examples = data.draw(st.permutations(range(kl.shape[0])))
    terms, moved = balance_kl(kl, sizes), balance_kl(kl[examples][:, order], sizes[order])
    close(moved.gamma, terms.gamma[order], 1e-12)
    torch.testing.assert_close(moved.kl, terms.kl[examples], rtol=1e-12, atol=0)


@given(groups(), exponents, exponents)
def test_units_of_kl_and_of_size_do_not_matter(drawn, unit, grain):
    kl, sizes = drawn
    terms, scaled = balance_kl(kl, sizes), balance_kl(kl * 10**unit, sizes * 10**grain)
    close(scaled.gamma, terms.gamma, 1e-12)
    torch.testing.assert_close(scaled.kl, terms.kl * 10**unit, rtol=1e-12, atol=0)


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1e6, 1e30])
def test_units_do_not_matter_in_single_precision(unit):
    kl, sizes = some_kl(5).float(), [1, 2, 4, 4, 4]
    close(balance_kl(kl * unit, sizes).gamma, balance_kl(kl, sizes).gamma, 1e-6)


def test_means_of_the_kl_are_there_for_the_log():
    kl = (some_kl(4) - 3).requires_grad_()
    assert (kl.mean(0) < 0).any()  # the log tells estimates as they are
    for strength in (0, 0.5, 1):
        terms = balance_kl(kl, strength=strength)
        assert terms.kl_groups.equal(kl.detach().mean(0)) and not terms.kl_groups.requires_grad


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_what_goes_in_is_left_as_it_is(strength):
    kl, sizes = some_kl(3) - 2, double(1, 4, 16)
    before = kl.clone(), sizes.clone()
    balance_kl(kl, sizes, strength=strength)
    sizes_by_scale(sizes)
    assert kl.equal(before[0]) and sizes.equal(before[1])


def test_sizes_may_be_whole_numbers_or_of_another_precision():
    kl = some_kl(3)
    expected = balance_kl(kl, double(16, 64, 64)).gamma
    for sizes in ([16, 64, 64], (16.0, 64.0, 64.0), torch.tensor([16, 64, 64]), torch.tensor([16.0, 64, 64]).half()):
        assert balance_kl(kl, sizes).gamma.equal(expected)


# The simplified form and the shipped one


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 100))
def test_with_equally_many_groups_in_every_scale_the_two_forms_are_one(scales, many, seed):
    layout = (many,) * scales
    kl = some_kl(sum(layout), seed)
    close(balance_kl(kl, sides_squared(layout), floor=TINY).gamma, shipped(kl, layout), 1e-12)


@given(layouts, st.integers(0, 100))
def test_they_differ_by_the_number_of_groups_in_the_scale(layout, seed):
    kl = some_kl(sum(layout), seed)
    ratio = shipped(kl, layout) / balance_kl(kl, sides_squared(layout), floor=TINY).gamma
    expected = double(*(many for many in layout for _ in range(many)))
    close(ratio / ratio[0], expected / expected[0])


@given(layouts, st.integers(0, 100))
def test_sizes_by_scale_give_the_shipped_form(layout, seed):
    kl = some_kl(sum(layout), seed)
    by_scale = sizes_by_scale(sides_squared(layout))
    assert by_scale.dtype == torch.float32
    close(balance_kl(kl, by_scale, floor=TINY).gamma, shipped(kl, layout), 1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nvaes_official_runs(name):
    layout = LAYOUTS[name]
    kl, sizes = some_kl(sum(layout)), sides_squared(layout)
    expected = shipped(kl, layout)
    close(balance_kl(kl, sizes_by_scale(sizes), floor=TINY).gamma, expected, 1e-6)
    plain = balance_kl(kl, sizes, floor=TINY).gamma
    if len(set(layout)) == 1:
        close(plain, expected, 1e-12)
    else:
        assert ((plain - expected).abs() / expected).max() > 0.2


def test_sizes_by_scale_counts_equal_sizes_wherever_they_stand():
    assert sizes_by_scale([63, 16, 63, 63, 16, 256]).tolist() == [21, 8, 21, 21, 8, 256]
    assert sizes_by_scale(torch.tensor([5])).tolist() == [5]


@given(groups())
def test_with_kl_in_proportion_to_size_every_nat_costs_one_up_to_the_floor(drawn):
    _, sizes = drawn
    kl = sizes.expand(3, -1) * double(0.5, 1, 1.5).unsqueeze(1)
    close(balance_kl(kl, sizes, floor=TINY).gamma, torch.ones_like(sizes))
    off = (balance_kl(kl, sizes).gamma - 1).abs().max()
    assert off <= 1e-3 * (sizes.mean() / sizes).max()


def test_the_shipped_form_does_not_let_it_cost_one():
    layout = LAYOUTS["MNIST"]
    sizes = sides_squared(layout)
    expected = double(*[0.6] * 5, *[1.2] * 10)
    close(balance_kl(sizes.unsqueeze(0), sizes_by_scale(sizes), floor=TINY).gamma, expected, 1e-6)
    close(shipped(sizes.unsqueeze(0), layout), expected)


# The gradient


@given(groups(), strengths)
def test_the_gradient_is_the_coefficient_and_none_flows_through_it(drawn, strength):
    kl, sizes = drawn
    kl.requires_grad_()
    terms = balance_kl(kl, sizes, strength=strength)
    assert terms.kl.requires_grad and not terms.gamma.requires_grad
    (gradient,) = torch.autograd.grad(terms.kl.mean(), kl)
    close(gradient, (terms.gamma / len(kl)).expand_as(kl), 1e-12)


@given(groups())
def test_the_gradient_is_that_of_a_quadratic_price(drawn):
    kl, sizes = drawn
    kl.requires_grad_()
    mean = kl.mean(0)
    quadratic = 0.5 * (mean.pow(2) / sizes).sum()
    scale = len(mean) / (mean / sizes).sum().detach()
    ours, theirs = (torch.autograd.grad(v, kl)[0] for v in (balance_kl(kl, sizes, floor=TINY).kl.mean(), quadratic))
    torch.testing.assert_close(ours, scale * theirs, rtol=1e-7, atol=0)


@given(groups(least=2))
def test_coefficients_that_pass_gradients_would_pay_weak_groups_for_more_kl(drawn):
    kl, sizes = drawn
    kl.requires_grad_()
    price = kl.mean(0) / sizes
    undetached = (len(price) * price / price.sum() * kl.mean(0)).sum()
    weak = kl.mean(0) < 0.5 * (price * kl.mean(0)).sum() / price.sum()
    assume(weak.any())
    wrong, right = (torch.autograd.grad(v, kl)[0] for v in (undetached, balance_kl(kl, sizes).kl.mean()))
    assert (wrong[:, weak] < 0).all() and (right > 0).all()


# Edges


@given(groups(values=estimates), positions)
def test_a_single_group_is_left_alone(drawn, size):
    kl = drawn[0][:, :1]
    terms = balance_kl(kl, [size])
    assert terms.gamma.tolist() == [1] and terms.kl.equal(kl.sum(1))


@given(groups(), positions)
def test_in_a_single_scale_sizes_do_not_matter(drawn, size):
    kl, _ = drawn
    close(balance_kl(kl, [size] * kl.shape[1]).gamma, balance_kl(kl).gamma, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_without_any_kl_the_price_is_that_of_the_sizes(dtype):
    kl = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    terms = balance_kl(kl, [1, 2, 4])
    close(terms.gamma, 3 * double(4, 2, 1) / 7, 1e-6)
    assert (terms.kl == 0).all()
    terms.kl.mean().backward()
    close(kl.grad, terms.gamma.expand(2, 3) / 2, 1e-2 if dtype.itemsize == 2 else 1e-6)
    for unit in (1e-25, 1e25):
        close(balance_kl(kl, [unit, 2 * unit, 4 * unit]).gamma, terms.gamma, 1e-6)


def test_a_group_without_kl_keeps_a_price_the_floors_share_of_the_mean():
    kl = double(6, 0, 3).unsqueeze(0)
    for floor in (1e-3, 0.1):
        gamma = balance_kl(kl, floor=floor).gamma
        close(gamma[1] / gamma[0], double(3 * floor / (6 + 3 * floor))[0], 1e-12)


@pytest.mark.parametrize("means", [(-1.0, -2.0, -0.5), (-1.0, 2.0, 0.0)])
def test_estimates_below_zero_count_as_none(means):
    kl, sizes = double(*means).expand(4, 3), [1, 2, 4]
    terms = balance_kl(kl, sizes)
    close(terms.gamma, balance_kl(kl.clamp(min=0), sizes).gamma, 1e-12)
    assert terms.kl.isfinite().all() and (terms.gamma > 0).all()
    close(terms.kl, (terms.gamma * kl).sum(1))


def test_a_group_that_is_only_noise_stays_cheap_where_mean_sizes_of_draws_would_call_it_active():
    kl = torch.ones(1000, 4, dtype=torch.float64)
    kl[:, 0] = 0.5 * some_kl(1, batch=1000).log().squeeze(1) - 0.5  # mean 0, standard deviation 0.5
    absolute = simplified(kl.abs(), torch.ones(4))
    assert balance_kl(kl).gamma[0] < 0.1 and absolute[0] > 0.4


def test_the_mean_over_examples_comes_before_anything_is_held_at_zero():
    kl = double(30, -10, 1, 14).view(2, 2)  # the first group says 30 and 1, the second -10 and 14
    terms = balance_kl(kl, floor=TINY)
    assert terms.kl_groups.tolist() == [15.5, 2]
    close(terms.gamma, double(31, 4) / 17.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    kl = torch.full((8, 6), 6e4).to(dtype).requires_grad_()
    for strength in (0, 0.5, 1):
        terms = balance_kl(kl, [1, 1, 1, 4, 4, 4], strength=strength)
        assert terms.kl.dtype == terms.gamma.dtype == terms.kl_groups.dtype == torch.float32
        assert all(part.isfinite().all() for part in terms)
        close(terms.gamma, balance_kl(kl.double(), [1, 1, 1, 4, 4, 4], strength=strength).gamma, 1e-5)
        (gradient,) = torch.autograd.grad(terms.kl.mean(), kl)
        assert gradient.dtype == dtype and (gradient > 0).all()


def test_single_precision_holds_huge_values_and_double_stays_double():
    kl = torch.full((8, 3), 1e30)
    kl[:, 0] = 1e-30
    terms = balance_kl(kl)
    assert all(part.isfinite().all() for part in terms) and 0 < terms.gamma[0] < 1e-2
    assert {part.dtype for part in balance_kl(kl.double())} == {torch.float64}


# Strength and phase


@given(groups(values=estimates))
def test_at_strength_zero_the_bound_is_left_alone_bit_for_bit(drawn):
    for kl in (drawn[0], drawn[0].float()):
        kl = kl.detach().requires_grad_()
        terms = balance_kl(kl, drawn[1], strength=0)
        assert terms.kl.equal(kl.sum(1)) and (terms.gamma == 1).all()
        (gradient,) = torch.autograd.grad(terms.kl.sum(), kl)
        assert (gradient == 1).all()


@given(groups(), strengths)
def test_between_strength_zero_and_one_lies_a_straight_line(drawn, strength):
    kl, sizes = drawn
    between, full = balance_kl(kl, sizes, strength=strength), balance_kl(kl, sizes)
    close(between.gamma, (1 - strength) + strength * full.gamma, 1e-12)
    torch.testing.assert_close(between.kl, (1 - strength) * kl.sum(1) + strength * full.kl, rtol=1e-10, atol=0)


def test_balancing_is_on_until_its_time_and_fades_in_a_line():
    assert [balancing_phase(t, until=3) for t in range(6)] == [1, 1, 1, 0, 0, 0]
    assert [balancing_phase(t, until=1, fade=4) for t in range(7)] == [1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert [balancing_phase(t, until=0) for t in range(3)] == [0, 0, 0]  # no warm-up, no balancing


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 20))
def test_it_never_rises_and_ends(step, until, fade):
    now, then = balancing_phase(step, until, fade), balancing_phase(step + 1, until, fade)
    assert 0 <= then <= now <= 1
    assert (now == 1) >= (step < until) and (now == 0) >= (step >= until + fade)


def test_it_asks_for_the_step_and_not_for_beta_so_it_ends_where_beta_stays_below_one():
    assert list(inspect.signature(balancing_phase).parameters) == ["step", "until", "fade"]
    kl, final_beta, warm_up = some_kl(3), 0.7, 10
    for step in range(20):
        beta = min(1.0, step / warm_up) * final_beta
        loss = beta * balance_kl(kl, strength=balancing_phase(step, until=warm_up)).kl
        assert loss.equal(beta * kl.sum(1)) == (step >= warm_up or step == 0)


# What is refused


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 4), (0, 3), (3, 0)])
def test_kl_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"kl has shape .*batch, groups"):
        balance_kl(torch.ones(shape))


@pytest.mark.parametrize("sizes", [[1, 2], [1, 2, 3, 4], [[1, 2, 3]], 1.0])
def test_sizes_of_another_number_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes are .* 3 of them"):
        balance_kl(torch.ones(2, 3), sizes)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_that_are_not_positive_are_refused(bad):
    with pytest.raises(ValueError, match="sizes are .* positive"):
        balance_kl(torch.ones(2, 3), [1.0, bad, 1.0])


@pytest.mark.parametrize("strength", [0, 0.5, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_kl_that_is_not_finite_is_refused(bad, strength):
    kl = torch.ones(2, 3)
    kl[1, 2] = bad
    with pytest.raises(ValueError, match="mean KL of the groups .* finite"):
        balance_kl(kl, strength=strength)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match="strength is"):
        balance_kl(torch.ones(2, 3), strength=strength)


@pytest.mark.parametrize("strength", [0, 1])
@pytest.mark.parametrize("floor", [0, -1e-3, float("nan"), float("inf")])
def test_a_floor_that_is_not_positive_is_refused(floor, strength):
    with pytest.raises(ValueError, match="floor is"):
        balance_kl(torch.ones(2, 3), strength=strength, floor=floor)


@pytest.mark.parametrize("until, fade, name", [(-1, 0, "until is -1"), (0, -1, "fade is -1")])
def test_phases_of_negative_length_are_refused(until, fade, name):
    with pytest.raises(ValueError, match=name):
        balancing_phase(0, until, fade)


# Several processes

SIZES = [1, 4, 4]
SPLITS = {"equal halves": (4, 4), "unequal halves": (5, 3)}


def joint() -> Tensor:
    """(8, G) KL of the joint batch: its halves differ in which group has much."""
    kl = some_kl(3, batch=8)
    kl[:4, 0] *= 5
    return kl


def balance_a_share(rank: int, folder: str) -> None:
    """Be one of two processes: balance this one's share of the joint batch, and leave what comes out in a file."""
    with one_of_two(rank, folder) as results:
        for name, lengths in SPLITS.items():
            kl = joint().split(lengths)[rank].clone().requires_grad_()
            for strength in (0.0, 0.5, 1.0):
                terms = balance_kl(kl, SIZES, strength=strength)
                (gradient,) = torch.autograd.grad(terms.kl.sum(), kl)
                results[name, strength] = [part.detach() for part in (*terms, gradient)]
        kl = joint().split(4)[rank].clone()
        if rank == 1:
            kl[0, 0] = float("nan")
        try:
            balance_kl(kl, SIZES)
        except ValueError as error:
            results["refused"] = str(error)


@pytest.fixture(scope="module")
def shares(processes, tmp_path_factory) -> list[dict]:
    """What two processes say that each hold a part of the joint batch; they meet in a file, no port is opened."""
    return run_both(processes, tmp_path_factory.mktemp("gloo"), balance_a_share)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SPLITS)
def test_two_processes_agree_with_one_on_the_joint_batch(shares, name, strength):
    kl = joint().requires_grad_()
    alone = balance_kl(kl, SIZES, strength=strength)
    (gradient,) = torch.autograd.grad(alone.kl.sum(), kl)
    first, second = (share[name, strength] for share in shares)
    for half in (first, second):
        close(half[1], alone.gamma, 1e-6)
        close(half[2], alone.kl_groups, 1e-6)
    close(torch.cat([first[0], second[0]]), alone.kl.detach(), 1e-6)
    close(torch.cat([first[3], second[3]]), gradient, 1e-6)


@pytest.mark.parametrize("name", SPLITS)
def test_coefficients_of_each_part_alone_would_differ(shares, name):
    local = [balance_kl(part, SIZES).gamma for part in joint().split(SPLITS[name])]
    assert all((part - shares[0][name, 1.0][1]).abs().max() > 0.05 for part in local)


def test_what_is_not_finite_in_one_process_is_refused_by_all(shares):
    assert all("must be finite" in share["refused"] for share in shares)


def test_sizes_by_scale_wants_one_row():
    with pytest.raises(ValueError, match="sizes has shape"):
        sizes_by_scale(torch.ones(2, 2))
