"""The experiment of Days 13 to 15: its split, its recipe, its training, its yardsticks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from vaelab import data, metrics, semi_supervised
from vaelab.models.semi_supervised_vae import SemiSupervisedVAE, StyleEncoder, squared_error
from vaelab.networks import ConditionalMLP, one_hot
from vaelab.semi_supervised import MENDED, PUBLISHED, SIZES, LabelSplit, Recipe, StepTerms


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_dataset(count: int = 60, classes: int = 3, side: int = 4) -> data.Dataset:
    """Images whose first pixel is a number of their own and whose rows, one for each class, tell the class."""
    labels = torch.arange(count) % classes
    images = 0.1 * torch.rand(count, 1, side, side, generator=seeded())
    images[torch.arange(count), 0, labels + 1] += 0.8
    images[:, 0, 0, 0] = torch.arange(count) / count
    split = data.Split(images, labels)
    return data.Dataset("toy", split, split, classes, tuple("abc"), "0" * 16)


def names(images: Tensor) -> list[float]:
    return images[:, 0, 0, 0].tolist()


def toy_model(batch_norm: bool = False) -> SemiSupervisedVAE:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), ConditionalMLP(16, 0, (8,), 3, batch_norm))
    encoder = StyleEncoder(16, 3, (8,), 2, batch_norm=batch_norm)
    return SemiSupervisedVAE(classifier, encoder, ConditionalMLP(2, 3, (8,), 16, batch_norm), 3, 2, squared_error)


class Told(nn.Module):
    """A classifier whose logits are the first pixels of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def exact(model: SemiSupervisedVAE, x: Tensor, t: int):
    return model.unlabelled(x)


@pytest.fixture
def split() -> LabelSplit:
    return semi_supervised.split_labels(toy_dataset(), 12, seed=0)


# The split


@pytest.mark.parametrize("validation", [0, 15])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_is_a_partition(seed, validation):
    dataset = toy_dataset()
    labelled, unlabelled, aside = semi_supervised.split_labels(dataset, 12, seed, validation=validation)
    parts = [names(labelled.images), names(unlabelled), names(aside.images)]
    assert [len(part) for part in parts] == [12, 48 - validation, validation]
    assert sorted(sum(parts, [])) == sorted(names(dataset.train.images))
    for part in (labelled, aside):
        for name, label in zip(names(part.images), part.labels):
            assert round(name * 60) % 3 == label  # images keep their labels


def test_as_many_labels_of_each_class_drawn_by_the_seed(split):
    assert torch.bincount(split.labelled.labels).tolist() == [4, 4, 4]
    again, other = (semi_supervised.split_labels(toy_dataset(), 12, seed) for seed in (0, 1))
    assert names(again.labelled.images) == names(split.labelled.images)
    assert names(again.unlabelled) == names(split.unlabelled)
    assert set(names(other.labelled.images)) != set(names(split.labelled.images))
    assert split.unlabelled.shape == (48, 1, 4, 4) and len(split.validation) == 0


def test_the_images_set_aside_are_drawn_by_the_seed_too():
    aside = [semi_supervised.split_labels(toy_dataset(), 12, seed, validation=15).validation for seed in (0, 0, 1)]
    first, again, other = (names(part.images) for part in aside)
    assert first == again and set(first) != set(other)


def test_the_unlabelled_images_come_in_mixed_order_and_may_be_fewer(split):
    few = semi_supervised.split_labels(toy_dataset(), 12, 0, unlabelled=20)
    assert names(few.unlabelled) == names(split.unlabelled)[:20] != sorted(names(few.unlabelled))
    assert names(few.labelled.images) == names(split.labelled.images)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"labels": 10}, "labels is 10; it must be a multiple of the 3 classes"),
        ({"labels": 0}, "labels is 0; it must be a multiple of the 3 classes"),
        ({"labels": -3}, "labels is -3; it must be a multiple of the 3 classes"),
        ({"labels": 63}, "per_class is 21, but class 0 has only 20"),
        ({"labels": 12, "unlabelled": 0}, r"unlabelled is 0; it must lie in \[1, 48\]"),
        ({"labels": 12, "unlabelled": 49}, r"unlabelled is 49; it must lie in \[1, 48\]"),
        ({"labels": 12, "validation": 40, "unlabelled": 9}, r"unlabelled is 9; it must lie in \[1, 8\]"),
        ({"labels": 12, "validation": -1}, r"validation is -1; it must lie in \[0, 60\)"),
        ({"labels": 12, "validation": 60}, r"validation is 60; it must lie in \[0, 60\)"),
    ],
)
def test_a_split_that_cannot_be_had_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        semi_supervised.split_labels(toy_dataset(), seed=0, **asked)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([], "labels are empty; every class needs at least one labelled example"),
        ([0, 1, 3], r"labels span \[0, 3\]; they must lie in \[0, 3\)"),
        ([-1, 1, 2], r"labels span \[-1, 2\]; they must lie in \[0, 3\)"),
        ([0, 0, 2], r"labels have no example of \[1\]; every class needs at least one"),
    ],
)
def test_labels_that_do_not_name_the_classes_are_refused(labels, message, split):
    labels = torch.tensor(labels, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        semi_supervised.check_labels(labels, 3)
    bad = split._replace(labelled=data.Split(torch.zeros(len(labels), 1, 4, 4), labels))
    with pytest.raises(ValueError, match=message):
        semi_supervised.train(toy_model(), bad, exact, Recipe(), steps=1, seed=0)


def test_labels_that_name_every_class_pass():
    assert semi_supervised.check_labels(torch.tensor([2, 0, 1, 1]), 3) is None


# Turns and temperatures


def test_both_kinds_of_images_in_every_step_unless_they_alternate():
    assert [semi_supervised.turns(Recipe(turn=3), t) for t in range(5)] == [(True, True)] * 5


def test_labelled_and_unlabelled_steps_take_turns():
    seen = [semi_supervised.turns(Recipe(alternate=2, turn=3), t) for t in range(10)]
    assert seen == [(t % 5 < 2, t % 5 >= 2) for t in range(10)]
    assert [semi_supervised.turns(Recipe(alternate=1), t) for t in range(4)] == [(True, False)] * 4


def test_the_temperature_falls_like_an_exponential_and_stays():
    temperatures = [semi_supervised.annealed(t, 1000, low=0.2, reached=0.5) for t in range(1000)]
    assert temperatures[0] == 1 and temperatures[500:] == [0.2] * 500
    assert temperatures[250] == pytest.approx(math.sqrt(0.2))
    ratios = np.divide(temperatures[1:501], temperatures[:500])
    assert np.allclose(ratios, ratios[0]) and ratios[0] < 1
    assert semi_supervised.annealed(600, 1000) == 0.5 < semi_supervised.annealed(599, 1000)


# The model


def test_the_small_model_is_three_nets_of_one_normalised_layer():
    model = semi_supervised.small_model(hidden=5, latent_dim=4, size=8, num_classes=3)
    assert (model.num_classes, model.latent_dim, model.likelihood) == (3, 4, squared_error)
    assert sum(isinstance(m, nn.BatchNorm1d) and m.num_features == 5 for m in model.modules()) == 3
    assert [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)] == [
        (5, 64), (3, 5), (5, 67), (8, 5), (5, 7), (64, 5),
    ]  # fmt: skip
    assert model.encoder.sees_label and not model.encoder.noisy
    assert model.classifier(torch.rand(6, 1, 8, 8)).shape == (6, 3)
    noisy = semi_supervised.small_model(5, 4, sees_label=False, noisy=True, size=8)
    assert noisy.encoder.noisy and not noisy.encoder.sees_label and noisy.encoder.net.first.in_features == 64
    terms = model.unlabelled(torch.rand(6, 1, 8, 8))
    (-terms.elbo).backward()
    assert all(p.grad is not None for p in model.parameters())


# Training


def spied(model: SemiSupervisedVAE) -> list:
    """Return a list to which a model adds the labelled terms that it works out."""
    seen, labelled = [], model.labelled

    def spy(*given):
        seen.append((labelled(*given), *given))
        return seen[-1][0]

    model.labelled = spy
    return seen


def one_run(split: LabelSplit, recipe: Recipe, steps: int = 1, unlabelled=exact, model=None, **more):
    """Train a little; return what each step minimised, the labelled and the unlabelled terms and what they saw."""
    model, seen = model or toy_model(), []

    def spy(model, x, t):
        seen.append((unlabelled(model, x, t), x, t))
        return seen[-1][0]

    labelled = spied(model)
    history = semi_supervised.train(model, split, spy, recipe, steps, seed=0, batch=(6, 8), **more)
    return history, labelled, seen


def test_what_is_minimised_is_the_two_bounds_and_the_cross_entropy(split):
    model = toy_model()
    logits = []
    model.classifier.register_forward_hook(lambda net, given, found: logits.append((given[0], found.detach())))
    history, ((terms, x, y),), ((there, images, t),) = one_run(split, Recipe(alpha=7.0), model=model)
    shown, found = logits[0]
    ce = F.cross_entropy(found, y)
    assert shown.equal(x) and x.shape == (6, 1, 4, 4) and images.shape == (8, 1, 4, 4) and t == 0
    assert history.terms.keys() == set(StepTerms._fields) == {"loss", "labelled", "unlabelled", "cross_entropy"}
    expected = terms.nll + terms.kl + 7 * ce - there.elbo
    assert history.terms["loss"][0] == pytest.approx(expected.item(), rel=1e-6)
    assert history.terms["labelled"][0] == pytest.approx(-terms.elbo.item(), rel=1e-6)
    assert history.terms["unlabelled"][0] == pytest.approx(-there.elbo.item(), rel=1e-6)
    assert history.terms["cross_entropy"][0] == pytest.approx(ce.item(), rel=1e-6)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"alpha": 0.0}, lambda l, u, ce: l.nll + l.kl + u.nll + u.kl + u.kl_y),
        ({"labelled": 0.1}, lambda l, u, ce: 0.1 * (l.nll + l.kl) + 50 * ce + u.nll + u.kl + u.kl_y),
        ({"labelled": 0.0, "alpha": 0.0}, lambda l, u, ce: u.nll + u.kl + u.kl_y),
        ({"entropy": -1.0}, lambda l, u, ce: l.nll + l.kl + 50 * ce + u.nll + u.kl - u.kl_y),
        ({"summed": True}, lambda l, u, ce: 6 * l.nll + l.kl + 50 * ce + u.nll + u.kl + u.kl_y),
        ({"warm_up": 0.5}, lambda l, u, ce: l.nll + l.kl / 5 + 50 * ce + u.nll + u.kl / 5 + u.kl_y),  # 1 of 5 steps
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_each_field_of_the_recipe_weighs_its_term(change, expected, split):
    history, labelled, unlabelled = one_run(split, Recipe(**change), steps=10)
    ce = torch.tensor(history.terms["cross_entropy"][0])
    value = expected(labelled[0][0], unlabelled[0][0], ce)
    assert history.terms["loss"][0] == pytest.approx(value.item(), rel=1e-5)


def test_the_warm_up_ends_where_it_is_to(split):
    history, labelled, unlabelled = one_run(split, Recipe(warm_up=0.5, alpha=0.0), steps=10)
    for t, ((here, *_), (there, *_)) in enumerate(zip(labelled, unlabelled)):
        beta = min(1, (t + 1) / 5)
        value = here.nll + there.nll + beta * (here.kl + there.kl) + there.kl_y
        assert history.terms["loss"][t] == pytest.approx(value.item(), rel=1e-5)


def test_steps_alternate_and_what_a_step_has_not_counts_nothing(split):
    history, labelled, unlabelled = one_run(split, Recipe(alternate=2, turn=3), steps=10)
    here = np.arange(10) % 5 < 2
    assert len(labelled) == 4 and [t for _, _, t in unlabelled] == [2, 3, 4, 7, 8, 9]
    for name in ("labelled", "cross_entropy"):
        assert ((history.terms[name] != 0) == here).all()
    assert ((history.terms["unlabelled"] != 0) == ~here).all()
    for t, (there, *_) in zip((2, 3, 4), unlabelled):
        assert history.terms["loss"][t] == pytest.approx(-there.elbo.item(), rel=1e-6)


@pytest.mark.parametrize("entropy, way", [(1.0, 1), (-1.0, -1)])
def test_where_no_class_is_better_the_entropy_term_decides_about_the_guess(entropy, way, split):
    model = toy_model()
    with torch.no_grad():
        model.decoder.first.weight[:, 2:] = model.encoder.net.first.weight[:, 16:] = 0  # blind to the label

    def blind(model, x, t):
        terms = model.unlabelled(x)
        return terms._replace(nll=terms.nll.detach(), kl=terms.kl.detach())

    before = semi_supervised.guesses(model, toy_dataset().test)["entropy"]
    recipe = Recipe(entropy=entropy, alpha=0.0, labelled=0.0)
    semi_supervised.train(model, split, blind, recipe, 100, seed=0, rate=0.01)
    after = semi_supervised.guesses(model, toy_dataset().test)["entropy"]
    assert way * (after - before) > 0.01


def test_training_lowers_the_loss_and_teaches_the_guess(split):
    model = toy_model(batch_norm=True)
    history = semi_supervised.train(model, split, exact, Recipe(), 150, seed=0, batch=(12, 16), rate=0.01)
    loss = history.terms["loss"]
    assert len(loss) == 150 and loss[-10:].mean() < loss[:10].mean() / 2
    model.eval()
    assert semi_supervised.guesses(model, toy_dataset().test)["accuracy"] > 0.9


def test_training_is_decided_by_its_seed(split):
    def losses(seed: int) -> np.ndarray:
        model = toy_model()
        torch.manual_seed(0)
        return semi_supervised.train(model, split, exact, Recipe(), 4, seed, (6, 8)).terms["loss"]

    assert (losses(0) == losses(0)).all() and not (losses(0) == losses(1)).any()


def moved(split: LabelSplit, **more) -> list[float]:
    """Return how far each of six steps moved the weights."""
    model, places = toy_model(), []

    def watch(model, x, t):
        places.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return model.unlabelled(x)

    semi_supervised.train(model, split, watch, Recipe(), 6, seed=0, **more)
    return [(b - a).abs().max().item() for a, b in zip(places, places[1:])]


def test_the_rate_falls_along_half_a_cosine_or_stays(split):
    steady, falling = moved(split, rate=1e-3, decay=False), moved(split, rate=1e-3)
    assert steady[0] == pytest.approx(1e-3, rel=0.02) == falling[0]  # Adam's first step is as long as its rate
    assert all(step > 5e-4 for step in steady)
    last = (1 + math.cos(math.pi * 4 / 6)) / 2 * 1e-3
    assert falling[-1] <= 1.5 * last and falling[-1] < steady[-1] / 2
    assert moved(split, rate=4e-3, decay=False)[0] == pytest.approx(4e-3, rel=0.02)


def test_labelled_images_are_prepared_to_be_explained_and_viewed_to_be_classified(split):
    model, classified = toy_model(), []
    model.classifier.register_forward_pre_hook(lambda net, given: classified.append(given[0]))
    more = {"prepare": lambda x: (x > 0.5).float(), "view": lambda x: -x}
    _, ((_, explained, _),), ((_, images, _),) = one_run(split, Recipe(), model=model, **more)
    assert set(explained.unique().tolist()) == {0.0, 1.0}
    assert ((-classified[0] > 0.5).float()).equal(explained) and classified[0].min() < 0
    assert classified[1].equal(images) and set(names(images)) <= set(names(split.unlabelled))  # they see to themselves


def test_what_there_is_to_watch_goes_to_the_training_loop(split):
    more = {"evaluate": lambda: {"one": 1.0}, "evaluate_at": [2, 3]}
    history = semi_supervised.train(toy_model(), split, exact, Recipe(), 3, seed=0, **more)
    assert history.evaluated_at.tolist() == [2, 3] and history.evaluations["one"].tolist() == [1, 1]


# Yardsticks


def told(rows: list[list[float]], labels: list[int]) -> data.Split:
    images = torch.zeros(len(rows), 1, 2, 2)
    images.view(-1, 4)[:, :3] = torch.tensor(rows)
    return data.Split(images, torch.tensor(labels))


def guessing() -> SemiSupervisedVAE:
    torch.manual_seed(0)
    return SemiSupervisedVAE(Told(), StyleEncoder(4, 3, (5,), 2), ConditionalMLP(2, 3, (5,), 4), 3, 2, squared_error)


def test_guesses_are_measured_as_worked_out_by_hand():
    rows = [[9.0, 0, 0], [0, 3.0, 0], [0, 1.0, 2.0], [0, 0, 4.0]]
    numbers = semi_supervised.guesses(guessing(), told(rows, [0, 2, 1, 2]))
    q = Categorical(logits=torch.tensor(rows))
    assert numbers.keys() == {"accuracy", "cluster_accuracy", "entropy", "confidence", "used"}
    assert numbers["accuracy"] == 0.5  # the first and the last
    assert numbers["cluster_accuracy"] == 0.75  # with clusters 1 and 2 under each other's names
    assert numbers["entropy"] == pytest.approx(q.entropy().mean().item(), rel=1e-5)
    assert numbers["confidence"] == pytest.approx(q.probs.max(1).values.mean().item() - 0.5, rel=1e-5)
    assert numbers["used"] == 3


def test_clusters_under_other_names_are_told_from_mixed_up_ones():
    sharp = (10 * torch.eye(3)).repeat(4, 1).tolist()
    swapped = semi_supervised.guesses(guessing(), told(sharp, [1, 2, 0] * 4))
    assert swapped["accuracy"] == 0 and swapped["cluster_accuracy"] == 1
    assert swapped["confidence"] == pytest.approx(1, abs=1e-3)
    mixed = semi_supervised.guesses(guessing(), told(sharp, [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 0, 0]))
    table = {0: [2, 1, 1], 1: [2, 1, 1], 2: [2, 1, 1]}  # of each cluster, how many of each class
    assert mixed["cluster_accuracy"] == sum(table[k][k] for k in range(3)) / 12


def test_a_class_is_used_if_it_gets_more_than_a_hundredth_of_the_guesses():
    rows = [[1.0, 0, 0]] * 197 + [[0, 1.0, 0]] * 2 + [[0, 0, 1.0]]
    assert semi_supervised.guesses(guessing(), told(rows, [0] * 200))["used"] == 1
    rows = [[1.0, 0, 0]] * 196 + [[0, 1.0, 0]] * 3 + [[0, 0, 1.0]]
    assert semi_supervised.guesses(guessing(), told(rows, [0] * 200))["used"] == 2


def test_guesses_on_many_images_are_those_of_all_parts():
    split = data.Split(torch.rand(2300, 1, 2, 2), torch.randint(3, (2300,)))
    numbers, q = semi_supervised.guesses(guessing(), split), split.images.flatten(1)[:, :3].softmax(1)
    assert numbers["accuracy"] == pytest.approx((q.argmax(1) == split.labels).float().mean().item())
    assert numbers["entropy"] == pytest.approx(Categorical(probs=q).entropy().mean().item(), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_mode_and_the_gradients_alone(training):
    model = guessing().train(training)
    split = told([[1.0, 0, 0]] * 4, [0] * 4)
    semi_supervised.guesses(model, split), semi_supervised.bounds(model, split)
    assert model.training is training and all(p.grad is None for p in model.parameters())


def silent(model: SemiSupervisedVAE) -> SemiSupervisedVAE:
    model._noise = lambda x, generator: torch.zeros(len(x), model.latent_dim)
    return model


def test_bounds_are_means_over_the_split_of_the_models_terms():
    model = silent(guessing())
    split = data.Split(torch.rand(1300, 1, 2, 2), torch.randint(3, (1300,)))  # in two parts of unlike length
    numbers, terms = semi_supervised.bounds(model, split), model.unlabelled(split.images)
    assert numbers.keys() == {"elbo", "nll", "kl", "kl_y", "hard_elbo"}
    for name in ("elbo", "nll", "kl", "kl_y"):
        assert numbers[name] == pytest.approx(getattr(terms, name).item(), rel=1e-4)
    assert numbers["elbo"] == pytest.approx(-(numbers["nll"] + numbers["kl"] + numbers["kl_y"]), rel=1e-6)
    hard = model.labelled(split.images, model.classifier(split.images).argmax(1))
    assert numbers["hard_elbo"] == pytest.approx(hard.elbo.item(), rel=1e-4)


def test_the_hard_bound_is_lower_by_what_certainty_costs_if_the_guess_is_the_best_one():
    model, split = silent(guessing()), data.Split(torch.rand(50, 1, 2, 2), torch.zeros(50, dtype=torch.int64))
    nll, kl = model._costs_of_all(split.images.flatten(1)[:, None], torch.zeros(50, 1, 2), None)
    costs = (nll + kl).detach()  # (N, K)

    def with_guess(logits: Tensor) -> dict[str, float]:
        model.classifier = type("Known", (nn.Module,), {"forward": lambda self, x: logits})()
        return semi_supervised.bounds(model, split)

    best = with_guess(-costs)
    price = -Categorical(logits=-costs).probs.max(1).values.log().mean().item()  # -log q of the likeliest class
    assert price > 0.1 and best["elbo"] - best["hard_elbo"] == pytest.approx(price, rel=1e-4)
    certain = with_guess(200 * F.one_hot(costs.argmin(1), 3).float())
    assert certain["hard_elbo"] == pytest.approx(certain["elbo"], rel=1e-6) == best["hard_elbo"]
    assert certain["kl_y"] == pytest.approx(math.log(3))
    worst = with_guess(5 * costs)
    assert worst["elbo"] < best["elbo"] and worst["hard_elbo"] < best["hard_elbo"]


def test_bounds_are_reproducible_by_their_generator():
    model, split = guessing(), told([[1.0, 0, 0]] * 4, [0] * 4)
    first, again, other = (semi_supervised.bounds(model, split, seeded(s)) for s in (0, 0, 1))
    assert first == again and first["nll"] != other["nll"]


def test_a_sheet_shows_every_class_in_every_style_and_a_row_shares_its_style():
    model = semi_supervised.small_model(5, 4, size=8, num_classes=3).train()
    sheet = semi_supervised.sheet(model, rows=2)
    assert sheet.shape == (6, 1, 8, 8) and 0 <= sheet.min() and sheet.max() <= 1 and not model.training
    z = torch.randn(2, 1, 4, generator=seeded(3)).repeat_interleave(3, 0)[:, 0]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        drawn = model.decoder(z, one_hot(labels, 3)).sigmoid().view(6, 1, 8, 8)
    torch.testing.assert_close(sheet, drawn)
    assert sheet.equal(semi_supervised.sheet(model, rows=2))
    assert not sheet.equal(semi_supervised.sheet(model, rows=2, seed=4))


def test_a_report_measures_guesses_bounds_and_drawings_in_eval_mode():
    dataset = data.load("digits", size=28)
    model = semi_supervised.small_model(8, 4).train()
    found = semi_supervised.report(model, dataset, per_class=20)
    assert not model.training
    assert found.keys() == {
        "accuracy", "cluster_accuracy", "entropy", "confidence", "used",
        "elbo", "nll", "kl", "kl_y", "hard_elbo",
        "frechet", "information", "spread", "drawn_accuracy",
    }  # fmt: skip
    assert all(np.isfinite(number) for number in found.values())
    own = semi_supervised.guesses(model, dataset.test)
    assert {name: found[name] for name in own} == own  # `accuracy` is that of the guesses, not of the drawings
    again = semi_supervised.report(model, dataset, per_class=20)
    assert again == found
    asked = torch.arange(10).repeat_interleave(20)
    drawn = metrics.sample_report(dataset, model.sample(asked, seeded()).view(-1, 1, 28, 28), asked)
    assert found["drawn_accuracy"] == drawn.accuracy


# The whole experiment


@pytest.fixture(scope="module")
def smoke() -> dict:
    """The configuration of a chapter at preset smoke."""
    return {"dataset": "digits", **MENDED, **SIZES["smoke"], "name": "mended", "something": "else"}


def watched(config: dict, seed: int, unlabelled: Callable = exact) -> dict:
    torch.manual_seed(seed)
    also = {"also": lambda model, dataset: {"training": float(model.training), "classes": dataset.num_classes}}
    return semi_supervised.experiment(config, seed, unlabelled, **also)


def test_an_experiment_returns_what_it_says(smoke):
    steps = []
    record = watched(smoke, 0, lambda model, x, t: steps.append(t) or model.unlabelled(x))
    numbers = semi_supervised.report(semi_supervised.small_model(8, 4), data.load("digits", size=28), per_class=20)
    also = {"at", "accuracy_curve", "entropy_curve", "shown", "training", "classes"}
    assert record.keys() == numbers.keys() | also
    assert record["training"] == 0 and record["classes"] == 10
    assert steps == list(range(30))
    assert record["at"].tolist() == [1, 3, 6, 12, 18, 24, 30] and len(record["at"]) == len(record["accuracy_curve"])
    assert record["accuracy_curve"][-1] == pytest.approx(record["accuracy"])
    assert record["entropy_curve"][-1] == pytest.approx(record["entropy"])
    assert record["shown"].shape[0] == 40 and record["shown"].dtype == np.uint8
    assert record["accuracy"] > 0.3


def test_an_experiment_goes_on_in_training_mode_after_each_look_at_its_guesses(smoke):
    modes = []
    watched(smoke | {"steps": 5}, 1, lambda model, x, t: modes.append(model.training) or model.unlabelled(x))
    assert modes == [True] * 5


def test_an_experiment_is_decided_by_its_seed_and_only_the_first_shows_its_drawings(smoke):
    config = smoke | {"steps": 5}
    first, again = watched(config, 1), watched(config, 1)
    assert "shown" not in first
    assert first["nll"] == again["nll"] and (first["entropy_curve"] == again["entropy_curve"]).all()
    assert first["nll"] != watched(config, 2)["nll"]


def test_an_experiment_follows_the_recipe_in_its_configuration(smoke, monkeypatch):
    seen, train = {}, semi_supervised.train

    def spy(model, split, unlabelled, recipe, steps, seed, **more):
        seen.update(model=model, split=split, recipe=recipe, steps=steps, more=more)
        return train(model, split, unlabelled, recipe, steps, seed, **more)

    monkeypatch.setattr(semi_supervised, "train", spy)
    watched(smoke | PUBLISHED | {"steps": 4, "alternate": 2, "turn": 1}, 1, lambda m, x, t: m.unlabelled_loop(x))
    recipe = Recipe(alpha=0.001, entropy=-1.0, summed=True, alternate=2, turn=1, warm_up=0.8)
    assert seen["recipe"] == recipe and seen["steps"] == 4 and seen["more"]["decay"] is False
    model, split = seen["model"], seen["split"]
    assert model.encoder.noisy and not model.encoder.sees_label
    assert (model.latent_dim, model.decoder.first.out_features) == (8, 32)
    assert (len(split.labelled), len(split.unlabelled), len(split.validation)) == (100, 500, 0)


def test_the_two_recipes_differ_in_everything_but_the_warm_up():
    assert PUBLISHED.keys() == MENDED.keys() and SIZES.keys() == {"smoke", "book", "paper"}
    assert [name for name in MENDED if MENDED[name] == PUBLISHED[name]] == ["warm_up"]
    assert (MENDED["entropy"], MENDED["summed"], MENDED["alternate"]) == (1.0, False, 0)
    assert MENDED["sees_label"] and not MENDED["noisy"]
    assert Recipe() == Recipe(alpha=50.0, labelled=1.0, entropy=1.0, summed=False, alternate=0, turn=0, warm_up=0.0)
