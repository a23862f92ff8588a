r"""The VAE-GAN: an autoencoder whose reconstruction error is measured in the features of a discriminator.

Three networks and three losses. With x an image, z its code, x' = decoder(z) and phi the discriminator's features::

    mu, logvar = encoder(x)
    F = mean((phi(x') - phi(x)) ** 2)       # feature matching, a mean over entries of the map
    K = mean(kl(mu, logvar, z))             # nats per latent dimension

    encoder        follows  F + beta K
    decoder        follows  F + adversarial * -log sigmoid(D(x'))
    discriminator  follows  -log sigmoid(D(x)) - log(1 - sigmoid(D(x')))

Nothing in the bound asks that phi stay put. The discriminator is free to scale its features, F scales with them, and
a fixed beta then buys less and less: the KL explodes. The chapters follow that through.

What is exchangeable: the KL term (`KL_PLUGS`), the trunk of the discriminator (`TRUNKS`), and the `Recipe`.

Source: Larsen et al. 2016 (arXiv 1512.09300) for the VAE-GAN, whose discriminator is normalised; the linear trunk, the
order of updates and the KL terms are those of the write-ups that the chapters examine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from vaelab.divergences import BatchKL, gaussian_kl, moment_kl
from vaelab.posteriors import reparametrise, standard_normal
from vaelab.training import BetaController, Step

TRUNKS = ("linear", "leaky", "spectral", "batch norm", "real norm")
KL_PLUGS = ("single", "batch", "batch norm")
ORDERS = ("together", "author")


# How a code is drawn, and what it costs


class SinglePoint(nn.Module):
    """The KL of each image's own posterior, as in any VAE: "single point", in the words of the write-up."""

    def draw(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Return a code drawn from each posterior: (N, n)."""
        return reparametrise(mu, logvar)

    def forward(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Return K: (N, n) each -> (), nats per latent dimension, a mean over the batch."""
        return gaussian_kl(mu, logvar).mean()


class BatchPoint(nn.Module):
    """The KL of the batch's moments: nothing holds a single posterior, only all of them together.

    Args:
        batch_kl: what the drawn codes are given to, as the write-up does: codes, not (mu, logvar).
    """

    def __init__(self, batch_kl: BatchKL):
        super().__init__()
        self.batch_kl = batch_kl

    def draw(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Return a code drawn from each posterior: (N, n)."""
        return reparametrise(mu, logvar)

    def forward(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Return K: (N, n) each -> (), nats per latent dimension."""
        kl = self.batch_kl(z)
        return kl.mean() if kl.ndim else kl / z.shape[1]


class BatchNormCode(nn.Module):
    """No KL and no noise: the code is mu, batch-normalised. "BN cheating", in the words of the write-up.

    Args:
        latents: n.
        affine: learn a scale and a shift per dimension, as the write-up's layer does. Then nothing holds the
            moments any more: the pair (scale, shift) is free.
    """

    def __init__(self, latents: int, affine: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm1d(latents, affine=affine)

    def draw(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Return normalised means, without noise: (N, n). `logvar` is not used."""
        return self.norm(mu)

    def forward(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Return zero: there is no KL to pay."""
        return z.new_zeros(())


def kl_plug(name: str, latents: int, **options) -> nn.Module:
    """Return the KL term of that name.

    Args:
        name: "single"; "batch", whose options are those of `divergences.BatchKL`; "batch norm", with `affine`.
        latents: n.

    Raises:
        ValueError: another name.

    >>> kl_plug("batch", 64, momentum=0.9).batch_kl.momentum
    0.9
    """
    if name == "single":
        return SinglePoint(**options)
    if name == "batch":
        return BatchPoint(BatchKL(**options))
    if name == "batch norm":
        return BatchNormCode(latents, **options)
    raise ValueError(f"kl is {name!r}; it must be one of {', '.join(KL_PLUGS)}")


# The networks


def _halved(size: int, times: int) -> int:
    """Return the side of an image after `times` convolutions of stride 2, if it can be undone exactly."""
    if size < 1 + 2**times or (size - 1) % 2**times:
        raise ValueError(f"size is {size}; it must be 1 plus a multiple of {2**times}, as 33 and 65 are")
    return (size - 1) // 2**times + 1


class Encoder(nn.Module):
    """Convolutions of stride 2 with batch normalisation, then a linear map to mean and log-variance.

    x (N, 3, size, size) in [-1, 1] -> mu (N, n), logvar (N, n), the log-variance at most 20

    Raises:
        ValueError: a size that three halvings do not take to a whole number.
    """

    def __init__(self, size: int = 33, widths: tuple[int, int, int] = (8, 16, 32), latents: int = 64):
        super().__init__()
        small = _halved(size, len(widths))
        layers: list[nn.Module] = []
        for a, b in zip((3, *widths), widths):
            layers += [nn.Conv2d(a, b, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * small**2, 2 * latents))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.net(x).chunk(2, dim=1)
        return mu, logvar.clamp(max=20)


class _Doubled(nn.Module):
    """Interleave four channels into one map of twice the side, less one: (N, 4C, h, h) -> (N, C, 2h - 1, 2h - 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)[..., :-1, :-1]


class Decoder(nn.Module):
    """A linear map, then three doublings by sub-pixel convolution: z (N, n) -> x' (N, 3, size, size) in [-1, 1].

    Args:
        widths: channels of the smallest map and after each of the first two doublings.

    Raises:
        ValueError: a size that three halvings do not take to a whole number.

    Two departures from the write-up's. It normalises each image by itself (instance norm), which takes the image's
    mean colour away: here it is the batch. It doubles by transposed convolutions, twice as slow here as convolving
    first and interleaving then (Shi et al. 2016).
    """

    def __init__(self, size: int = 33, widths: tuple[int, int, int] = (32, 16, 8), latents: int = 64):
        super().__init__()
        self.latents, small = latents, _halved(size, len(widths))
        layers: list[nn.Module] = [nn.Linear(latents, widths[0] * small**2), nn.Unflatten(1, (widths[0], small, small))]
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Conv2d(a, 4 * b, 3, padding=1, bias=False), _Doubled(), nn.BatchNorm2d(b), nn.LeakyReLU(0.01)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 12, 3, padding=1), _Doubled(), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class Judged(NamedTuple):
    """What the discriminator makes of N images."""

    features: Tensor  # (N, C, h, w): phi, the trunk's output
    logits: Tensor  # (N,): how real


class Discriminator(nn.Module):
    """A trunk, whose output is phi, and a head on top of it: x (N, 3, size, size) -> `Judged`.

    Args:
        widths: channels of the trunk's layers; the first three halve the side.
        trunk: "linear" is the write-up's: convolutions alone, so phi is an affine function of the pixels and F a
            learned quadratic form of the pixel error, with a scale that is free. "leaky" puts a LeakyReLU after
            each. "spectral" also divides each weight, the head's too, by its largest singular value, a kernel
            taken as a matrix (channels out, channels in * 25) as in Miyato et al. 2018, so that the scale is
            bounded, if not by 1. "batch norm" normalises phi at the end: in training each batch, of real images
            or of drawn ones, by its own statistics, in evaluation mode both by those of all batches.
            "real norm" leaves phi alone but has `match` divide by the variance of the real images' features.
        hidden: width of the head's hidden layer. The head bends with ReLUs; where the trunk is "leaky" or
            "spectral", with LeakyReLUs.

    Raises:
        ValueError: an unknown trunk, or a size that three halvings do not take to a whole number.
    """

    def __init__(
        self, size: int = 33, widths: tuple[int, ...] = (16, 32, 32, 32), hidden: int = 64, trunk: str = "linear"
    ):
        super().__init__()
        if trunk not in TRUNKS:
            raise ValueError(f"trunk is {trunk!r}; it must be one of {', '.join(TRUNKS)}")
        self.kind, small = trunk, _halved(size, 3)
        held = spectral_norm if trunk == "spectral" else nn.Identity()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip((3, *widths), widths)):
            layers += [held(nn.Conv2d(a, b, 5, stride=2 if i < 3 else 1, padding=2))]
            layers += [nn.LeakyReLU(0.2)] if trunk in ("leaky", "spectral") else []
        layers += [nn.BatchNorm2d(widths[-1], affine=False)] if trunk == "batch norm" else []
        self.trunk = nn.Sequential(*layers)
        slope = 0.2 if trunk in ("leaky", "spectral") else 0.0
        into = held(nn.Linear(widths[-1] * small**2, hidden))
        self.head = nn.Sequential(
            nn.LeakyReLU(slope), nn.Flatten(), into, nn.LeakyReLU(slope), held(nn.Linear(hidden, 1)), nn.Flatten(0)
        )

    def forward(self, x: Tensor) -> Judged:
        features = self.trunk(x)
        return Judged(features, self.head(features))

    def match(self, real: Tensor, drawn: Tensor) -> Tensor:
        """Return F, the mean squared difference of two maps of features (N, C, h, w), over all their entries.

        For the trunk "real norm" each channel's differences are divided by the variance of `real` there, over
        images and places, through which no gradient flows: then F does not know the scale of phi.
        """
        if self.kind != "real norm":
            return (drawn - real).pow(2).mean()
        variance = real.detach().var((0, 2, 3), keepdim=True)  # (1, C, 1, 1)
        return ((drawn - real).pow(2) / variance.clamp(min=1e-12)).mean()


class VAEGAN(nn.Module):
    """Encoder, decoder, discriminator, and the plug that draws codes and prices them."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, discriminator: Discriminator, plug: nn.Module):
        super().__init__()
        self.encoder, self.decoder, self.discriminator, self.plug = encoder, decoder, discriminator, plug

    def encode(self, x: Tensor, noisy: bool = True) -> Tensor:
        """Return a code for each image: (N, n), drawn from its posterior or, not noisy, at its centre."""
        mu, logvar = self.encoder(x)
        return self.plug.draw(mu, logvar if noisy else torch.full_like(logvar, -torch.inf))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return what the encoder's losses move: its own weights and those of the plug, if any."""
        return [*self.encoder.parameters(), *self.plug.parameters()]


# The losses and the step


class Recipe(NamedTuple):
    """What is trained for. The weights are relative to K, in nats per latent dimension."""

    features: float = 1.0  # of F
    features_into: str = "both"  # or "decoder": then the encoder is not told how well its codes reconstruct
    pixels: float = 0.0  # of the mean squared pixel error, into encoder and decoder
    cross_entropy: float = 0.0  # of the mean binary cross-entropy of the pixels, the same way
    adversarial: float = 0.04  # of the decoder's wish to be taken for real
    prior_fakes: bool = False  # the discriminator also sees images of codes drawn from the prior
    hinge: bool = False  # hinge losses instead of cross-entropies (Miyato et al. 2018)
    balanced: bool = False  # the discriminator rests while it is well ahead


class Terms(NamedTuple):
    """What one step measures. K's are nats per latent dimension, the discriminator's losses nats per image."""

    kl: Tensor  # K, the KL that is paid for; 0 where none is
    beta: Tensor  # its price at this step
    single: Tensor  # mean KL of the single posteriors; of no meaning for `BatchNormCode`, which does not use them
    moments: Tensor  # KL of the batch's own moments, by the write-up's formula without a moving average
    sigma: Tensor  # mean standard deviation of the posteriors; of no meaning for `BatchNormCode`
    features: Tensor  # F, a mean over entries
    pixels: Tensor  # mean squared error on [-1, 1]
    real: Tensor  # the discriminator's loss on real images
    drawn: Tensor  # and on reconstructions
    fake: Tensor  # and on images of codes from the prior; 0 where it sees none


class Optimisers(NamedTuple):
    """One for each network."""

    encoder: torch.optim.Optimizer
    decoder: torch.optim.Optimizer
    discriminator: torch.optim.Optimizer


def adam(model: VAEGAN, rate: float = 1e-3, rate_d: float = 1e-3) -> Optimisers:
    """Return three Adams, the discriminator's at the rate `rate_d`.

    The encoder's two gradients, of F and of beta K, must share one Adam: it undoes any scale of its gradient, so with
    one for each, beta would do nothing.
    """
    return Optimisers(
        torch.optim.Adam(model.encoder_parameters(), rate),
        torch.optim.Adam(model.decoder.parameters(), rate),
        torch.optim.Adam(model.discriminator.parameters(), rate_d),
    )


def check_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe as it is, if it can be followed.

    Raises:
        ValueError: an unknown destination of F, or a negative weight.
    """
    if recipe.features_into not in ("both", "decoder"):
        raise ValueError(f"features_into is {recipe.features_into!r}; it must be 'both' or 'decoder'")
    for name in ("features", "pixels", "cross_entropy", "adversarial"):
        if getattr(recipe, name) < 0:
            raise ValueError(f"{name} is {getattr(recipe, name)}; a weight must be at least 0")
    return recipe


def check_frames(x: Tensor) -> Tensor:
    """Return images as they are, if they can be trained on: (N, 3, size, size), finite, in [-1, 1].

    Asked once of a data set, not of each batch.

    Raises:
        ValueError: another shape, NaN or infinite values, or values outside [-1, 1].
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"frames have shape {tuple(x.shape)}; they must be (N, 3, size, size)")
    if not x.isfinite().all():
        bad = (~x.isfinite()).flatten(1).any(1).nonzero()[0].item()
        raise ValueError(f"frame {bad} has NaN or infinite pixels; the parameters would be spoilt at the first step")
    if x.abs().max() > 1:
        raise ValueError(f"pixels reach from {x.min():.3g} to {x.max():.3g}; scale them to [-1, 1]")
    return x


def pixel_cross_entropy(x: Tensor, drawn: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of images in [-1, 1], both taken to [0, 1]; nats per entry."""
    return F.binary_cross_entropy((drawn + 1) / 2, (x + 1) / 2)


def _seen_real(recipe: Recipe, logits: Tensor) -> Tensor:
    """Return the discriminator's loss on real images, from their (N,) logits."""
    return F.relu(1 - logits).mean() if recipe.hinge else F.softplus(-logits).mean()  # softplus(-u) = -log sigmoid(u)


def _seen_through(recipe: Recipe, logits: Tensor) -> Tensor:
    """Return the discriminator's loss on drawn images, from their (N,) logits."""
    return F.relu(1 + logits).mean() if recipe.hinge else F.softplus(logits).mean()


def _taken_for_real(recipe: Recipe, logits: Tensor) -> Tensor:
    """Return the decoder's adversarial loss, from the (N,) logits of what it drew."""
    return -logits.mean() if recipe.hinge else F.softplus(-logits).mean()


def _pixel_loss(recipe: Recipe, x: Tensor, drawn: Tensor) -> Tensor:
    """Return what the recipe asks of the pixels: (), 0 if nothing."""
    loss = drawn.new_zeros(())
    if recipe.pixels:
        loss = loss + recipe.pixels * (drawn - x).pow(2).mean()
    if recipe.cross_entropy:
        loss = loss + recipe.cross_entropy * pixel_cross_entropy(x, drawn)
    return loss


class Losses(NamedTuple):
    """What each network follows, in one graph, and what there is to log."""

    encoder: Tensor
    decoder: Tensor
    discriminator: Tensor
    terms: Terms


def losses(model: VAEGAN, x: Tensor, beta: Tensor | float, recipe: Recipe) -> Losses:
    """Return all losses from one pass through each network: x (N, 3, size, size) in [-1, 1].

    Each loss is meant for its own network: `encoder` holds no adversarial term, and the gradient of F and of the
    adversarial loss must not reach the discriminator. `alternate` sees to that.
    """
    mu, logvar = model.encoder(x)
    z = model.plug.draw(mu, logvar)
    k, drawn = model.plug(mu, logvar, z), model.decoder(z)
    images = [drawn] + ([model.decoder(standard_normal(z, z.shape[1]))] if recipe.prior_fakes else [])
    real, *judged = [model.discriminator(image) for image in (x, *images)]
    against = [_seen_real(recipe, real.logits), *(_seen_through(recipe, j.logits) for j in judged)]
    f = model.discriminator.match(real.features.detach(), judged[0].features)
    pixel_loss, wish = _pixel_loss(recipe, x, drawn), sum(_taken_for_real(recipe, j.logits) for j in judged)
    for_encoder = recipe.features * f if recipe.features_into == "both" else 0.0
    return Losses(
        pixel_loss + for_encoder + beta * k,
        pixel_loss + recipe.features * f + recipe.adversarial * wish,
        sum(against),
        _terms(k, beta, (mu, logvar, z), f, (drawn - x).pow(2).mean(), against),
    )


@torch.no_grad()
def _terms(k, beta, code: tuple[Tensor, Tensor, Tensor], f: Tensor, pixels: Tensor, against: list[Tensor]) -> Terms:
    """Return what one step logs; without a third discriminator loss, that on prior fakes is 0."""
    mu, logvar, z = code
    moments = moment_kl(z.mean(0), z.var(0)).mean()
    noisy = (gaussian_kl(mu, logvar).mean(), (0.5 * logvar).exp().mean())
    real, drawn, *fake = against
    return Terms(
        k, torch.as_tensor(beta), noisy[0], moments, noisy[1], f, pixels, real, drawn, *(fake or [k.new_zeros(())])
    )


RESTS_BELOW = 0.35  # nats per image, half of what guessing costs: a balanced discriminator rests below it


def alternate(
    model: VAEGAN,
    batch: Callable[[int], Tensor],
    optimisers: Optimisers,
    beta: float | BetaController = 1.0,
    recipe: Recipe | None = None,
    order: str = "together",
) -> Step:
    """Return the step that moves all three networks once.

    Args:
        batch: takes the step number, returns images (N, 3, size, size) in [-1, 1].
        beta: the price of K, fixed, or the controller that sets it.
        recipe: None takes `Recipe()`.
        order: "together" passes each network once and takes all gradients at the same parameters. "author" is the
            write-up's: losses one after the other, each from fresh passes, the network moved before the next;
            with prior fakes three steps for discriminator and decoder and two for the encoder, without them two
            for each; three passes of the encoder.

    Raises:
        ValueError: unknown order, or a recipe that cannot be followed.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
    recipe = check_recipe(recipe or Recipe())
    move = _together if order == "together" else _one_by_one

    def step(t: int) -> Terms:
        now = beta.beta if isinstance(beta, BetaController) else beta
        terms = move(model, batch(t), optimisers, now, recipe)
        if isinstance(beta, BetaController):
            beta.update(terms.kl)
        return terms

    return step


def _together(model: VAEGAN, x: Tensor, optimisers: Optimisers, beta: Tensor | float, recipe: Recipe) -> Terms:
    """Take every gradient first, then move every network."""
    loss = losses(model, x, beta, recipe)
    gradients = [
        torch.autograd.grad(what, _parameters(optimiser), retain_graph=True, allow_unused=True)
        for what, optimiser in zip(loss[:3], optimisers)
    ]
    rests = recipe.balanced and (loss.terms.real + loss.terms.drawn) / 2 < RESTS_BELOW
    for optimiser, gradient in zip(optimisers[: 2 if rests else 3], gradients):
        _move(optimiser, gradient)
    return loss.terms


class Stage(NamedTuple):
    """One of the author's losses: the networks that it moves, and what it adds to the log."""

    moves: tuple[str, ...]
    loss: Tensor
    seen: dict[str, Any]


def stages(model: VAEGAN, x: Tensor, beta: Tensor | float, recipe: Recipe) -> Iterator[Stage]:
    """Yield the author's losses in the author's order.

    Each is computed, from fresh passes and fresh noise, when it is asked for, so that it sees the networks as the
    ones before it left them. Source: the order is that of the write-ups; none of their code is used.
    """
    d = model.discriminator
    real = _seen_real(recipe, d(x).logits)
    yield Stage(("discriminator",), real, {"real": real})
    for name, image in _drawn_one_by_one(model, x, recipe):
        through = _seen_through(recipe, d(image.detach()).logits)
        yield Stage(("discriminator",), through, {name: through})
        yield Stage(("decoder",), recipe.adversarial * _taken_for_real(recipe, d(image).logits), {})
    drawn = model.decoder(model.encode(x))
    f, pixels = d.match(d(x).features.detach(), d(drawn).features), (drawn - x).pow(2).mean()
    pixel_loss, seen = _pixel_loss(recipe, x, drawn), {"f": f, "pixels": pixels}
    if recipe.features_into == "both":
        yield Stage(("encoder", "decoder"), pixel_loss + recipe.features * f, seen)
    else:
        yield Stage(("decoder",), recipe.features * f, seen)
        if pixel_loss.requires_grad:
            again = model.decoder(model.encode(x))
            yield Stage(("encoder", "decoder"), _pixel_loss(recipe, x, again), {})
    mu, logvar = model.encoder(x)
    z = model.plug.draw(mu, logvar)
    k = model.plug(mu, logvar, z)
    yield Stage(("encoder",), beta * k, {"k": k, "code": (mu, logvar, z)})


def _drawn_one_by_one(model: VAEGAN, x: Tensor, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    """Yield reconstructions and, if the recipe has them, images of codes from the prior, each drawn when asked for."""
    yield "drawn", model.decoder(model.encode(x))
    if recipe.prior_fakes:
        yield "fake", model.decoder(standard_normal(x, model.decoder.latents))


def _one_by_one(model: VAEGAN, x: Tensor, optimisers: Optimisers, beta: Tensor | float, recipe: Recipe) -> Terms:
    """Follow each of the author's losses before the next is computed."""
    seen: dict[str, Any] = {}
    for stage in stages(model, x, beta, recipe):
        seen |= stage.seen
        ahead = recipe.balanced and (seen["real"] + seen.get("drawn", seen["real"])) / 2 < RESTS_BELOW
        if not stage.loss.requires_grad or (ahead and stage.moves == ("discriminator",)):
            continue
        movers = [getattr(optimisers, name) for name in stage.moves]
        gradients = torch.autograd.grad(stage.loss, sum(map(_parameters, movers), []), allow_unused=True)
        for optimiser in movers:
            _move(optimiser, gradients[: len(_parameters(optimiser))])
            gradients = gradients[len(_parameters(optimiser)) :]
    against = [seen[name] for name in ("real", "drawn", "fake") if name in seen]
    return _terms(seen["k"], beta, seen["code"], seen["f"], seen["pixels"], against)


def _move(optimiser: torch.optim.Optimizer, gradients: Sequence[Tensor | None]) -> None:
    """Take one step along these gradients, one for each parameter."""
    for p, gradient in zip(_parameters(optimiser), gradients):
        p.grad = gradient
    optimiser.step()


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]
