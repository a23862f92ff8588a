"""The experiment that Parts 4 to 7 share: a VAE-GAN on drawn frames, watched while it trains and measured at its end.

One `Setup` says everything about a run. `experiment(setup, seed)` trains it and returns the numbers, curves and
pictures that the chapters' records hold::

    record = experiment(Setup(kl="batch", target=0.1), seed=0)
    record["psnr_mu"], record["curve_kl"]

A record's numbers come from three places. `measure` looks at the trained model in evaluation mode on test frames,
which nothing was chosen on. `look`, while it trains, in evaluation mode on frames left for choosing: `seen_...`. And
`course` and `curves` sum up the terms of the training batches themselves, in training mode: `..._end`, `curve_...`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab import data, metrics, plots
from vaelab.divergences import BatchKL, gaussian_kl, moment_bias
from vaelab.lab import seed_everything
from vaelab.models import vae_gan
from vaelab.models.vae_gan import VAEGAN, Recipe
from vaelab.posteriors import reparametrise
from vaelab.training import BetaController, History, fit

MOMENTS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of training, at which a run is looked at
WINDOWS = 40  # into which a curve is averaged: single batches swing by half
FRAMES = 32  # in a clip
LIKE_AUTHOR = 16  # codes in a test batch: the write-up's


class Setup(NamedTuple):
    """All that a run depends on, beside its seed."""

    # what is trained
    size: int = 33
    latents: int = 64
    encoder: tuple[int, ...] = (8, 16, 32)
    decoder: tuple[int, ...] = (32, 16, 8)
    trunk_widths: tuple[int, ...] = (16, 32, 32, 32)
    hidden: int = 64
    trunk: str = "linear"
    # for how long
    clips: int = 640  # at most: 64 of the 640 are left for choosing
    batch: int = 32
    steps: int = 1200
    rate: float = 1e-3
    rate_d: float = 1e-3
    order: str = "together"
    # the KL and its price
    kl: str = "single"  # "single", "batch", "batch norm"
    momentum: float = 0.0  # of "batch"
    as_written: bool = True  # "batch": the write-up's version, or the corrected one
    affine: bool = True  # of "batch norm"
    beta: float = 1.0  # fixed, or where the controller starts
    target: float | None = None  # nats per latent dimension; None: beta stays fixed
    beta_rate: float = 0.1
    rule: str = "additive"
    # the recipe, field by field
    features: float = 1.0
    features_into: str = "both"
    pixels: float = 0.0
    cross_entropy: float = 0.0
    adversarial: float = 0.04
    prior_fakes: bool = False
    hinge: bool = False
    balanced: bool = False


def setup_of(config: Mapping[str, object]) -> Setup:
    """Return the setup that a chapter's configuration describes; `name` and `dataset` are only for finding it.

    Raises:
        ValueError: a knob that no setup has.
    """
    knobs = {name: value for name, value in config.items() if name not in ("name", "dataset")}
    unknown = sorted(knobs.keys() - set(Setup._fields))
    if unknown:
        raise ValueError(f"no setup has {', '.join(unknown)}; it has {', '.join(Setup._fields)}")
    return Setup(**{name: tuple(value) if isinstance(value, list) else value for name, value in knobs.items()})


class Trained(NamedTuple):
    """A finished run, with what the chapters look at."""

    model: VAEGAN
    history: History
    controller: BetaController | None
    seen: dict[str, np.ndarray]  # name -> (moments, ...), taken at MOMENTS


class Frames(NamedTuple):
    """Frames in [-1, 1], in clip order: to train on, to choose on, to report on. No clip is in two of them."""

    train: Tensor
    validation: Tensor
    test: data.Split  # images in [-1, 1]


def frames(setup: Setup) -> Frames:
    """Return the frames of a setup: of the 640 clips to train on, the last 64 are left for choosing.

    So 576 are trained on at most, however many the setup asks for.
    """
    ink = data.load("ink", size=setup.size)
    train, test = (vae_gan.check_frames(2 * split.images - 1) for split in (ink.train, ink.test))
    kept = len(train) - 64 * FRAMES
    train, test = (t.contiguous(memory_format=torch.channels_last) for t in (train, test))
    return Frames(train[: min(setup.clips * FRAMES, kept)], train[kept:], data.Split(test, ink.test.labels))


def build(setup: Setup) -> VAEGAN:
    """Return the untrained model of a setup."""
    options = {
        "single": {},
        "batch": {"momentum": setup.momentum, "as_written": setup.as_written},
        "batch norm": {"affine": setup.affine},
    }.get(setup.kl, {})
    return VAEGAN(
        vae_gan.Encoder(setup.size, setup.encoder, setup.latents),
        vae_gan.Decoder(setup.size, setup.decoder, setup.latents),
        vae_gan.Discriminator(setup.size, setup.trunk_widths, setup.hidden, setup.trunk),
        vae_gan.kl_plug(setup.kl, setup.latents, **options),
    )


def train(setup: Setup, seed: int, images: Frames | None = None) -> Trained:
    """Train a setup from a seed, looking at it at `MOMENTS`."""
    seed_everything(seed)
    images = frames(setup) if images is None else images
    model = build(setup).to(images.train.device, memory_format=torch.channels_last)
    recipe = Recipe(**{name: getattr(setup, name) for name in Recipe._fields})
    controller = None
    if setup.target is not None:
        controller = BetaController(setup.target, setup.beta, setup.beta_rate, setup.rule)
    batches = data.Shuffle(len(images.train), setup.batch, seed, images.train.device)
    step = vae_gan.alternate(
        model, lambda t: images.train[batches(t)], vae_gan.adam(model, setup.rate, setup.rate_d),
        setup.beta if controller is None else controller, recipe, setup.order,
    )  # fmt: skip
    seen: dict[str, list] = {}

    def watch() -> dict[str, float]:
        for name, value in look(model, images.validation[::4]).items():
            seen.setdefault(name, []).append(value)
        return {}

    at = {max(1, round(share * setup.steps)) for share in MOMENTS}
    history = fit(step, setup.steps, evaluate=watch, evaluate_at=at)
    return Trained(model.eval(), history, controller, {name: np.stack(rows) for name, rows in seen.items()})


MU_EDGES, SIGMA_EDGES = torch.linspace(-5, 5, 61), torch.linspace(-9, 1, 61)  # of histograms: mu, ln sigma


def look(model: VAEGAN, x: Tensor) -> dict[str, np.ndarray]:
    """Return what is watched in training: histograms of codes and sigmas, the cloud's place, the trunk, fixed fakes."""
    model.eval()
    with torch.no_grad():
        mu, logvar, _ = codes(model, x)
        centre = mu.mean(0)  # (n,)
        drawn = model.decoder(fixed_codes(model))
    seen = {
        "mu": _histogram(mu, MU_EDGES),
        "log_sigma": _histogram(0.5 * logvar, SIGMA_EDGES),
        "centre": _number(centre.norm()),  # ||E mu||: how far the cloud has gone
        "extent": _number((mu - centre).norm(dim=1).mean()),  # E||mu - E mu||: how large it is
        "fake_spread": _number(spread(drawn)),
        "fakes": plots.to_uint8((drawn[:6] + 1) / 2),  # (6, 3, size, size)
    }
    seen |= {name: np.array(value, dtype=np.float32) for name, value in gradients(model, x[:64]).items()}
    model.train()
    return seen


def codes(model: VAEGAN, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return centre, log-variance and a drawn code of each image, (N, n) each, always with the same noise.

    Codes without noise have the log-variance -40.
    """
    parts = [model.encoder(chunk) for chunk in x.split(512)]
    mu, logvar = (torch.cat(part) for part in zip(*parts))
    if isinstance(model.plug, vae_gan.BatchNormCode):
        mu = model.plug.draw(mu, logvar)
        return mu, torch.full_like(mu, -40.0), mu
    return mu, logvar, reparametrise(mu, logvar, torch.Generator().manual_seed(0))


@torch.enable_grad()
def gradients(model: VAEGAN, x: Tensor) -> dict[str, float]:
    """Return how strongly F and K pull at the encoder, and what the trunk does to an image.

    `pull_features`, `pull_kl`: norms of the gradients of F and of the KL of single posteriors, whatever KL is paid
    for, with respect to the encoder's parameters; neither times its weight, so beta times `pull_kl` is the price's.
    `cosine`: of the gradient of F with that of the pixel error, both with respect to the reconstruction.
    `gain`: F over the pixel error.
    `amplified`: mean squared change of an entry of phi where white noise of variance 0.01 is added to real images,
    over 0.01: what the trunk makes of a change that no network has learnt.
    """
    mu, logvar = model.encoder(x)
    z = model.plug.draw(mu, logvar)
    drawn = model.decoder(z)
    real = model.discriminator(x).features.detach()
    f, pixels = model.discriminator.match(real, model.discriminator(drawn).features), (drawn - x).pow(2).mean()
    to_pixels = [torch.autograd.grad(loss, drawn, retain_graph=True)[0].flatten(1) for loss in (f, pixels)]
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    disturbed = model.discriminator.match(real, model.discriminator(x + noise).features)
    single = gaussian_kl(mu, logvar).mean()
    return {
        "pull_features": _norm(torch.autograd.grad(f, model.encoder_parameters(), retain_graph=True)),
        "pull_kl": _norm(torch.autograd.grad(single, model.encoder.parameters(), retain_graph=True)),
        "cosine": F.cosine_similarity(*to_pixels).mean().item(),
        "gain": (f / pixels).item(),
        "amplified": disturbed.item() / 0.01,
    }


def _norm(gradients: tuple[Tensor, ...]) -> float:
    return math.sqrt(sum(g.pow(2).sum().item() for g in gradients))


def fixed_codes(model: VAEGAN, count: int = 64) -> Tensor:
    """Return the codes from the prior whose images are followed through training: the same for every run."""
    return prior_codes(model, count, seed=0)


def prior_codes(model: VAEGAN, count: int, seed: int) -> Tensor:
    """Draw codes from the prior: (count, n)."""
    z = torch.randn(count, model.decoder.latents, generator=torch.Generator().manual_seed(seed))
    return z.to(next(model.parameters()).device)


def spread(images: Tensor) -> Tensor:
    """Return the root mean squared difference between pixels of two images of a set (N, ...): 0 if all are alike."""
    return (2 * images.flatten(1).var(0).mean()).sqrt()


def _number(value: Tensor) -> np.ndarray:
    return np.array(value.item(), dtype=np.float32)


def _histogram(values: Tensor, edges: Tensor) -> np.ndarray:
    """Return the share of values in each bin: (60,) float32; what lies outside counts into the outermost."""
    inside = values.detach().flatten().clamp(edges[0], edges[-1]).cpu()
    return (torch.histogram(inside, edges).hist / inside.numel()).numpy().astype(np.float32)


# At the end of a run


def looks(images: Tensor) -> Tensor:
    """Describe frames for a Fréchet distance: (N, 3, h, w) -> (N, 100), colours and edges on a grid of 5 x 5.

    There is no classifier of frames to borrow features from, and these say what they see: the mean colour of each
    field (75), and how much brightness changes from pixel to pixel in it (25). Distances are squared, in units of
    the frames, which reach from -1 to 1.
    """
    colour = F.adaptive_avg_pool2d(images, 5).flatten(1)  # (N, 75)
    grey = images.mean(1, keepdim=True)
    across, down = grey.diff(dim=3)[:, :, :-1].abs(), grey.diff(dim=2)[..., :-1].abs()
    return torch.cat([colour, F.adaptive_avg_pool2d(across + down, 5).flatten(1)], 1)


@torch.no_grad()
def measure(model: VAEGAN, images: Frames) -> dict[str, float]:
    """Return what is said of a trained model: on test frames, in evaluation mode.

    `pixels_z`, `pixels_mu`: mean squared pixel error of reconstructions from drawn codes, from their centres;
    `psnr_z`, `psnr_mu`: the same in dB; `sampling_cost`: what drawing costs, dB; `pixels_mean_image`: the pixel error
    of the mean training frame. `features`: F, from drawn codes; `gain`: F over `pixels_z`.

    `kl_single`: nats per latent dimension, 0 for codes without noise; `sigma`: mean standard deviation of the
    posteriors; `mu_rms`; `drift`: the cloud's distance from the origin over its size; `information`: nats in all, see
    `metrics.latent_information`. Then `batch_kl_three_ways`, and `normality_...`, the fields of
    `metrics.NormalityReport`, both of drawn codes. Frames of a clip are alike, so fewer codes count than there are:
    exactly normal codes with 0.8 of their variance between 64 clips of 32 frames, 64 dimensions, have a
    `normality_kl` of 0.01, a `normality_kl_covariance` of 0.18, and a `normality_correlation_rms` of 0.10.

    `frechet_recon`, `frechet_prior`, `frechet_fitted`: Fréchet distances of `looks` to those of test frames, of
    reconstructions from centres, of codes from the prior, and from a Gaussian fitted to the drawn codes;
    `fake_spread`: how varied the second are, real frames 1.

    `real_train`, `real_test`, `drawn_train`, `drawn_test`: the discriminator's losses, nats per image; `overfit`:
    the second less the first. `probe`: share of frames whose hue, of eight, a linear probe of the centres finds,
    fitted on one half of the test clips and asked about the other.
    """
    model.eval()
    x, labels = images.test
    mu, logvar, z = codes(model, x)
    mean_image = images.train.mean(0)  # the best that no code at all can do
    return {
        **_reconstruction(model, x, mu, z),
        "pixels_mean_image": (x - mean_image).pow(2).mean().item(),
        "kl_single": gaussian_kl(mu, logvar).mean().item() if logvar.min() > -40 else 0.0,
        "sigma": (0.5 * logvar).exp().mean().item(),
        "mu_rms": mu.pow(2).mean().sqrt().item(),
        "drift": (mu.mean(0).norm() / (mu - mu.mean(0)).norm(dim=1).mean()).item(),  # the cloud's place over its size
        "information": metrics.latent_information(mu, logvar, torch.Generator().manual_seed(0)),
        **batch_kl_three_ways(model, z),
        **{f"normality_{name}": value for name, value in _normality(z)._asdict().items()},
        **_samples(model, x, mu, z),
        **_overfit(model, images),
        "probe": _probe(model, images, mu, labels),
    }


def psnr(pixels: float) -> float:
    """Return the peak signal-to-noise ratio, dB, of a mean squared error on [-1, 1], whose peak is 2."""
    return 10 * math.log10(4 / pixels)


def _decoded(model: VAEGAN, z: Tensor) -> Tensor:
    return torch.cat([model.decoder(chunk) for chunk in z.split(512)])


def _features(model: VAEGAN, x: Tensor) -> Tensor:
    return torch.cat([model.discriminator(chunk).features for chunk in x.split(512)])


def _reconstruction(model: VAEGAN, x: Tensor, mu: Tensor, z: Tensor) -> dict[str, float]:
    """Return pixel errors and F, from codes as drawn (z) and from their centres (mu)."""
    drawn, central = _decoded(model, z), _decoded(model, mu)
    pixels_z, pixels_mu = ((image - x).pow(2).mean().item() for image in (drawn, central))
    f = model.discriminator.match(_features(model, x), _features(model, drawn)).item()
    return {
        "pixels_z": pixels_z, "pixels_mu": pixels_mu, "psnr_z": psnr(pixels_z), "psnr_mu": psnr(pixels_mu),
        "sampling_cost": psnr(pixels_mu) - psnr(pixels_z), "features": f, "gain": f / pixels_z,
    }  # fmt: skip


def batch_kl_three_ways(model: VAEGAN, z: Tensor) -> dict[str, float]:
    """Return the batch KL of the same test codes, nats per dimension, by what is called a batch.

    z (N, n) are codes in clip order. `clips`: 16 neighbours, as the write-up's test does; `shuffled`: 16 at random;
    `whole`: all at once, less the bias of a finite batch. `own`: 16 neighbours, with m of the moments those of
    training, where the model has such. `excess`: -1/2 ln(1 - rho), with rho the share of a dimension's variance that
    lies between batches of neighbours: what their batch KL must exceed that of all codes by.

    `excess_error`: by how much `clips` differs from `whole` + `excess` + the bias of 16 independent codes. That is
    only nearly the law: the bias of the mean is a share 1 - rho of what is added, so up to 1/32 nat too much is, and
    where some batches are wider than others, or neighbours resemble each other, the logarithm takes more.
    """
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0)).to(z.device)
    neighbours, mixed = z.split(LIKE_AUTHOR), z[order].split(LIKE_AUTHOR)
    plain = BatchKL(as_written=True).eval()
    within = torch.stack([batch.var(0) for batch in neighbours]).mean(0)  # (n,)
    found = {
        "batch_kl_clips": _mean_kl(plain, neighbours),
        "batch_kl_shuffled": _mean_kl(plain, mixed),
        "batch_kl_whole": BatchKL().eval()(z).mean().item(),
        "excess": -0.5 * (within / z.var(0)).log().mean().item(),
    }
    law = found["batch_kl_whole"] + found["excess"] + moment_bias(LIKE_AUTHOR)
    found["excess_error"] = abs(found["batch_kl_clips"] - law)
    own = getattr(model.plug, "batch_kl", None)
    return found | ({"batch_kl_own": _mean_kl(own, neighbours)} if own is not None else {})


def _mean_kl(batch_kl: BatchKL, batches: tuple[Tensor, ...]) -> float:
    return torch.stack([batch_kl(batch).mean() for batch in batches]).mean().item()


def _normality(z: Tensor) -> metrics.NormalityReport:
    return metrics.normality(z, torch.Generator().manual_seed(0))


def _samples(model: VAEGAN, x: Tensor, mu: Tensor, z: Tensor) -> dict[str, float]:
    """Return Fréchet distances to test frames: of reconstructions, of samples from the prior and from a Gaussian
    fitted to the codes, which tells a decoder's faults from those of the codes' distribution."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(z), z.shape[1], generator=generator).to(z.device)
    fitted = z.mean(0) + noise @ torch.linalg.cholesky(torch.cov(z.T) + 1e-6 * torch.eye(z.shape[1]).to(z)).T
    real, drawn = looks(x), {"frechet_recon": mu, "frechet_prior": noise, "frechet_fitted": fitted}
    images = {name: _decoded(model, code) for name, code in drawn.items()}
    found = {name: metrics.frechet_distance(looks(image), real) for name, image in images.items()}
    found["fake_spread"] = spread(images["frechet_prior"]).item() / spread(x).item()  # 1: as varied as real frames
    return found


def _overfit(model: VAEGAN, images: Frames) -> dict[str, float]:
    """Return the discriminator's losses, nats per image, on frames that it was trained on and on others."""
    found = {}
    for name, x in (("train", images.train[: len(images.test)]), ("test", images.test.images)):
        logits = [model.discriminator(chunk).logits for chunk in x.split(512)]
        drawn = [model.discriminator(model.decoder(codes(model, chunk)[2])).logits for chunk in x.split(512)]
        found[f"real_{name}"] = F.softplus(-torch.cat(logits)).mean().item()
        found[f"drawn_{name}"] = F.softplus(torch.cat(drawn)).mean().item()
    return found | {"overfit": found["real_test"] - found["real_train"]}


def _probe(model: VAEGAN, images: Frames, mu: Tensor, labels: Tensor) -> float:
    """Return how well a linear probe of the codes' centres finds a frame's hue: fitted on half of the test clips."""
    half = len(mu) // 2
    return metrics.label_probe(mu[:half], labels[:half], mu[half:], labels[half:])


def curves(history: History) -> dict[str, np.ndarray]:
    """Average each term of a history over `WINDOWS` stretches of training: curve_name -> (windows,) float32."""
    return {
        f"curve_{name}": np.array([part.mean() for part in _windows(series)], dtype=np.float32)
        for name, series in history.terms.items()
    }


def _windows(series: np.ndarray) -> list[np.ndarray]:
    return np.array_split(series, min(WINDOWS, len(series)))


def course(trained: Trained, setup: Setup) -> dict[str, float]:
    """Say in numbers how training went: where terms ended, by how much they grew, how well the target was kept.

    `..._end`: mean over the last tenth. `..._growth`, `..._late`: logarithm of that over the mean around a tenth, and
    around half, of training; 0 where the term is 0. `gained`: F over the pixel error. `miss`: K at the end over its
    target, less 1. `features_against_pixels`: correlation of the logarithms of F and the pixel error over training.

    `identity_error`: by how much the last additive beta differs from beta_0 + rate * sum(K - target), which it equals
    unless the floor was reached; `beta_least` tells. `fake_fall`: variety of the fixed fakes at the end over its
    highest. `sigma_spread_early`: standard deviation of ln sigma after a tenth of training.
    """
    terms = {name: series.astype(np.float64) for name, series in trained.history.terms.items()}
    terms["discriminator"], terms["gained"] = terms["real"] + terms["drawn"], terms["features"] / terms["pixels"]
    named = ("kl", "beta", "moments", "features", "pixels", "gained", "discriminator")
    found = {f"{name}_end": _around(terms[name], 0.95) for name in named}
    for name in ("kl", "features", "gained"):
        found |= {f"{name}_{when}": _growth(terms[name], share) for when, share in (("growth", 0.1), ("late", 0.5))}
    found["beta_late"] = found["beta_end"] - _around(terms["beta"], 0.5)
    found["features_against_pixels"] = _correlation(terms["features"], terms["pixels"])
    if setup.target is not None:
        found["miss"] = found["kl_end"] / setup.target - 1
        found["miss_size"] = abs(found["miss"])
    if setup.target is not None and setup.rule == "additive":
        found["beta_least"] = terms["beta"].min()
        promised = setup.beta + setup.beta_rate * (terms["kl"][:-1] - setup.target).sum()
        found["identity_error"] = abs(terms["beta"][-1] - promised)
    fakes, sigmas = trained.seen["fake_spread"], trained.seen["log_sigma"]
    found["fake_fall"] = float(fakes[-1] / fakes.max())  # 1: as varied as they ever were
    found["sigma_spread_early"] = _spread_of_histogram(sigmas[min(2, len(sigmas) - 1)])
    return found | {f"{name}_end": float(trained.seen[name][-1]) for name in ("cosine", "amplified")}


def _around(series: np.ndarray, share: float) -> float:
    """Return the mean over a tenth of training around a share of it."""
    half = max(1, len(series) // 20)
    middle = round(share * len(series))
    return float(series[max(0, middle - half) : middle + half].mean())


def _growth(series: np.ndarray, share: float) -> float:
    before, after = _around(series, share), _around(series, 0.95)
    return math.log(after / before) if before > 0 and after > 0 else 0.0


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of the logarithms of two positive series, in windows, the first tenth left out."""
    a, b = (np.log([part.mean() for part in _windows(series)][WINDOWS // 10 :]) for series in (a, b))
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 else 0.0


def _spread_of_histogram(shares: np.ndarray) -> float:
    """Return the standard deviation of ln sigma, from its histogram."""
    middles = ((SIGMA_EDGES[1:] + SIGMA_EDGES[:-1]) / 2).numpy()
    mean = (shares * middles).sum()
    return math.sqrt((shares * (middles - mean) ** 2).sum())


def experiment(setup: Setup, seed: int) -> dict[str, object]:
    """Train a setup from a seed and return its record.

    Numbers by `measure` and `course`; `curve_<term>` by `curves`, (40,) for every field of `vae_gan.Terms`;
    `seen_<name>` by `look` and `gradients`, (8, ...), at `MOMENTS`, pictures of fixed codes only for seed 0 with prior
    fakes; `shown`, from seed 0 alone.
    """
    images = frames(setup)
    trained = train(setup, seed, images)
    pictures = {} if seed else {"shown": shown(trained.model, images.test.images)}
    film = not seed and setup.prior_fakes  # pictures take more room than all the rest
    seen = {f"seen_{name}": rows for name, rows in trained.seen.items() if name != "fakes" or film}
    return measure(trained.model, images) | course(trained, setup) | curves(trained.history) | seen | pictures


@torch.no_grad()
def shown(model: VAEGAN, x: Tensor, count: int = 6) -> np.ndarray:
    """Return test frames of different clips, reconstructions from the codes' centres, and samples from the prior.

    (3 * count, 3, size, size) uint8, one kind after the other.
    """
    real = x[:: len(x) // count][:count]
    rows = [real, model.decoder(codes(model, real)[0]), model.decoder(fixed_codes(model)[:count])]
    return plots.to_uint8((torch.cat(rows) + 1) / 2)
