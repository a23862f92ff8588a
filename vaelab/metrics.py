"""How well a trained model does, and by which yardstick.

A number means little beside nothing: every metric here can also be taken of a baseline (real test images,
the training images copied out, an untrained model), and the chapters show it beside theirs.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab import data, files
from vaelab.divergences import LEAST_VARIANCE, moment_bias, moment_kl
from vaelab.lab import seed_everything
from vaelab.networks import LeNet
from vaelab.posteriors import reparametrise
from vaelab.training import descend, fit, undisturbed

# The judge: an independent classifier


class _JudgeTerms(NamedTuple):
    loss: Tensor


class Judge(NamedTuple):
    """A classifier trained on real images only, that looks at generated ones."""

    net: LeNet
    accuracy: float  # on the real test split
    test_features: Tensor  # (M, 64) of the test split, computed once

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return (N, num_classes) logits of (N, 1, 28, 28) images, in chunks that fit into memory."""
        return self.net.head(self.features(images))

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """Return the (N,) classes that the judge sees in (N, 1, 28, 28) images."""
        return self.logits(images).argmax(1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the (N, 64) penultimate activations for (N, 1, 28, 28) images."""
        return torch.cat([self.net.trunk(chunk) for chunk in images.split(1000)])


def judge(dataset: data.Dataset) -> Judge:
    """Return the judge of a data set: trained on its train split once, then kept.

    Those of MNIST and Fashion-MNIST come with the package, others are kept in the data folder.

    A LeNet, Adam with a learning rate that falls along a cosine, 8 epochs or 400 steps, whichever is more,
    images shifted by up to two pixels. On MNIST its test accuracy is above 0.99.

    Args:
        dataset: images of 28 x 28.

    Raises:
        ValueError: images of another size.
    """
    if dataset.train.images.shape[-1] != 28:
        raise ValueError(f"{dataset.name} has images of {tuple(dataset.train.images.shape[1:])}; load it with size=28")
    key = (dataset.name, dataset.digest, str(dataset.train.images.device))
    if key not in _judges:
        with undisturbed():
            net = _stored_judge(dataset)
        expert = Judge(net, 0.0, torch.empty(0))
        right = expert.classes(dataset.test.images) == dataset.test.labels
        _judges[key] = Judge(net, right.float().mean().item(), expert.features(dataset.test.images))
    return _judges[key]


_judges: dict[tuple[str, str, str], Judge] = {}


def _stored_judge(dataset: data.Dataset) -> LeNet:
    """Read the judge's weights: those that come with the package, else those in the data folder, else train them.

    The records of the book were judged by the ones in the package. Trained again elsewhere, by the same recipe,
    a judge differs in its last digits, and so would every distance measured in its features.
    """
    recipe = "".join(map(inspect.getsource, (_train_judge, _shift, LeNet))) + dataset.digest
    name = f"{dataset.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"
    path = Path(__file__).parent / "judges" / name
    path = path if path.exists() else data.folder() / "judges" / name
    if not path.exists():
        content = io.BytesIO()
        with torch.enable_grad():  # the first to ask for it is often an evaluation, without gradients
            trained = _train_judge(dataset)
        torch.save(trained.state_dict(), content)
        files.write_whole(path, content.getvalue())
    net = LeNet(dataset.num_classes).to(dataset.train.images.device)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval()


def _train_judge(dataset: data.Dataset) -> LeNet:
    """Train a judge from a fixed seed."""
    seed_everything(0)
    images, labels = dataset.train
    net = LeNet(dataset.num_classes).to(images.device)
    batches = data.Shuffle(len(images), 128, seed=0, device=images.device)
    steps = max(8 * batches.per_epoch, 400)
    optimiser = torch.optim.Adam(net.parameters())

    def loss(t: int) -> _JudgeTerms:
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * t / steps))
        rows = batches(t)
        return _JudgeTerms(F.cross_entropy(net(_shift(images[rows])), labels[rows]))

    fit(descend(loss, optimiser), steps, label=f"training the judge of {dataset.name}")
    return net


def _shift(images: Tensor, most: int = 2) -> Tensor:
    """Move the whole batch (N, 1, h, w) by up to `most` pixels each way, the same way for all: cheap and enough."""
    dy, dx = (int(d) for d in torch.randint(-most, most + 1, (2,)))
    height, width = images.shape[-2:]
    padded = F.pad(images, (most,) * 4)  # (N, 1, h + 2 most, w + 2 most)
    return padded[..., most + dy : most + dy + height, most + dx : most + dx + width]


# Does the label decide what is drawn?


def conditional_accuracy(asked: Tensor, judged: Tensor) -> float:
    """Return the share of images in which the judge sees the class that was asked for; (N,) int64 each.

    A model that copies its training images out scores near 1: read it beside spread and Fréchet distance.
    """
    _same_length("asked", asked, "judged", judged)
    return (asked == judged).float().mean().item()


def mutual_information(asked: Tensor, judged: Tensor, num_classes: int) -> float:
    """Return the mutual information between two (N,) int64 labellings, in nats.

    0: the label is ignored. log(num_classes): the label decides the class, under whatever permutation.
    This is the plug-in estimate; it is too large by about (num_classes - 1)^2 / 2N.
    """
    _same_length("asked", asked, "judged", judged)
    for name, labels in (("asked", asked), ("judged", judged)):
        if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            span = f"[{int(labels.min())}, {int(labels.max())}]"
            raise ValueError(f"{name} spans {span}; it must lie in [0, {num_classes})")
    joint = torch.bincount(asked * num_classes + judged, minlength=num_classes**2).double()
    joint = joint.view(num_classes, num_classes) / len(asked)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return (joint[seen] * (joint[seen] / independent[seen]).log()).sum().item()


def classes_drawn(judged: Tensor, num_classes: int, share: float = 0.01) -> int:
    """Return how many classes the judge sees in more than a share of the images; (N,) int64 judged classes.

    A model that ignores its label may still draw all classes; one whose modes have collapsed draws few.

    Raises:
        ValueError: no images, a class outside [0, num_classes), or a share outside [0, 1).

    >>> classes_drawn(torch.tensor([0, 0, 0, 2]), num_classes=3, share=0.25)
    1
    """
    if not judged.numel() or not 0 <= int(judged.min()) <= int(judged.max()) < num_classes:
        raise ValueError(f"judged starts {judged.tolist()[:5]}; it must hold a class in [0, {num_classes}) per image")
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1)")
    return int((torch.bincount(judged, minlength=num_classes) > share * len(judged)).sum())


# Are the images as varied and as real as real ones?


def within_class_spread(images: Tensor, labels: Tensor) -> float:
    """Return the root of the mean variance of a pixel within its class.

    Args:
        images: (N, 1, h, w). labels: (N,) int64, the class asked for.

    Divide by the value of real images: 0 is one picture per class, 1 is as varied as life.
    """
    _same_length("images", images, "labels", labels)
    total = 0.0
    for label in labels.unique():
        members = images[labels == label].flatten(1).double()  # (n, pixels)
        total += len(members) / len(images) * members.var(0, correction=0).mean().item()
    return math.sqrt(total)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Return the Fréchet distance of two feature clouds.

    .. math:: |\mu_a-\mu_b|^2 + \mathrm{tr}\big(\Sigma_a + \Sigma_b - 2(\Sigma_a\Sigma_b)^{1/2}\big)

    Args:
        a, b: (N, D) and (M, D) features, N and M well above D, or the covariances are singular.

    The squared 2-Wasserstein distance of the Gaussians with these moments. Source: Dowson and Landau 1982;
    Heusel et al. 2017, there with Inception features. Values of different judges cannot be compared.

    >>> a = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(a, a + torch.tensor([2.0, 0.0, 0.0])), 3)
    4.0
    """
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features are {tuple(a.shape)} and {tuple(b.shape)}; they need one width and two rows")
    a, b = a.double().cpu(), b.double().cpu()
    cov_a, cov_b = (torch.cov(x.T).reshape(x.shape[1], x.shape[1]) for x in (a, b))  # (D, D), also where D = 1
    root_a = _root(cov_a)
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).pow(2).sum()
    return max(0.0, (shift + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_per_class(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor) -> float:
    """Return the Fréchet distance within a class, averaged over classes.

    Args:
        a, b: (N, D) and (M, D) features; labels_a, labels_b: (N,) and (M,) int64, the same set of classes.

    Unlike the pooled distance it sees a class that is drawn as another one, and a class drawn always alike.
    """
    classes = labels_a.unique()
    if not classes.equal(labels_b.unique()):
        raise ValueError(f"labels_a has classes {classes.tolist()}, labels_b {labels_b.unique().tolist()}")
    return sum(frechet_distance(a[labels_a == c], b[labels_b == c]) for c in classes) / len(classes)


def nearest_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Return the (N,) Euclidean pixel distances from (N, 1, h, w) images to the nearest of (M, 1, h, w).

    Far smaller for generated images than for real ones: the model copies its training set out.
    """
    reference, chunks = reference.flatten(1), images.flatten(1).split(500)
    nearest = [torch.cdist(chunk, reference).argmin(1) for chunk in chunks]  # (n,) each; inexact near zero,
    return torch.cat([(chunk - reference[i]).norm(dim=1) for chunk, i in zip(chunks, nearest)])  # so once more


# All yardsticks for one set of samples


class SampleReport(NamedTuple):
    """What the judge says of images drawn class by class. Real test images score 0, 1, log K, 1."""

    frechet: float  # Fréchet distance to the test images within a class, averaged over classes; 0 is best
    accuracy: float  # share in which the judge sees the class asked for
    information: float  # mutual information of asked and judged class, nats
    spread: float  # spread within a class, that of the test images being 1


def sample_report(dataset: data.Dataset, images: Tensor, labels: Tensor) -> SampleReport:
    """Measure images (N, 1, 28, 28) drawn for (N,) classes against the test split.

    Draw several hundred of each class: the Fréchet distance compares 64 x 64 covariances.
    """
    expert, test = judge(dataset), dataset.test
    features = expert.features(images)
    with torch.no_grad():
        judged = expert.net.head(features).argmax(1)
    return SampleReport(
        frechet_per_class(features, labels, expert.test_features, test.labels),
        conditional_accuracy(labels, judged),
        mutual_information(labels, judged, dataset.num_classes),
        within_class_spread(images, labels) / within_class_spread(test.images, test.labels),
    )


# Which latents are alive?


class GroupReport(NamedTuple):
    """How a hierarchical model spreads its KL over its latent groups, top group first."""

    kl: Tensor  # (G,) nats per image in each group
    active: Tensor  # (G,) int64, units that count as active
    units: Tensor  # (G,) int64, units in all
    dead_below: float = 1.0  # nats per image in all, below which a group counts as dead

    @property
    def per_unit(self) -> Tensor:
        """(G,) nats per image and unit."""
        return self.kl / self.units

    @property
    def effective(self) -> float:
        """How many groups it would be, were the KL spread evenly; see `effective_groups`."""
        return effective_groups(self.kl)

    @property
    def dead(self) -> tuple[int, ...]:
        """The dead groups, counted from 1 at the top."""
        return tuple(i for i, nats in enumerate(self.kl.tolist(), 1) if nats < self.dead_below)

    def _repr_markdown_(self) -> str:
        """Say it in a notebook, dead groups in bold."""
        dead = self.dead
        lines = ["| group | KL, nats | active units | |", "| --- | --- | --- | --- |"]
        for i, (kl, active, units) in enumerate(zip(self.kl.tolist(), self.active.tolist(), self.units.tolist()), 1):
            lines.append(f"| {i} | {kl:.2f} | {active} of {units} | {'**dead**' if i in dead else ''} |")
        return "\n".join([*lines, "", f"Effective groups: {self.effective:.2f} of {len(self.kl)}"])


def group_report(kl_units: Sequence[Tensor], dead_below: float = 1.0, unit_nats: float = 0.01) -> GroupReport:
    """Report on the latent groups of a hierarchical VAE, from the mean KL of each of their units.

    Args:
        kl_units: one tensor for each group, of any shape: the KL of every unit, averaged over images, nats.
        dead_below: a group with less than so many nats per image in all counts as dead.
        unit_nats: a unit with more than so many nats counts as active (Sonderby et al. 2016, section 3.1).

    Raises:
        ValueError: no groups, or a KL that is not finite.
    """
    if not kl_units or not all(bool(torch.isfinite(units).all()) and units.numel() for units in kl_units):
        raise ValueError("kl_units must hold one tensor of finite numbers for every group, and one group at least")
    kl = torch.stack([units.double().sum() for units in kl_units]).cpu()
    active = torch.tensor([int((units > unit_nats).sum()) for units in kl_units])
    units = torch.tensor([units.numel() for units in kl_units])
    return GroupReport(kl, active, units, dead_below)


def effective_groups(kl: Tensor) -> float:
    """Return exp(entropy) of the shares that G groups have in the KL (G,): from 1, one has it all, to G, all alike.

    A KL below zero, as an estimate from one draw may be, counts as zero. No KL at all: 0.

    Raises:
        ValueError: `kl` is not one row of finite numbers.

    >>> round(effective_groups(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    if kl.ndim != 1 or not len(kl) or not bool(torch.isfinite(kl).all()):
        raise ValueError(f"kl is {kl.tolist()}; it must be one row of finite numbers, one for each group")
    shares = kl.double().clamp(min=0)
    if not shares.sum() > 0:
        return 0.0
    shares = shares / shares.sum()
    return torch.exp(torch.special.entr(shares).sum()).item()


# How well is the data explained?


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """Return the (N,) importance-weighted bounds on log p(x) of K draws: (K, N) log weights, nats.

    With one draw its mean is the ELBO; it rises with K, and reaches log p(x) as K grows without end.

    Args:
        log_weights: (K, N) log p(x, z_k) - log q(z_k|x), z_k drawn from q.

    Raises:
        ValueError: not (K, N), or no draws.

    Source: Burda, Grosse and Salakhutdinov 2016 (arXiv 1509.00519), equation 8.

    >>> importance_weighted_bound(torch.tensor([[0.0], [0.0]]))
    tensor([0.])
    """
    if log_weights.ndim != 2 or not len(log_weights):
        raise ValueError(f"log_weights has shape {tuple(log_weights.shape)}; it must be (draws, images), draws >= 1")
    return log_weights.logsumexp(0) - math.log(len(log_weights))


@torch.no_grad()
def mean_terms(terms: Callable[[data.Split], NamedTuple], split: data.Split, chunk: int = 1000) -> dict[str, float]:
    """Return the terms of a bound, averaged over a whole split.

    Args:
        terms: takes a part of the split and returns a named tuple of scalars, each a mean over that part.
        split: what to average over. chunk: how many images at once.

    Returns:
        The terms by name, such as nll, kl and elbo, in nats per image.
    """
    total: dict[str, float] = {}
    for rows in torch.arange(len(split), device=split.labels.device).split(chunk):
        for name, value in terms(split[rows])._asdict().items():
            total[name] = total.get(name, 0.0) + value.item() * len(rows) / len(split)
    return total


def _same_length(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"{name_a} has {len(a)} rows, {name_b} has {len(b)}; they must be equal and not zero")


# What does the encoder put into the code, and does the decoder read it?
#
# KL, information and active units look at the encoder alone: the decoder is nowhere in their formulas, so none
# of them shows that it reads z. For that there is `shuffle_gap`, and for what the code says `label_probe`.


def active_units(mu: Tensor, threshold: float = 0.01) -> int:
    r"""Count the active units: coordinates u of the code whose posterior mean varies with the data.

    .. math:: A_u = \mathrm{Cov}_x \big( \mathbb{E}_{q(u|x)}[u] \big) > \text{threshold}

    Args:
        mu: (N, n) posterior means of a whole split; the variance is that of these N rows.
        threshold: in squared units of the code, whose prior has variance 1.

    Raises:
        ValueError: `mu` is not (N, n) with N at least 2, not finite; a threshold below 0 or not finite.

    Read it beside what the model enforces: batch normalisation to a standard deviation gamma above 0.1 makes
    every unit active, whatever its input, noise too. A model that ignores its input scores 0.

    Source: Burda, Grosse and Salakhutdinov 2016 (arXiv 1509.00519), section 5, which has this
    threshold; He et al. 2019 (arXiv 1901.05534) for text.

    >>> active_units(torch.tensor([[0.5, 3.0, 0.01], [-0.5, 3.0, -0.01]]))  # 3.0 for every x says nothing
    1
    """
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold is {threshold}; it must be at least 0 and finite")
    (mu,) = _rows(mu=mu)
    return int((mu.var(0, correction=0) > threshold).sum())


def aggregate_variance(mu: Tensor, logvar: Tensor) -> Tensor:
    r"""Return the (n,) variances of the aggregate posterior q(z), the mixture of the posteriors of all N examples.

    .. math:: \mathrm{Var}_{q(z)}[z_k] = \mathrm{Var}_x[\mu_k] + \mathbb{E}_x[\sigma_k^2]

    Args:
        mu, logvar: (N, n) means and natural logarithms of the variances, of a whole split.

    Returns:
        (n,) in squared units of the code, float64.

    Raises:
        ValueError: not (N, n) with N at least 2, two shapes, not finite.

    Read it beside 1, the prior's. Above: codes drawn from the prior miss part of where the data's codes lie.
    1 says nothing of the shape, and a collapsed posterior, equal to the prior, has 1 as well.

    Source: the law of total variance; Hoffman and Johnson 2016 for comparing q(z) with the prior.

    >>> aggregate_variance(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1))
    tensor([2.], dtype=torch.float64)
    """
    mu, logvar = _rows(mu=mu, logvar=logvar)
    return mu.var(0, correction=0) + logvar.exp().mean(0)


@torch.no_grad()
def latent_information(
    mu: Tensor, logvar: Tensor, generator: torch.Generator | None = None, draws: int = 1, chunk: int = 128
) -> float:
    r"""Estimate I_q(x; z), how much the encoder's code says of which of N examples it belongs to, in nats.

    .. math:: \mathbb{E}_x \mathrm{KL}\big( q(z|x) \,|\, q(z) \big)
              \approx \frac{1}{N} \sum_i \log \frac{q(z_i|x_i)}{\frac{1}{N} \sum_j q(z_i|x_j)},
              \quad z_i \sim q(z|x_i)

    Args:
        mu, logvar: (N, n) means and natural logarithms of the variances: Gaussian posteriors of N examples.
        generator: source of the noise, on whatever device, as in `posteriors.reparametrise`.
        draws: codes z_i per example; more make it steadier.
        chunk: how many codes are compared with all N posteriors at once; the value does not depend on it.

    Returns:
        Nats per example, summed over the n coordinates. At most log N, however much more the code could say:
        compare values at one N only. The aggregate q(z) is that of these N, so the mean of the estimate is
        this set's own information, from 0 to log N, and for data drawn anew it is too small (for 4.92 nats in
        32 coordinates, 4.7 with N = 4,000). Near 0 an estimate may be slightly negative.

    Raises:
        ValueError: not (N, n) with N at least 2, two shapes, not finite; draws or chunk below 1.

    The KL to the prior is this plus KL(q(z) || p(z)). Read it beside what the encoder must say in any case: with
    mu from N(0, gamma^2) and sigma = 1 it is n/2 log(1 + gamma^2), also where mu is noise. An encoder without
    input, or collapsed, scores 0.

    Source: Hoffman and Johnson 2016, the index-code mutual information; Dieng et al. 2019 (arXiv 1807.04863) and
    He et al. 2019 (arXiv 1901.05534) as a measure of collapse.

    >>> round(latent_information(torch.tensor([[-50.0], [50.0]]), torch.zeros(2, 1)), 4)  # log 2: always told apart
    0.6931
    """
    for name, count in (("draws", draws), ("chunk", chunk)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    mu, logvar = _rows(mu=mu, logvar=logvar)
    mu = mu - mu.mean(0)  # no density changes, and the squares below cancel less
    total = 0.0
    for _ in range(draws):
        z = reparametrise(mu, logvar, generator)  # (N, n)
        for rows in torch.arange(len(z), device=z.device).split(chunk):
            log_q = _log_density_of_all(z[rows], mu, logvar)  # (c, N)
            own = log_q.gather(1, rows[:, None])[:, 0]  # (c,) of the same matrix: then no term exceeds log N
            total += (own - log_q.logsumexp(1) + math.log(len(z))).sum().item()
    return total / (draws * len(mu))


def _log_density_of_all(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Return log q(z_i|x_j), less the n/2 log 2 pi that all have in common: (c, n), (N, n), (N, n) -> (c, N) nats."""
    precision = torch.exp(-logvar)  # (N, n)
    squares = z.square() @ precision.T - 2 * z @ (mu * precision).T  # (c, N)
    return -0.5 * (squares + (mu.square() * precision + logvar).sum(1))


@torch.no_grad()
def shuffle_gap(cost: Callable[[Tensor], Tensor], z: Tensor, generator: torch.Generator | None = None) -> float:
    """Return by how many nats an example becomes dearer under another example's code than under its own.

    The mean of cost(z of another) less the mean of cost(z). No example keeps its own code, and each of the
    others is equally likely to lend it one.

    Args:
        cost: takes codes (N, n), row i for example i, and returns (N,) nats, say -log p(x_i|z_i). The examples
            are fixed, the model is in evaluation mode, and the same codes cost the same twice.
        z: (N, n) codes, row i drawn from q(z|x_i).
        generator: source of the permutation, on whatever device.

    Raises:
        ValueError: `z` is not (N, n) with N at least 2, not finite; a cost that is not (N,), not finite.

    This is the evidence that the decoder reads z. KL, information and active units are functions of the
    encoder: forced to stay high, they do, though the decoder may ignore the code. Read it beside 0, which is
    exact for a decoder without z. It is no saving: a wrong code may cost more than none, so look as well at the
    likelihood of a decoder trained without z.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> shuffle_gap(lambda z: (x - z).square().sum(1), x)  # each of the two is off by 2
    4.0
    """
    _rows(z=z)
    place = generator.device if generator else z.device
    order = torch.randperm(len(z), generator=generator, device=place).to(z.device)
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # one cycle through all rows: the neighbour in a random order is never oneself
    return (_costs(cost, z[other]) - _costs(cost, z)).mean().item()


def _costs(cost: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return cost(z), (N,) float64, having refused any other shape and what is not finite."""
    nats = cost(z)
    if nats.shape != z.shape[:1]:
        raise ValueError(f"cost returns shape {tuple(nats.shape)}; it must be one number for each code, ({len(z)},)")
    if not bool(torch.isfinite(nats).all()):
        raise ValueError(f"cost returns {nats[~torch.isfinite(nats)][0].item()}; it must be finite")
    return nats.double()


def label_probe(codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor) -> float:
    """Return the accuracy, from 0 to 1, with which a linear classifier reads the label off the code.

    Logistic regression with scikit-learn's usual penalty (C = 1) and no other choice: it draws nothing at random.

    Args:
        codes, labels: (N, n) and (N,) int64 to train on, two classes at least.
        test_codes, test_labels: (M, n) and (M,) int64 to judge by; of a class not trained on, all are missed.

    Raises:
        ValueError: codes that are not (N, n) with N at least 2, of two widths, not finite; labels of another
            length or not whole numbers; a single class to train on.

    Give it codes drawn from the posterior, as the decoder gets them, at their own scale. The means of a
    collapsed encoder are tiny, but still random features of x: standardised, they look informative, and so
    they do unstandardised where N is large, as the penalty then weighs little. In a draw the noise drowns them.
    Read it beside the share of the largest class and the probe of an untrained encoder.

    Source: Alain and Bengio 2017 (arXiv 1610.01644) for linear probes.

    >>> codes, labels = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> label_probe(codes, labels, 10 * codes, labels)
    1.0
    """
    from sklearn.linear_model import LogisticRegression

    (codes,), (test_codes,) = _rows(codes=codes), _rows(test_codes=test_codes)
    if codes.shape[1] != test_codes.shape[1]:
        raise ValueError(f"test_codes are {test_codes.shape[1]} wide; they must be as wide as codes, {codes.shape[1]}")
    for name, of, values in (("labels", codes, labels), ("test_labels", test_codes, test_labels)):
        if values.shape != of.shape[:1] or values.is_floating_point():
            got = f"shape {tuple(values.shape)} and type {values.dtype}"
            raise ValueError(f"{name} have {got}; they must be whole numbers, one for each code, ({len(of)},)")
    if len(labels.unique()) < 2:
        raise ValueError(f"labels are all {labels[0].item()}; there must be two classes at least")
    probe = LogisticRegression(max_iter=10_000)  # far beyond what it takes; it warns should that be too little
    probe.fit(codes.cpu().numpy(), labels.cpu().numpy())
    return float((probe.predict(test_codes.cpu().numpy()) == test_labels.cpu().numpy()).mean())


def _rows(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Return (N, n) tensors in float64, having refused another shape, fewer than two rows and what is not finite."""
    (first, like), *_ = tensors.items()
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if tensor.ndim != 2 or len(tensor) < 2 or not tensor.shape[1]:
            raise ValueError(f"{name} has shape {shape}; it must be (N, n), with N at least 2 and n at least 1")
        if tensor.shape != like.shape:
            raise ValueError(f"{name} has shape {shape}; it must be that of {first}, {tuple(like.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds {tensor[~torch.isfinite(tensor)][0].item()}; it must be finite")
    return tuple(tensor.detach().double() for tensor in tensors.values())


# How far is the set of all codes from the prior?


class NormalityReport(NamedTuple):
    """How far a set of codes (N, n) is from N(0, I), in ever more respects. Standard normal codes: 0 but variance 1."""

    mean_rms: float  # root of the mean square of the n means; sqrt(1 / N) by chance
    variance: float  # mean of the n variances
    kl: float  # nats per coordinate, of mean and variance alone; about 0 in mean, also where N is small
    kl_covariance: float  # nats per coordinate, of mean and covariance; the same; nan if N <= n
    correlation_rms: float  # root of the mean square correlation of two coordinates; sqrt(1 / (N - 1)) by chance
    kurtosis: float  # mean excess kurtosis of a coordinate: -1.2 uniform, 3 Laplace; nan if N <= 3 or all constant
    mmd2: float  # squared maximum mean discrepancy, 0 to 2; sees every difference, faintly where n is large

    def _repr_markdown_(self) -> str:
        """Say it in a notebook, with what standard normal codes would have."""
        names = ("rms mean", "mean variance", "KL of the variances, nats per coordinate")
        names += ("KL of the covariance, nats per coordinate", "rms correlation", "mean excess kurtosis", "MMD²")
        lines = ["| | codes | N(0, I) |", "| --- | --- | --- |"]
        for name, prior, value in zip(names, (0, 1, 0, 0, 0, 0, 0), self):
            lines.append(f"| {name} | {'not defined' if math.isnan(value) else f'{value:.4f}'} | {prior} |")
        return "\n".join(lines)


@torch.no_grad()
def normality(z: Tensor, generator: torch.Generator | None = None, most: int = 2000) -> NormalityReport:
    r"""Measure how far the codes of a whole split are from the prior N(0, I).

    Args:
        z: (N, n) codes drawn from their posteriors, one per example; of all examples, not of a batch.
        generator: which rows the MMD is measured on, where there are more than `most`; on whatever device. The rest
            of the report draws nothing.
        most: so many rows at most for the MMD, whose cost grows with their square.

    Returns:
        Both KL are those of `divergences.moment_kl` less `divergences.moment_bias`, and may be slightly negative, as
        may the MMD. Moments of constant coordinates: their correlation counts as 0, their kurtosis not at all.

    Raises:
        ValueError: not (N, n) with N at least 2, not finite; `most` below 2.

    In the limit of many codes KL(q(z) || p) >= kl_covariance >= kl, and each may be 0 where the one before is not:
    a variance can be right where coordinates repeat each other, a covariance where they are no Gaussians.

    The squared MMD between the codes and N(0, I) itself, with the mean of five Gaussian kernels

    .. math:: k_s(x, y) = \exp\Big(-\frac{|x - y|^2}{2 s}\Big), \quad s \in \{\tfrac14, \tfrac12, 1, 2, 4\} \, n,
              \qquad \mathbb{E}_y k_s = \Big(\frac{s}{s + 1}\Big)^{n/2} \exp\Big(-\frac{|x|^2}{2 (s + 1)}\Big),
              \quad \mathbb{E}_{x, y} k_s = \Big(\frac{s}{s + 2}\Big)^{n/2},

    is unbiased, and has no draws from the prior in it.

    Source: Gretton et al. 2012, lemma 6, for the MMD; Baringhaus and Henze 1988 for the closed form; for scales that
    grow with n, the typical squared distance being 2 n, Tolstikhin et al. 2018 (arXiv 1711.01558).

    >>> z = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    >>> report = normality(torch.cat([z, z], 1))  # each coordinate twice
    >>> abs(report.kl) < 0.001, round(report.correlation_rms, 2), report.kl_covariance > 5
    (True, 0.38, True)
    """
    if most < 2:
        raise ValueError(f"most is {most}; it must be at least 2")
    (z,) = _rows(z=z)
    count, n = z.shape
    mean, covariance = z.mean(0), torch.cov(z.T).reshape(n, n)
    variance = covariance.diag()
    total = (moment_kl(mean, covariance).item() - moment_bias(count, n)) / n if count > n else math.nan
    chosen = slice(None)
    if count > most:
        place = generator.device if generator else z.device
        chosen = torch.randperm(count, generator=generator, device=place)[:most].to(z.device)
    return NormalityReport(
        mean.square().mean().sqrt().item(),
        variance.mean().item(),
        moment_kl(mean, variance).mean().item() - moment_bias(count),
        total,
        _correlation_rms(covariance),
        _excess_kurtosis(z - mean),
        _mmd2_to_standard_normal(z[chosen]),
    )


def _correlation_rms(covariance: Tensor) -> float:
    """Return the root of the mean square correlation of two of n coordinates: (n, n) -> 0 for one alone."""
    n, variance = len(covariance), covariance.diag()
    precision = torch.where(variance > LEAST_VARIANCE, 1 / variance, 0)  # (n,), that of a constant is rounding
    squares = covariance.square() * precision[:, None] * precision
    return math.sqrt(squares.fill_diagonal_(0).sum().item() / max(n * (n - 1), 1))


def _excess_kurtosis(centred: Tensor) -> float:
    """Return the mean excess kurtosis of those of n coordinates that vary: (N, n), mean 0; unbiased for a Gaussian."""
    count, variance = len(centred), centred.square().mean(0)
    varies = variance > LEAST_VARIANCE
    if count < 4 or not bool(varies.any()):
        return math.nan
    plain = (centred.pow(4).mean(0) / variance.square())[varies].mean().item() - 3
    return ((count + 1) * plain + 6) * (count - 1) / ((count - 2) * (count - 3))


def _mmd2_to_standard_normal(z: Tensor) -> float:
    """Return the unbiased squared MMD of (N, n) codes to N(0, I), see `normality`."""
    count, n = z.shape
    apart, norms = torch.pdist(z).square(), z.square().sum(1)  # (N (N - 1) / 2,), (N,)
    total = 0.0
    for s in (n / 4, n / 2, n, 2 * n, 4 * n):
        crossed = (s / (s + 1)) ** (n / 2) * torch.exp(-norms / (2 * (s + 1))).mean()
        total += (torch.exp(-apart / (2 * s)).mean() - 2 * crossed).item() + (s / (s + 2)) ** (n / 2)
    return total / 5
