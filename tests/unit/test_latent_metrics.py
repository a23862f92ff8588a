"""What a code holds and who reads it: each yardstick against a closed form, a direct sum or draws."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from vaelab import metrics

EXAMPLES = [(20, 3, 0.3), (20, 1, 1.0), (7, 5, 0.0)]  # rows, width, spread


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussians(rows: int, width: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means and log variances of posteriors that differ in both, far from the origin."""
    mu = 5 + spread * torch.randn(rows, width, generator=seeded(seed), dtype=torch.float64)
    logvar = spread * torch.randn(rows, width, generator=seeded(seed + 1), dtype=torch.float64) - 1
    return mu, logvar


# Active units


def test_a_unit_is_active_strictly_above_the_threshold():
    mu = torch.tensor([[0.5, 1.0, 0.0], [-0.5, -1.0, 0.0]])  # variances 1/4, 1, 0: over N, not N - 1
    counts = [metrics.active_units(mu, threshold) for threshold in (0.0, 0.2, 0.25, 0.99, 1.0)]
    assert counts == [2, 2, 1, 1, 0]


def test_a_mean_that_is_large_but_constant_is_not_active():
    mu = torch.randn(500, 6, generator=seeded()) * torch.tensor([0.0, 0.05, 0.09, 0.11, 0.6, 3.0])
    assert metrics.active_units(mu) == 3  # the usual threshold is a standard deviation of 0.1
    assert metrics.active_units(mu + 1000.0 * torch.arange(6)) == 3


def test_batch_normalised_noise_has_all_units_active():
    noise = torch.randn(1000, 8, generator=seeded())
    normalised = 0.6 * (noise - noise.mean(0)) / noise.std(0, correction=0)
    assert metrics.active_units(normalised) == 8


@pytest.mark.parametrize("threshold", [-0.01, math.nan, math.inf])
def test_a_threshold_must_be_a_variance(threshold):
    with pytest.raises(ValueError, match="threshold is .*; it must be"):
        metrics.active_units(torch.zeros(2, 1), threshold)


# Variance of the aggregate posterior


def test_aggregate_variance_is_that_of_draws_from_the_mixture():
    mu, logvar = gaussians(10, 3, 1.0)
    row = torch.arange(10).repeat_interleave(40_000)
    z = mu[row] + (0.5 * logvar[row]).exp() * torch.randn(len(row), 3, generator=seeded(9), dtype=torch.float64)
    ours = metrics.aggregate_variance(mu, logvar)
    assert ours.shape == (3,) and ours.dtype == torch.float64
    torch.testing.assert_close(ours, z.var(0), rtol=0.02, atol=0)


@given(st.floats(0.1, 0.9))
def test_aggregate_variance_of_a_prior_split_into_signal_and_noise_is_one(signal):
    mu = math.sqrt(signal) * torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    logvar = torch.full_like(mu, math.log(1 - signal))
    torch.testing.assert_close(metrics.aggregate_variance(mu, logvar), torch.ones(2, dtype=torch.float64))


# Information


def direct(mu: torch.Tensor, logvar: torch.Tensor, draws: int) -> float:
    """Estimate the information pair by pair, from the same noise."""
    noise, total, n = seeded(3), 0.0, len(mu)
    for _ in range(draws):
        z = mu + (0.5 * logvar).exp() * torch.empty_like(mu).normal_(generator=noise)
        for i in range(n):
            densities = [
                math.exp(
                    sum(Normal(mu[j, k], (0.5 * logvar[j, k]).exp()).log_prob(z[i, k]) for k in range(mu.shape[1]))
                )
                for j in range(n)
            ]
            total += math.log(densities[i] / (sum(densities) / n))
    return total / (n * draws)


@pytest.mark.parametrize(("rows", "width", "spread"), EXAMPLES)
def test_information_is_the_direct_double_sum(rows, width, spread):
    mu, logvar = gaussians(rows, width, spread)
    ours = metrics.latent_information(mu, logvar, seeded(3), draws=2)
    assert ours == pytest.approx(direct(mu, logvar, 2), abs=1e-9)
    assert ours > 0.1 or spread == 0


def test_information_between_two_near_points_is_the_integral():
    mu, logvar = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), math.log(0.5))
    grid = np.linspace(-8, 8, 4001)
    q = np.exp(-((grid - mu.numpy()) ** 2)) / math.sqrt(math.pi)  # (2, grid), variance 1/2
    expected = (q * np.log(q / q.mean(0))).sum(1).mean() * (grid[1] - grid[0])
    ours = metrics.latent_information(mu, logvar, seeded(), draws=4000)
    assert ours == pytest.approx(expected, abs=0.02) and 0.3 < expected < 0.6


def test_information_is_log_n_where_no_two_codes_are_mistaken_and_zero_where_all_are_alike():
    far = 100.0 * torch.arange(30.0)[:, None].expand(30, 2)
    assert metrics.latent_information(far, torch.zeros(30, 2), seeded()) == pytest.approx(math.log(30), abs=1e-9)
    pairs = far[torch.arange(30) // 2]  # each code stands for two examples
    assert metrics.latent_information(pairs, torch.zeros(30, 2), seeded()) == pytest.approx(math.log(15), abs=1e-9)
    alike = torch.full((30, 2), 7.0)
    assert metrics.latent_information(alike, alike - 9, seeded()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("gamma", "width"), [(0.3, 8), (0.6, 8), (1.0, 3)])
def test_information_of_a_gaussian_channel(gamma, width):
    mu = gamma * torch.randn(4000, width, generator=seeded())
    ours = metrics.latent_information(mu, torch.zeros_like(mu), seeded(1), draws=2)
    assert ours == pytest.approx(width / 2 * math.log(1 + gamma**2), abs=0.06)


def test_information_is_at_most_log_n_also_in_one_draw():
    mu = 3 * torch.randn(50, 32, generator=seeded())
    for logvar in (0.0, -20.0, -60.0):  # the last: so narrow that the squares have no digit left
        ours = metrics.latent_information(mu, torch.full_like(mu, logvar), seeded())
        assert math.log(50) - 0.01 < ours <= math.log(50) + 1e-9


def test_information_does_not_depend_on_the_chunk_the_place_or_the_unit():
    mu, logvar = gaussians(50, 4, 0.5)
    whole = metrics.latent_information(mu, logvar, seeded(), chunk=50)
    for chunk in (1, 7, 1000):
        assert metrics.latent_information(mu, logvar, seeded(), chunk=chunk) == pytest.approx(whole, abs=1e-10)
    moved = metrics.latent_information(10 * mu + 1e8, logvar + 2 * math.log(10), seeded())
    assert moved == pytest.approx(whole, abs=1e-6) and 0.5 < whole < 3.5


def test_information_in_single_precision_is_that_in_double():
    mu, logvar = (tensor.float() for tensor in gaussians(50, 4, 0.5))
    single = metrics.latent_information(mu, logvar, seeded())
    assert single == metrics.latent_information(mu.double(), logvar.double(), seeded())


def test_information_is_repeatable_and_draws_anew():
    mu, logvar = gaussians(20, 2, 0.5)
    first, again, other = (metrics.latent_information(mu, logvar, seeded(seed)) for seed in (0, 0, 1))
    assert first == again != other
    generator = seeded()
    single = [metrics.latent_information(mu, logvar, generator) for _ in range(3)]
    assert metrics.latent_information(mu, logvar, seeded(), draws=3) == pytest.approx(sum(single) / 3)
    assert len(set(single)) == 3


def test_information_takes_no_gradient():
    mu = torch.randn(4, 2, requires_grad=True)
    assert isinstance(metrics.latent_information(mu, mu), float)


@pytest.mark.parametrize("name", ["draws", "chunk"])
def test_information_needs_a_draw_and_a_chunk(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        metrics.latent_information(torch.zeros(2, 1), torch.zeros(2, 1), **{name: 0})


# Shuffled codes


def test_shuffle_gap_of_a_linear_decoder():
    z = torch.randn(400, 3, generator=seeded(), dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.5, 0.0]], dtype=torch.float64)
    x = z @ weight.T

    def cost(z):
        return 0.5 * (x - z @ weight.T).square().sum(1) + 3

    # Over permutations, E 1/2 |x_i - x_j|^2 with j != i is the variance with N - 1, summed over coordinates.
    gaps = [metrics.shuffle_gap(cost, z, seeded(seed)) for seed in range(60)]
    assert np.mean(gaps) == pytest.approx(x.var(0).sum().item(), rel=0.02)
    assert metrics.shuffle_gap(lambda z: -cost(z), z, seeded()) == pytest.approx(-gaps[0])


def test_shuffle_gap_is_zero_where_the_cost_ignores_the_code():
    nats = torch.rand(20, generator=seeded())
    assert metrics.shuffle_gap(lambda z: nats, torch.randn(20, 4)) == 0


@given(st.integers(2, 12), st.integers(0, 10_000))
def test_nobody_keeps_a_code_and_every_code_is_used_once(rows, seed):
    z = torch.arange(float(rows))[:, None]
    seen = []

    def own(z):
        seen.append(z[:, 0].tolist())
        return (z[:, 0] == torch.arange(rows)).float()  # 1 nat for a code of one's own

    assert metrics.shuffle_gap(own, z, seeded(seed)) == -1
    assert sorted(seen, key=lambda codes: codes != list(range(rows)))[0] == list(range(rows))
    assert all(sorted(codes) == list(range(rows)) for codes in seen) and len(seen) == 2


def test_every_other_code_is_equally_likely():
    z, counts = torch.arange(4.0)[:, None], torch.zeros(4, 4)
    generator = seeded()

    def note(z):
        counts[torch.arange(4), z[:, 0].long()] += 1
        return torch.zeros(4)

    for _ in range(1500):
        metrics.shuffle_gap(note, z, generator)
    counts[torch.arange(4), torch.arange(4)] -= 1500  # the codes of their own, asked for beside
    assert (counts.diagonal() == 0).all()
    assert ((counts / 1500 - (1 - torch.eye(4)) / 3).abs() < 0.06).all()


def test_shuffle_gap_takes_no_gradient_and_is_repeatable():
    z = torch.randn(6, 2, generator=seeded(), requires_grad=True)
    x = torch.randn(6, 2, generator=seeded(1))
    asked = []

    def cost(z):
        asked.append((x * z).sum(1))
        return asked[-1]

    gaps = {metrics.shuffle_gap(cost, z, seeded(seed)) for seed in (0, 0, 0)}
    assert len(gaps) == 1 and not any(nats.requires_grad for nats in asked)


@pytest.mark.parametrize("shape", [(), (4, 1), (3,), (1,)])
def test_a_cost_is_one_number_for_each_code(shape):
    with pytest.raises(ValueError, match="cost returns shape .*; it must be one number for each code"):
        metrics.shuffle_gap(lambda z: torch.zeros(shape), torch.zeros(4, 2))


def test_a_cost_is_finite():
    with pytest.raises(ValueError, match="cost returns inf; it must be finite"):
        metrics.shuffle_gap(lambda z: torch.tensor([0.0, math.inf]), torch.zeros(2, 1))


# Probe


def test_probe_reads_separable_codes_and_their_names_do_not_matter():
    labels = torch.arange(90) % 3
    centres = torch.tensor([[4.0, 0.0], [-4.0, 4.0], [-4.0, -4.0]])
    codes = centres[labels] + torch.rand(90, 2, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.label_probe(codes[:60], labels[:60], codes[60:], labels[60:]) == 1
        assert metrics.label_probe(codes[:60], 7 * labels[:60] - 3, codes[60:], 7 * labels[60:] - 3) == 1
    assert metrics.label_probe(codes[:60], labels[:60], codes[60:], (labels[60:] + 1) % 3) == 0  # asked of the test set


def test_probe_of_random_codes_is_near_chance_on_rows_it_has_not_seen():
    codes = torch.randn(3000, 8, generator=seeded())
    labels = torch.randint(4, (3000,), generator=seeded(1))
    accuracy = metrics.label_probe(codes[:1000], labels[:1000], codes[1000:], labels[1000:])
    assert accuracy == pytest.approx(0.25, abs=0.04)  # four standard errors


def test_probe_of_constant_codes_is_the_share_of_the_largest_class():
    labels = torch.tensor([0, 1, 1, 1, 2])
    test_labels = torch.tensor([1, 1, 0, 2])
    assert metrics.label_probe(torch.zeros(5, 3), labels, torch.zeros(4, 3), test_labels) == 0.5


def test_probe_takes_codes_at_their_own_scale():
    labels = torch.arange(2000) % 4
    means = torch.randn(4, 8, generator=seeded())[labels] + 0.1 * torch.randn(2000, 8, generator=seeded(1))
    noise = torch.randn(2000, 8, generator=seeded(2))

    def accuracy(codes):
        return metrics.label_probe(codes[:1000], labels[:1000], codes[1000:], labels[1000:])

    assert accuracy(means) > 0.99
    assert accuracy(1e-3 * means + noise) < 0.3 < accuracy(means + noise)  # a draw drowns what is tiny
    assert accuracy(1e-4 * means) < 0.5  # as it would not be, were they standardised behind the reader's back


def test_probe_is_the_same_twice_and_draws_nothing():
    codes, labels = torch.randn(200, 4, generator=seeded()), torch.arange(200) % 5
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    accuracies = {metrics.label_probe(codes, labels, codes, labels) for _ in range(2)}
    assert len(accuracies) == 1
    assert torch.get_rng_state().equal(before[0]) and np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.arange(3)}, r"labels have shape \(3,\)"),
        ({"labels": torch.zeros(4)}, "labels have .* type torch.float32; they must be whole numbers"),
        ({"test_labels": torch.arange(4)[:, None]}, r"test_labels have shape \(4, 1\)"),
        ({"labels": torch.ones(4, dtype=torch.int64)}, "labels are all 1; there must be two classes"),
        ({"test_codes": torch.zeros(4, 3)}, "test_codes are 3 wide; they must be as wide as codes, 2"),
        ({"codes": torch.full((4, 2), math.nan)}, "codes holds nan; it must be finite"),
        ({"test_codes": torch.zeros(4)}, r"test_codes has shape \(4,\); it must be \(N, n\)"),
    ],
)
def test_probe_refuses(change, message):
    codes, labels = torch.eye(4)[:, :2], torch.arange(4) % 2
    arguments = {"codes": codes, "labels": labels, "test_codes": codes, "test_labels": labels}
    metrics.label_probe(**arguments)
    with pytest.raises(ValueError, match=message):
        metrics.label_probe(**(arguments | change))


# What all refuse

ENCODER_METRICS = [
    metrics.active_units,
    lambda mu: metrics.aggregate_variance(mu, torch.zeros_like(mu)),
    lambda mu: metrics.latent_information(mu, torch.zeros_like(mu)),
    lambda z: metrics.shuffle_gap(lambda z: torch.zeros(len(z)), z),
]
BAD = [
    (torch.zeros(1, 2), "shape"),
    (torch.zeros(4), "shape"),
    (torch.zeros(4, 0), "shape"),
    (torch.zeros(0, 2), "shape"),
]
BAD += [(torch.tensor([[0.0], [bad]]), f"holds {bad}; it must be finite") for bad in (math.nan, math.inf)]


@pytest.mark.parametrize(("metric", "bad"), [*itertools.product(ENCODER_METRICS, BAD)])
def test_codes_are_rows_of_finite_numbers(metric, bad):
    with pytest.raises(ValueError, match=bad[1]):
        metric(bad[0])


@pytest.mark.parametrize("metric", [metrics.aggregate_variance, metrics.latent_information])
def test_the_log_variances_match_the_means(metric):
    with pytest.raises(ValueError, match=r"logvar has shape \(4, 1\); it must be that of mu, \(4, 2\)"):
        metric(torch.zeros(4, 2), torch.zeros(4, 1))  # would broadcast
    with pytest.raises(ValueError, match="logvar holds -inf; it must be finite"):
        metric(torch.zeros(2, 1), torch.tensor([[0.0], [-math.inf]]))
