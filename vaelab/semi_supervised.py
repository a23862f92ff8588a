"""The experiment that Days 13, 14 and 15 share: a few labels, many images without, one training, one set of yardsticks.

A chapter brings what it is about, the estimate of the unlabelled bound, as a function::

    split = split_labels(data.load("mnist"), labels=600, seed=0)
    model = small_model(hidden=256, latent_dim=62)
    history = train(model, split, lambda model, x, t: model.unlabelled(x), Recipe(), steps=1900, seed=0)
    report(model, dataset)["accuracy"]

`experiment` does all of that for one configuration and one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab import data, metrics, plots, training
from vaelab.divergences import categorical_entropy
from vaelab.models.semi_supervised_vae import BoundTerms, SemiSupervisedVAE, StyleEncoder, squared_error
from vaelab.networks import ConditionalMLP, one_hot

Unlabelled = Callable[[SemiSupervisedVAE, Tensor, int], BoundTerms]

# The code published with Days 13 and 15, at a smaller size. Sixty labels of each class, seen in ten steps by turns
# with an epoch on the other images, twenty times over; the post has ten times as many images without labels.
PUBLISHED = {"entropy": -1.0, "alpha": 0.001, "summed": True, "noisy": True, "sees_label": False}
PUBLISHED |= {"alternate": 10, "turn": 85, "warm_up": 0.8}

# The bound of Kingma et al. 2014, with the same nets, the same images and as many steps.
MENDED = {"entropy": 1.0, "alpha": 50.0, "summed": False, "noisy": False, "sees_label": True}
MENDED |= {"alternate": 0, "turn": 0, "warm_up": 0.8}

SIZES = {
    "smoke": {"labels": 100, "pool": 500, "hidden": 32, "latent": 8, "steps": 30},
    "book": {"labels": 600, "pool": 5400, "hidden": 128, "latent": 62, "steps": 1900},
    "paper": {"labels": 600, "pool": 59_400, "hidden": 1024, "latent": 62, "steps": 20_000},
}


class LabelSplit(NamedTuple):
    """A training split cut in three; no image is in two of them."""

    labelled: data.Split
    unlabelled: Tensor  # (M, 1, h, w), their labels thrown away
    validation: data.Split  # to choose by; empty where nothing is to be chosen


class Recipe(NamedTuple):
    """How the terms of M2 are weighed. The defaults are the bound; each departure below is one of Day 13's."""

    alpha: float = 50.0  # weight of the mean cross-entropy of the labelled batch, beside a nat of the unlabelled bound
    labelled: float = 1.0  # weight of the mean bound of the labelled batch, likewise
    entropy: float = 1.0  # weight of KL(q(y|x) || p(y)): 1 is the bound, -1 minimises the entropy of q(y|x)
    summed: bool = False  # add the labelled reconstructions of a batch up, beside a mean KL
    alternate: int = 0  # so many steps on labelled images, then on unlabelled ones, by turns; 0: both in every step
    turn: int = 0  # how many unlabelled steps follow then
    warm_up: float = 0.0  # share of the training in which the weight of kl grows from 0 to 1


class StepTerms(NamedTuple):
    """What one step minimised, and its parts; a part that the step did not have is 0."""

    loss: Tensor
    labelled: Tensor  # -elbo of the labelled batch, nats per image
    unlabelled: Tensor  # the same of the unlabelled one
    cross_entropy: Tensor


def split_labels(
    dataset: data.Dataset, labels: int, seed: int, unlabelled: int | None = None, validation: int = 0
) -> LabelSplit:
    """Cut the train split into labelled, unlabelled and validation images, drawn afresh for each seed.

    Args:
        labels: how many labelled images in all, the same number of each class.
        unlabelled: how many images without label; None takes all that are left.
        validation: how many images to set aside first.

    Raises:
        ValueError: `labels` is no multiple of the number of classes, or there are not enough images.
    """
    images, y = dataset.train
    if not 0 <= validation < len(y):
        raise ValueError(f"validation is {validation}; it must lie in [0, {len(y)})")
    if labels < 1 or labels % dataset.num_classes:
        raise ValueError(f"labels is {labels}; it must be a multiple of the {dataset.num_classes} classes")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    aside, pool = order[:validation], order[validation:]
    rows = data.balanced_subset(y[pool], labels // dataset.num_classes, seed)
    rest = torch.ones(len(pool), dtype=torch.bool, device=y.device)
    rest[rows] = False
    free = pool[rest]
    if unlabelled is not None and not 1 <= unlabelled <= len(free):
        raise ValueError(f"unlabelled is {unlabelled}; it must lie in [1, {len(free)}]")
    return LabelSplit(dataset.train[pool[rows]], images[free[:unlabelled]], dataset.train[aside])


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels (N,) from which the classes cannot all be named.

    Raises:
        ValueError: a label outside [0, num_classes), or a class without a single labelled example: nothing would
            tell the model which of its clusters that class is.
    """
    if not len(labels):
        raise ValueError("labels are empty; every class needs at least one labelled example")
    examples = one_hot(labels, num_classes).sum(0)  # (K,); refuses what lies outside
    missing = (examples == 0).nonzero().squeeze(1).tolist()
    if missing:
        raise ValueError(f"labels have no example of {missing}; every class needs at least one")


def small_model(
    hidden: int, latent_dim: int, sees_label: bool = True, noisy: bool = False, size: int = 28, num_classes: int = 10
) -> SemiSupervisedVAE:
    """Return M2 with three nets of one batch-normalised hidden layer, and a Gaussian likelihood for grey images.

    It stands in for Day 13's convolutional nets at a tenth of their cost; `StyleEncoder` explains the two switches.
    """
    pixels, h = size * size, (hidden,)
    classifier = nn.Sequential(nn.Flatten(), ConditionalMLP(pixels, 0, h, num_classes, batch_norm=True))
    encoder = StyleEncoder(pixels, num_classes, h, latent_dim, sees_label, noisy, batch_norm=True)
    decoder = ConditionalMLP(latent_dim, num_classes, h, pixels, batch_norm=True)
    return SemiSupervisedVAE(classifier, encoder, decoder, num_classes, latent_dim, squared_error)


def train(
    model: SemiSupervisedVAE,
    split: LabelSplit,
    unlabelled: Unlabelled,
    recipe: Recipe,
    steps: int,
    seed: int,
    batch: tuple[int, int] = (64, 64),
    rate: float = 1e-3,
    decay: bool = True,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    view: Callable[[Tensor], Tensor] = lambda x: x,
    **watch,
) -> training.History:
    """Train M2 with Adam on labelled and unlabelled batches.

    Args:
        unlabelled: (model, images, step) -> the terms of the unlabelled bound; the one thing that Days 13 to 15 vary.
        batch: how many labelled and how many unlabelled images a step looks at.
        rate: the learning rate, at the start if it decays; then it falls to 0 along half a cosine.
        prepare: what happens first to the images that are to be explained, for instance `cvae.binarise`.
        view: what happens to labelled images before they are classified; `unlabelled` sees to its own.
        watch: goes to `training.fit`.

    Raises:
        ValueError: labels outside the range, or none of some class.
    """
    check_labels(split.labelled.labels, model.num_classes)
    device = split.unlabelled.device
    with_label = data.Shuffle(len(split.labelled), batch[0], seed, device)
    without = data.Shuffle(len(split.unlabelled), batch[1], seed + 1, device)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    zero = torch.zeros((), device=device)

    def loss(t: int) -> StepTerms:
        optimiser.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * t / steps)) / 2 if decay else rate
        beta = min(1.0, (t + 1) / (recipe.warm_up * steps)) if recipe.warm_up else 1.0
        here, there = turns(recipe, t)
        total, cost_l, cost_u, ce = zero, zero, zero, zero
        if here:
            x, y = split.labelled[with_label(t)]
            terms, ce = model.labelled(prepare(x), y), F.cross_entropy(model.classifier(view(x)), y)
            weight = len(x) if recipe.summed else 1
            total = recipe.labelled * (weight * terms.nll + beta * terms.kl) + recipe.alpha * ce
            cost_l = -terms.elbo
        if there:
            terms = unlabelled(model, split.unlabelled[without(t)], t)
            total, cost_u = total + terms.nll + beta * terms.kl + recipe.entropy * terms.kl_y, -terms.elbo
        return StepTerms(total, cost_l, cost_u, ce)

    return training.fit(training.descend(loss, optimiser), steps, **watch)


def turns(recipe: Recipe, step: int) -> tuple[bool, bool]:
    """Say whether a step looks at labelled and whether at unlabelled images.

    >>> [turns(Recipe(alternate=1, turn=2), t) for t in range(4)]
    [(True, False), (False, True), (False, True), (True, False)]
    """
    if not recipe.alternate:
        return True, True
    first = step % (recipe.alternate + recipe.turn) < recipe.alternate
    return first, not first


def annealed(step: int, steps: int, low: float = 0.5, reached: float = 0.6) -> float:
    """Return a temperature that falls from 1 like exp(-r step) and stays at `low` from `reached * steps` on.

    Source: Jang et al. 2017 (arXiv 1611.01144), section 4.2, where r is fixed and `low` is 0.5.

    >>> [round(annealed(t, 1000), 3) for t in (0, 300, 600, 900)]
    [1.0, 0.707, 0.5, 0.5]
    """
    return max(low, low ** (step / (reached * steps)))


def experiment(
    config: Mapping[str, Any],
    seed: int,
    unlabelled: Unlabelled,
    also: Callable[[SemiSupervisedVAE, data.Dataset], Mapping[str, float]] = lambda model, dataset: {},
) -> dict[str, Any]:
    """Train `small_model` under one recipe and measure it: what `runs.sweep` records for Days 13 to 15.

    Args:
        config: `dataset`, `labels` and `pool` (images with and without label), `hidden`, `latent`, `sees_label` and
            `noisy` (see `small_model`), `steps`, and the fields of `Recipe`. Other entries are not looked at.
        seed: of the labels' draw and the batches; the weights come from torch's default generator.
        unlabelled: see `train`.
        also: further numbers to take of the trained model, in eval mode.

    Returns:
        The numbers of `report` and of `also`; `at` (k,) steps and, measured there, `accuracy_curve` and
        `entropy_curve` (k,); for seed 0 also `shown`, the `sheet`, as bytes.
    """
    dataset = data.load(config["dataset"], size=28)
    split = split_labels(dataset, config["labels"], seed, config["pool"])
    shape = (config["hidden"], config["latent"], config["sees_label"], config["noisy"], 28, dataset.num_classes)
    model = small_model(*shape).to(split.unlabelled.device)
    recipe = Recipe(**{name: config[name] for name in Recipe._fields if name in config})
    steps = config["steps"]
    at = sorted({max(1, steps * share // 100) for share in (2, 5, 10, 20, 40, 60, 80, 100)})

    def watch() -> dict[str, float]:
        model.eval()
        numbers = guesses(model, dataset.test)
        model.train()
        return {name: numbers[name] for name in ("accuracy", "entropy")}

    history = train(model, split, unlabelled, recipe, steps, seed, decay=False, evaluate=watch, evaluate_at=at)
    curves = {f"{name}_curve": series for name, series in history.evaluations.items()}
    numbers = report(model, dataset) | curves | {"at": history.evaluated_at} | dict(also(model, dataset))
    return numbers | ({"shown": plots.to_uint8(sheet(model, 4))} if seed == 0 else {})


# Yardsticks


def report(model: SemiSupervisedVAE, dataset: data.Dataset, per_class: int = 500, seed: int = 0) -> dict[str, float]:
    """Measure guesses, bound and drawings on the test split; every code is a hard one, whatever training used.

    Puts the model into eval mode. Keys: those of `guesses` and `bounds`, and of `metrics.SampleReport` with the
    judge's accuracy as `drawn_accuracy`.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    asked = torch.arange(dataset.num_classes, device=dataset.test.labels.device).repeat_interleave(per_class)
    drawn = model.sample(asked, generator).view(-1, *dataset.test.images.shape[1:])
    samples = metrics.sample_report(dataset, drawn, asked)._asdict()
    samples["drawn_accuracy"] = samples.pop("accuracy")
    return guesses(model, dataset.test) | bounds(model, dataset.test, generator) | samples


@torch.no_grad()
def sheet(model: SemiSupervisedVAE, rows: int, seed: int = 3) -> Tensor:
    """Draw every class in each of `rows` styles: (rows * K, 1, h, w) in [0, 1], a row sharing its z."""
    model.eval()
    device = next(model.decoder.parameters()).device
    z = torch.randn(rows, 1, model.latent_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    images = model.decoder(z, torch.eye(model.num_classes, device=device)).sigmoid()  # (rows, K, pixels)
    side = math.isqrt(images.shape[-1])
    return images.view(-1, 1, side, side)


@torch.no_grad()
def guesses(model: SemiSupervisedVAE, split: data.Split) -> dict[str, float]:
    """Measure q(y|x) on a split, without changing the mode.

    Returns:
        accuracy: share of right guesses. cluster_accuracy: the same after the best renaming of the classes, which
        tells mixed-up names from mixed-up clusters. entropy: mean H(q(y|x)), nats. confidence: mean of the largest
        q(y|x), less the accuracy; above 0 it is over-confident. used: classes with more than 1 % of the guesses.
    """
    logits = torch.cat([model.classifier(x) for x in split.images.split(1000)])  # (N, K)
    q, guess = logits.softmax(1), logits.argmax(1)
    accuracy = (guess == split.labels).double().mean().item()
    table = torch.bincount(guess * model.num_classes + split.labels, minlength=model.num_classes**2)
    table = table.view(model.num_classes, -1).cpu().numpy()  # (guessed, true)
    return {
        "accuracy": accuracy,
        "cluster_accuracy": float(table[linear_sum_assignment(-table)].sum() / len(guess)),
        "entropy": categorical_entropy(logits).mean().item(),
        "confidence": q.max(1).values.double().mean().item() - accuracy,
        "used": metrics.classes_drawn(guess, model.num_classes),
    }


@torch.no_grad()
def bounds(
    model: SemiSupervisedVAE, split: data.Split, generator: torch.Generator | None = None
) -> dict[str, float]:
    """Measure the bound on log p(x) of a split, nats per image, without changing the mode.

    Returns:
        elbo, nll, kl, kl_y: the terms with y averaged over exactly. hard_elbo: the bound with all trust put into
        the likeliest class, -L(x, argmax q), with a draw of z of its own. Where q(y|x) is near the best there is,
        softmax(-L), it is lower, by what certainty costs; a poor q(y|x) may lie below it.
    """
    parts = [_bounds(model, x, generator) for x in split.images.split(1000)]
    sums = torch.stack(parts).sum(0) / len(split)  # (5,)
    return dict(zip(("elbo", "nll", "kl", "kl_y", "hard_elbo"), sums.tolist()))


def _bounds(model: SemiSupervisedVAE, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the (5,) sums over a batch of what `bounds` averages."""
    terms = model.unlabelled(x, generator)
    guess = model.classifier(x).argmax(1)
    return torch.stack([terms.elbo, *terms[:3], model.labelled(x, guess, generator).elbo]) * len(x)
