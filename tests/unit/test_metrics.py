"""Yardsticks: each against an independent computation, and each moving when what it measures moves."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vaelab import data, metrics
from vaelab.training import generator_states


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Labels


def test_conditional_accuracy_is_the_share_of_agreement():
    asked = torch.tensor([0, 1, 2, 3])
    assert metrics.conditional_accuracy(asked, asked) == 1
    assert metrics.conditional_accuracy(asked, torch.tensor([0, 1, 2, 0])) == 0.75
    assert metrics.conditional_accuracy(asked, torch.tensor([3, 2, 1, 0])) == 0


def test_information_is_zero_where_the_labels_are_independent():
    a, b = (labels.flatten() for labels in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    assert metrics.mutual_information(a.repeat(4), b.repeat(4), 3) == pytest.approx(0, abs=1e-12)
    assert metrics.mutual_information(torch.arange(3), torch.full((3,), 1), 3) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_information_is_log_k_where_one_label_is_a_permutation_of_the_other(num_classes):
    labels = torch.arange(num_classes).repeat(7)
    permuted = torch.randperm(num_classes, generator=seeded())[labels]
    assert metrics.mutual_information(labels, permuted, num_classes) == pytest.approx(math.log(num_classes))


def test_information_is_entropies_less_joint_entropy_and_symmetric():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 500)
    b = np.where(rng.random(500) < 0.6, (a + 1) % 4, rng.integers(0, 3, 500))

    def entropy(*labels):
        share = np.unique(np.stack(labels), axis=1, return_counts=True)[1] / 500
        return -(share * np.log(share)).sum()

    expected = entropy(a) + entropy(b) - entropy(a, b)
    for first, second in ((a, b), (b, a)):
        ours = metrics.mutual_information(torch.from_numpy(first), torch.from_numpy(second), 4)
        assert ours == pytest.approx(expected, rel=1e-9) and ours > 0.1


def test_information_of_chance_alone_is_as_large_as_the_docstring_says():
    estimates = [
        metrics.mutual_information(*torch.randint(0, 5, (2, 400), generator=seeded(seed)), 5) for seed in range(200)
    ]
    assert np.mean(estimates) == pytest.approx((5 - 1) ** 2 / (2 * 400), rel=0.15)


@pytest.mark.parametrize("asked, judged", [([0, 0, 1], [5, 5, 0]), ([0, 3, 1], [0, 1, 2]), ([0, 1, 2], [0, -1, 2])])
def test_information_refuses_labels_outside_their_range(asked, judged):
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        metrics.mutual_information(torch.tensor(asked), torch.tensor(judged), 3)


@pytest.mark.parametrize("lengths", [(3, 2), (0, 0)])
def test_yardsticks_of_pairs_refuse_what_does_not_pair(lengths):
    a, b = (torch.zeros(n, dtype=torch.int64) for n in lengths)
    for call in (
        lambda: metrics.conditional_accuracy(a, b),
        lambda: metrics.mutual_information(a, b, 3),
        lambda: metrics.within_class_spread(torch.zeros(lengths[0], 1, 2, 2), b),
    ):
        with pytest.raises(ValueError, match=f"has {lengths[0]} rows, .* has {lengths[1]}; they must be equal"):
            call()


# Spread


def test_spread_is_the_root_of_the_mean_variance_within_a_class():
    images = torch.rand(30, 1, 4, 4, generator=seeded())
    labels = torch.tensor([0] * 5 + [3] * 25)
    pixels = images.flatten(1).double().numpy()
    variances = [pixels[:5].var(0)] * 5 + [pixels[5:].var(0)] * 25  # each image counts once
    assert metrics.within_class_spread(images, labels) == pytest.approx(np.sqrt(np.mean(variances)))


def test_spread_does_not_see_differences_between_classes():
    labels = torch.arange(3).repeat(10)
    pictures = torch.rand(3, 1, 4, 4, generator=seeded())[labels]
    assert metrics.within_class_spread(pictures, labels) == pytest.approx(0, abs=1e-7)
    noise = 0.1 * torch.randn(30, 1, 4, 4, generator=seeded())
    assert metrics.within_class_spread(pictures + noise, labels) == pytest.approx(0.1, rel=0.1)


# Fréchet distance


def cloud(rows: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=seeded(seed), dtype=torch.float64)


def whitened(rows: int, width: int, seed: int) -> Tensor:
    """Points whose sample mean is exactly 0 and whose sample covariance is exactly the unit matrix."""
    points = cloud(rows, width, seed)
    points = points - points.mean(0)
    covariance = points.T @ points / (rows - 1)  # (width, width)
    return points @ torch.linalg.inv(torch.linalg.cholesky(covariance).T)


def test_between_diagonal_gaussians_it_has_a_closed_form():
    mean_a, mean_b, sd_a, sd_b = torch.rand(4, 6, generator=seeded(), dtype=torch.float64)
    a, b = (whitened(100, 6, seed) * sd + mean for seed, sd, mean in ((1, sd_a, mean_a), (2, sd_b, mean_b)))
    expected = (mean_a - mean_b).pow(2).sum() + (sd_a - sd_b).pow(2).sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_features_may_be_single_numbers():
    a, b = 2 * whitened(50, 1, 1) + 1, 5 * whitened(50, 1, 2) + 3
    assert metrics.frechet_distance(a, b) == pytest.approx((3 - 1) ** 2 + (5 - 2) ** 2)


@pytest.mark.parametrize("rows, width", [(50, 4), (300, 16)])
def test_it_is_the_formula_with_scipys_matrix_root(rows, width):
    mix_a, mix_b = cloud(width, width, 3), cloud(width, width, 4)
    a, b = cloud(rows, width, 1) @ mix_a, cloud(rows + 7, width, 2) @ mix_b + 0.5
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = (a.mean(0) - b.mean(0)).pow(2).sum().item() + np.trace(cov_a + cov_b - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rows", [200, 5])  # 5 rows of width 8: a singular covariance
def test_it_is_zero_to_itself_and_positive_to_another(rows):
    a, b = cloud(rows, 8, 1), cloud(rows, 8, 2)
    assert 0 <= metrics.frechet_distance(a, a) < 1e-6
    assert metrics.frechet_distance(a, b) > 0.01


def test_rank_deficient_clouds_have_their_distance_along_the_shift_and_the_spread():
    a = torch.zeros(50, 5, dtype=torch.float64)
    b = torch.zeros(50, 5, dtype=torch.float64)
    a[:, 0], b[:, 0] = whitened(50, 1, 1)[:, 0], 3 * whitened(50, 1, 2)[:, 0]
    b[:, 4] = 2
    assert metrics.frechet_distance(a, b) == pytest.approx(2**2 + (3 - 1) ** 2)


def test_float32_features_are_measured_in_double_precision():
    a = 1000 + cloud(200, 3, 1).float()
    assert metrics.frechet_distance(a, a + 1) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("a, b", [((5, 3), (5, 2)), ((1, 3), (5, 3)), ((5, 3), (0, 3))])
def test_clouds_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError, match="they need one width and two rows"):
        metrics.frechet_distance(torch.zeros(a), torch.zeros(b))


def test_per_class_it_is_the_mean_over_classes():
    a, b, labels = cloud(90, 3, 1), cloud(90, 3, 2) + 1, torch.tensor([0, 2, 5]).repeat(30)
    expected = np.mean([metrics.frechet_distance(a[labels == c], b[labels == c]) for c in (0, 2, 5)])
    assert metrics.frechet_per_class(a, labels, b, labels) == pytest.approx(expected)


def test_per_class_it_sees_classes_that_are_drawn_as_one_another():
    labels = torch.arange(2).repeat(200)
    real = cloud(400, 3, 1) + 5 * labels.unsqueeze(1)
    swapped = cloud(400, 3, 2) + 5 * (1 - labels).unsqueeze(1)
    assert metrics.frechet_distance(real, swapped) < 0.5
    assert metrics.frechet_per_class(real, labels, swapped, labels) > 50


def test_per_class_needs_the_same_classes():
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"labels_a has classes \[0, 1\], labels_b \[0, 2\]"):
        metrics.frechet_per_class(torch.zeros(4, 2), labels, torch.zeros(4, 2), 2 * labels)


# Copies


def test_the_nearest_distance_is_the_smallest_of_all():
    images, reference = torch.rand(7, 1, 5, 5, generator=seeded(1)), torch.rand(40, 1, 5, 5, generator=seeded(2))
    expected = (images.unsqueeze(1) - reference).double().pow(2).sum((2, 3, 4)).sqrt().amin(1)  # (7, 40) -> (7,)
    torch.testing.assert_close(metrics.nearest_distance(images, reference).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_nearest_distance_is_the_same_in_chunks():
    images, reference = torch.rand(1203, 1, 2, 2, generator=seeded(1)), torch.rand(30, 1, 2, 2, generator=seeded(2))
    whole = metrics.nearest_distance(images, reference)
    assert whole.shape == (1203,)
    torch.testing.assert_close(whole, torch.cat([metrics.nearest_distance(i, reference) for i in images.split(100)]))


def test_a_copy_is_far_nearer_than_any_other_image():
    reference = torch.rand(200, 1, 28, 28, generator=seeded(1))
    copies, others = reference[50:100], torch.rand(50, 1, 28, 28, generator=seeded(2))
    assert metrics.nearest_distance(copies, reference).max() < 0.01 * metrics.nearest_distance(others, reference).min()


# Averages over a split


class Terms(NamedTuple):
    nll: Tensor
    kl: Tensor


@pytest.mark.parametrize("chunk", [1, 3, 10, 1000])
def test_mean_terms_weighs_every_image_alike_also_in_an_uneven_last_chunk(chunk):
    split = data.Split(torch.rand(10, 1, 2, 2, generator=seeded()), torch.arange(10) % 3)
    gradients = []

    def terms(part: data.Split) -> Terms:
        gradients.append(torch.is_grad_enabled())
        return Terms(part.images.flatten(1).sum(1).mean(), part.labels.double().pow(2).mean())

    means = metrics.mean_terms(terms, split, chunk)
    assert len(gradients) == -(-10 // chunk) and not any(gradients)
    expected = {"nll": split.images.sum().item() / 10, "kl": (0 + 1 + 4) * 3 / 10}
    assert means == pytest.approx(expected)


# The judge


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", size=28, device="cpu")


class TrainedAgain(AssertionError):
    pass


@pytest.fixture
def as_in_a_new_process(digits, monkeypatch):
    """Train the judge or read it, as the state of the data folder says, and forget it within this process."""
    metrics.judge(digits)
    monkeypatch.setattr(metrics, "_judges", {})


@pytest.fixture
def no_training(monkeypatch):
    def fit(*_, **__):
        raise TrainedAgain

    monkeypatch.setattr(metrics, "fit", fit)


def test_the_judge_knows_digits(digits):
    judge = metrics.judge(digits)
    assert isinstance(judge, metrics.Judge) and 0.95 < judge.accuracy <= 1
    classes = judge.classes(digits.test.images)
    assert judge.accuracy == pytest.approx((classes == digits.test.labels).float().mean().item())
    assert not judge.net.training


def test_the_judges_features_and_logits_belong_together(digits):
    judge, images = metrics.judge(digits), digits.test.images
    assert judge.test_features.shape == (360, 64) and judge.logits(images).shape == (360, 10)
    assert judge.features(images).equal(judge.test_features) and not judge.features(images).requires_grad
    torch.testing.assert_close(judge.logits(images), judge.net(images).detach())
    assert judge.classes(images).equal(judge.logits(images).argmax(1))


def test_the_judge_looks_at_many_images_in_chunks(digits):
    judge, images = metrics.judge(digits), digits.train.images
    torch.testing.assert_close(judge.features(images)[1000:], judge.features(images[1000:]), rtol=1e-4, atol=1e-4)


def test_within_a_process_the_judge_is_the_same_object(digits):
    assert metrics.judge(digits) is metrics.judge(digits)


def test_a_trained_judge_is_read_and_not_trained_again(digits, as_in_a_new_process, no_training, data_folder):
    assert [path.name.startswith("digits-") for path in (data_folder / "judges").iterdir()] == [True]
    judge = metrics.judge(digits)
    assert judge.accuracy > 0.95


def test_the_judge_of_other_pixels_is_another(digits, as_in_a_new_process, no_training):
    with pytest.raises(TrainedAgain):
        metrics.judge(digits._replace(digest="of other pixels"))


def unmoved(call) -> bool:
    """Say whether a call leaves the default generators as they were."""
    before = generator_states()
    call()
    after = generator_states()
    numpy_too = before["numpy"][1].equal(after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]
    return before["python"] == after["python"] and before["torch"].equal(after["torch"]) and numpy_too


def test_training_the_judge_leaves_the_default_generators_alone(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    monkeypatch.setattr(metrics, "_judges", {})
    monkeypatch.setattr(metrics, "fit", lambda step, steps, **_: [step(t) for t in range(2)])
    assert unmoved(lambda: metrics.judge(digits))


def test_the_judge_can_be_trained_from_within_an_evaluation_without_gradients(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("VAELAB_DATA", str(tmp_path))
    monkeypatch.setattr(metrics, "_judges", {})
    monkeypatch.setattr(metrics, "fit", lambda step, steps, **_: [step(t) for t in range(2)])
    with torch.no_grad():
        metrics.judge(digits)
    assert list((tmp_path / "judges").iterdir())


def test_reading_the_judge_leaves_the_default_generators_alone(digits, as_in_a_new_process, no_training):
    assert unmoved(lambda: metrics.judge(digits))


def test_asking_for_the_judge_again_leaves_the_default_generators_alone(digits):
    metrics.judge(digits)
    assert unmoved(lambda: metrics.judge(digits))


def test_a_judge_wants_images_of_28_by_28():
    with pytest.raises(ValueError, match=r"digits has images of \(1, 8, 8\); load it with size=28"):
        metrics.judge(data.load("digits"))


@pytest.mark.parametrize("name, least", [("mnist", 0.99), ("fashion-mnist", 0.89)])
def test_the_judges_of_the_books_numbers_are_those_in_the_package(readers_data, no_training, name, least):
    if not data.at_hand(name):
        pytest.skip(f"{name} is not in the data folder")
    assert metrics.judge(data.load(name, device="cpu")).accuracy >= least


# All yardsticks together


def test_the_report_moves_as_the_samples_do(digits):
    images, labels = digits.train
    real = metrics.sample_report(digits, images, labels)
    assert isinstance(real, metrics.SampleReport)
    assert real.accuracy > 0.97 and real.information > 2.2 and 0.95 < real.spread < 1.05
    shuffled = metrics.sample_report(digits, images, labels[torch.randperm(len(labels), generator=seeded())])
    assert shuffled.accuracy < 0.2 and shuffled.information < 0.1
    assert shuffled.frechet > 5 * real.frechet and shuffled.spread > 1.1
    known = metrics.judge(digits).classes(images) == labels
    one_each = torch.stack([images[known & (labels == c)][0] for c in range(10)])
    repeated = metrics.sample_report(digits, one_each[labels], labels)
    assert repeated.spread == pytest.approx(0, abs=1e-4) and repeated.accuracy == 1
    assert repeated.frechet > 2 * real.frechet
    permuted = metrics.sample_report(digits, images, (labels + 1) % 10)
    assert permuted.accuracy < 0.05 and permuted.information == pytest.approx(real.information, abs=1e-6)
    noise = metrics.sample_report(digits, torch.rand(1437, 1, 28, 28, generator=seeded()), labels)
    assert noise.frechet > 5 * real.frechet and noise.accuracy < 0.3


def test_the_test_images_themselves_are_at_distance_zero(digits):
    report = metrics.sample_report(digits, *digits.test)
    assert report.frechet == pytest.approx(0, abs=1e-3) and report.spread == pytest.approx(1)
    assert report.accuracy == pytest.approx(metrics.judge(digits).accuracy)


def test_the_report_refuses_samples_without_a_class(digits):
    images, labels = digits.train
    some = labels < 9
    with pytest.raises(ValueError, match="labels_a has classes"):
        metrics.sample_report(digits, images[some], labels[some])


# Latent groups


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 100))
def test_effective_groups_lie_between_one_and_all_whatever_the_unit(kl, unit):
    kl = torch.tensor(kl, dtype=torch.float64) / 10
    effective = metrics.effective_groups(kl)
    if not kl.sum():
        return
    assert 1 - 1e-9 <= effective <= len(kl) + 1e-9
    assert metrics.effective_groups(unit * kl) == pytest.approx(effective, rel=1e-6)


def test_effective_groups_at_the_ends_and_in_between():
    assert metrics.effective_groups(torch.tensor([0.0, 3.0, 0.0])) == pytest.approx(1)
    assert metrics.effective_groups(torch.ones(7)) == pytest.approx(7)
    assert metrics.effective_groups(torch.zeros(3)) == 0
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropy = torch.distributions.Categorical(shares).entropy()
    assert metrics.effective_groups(8 * shares) == pytest.approx(entropy.exp().item())


def test_a_negative_estimate_counts_as_no_kl():
    assert metrics.effective_groups(torch.tensor([2.0, 2.0, -0.3])) == pytest.approx(2)


@pytest.mark.parametrize("kl", [torch.ones(2, 2), torch.empty(0), torch.tensor([1.0, float("nan")])])
def test_effective_groups_want_one_row_of_finite_numbers(kl):
    with pytest.raises(ValueError, match="kl is"):
        metrics.effective_groups(kl)


def test_the_report_names_dead_groups_and_counts_active_units():
    alive, faint = torch.full((4, 2, 2), 0.5), torch.zeros(4, 4, 4)
    faint[0] = 0.02  # sixteen units of 0.02 nats: active each, and 0.32 nats in all
    report = metrics.group_report([alive, faint, torch.zeros(3)])
    assert report.kl.tolist() == pytest.approx([8.0, 0.32, 0.0])
    assert report.per_unit.tolist() == pytest.approx([0.5, 0.005, 0.0])
    assert report.active.tolist() == [16, 16, 0] and report.units.tolist() == [16, 64, 3]
    assert report.dead == (2, 3) and isinstance(report, metrics.GroupReport)
    assert report.effective == metrics.effective_groups(report.kl)
    assert metrics.group_report([alive, faint], dead_below=0.3).dead == ()
    assert metrics.group_report([alive, faint], unit_nats=0.1).active.tolist() == [16, 0]


def test_the_report_reads_as_a_table():
    text = metrics.group_report([torch.full((2,), 3.0), torch.zeros(5)])._repr_markdown_()
    assert "| 1 | 6.00 | 2 of 2 |  |" in text and "| 2 | 0.00 | 0 of 5 | **dead** |" in text
    assert text.endswith("Effective groups: 1.00 of 2")


@pytest.mark.parametrize("units", [[], [torch.tensor([float("inf")])], [torch.ones(2), torch.empty(0)]])
def test_the_report_refuses_nothing_and_not_a_number(units):
    with pytest.raises(ValueError, match="kl_units"):
        metrics.group_report(units)


# The importance-weighted bound


def test_with_one_draw_it_is_the_log_weight_and_it_is_above_the_mean():
    log_w = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 90
    torch.testing.assert_close(metrics.importance_weighted_bound(log_w[:1]), log_w[0])
    assert (metrics.importance_weighted_bound(log_w) > log_w.mean(0)).all()
    torch.testing.assert_close(metrics.importance_weighted_bound(log_w), log_w.exp().mean(0).log())


def test_its_mean_rises_with_the_draws_to_the_evidence_of_a_gaussian():
    """p(z) = N(0, 1), p(x|z) = N(z, 1), q = N(0, 1): log p(x) = log N(x; 0, 2)."""
    x, n = torch.tensor(1.5, dtype=torch.float64), 2000
    z = torch.randn(64, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w = torch.distributions.Normal(z, 1).log_prob(x)
    bounds = [metrics.importance_weighted_bound(log_w[:k]).mean().item() for k in (1, 4, 16, 64)]
    truth = torch.distributions.Normal(0.0, 2**0.5).log_prob(x.float()).item()
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(truth, abs=0.02) and bounds[0] < truth - 0.3


@pytest.mark.parametrize("log_w", [torch.zeros(3), torch.empty(0, 3)])
def test_the_importance_weighted_bound_wants_draws_by_images(log_w):
    with pytest.raises(ValueError, match="log_weights"):
        metrics.importance_weighted_bound(log_w)
