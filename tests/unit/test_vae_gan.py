"""The VAE-GAN: its losses by hand, whom each of them moves, the author's order against one pass, the trunk's scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from vaelab import posteriors
from vaelab.divergences import BatchKL, gaussian_kl, moment_kl
from vaelab.models import vae_gan
from vaelab.models.vae_gan import Recipe
from vaelab.training import BetaController

SIZE, N, LATENTS, BETA, RATE = 33, 6, 4, 0.7, 0.05
NETWORKS = ("encoder", "decoder", "discriminator")
PLUGS = {
    "single": {},
    "batch": {"momentum": 0.3, "as_written": True},
    "batch norm": {"affine": True},
}
each_plug = pytest.mark.parametrize("plug", PLUGS)
fakes = pytest.mark.parametrize("prior_fakes", [False, True], ids=["", "prior fakes"])
each_order = pytest.mark.parametrize("order", vae_gan.ORDERS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stirred(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move scales, shifts and biases off their initial ones and zeros, so that all of them matter."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.empty_like(weight).normal_(generator=generator))
    return model


def tiny(plug: str = "single", trunk: str = "linear", size: int = SIZE, **options) -> vae_gan.VAEGAN:
    """A model of a few channels, in double precision."""
    torch.manual_seed(0)
    model = vae_gan.VAEGAN(
        vae_gan.Encoder(size, (2, 3, 4), LATENTS),
        vae_gan.Decoder(size, (4, 3, 2), LATENTS),
        vae_gan.Discriminator(size, (2, 3, 4, 4), 5, trunk),
        vae_gan.kl_plug(plug, LATENTS, **(options or PLUGS[plug])),
    )
    return stirred(model).double()


def frames(count: int = N, size: int = SIZE, seed: int = 2) -> Tensor:
    return 2 * torch.rand(count, 3, size, size, dtype=torch.float64, generator=seeded(seed)) - 1


def descent(model: vae_gan.VAEGAN, rate: float = RATE) -> vae_gan.Optimisers:
    parts = (model.encoder_parameters(), model.decoder.parameters(), model.discriminator.parameters())
    return vae_gan.Optimisers(*(torch.optim.SGD(part, rate) for part in parts))


def parameters(model: vae_gan.VAEGAN, network: str) -> list[nn.Parameter]:
    return model.encoder_parameters() if network == "encoder" else list(getattr(model, network).parameters())


def gradient(loss: Tensor, model: vae_gan.VAEGAN, network: str) -> list[Tensor]:
    """The gradient of a loss for a network's parameters, zero where it does not reach."""
    to = parameters(model, network)
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in to]
    found = torch.autograd.grad(loss, to, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(to, found)]


def gradients(loss: Tensor, model: vae_gan.VAEGAN) -> dict[str, list[Tensor]]:
    return {name: gradient(loss, model, name) for name in NETWORKS}


def moved(model: vae_gan.VAEGAN, recipe: Recipe, order: str = "together", rate: float = RATE, beta=BETA, steps=1):
    """Train a copy of the model by plain descent; return how far each parameter went, and the last terms."""
    model = copy.deepcopy(model)
    before = {name: [p.detach().clone() for p in parameters(model, name)] for name in NETWORKS}
    step = vae_gan.alternate(model, lambda t: frames(), descent(model, rate), beta, recipe, order)
    for t in range(steps):
        terms = step(t)
    return {
        name: [p.detach() - old for p, old in zip(parameters(model, name), before[name])] for name in NETWORKS
    }, terms


def close(actual, expected, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def size_of(parts: list[Tensor]) -> float:
    return math.sqrt(sum(p.pow(2).sum().item() for p in parts))


@pytest.fixture
def same_noise(monkeypatch) -> None:
    """Every draw of a code, from a posterior or from the prior, uses one noise, however often it is drawn."""
    draw, prior = posteriors.reparametrise, posteriors.standard_normal
    monkeypatch.setattr(vae_gan, "reparametrise", lambda mu, logvar: draw(mu, logvar, seeded(3)))
    monkeypatch.setattr(vae_gan, "standard_normal", lambda like, length: prior(like, length, seeded(4)))


# Shapes and bad input


@pytest.mark.parametrize("size, small", [(33, 5), (65, 9)])
@pytest.mark.parametrize("trunk", vae_gan.TRUNKS)
def test_shapes(size, small, trunk):
    model, x = tiny(trunk=trunk, size=size), frames(size=size)
    mu, logvar = model.encoder(x)
    assert mu.shape == logvar.shape == (N, LATENTS)
    drawn = model.decoder(model.encode(x))
    assert drawn.shape == x.shape and drawn.abs().max() < 1
    judged = model.discriminator(drawn)
    assert isinstance(judged, vae_gan.Judged)
    assert judged.features.shape == (N, 4, small, small) and judged.logits.shape == (N,)


@pytest.mark.parametrize("network", [vae_gan.Encoder, vae_gan.Decoder, vae_gan.Discriminator])
@pytest.mark.parametrize("size", [32, 34, 1, 8, 37])
def test_a_size_that_three_halvings_do_not_take_to_a_whole_number_is_refused(network, size):
    with pytest.raises(ValueError, match=f"size is {size}; it must be 1 plus a multiple of 8, as 33 and 65 are"):
        network(size)


def test_the_smallest_size_is_nine():
    assert vae_gan.Decoder(9, (4, 3, 2), LATENTS)(torch.zeros(1, LATENTS)).shape == (1, 3, 9, 9)


def test_a_log_variance_is_at_most_twenty_and_as_low_as_it_likes():
    encoder = tiny().encoder
    with torch.no_grad():
        encoder.net[-1].bias[LATENTS:] = torch.tensor([100.0, 100.0, -100.0, -100.0])
    _, logvar = encoder(frames())
    assert torch.all(logvar[:, :2] == 20) and torch.all(logvar[:, 2:] < -80)


@pytest.mark.parametrize("change, said", [
    ({"features_into": "encoder"}, "features_into is 'encoder'; it must be 'both' or 'decoder'"),
    ({"features": -1.0}, "features is -1.0; a weight must be at least 0"),
    ({"pixels": -0.1}, "pixels is -0.1; a weight"),
    ({"cross_entropy": -2}, "cross_entropy is -2; a weight"),
    ({"adversarial": -1e-9}, "adversarial is -1e-09; a weight"),
])  # fmt: skip
def test_recipes_that_cannot_be_followed_are_refused(change, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        vae_gan.check_recipe(Recipe(**change))
    model = tiny()
    with pytest.raises(ValueError, match=f"^{said}"):
        vae_gan.alternate(model, lambda t: frames(), descent(model), recipe=Recipe(**change))


def test_a_recipe_that_can_be_followed_comes_back_as_it_is():
    recipe = Recipe(features=0, features_into="decoder", pixels=3.0)
    assert vae_gan.check_recipe(recipe) is recipe


def test_an_unknown_order_trunk_or_plug_is_refused():
    model = tiny()
    with pytest.raises(ValueError, match="order is 'both'; it must be one of together, author"):
        vae_gan.alternate(model, lambda t: frames(), descent(model), order="both")
    with pytest.raises(ValueError, match="trunk is 'deep'; it must be one of linear, leaky, spectral, batch norm, re"):
        vae_gan.Discriminator(trunk="deep")
    with pytest.raises(ValueError, match="kl is 'Batch'; it must be one of single, batch, batch norm"):
        vae_gan.kl_plug("Batch", LATENTS)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_a_momentum_outside_zero_to_one_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum is .*; it must lie in \[0, 1\)"):
        vae_gan.kl_plug("batch", LATENTS, momentum=momentum)


@each_order
def test_a_batch_of_one_has_no_batch_kl(order):
    model = tiny("batch")
    step = vae_gan.alternate(model, lambda t: frames(1), descent(model), order=order)
    with pytest.raises(ValueError, match=r"z has 1 code\(s\) in all; a variance needs two at least"):
        step(0)


def with_pixel(value: float) -> Tensor:
    x = frames()
    x[4, 1, 2, 3] = value
    return x


@pytest.mark.parametrize("x, said", [
    (with_pixel(math.nan), "frame 4 has NaN or infinite pixels"),
    (with_pixel(-math.inf), "frame 4 has NaN or infinite pixels"),
    (with_pixel(1.5), r"pixels reach from -1 to 1.5; scale them to \[-1, 1\]"),
    (255 * (frames() + 1) / 2, r"pixels reach from .* to 255; scale them"),
    (frames()[:, :1], r"frames have shape \(6, 1, 33, 33\); they must be \(N, 3, size, size\)"),
    (frames()[0], r"frames have shape \(3, 33, 33\); they must be"),
])  # fmt: skip
def test_frames_that_cannot_be_trained_on_are_refused(x, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        vae_gan.check_frames(x)


def test_frames_that_can_be_trained_on_come_back_as_they_are():
    x = with_pixel(-1.0)
    assert vae_gan.check_frames(x) is x


# How a code is drawn, and what it costs


@pytest.mark.parametrize("plug", ["single", "batch"])
def test_codes_are_drawn_from_their_posteriors(plug):
    mu, logvar = torch.randn(2, N, LATENTS, dtype=torch.float64, generator=seeded(0))
    torch.manual_seed(5)
    z = vae_gan.kl_plug(plug, LATENTS).draw(mu, logvar)
    torch.manual_seed(5)
    close(z, mu + (0.5 * logvar).exp() * torch.randn(N, LATENTS, dtype=torch.float64))


def test_the_single_point_kl_is_the_mean_kl_of_the_posteriors():
    mu, logvar = torch.randn(2, N, LATENTS, dtype=torch.float64, generator=seeded(0))
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    close(vae_gan.SinglePoint()(mu, logvar, mu + 7), expected)


def test_the_batch_kl_is_that_of_the_drawn_codes_moments():
    mu, logvar, z = torch.randn(3, 50, LATENTS, dtype=torch.float64, generator=seeded(0))
    plug = vae_gan.BatchPoint(BatchKL(as_written=True))
    close(plug(mu, logvar, z), moment_kl(z.mean(0), z.var(0)).mean())
    close(plug(mu + 9, logvar - 9, z), moment_kl(z.mean(0), z.var(0)).mean())


@pytest.mark.parametrize("options", [{}, {"full_covariance": True}, {"momentum": 0.5, "as_written": True}])
def test_the_batch_kl_is_in_nats_per_dimension_whichever_version_it_is(options):
    mu, logvar, z = torch.randn(3, 50, LATENTS, dtype=torch.float64, generator=seeded(0))
    plug, alone = vae_gan.kl_plug("batch", LATENTS, **options), BatchKL(**options)
    for batch in (z, 2 * z + 1):
        close(plug(mu, logvar, batch), alone(batch).sum() / LATENTS)


@pytest.mark.parametrize("affine", [False, True])
def test_a_normalised_code_has_the_moments_of_its_layer_no_noise_and_no_price(affine):
    mu, logvar = 3 * torch.randn(2, 40, LATENTS, dtype=torch.float64, generator=seeded(0)) + 1
    plug = vae_gan.BatchNormCode(LATENTS, affine).double()
    z = plug.draw(mu, logvar)
    close(z, (mu - mu.mean(0)) / (mu.var(0, correction=0) + 1e-5).sqrt())
    assert plug(mu, logvar, z).item() == 0 and len(list(plug.parameters())) == 2 * affine
    if affine:
        with torch.no_grad():
            plug.norm.weight.fill_(0.5), plug.norm.bias.fill_(2.0)
        close(plug.draw(mu, logvar), 0.5 * z + 2)
    assert moment_kl(z.mean(0), z.var(0)).max() < 1e-3


def test_a_code_without_noise_is_its_posteriors_centre():
    model, x = tiny(), frames()
    assert model.encode(x, noisy=False).equal(model.encoder(x)[0])
    assert not model.encode(x).equal(model.encode(x))
    normed = tiny("batch norm")
    close(normed.encode(x, noisy=False), normed.plug.norm(normed.encoder(x)[0]))


def test_the_plugs_parameters_are_the_encoders():
    plain, affine = tiny(), tiny("batch norm")
    assert len(plain.encoder_parameters()) == len(list(plain.encoder.parameters()))
    extra = {id(p) for p in affine.encoder_parameters()} - {id(p) for p in affine.encoder.parameters()}
    assert extra == {id(affine.plug.norm.weight), id(affine.plug.norm.bias)}


# The losses by hand


def by_hand(model: vae_gan.VAEGAN, x: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Every part of the losses, written out."""
    mu, logvar = model.encoder(x)
    z = model.plug.draw(mu, logvar)
    drawn = model.decoder(z)
    fake = model.decoder(vae_gan.standard_normal(z, LATENTS))
    p, t = (drawn + 1) / 2, (x + 1) / 2
    real, seen, dreamt = (model.discriminator(image) for image in (x, drawn, fake))
    return {
        "mu": mu, "logvar": logvar, "z": z,
        "F": (seen.features - real.features).pow(2).sum() / real.features.numel(),
        "pixels": (drawn - x).pow(2).sum() / x.numel(),
        "cross_entropy": -(t * p.log() + (1 - t) * (1 - p).log()).sum() / x.numel(),
        "real": real.logits, "drawn": seen.logits, "fake": dreamt.logits,
    }  # fmt: skip


def cost(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


@fakes
@each_plug
def test_the_losses_are_what_their_formulas_say(plug, prior_fakes, same_noise):
    model, x = tiny(plug).eval(), frames()
    recipe = Recipe(2.0, "both", 3.0, 5.0, 7.0, prior_fakes)
    part, found = by_hand(model, x, recipe), vae_gan.losses(model, x, BETA, recipe)
    k = vae_gan.kl_plug(plug, LATENTS, **PLUGS[plug]).eval()(part["mu"], part["logvar"], part["z"])
    close(found.terms.kl, k)
    pixels = 3 * part["pixels"] + 5 * part["cross_entropy"]
    close(found.encoder, pixels + 2 * part["F"] + BETA * k)
    wish = cost(part["drawn"], 1) + (cost(part["fake"], 1) if prior_fakes else 0)
    close(found.decoder, pixels + 2 * part["F"] + 7 * wish)
    dreamt = cost(part["fake"], 0) if prior_fakes else torch.zeros((), dtype=torch.float64)
    close(found.discriminator, cost(part["real"], 1) + cost(part["drawn"], 0) + dreamt)
    close(found.terms.fake, dreamt)
    close(found.terms.features, part["F"])
    close(found.terms.pixels, part["pixels"])
    close((found.terms.real, found.terms.drawn), (cost(part["real"], 1), cost(part["drawn"], 0)))


@fakes
def test_hinge_losses_are_what_their_formulas_say(prior_fakes, same_noise):
    model, x = tiny().eval(), frames()
    recipe = Recipe(adversarial=1.0, hinge=True, prior_fakes=prior_fakes)
    part, found = by_hand(model, x, recipe), vae_gan.losses(model, x, BETA, recipe)
    judged = [part["drawn"]] + [part["fake"]] * prior_fakes
    against = sum((1 + logits).clamp(min=0).mean() for logits in judged)
    close(found.discriminator, (1 - part["real"]).clamp(min=0).mean() + against)
    close(found.decoder, part["F"] - sum(logits.mean() for logits in judged))


def test_the_pixels_cross_entropy_is_torchs_and_zero_is_not_its_least():
    x, drawn = frames(), 0.9 * frames(seed=3)
    target, p = (x + 1) / 2, (drawn + 1) / 2
    close(vae_gan.pixel_cross_entropy(x, drawn), -(target * p.log() + (1 - target) * (1 - p).log()).mean())
    grey = torch.zeros(1, 3, 9, 9)
    assert vae_gan.pixel_cross_entropy(grey, grey).item() == pytest.approx(math.log(2))
    assert vae_gan.pixel_cross_entropy(grey + 1, grey + 1).item() == 0


def test_the_terms_say_what_was_measured(same_noise):
    model, x = tiny().eval(), frames()
    found, part = vae_gan.losses(model, x, BETA, Recipe()).terms, by_hand(model, x, Recipe())
    assert isinstance(found, vae_gan.Terms) and found.beta.item() == pytest.approx(BETA)
    close(found.single, gaussian_kl(part["mu"], part["logvar"]).mean())
    close(found.sigma, (0.5 * part["logvar"]).exp().mean())
    close(found.moments, moment_kl(part["z"].mean(0), part["z"].var(0)).mean())
    assert not any(term.requires_grad for name, term in found._asdict().items() if name in ("single", "moments"))


# Whom a loss moves


@fakes
@pytest.mark.parametrize("features_into", ["both", "decoder"])
@pytest.mark.parametrize("plug", ["single", "batch"])
def test_every_network_moves_by_minus_the_rate_times_the_gradient_of_its_own_loss(
    plug, features_into, prior_fakes, same_noise
):
    model = tiny(plug)
    recipe = Recipe(2.0, features_into, 0.5, 0.3, 1.0, prior_fakes)
    found = vae_gan.losses(copy.deepcopy(model), frames(), BETA, recipe)
    assert isinstance(found, vae_gan.Losses)
    twin = copy.deepcopy(model)
    loss = vae_gan.losses(twin, frames(), BETA, recipe)
    for name, way in moved(model, recipe)[0].items():
        expected = gradient(getattr(loss, name), twin, name)
        close(way, [-RATE * g for g in expected])
        assert size_of(expected) > 1e-4


def test_the_feature_weight_moves_encoder_and_decoder_and_the_adversarial_one_the_decoder_alone(same_noise):
    model = tiny()
    base, *others = [
        moved(model, recipe)[0]
        for recipe in (Recipe(), Recipe(features=9.0), Recipe(adversarial=9.0), Recipe(prior_fakes=True))
    ]
    changed = [[name for name in NETWORKS if size_of([a - b for a, b in zip(base[name], other[name])]) > 1e-12]
               for other in others]  # fmt: skip
    assert changed == [["encoder", "decoder"], ["decoder"], ["decoder", "discriminator"]]


@each_order
def test_features_into_the_decoder_leave_the_encoder_the_gradient_of_beta_k_alone(order, same_noise):
    model, x = tiny(), frames()
    twin = copy.deepcopy(model)
    mu, logvar = twin.encoder(x)
    alone = gradient(BETA * gaussian_kl(mu, logvar).mean(), twin, "encoder")
    way = moved(model, Recipe(features_into="decoder", adversarial=5.0), order)[0]
    close(way["encoder"], [-RATE * g for g in alone])
    told = moved(model, Recipe(), order)[0]["encoder"]
    assert size_of([a - b for a, b in zip(told, way["encoder"])]) > 1e-5


def test_the_discriminators_own_stages_reach_nothing_else_and_no_other_stage_moves_it():
    model = tiny()
    for recipe in (Recipe(prior_fakes=True), Recipe(features_into="decoder", pixels=1.0, prior_fakes=True)):
        own = [s for s in vae_gan.stages(model, frames(), BETA, recipe) if "discriminator" in s.moves]
        assert len(own) == 3 and all(isinstance(stage, vae_gan.Stage) for stage in own)
        for stage in own:
            assert stage.moves == ("discriminator",)
            reached = [size_of(way) > 0 for way in gradients(stage.loss, model).values()]
            assert reached == [False, False, True]


def test_the_authors_stages_come_in_the_authors_order():
    every = vae_gan.stages(tiny(), frames(), BETA, Recipe(prior_fakes=True))
    rivals = [("discriminator",), ("decoder",)]
    assert [stage.moves for stage in every] == [rivals[0], *rivals, *rivals, ("encoder", "decoder"), ("encoder",)]
    apart = vae_gan.stages(tiny(), frames(), BETA, Recipe(features_into="decoder", pixels=1.0))
    last = [("decoder",), ("encoder", "decoder"), ("encoder",)]
    assert [stage.moves for stage in apart] == [rivals[0], *rivals, *last]


# One pass against the author's order


def summed(model: vae_gan.VAEGAN, recipe: Recipe) -> dict[str, list[Tensor]]:
    """The gradients of all stages, at parameters that nothing moves, added up for each network."""
    total = {name: [torch.zeros_like(p) for p in parameters(model, name)] for name in NETWORKS}
    for stage in vae_gan.stages(model, frames(), BETA, recipe):
        for name in stage.moves:
            total[name] = [a + b for a, b in zip(total[name], gradient(stage.loss, model, name))]
    return total


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("features_into", ["both", "decoder"])
@fakes
@each_plug
def test_at_the_same_parameters_and_noise_the_stages_add_up_to_the_one_pass(
    plug, prior_fakes, features_into, training, same_noise
):
    model = tiny(plug).train(training)
    recipe = Recipe(2.0, features_into, 0.5, 0.3, 1.0, prior_fakes)
    twin = copy.deepcopy(model)
    loss = vae_gan.losses(twin, frames(), BETA, recipe)
    for name, total in summed(model, recipe).items():
        expected = gradient(getattr(loss, name), twin, name)
        close(total, expected)
        assert size_of(expected) > 1e-4


@pytest.mark.parametrize("trunk", ["leaky", "batch norm", "real norm"])
@pytest.mark.parametrize("hinge", [False, True])
def test_so_they_do_for_other_trunks_and_for_the_hinge(trunk, hinge, same_noise):
    model, recipe = tiny(trunk=trunk), Recipe(prior_fakes=True, hinge=hinge, adversarial=1.0)
    twin = copy.deepcopy(model)
    loss = vae_gan.losses(twin, frames(), BETA, recipe)
    close(summed(model, recipe), {name: gradient(getattr(loss, name), twin, name) for name in NETWORKS})


def test_once_networks_move_in_between_the_orders_part_by_the_square_of_the_rate(same_noise):
    model, recipe = tiny(), Recipe(adversarial=1.0, prior_fakes=True)

    def apart(rate: float) -> dict[str, float]:
        one, other = (moved(model, recipe, order, rate)[0] for order in vae_gan.ORDERS)
        return {name: size_of([a - b for a, b in zip(one[name], other[name])]) for name in NETWORKS}

    coarse, fine = apart(1e-3), apart(1e-4)
    for name in NETWORKS:
        assert coarse[name] > 1e-9
        assert coarse[name] / fine[name] == pytest.approx(100, rel=0.1)


def test_the_author_moves_the_discriminator_before_the_decoder_asks_it(same_noise):
    model, x = tiny(), frames()
    optimisers, before = descent(model), model.discriminator(x).logits.detach().clone()
    every = vae_gan.stages(model, x, BETA, Recipe())
    first = next(every)
    optimisers.discriminator.zero_grad()
    first.loss.backward()
    optimisers.discriminator.step()
    later = next(every)
    drawn = model.decoder(model.encode(x))
    close(later.loss, cost(model.discriminator(drawn).logits, 0.0))
    assert (model.discriminator(x).logits - before).abs().max() > 1e-4


@pytest.mark.parametrize("prior_fakes, steps_of_d", [(False, 2), (True, 3)])
def test_the_authors_order_costs_two_or_three_steps_for_each_network(prior_fakes, steps_of_d):
    model = tiny().float()
    optimisers = vae_gan.adam(model)
    step = vae_gan.alternate(
        model, lambda t: frames().float(), optimisers, recipe=Recipe(prior_fakes=prior_fakes), order="author"
    )
    step(0)
    taken = [int(next(iter(optimiser.state.values()))["step"]) for optimiser in optimisers]
    assert taken == [2, steps_of_d, steps_of_d]
    assert int(model.encoder.net[1].num_batches_tracked) == 3  # for the rivalry, for F and for K


@each_order
def test_a_controller_sees_the_k_of_the_step_and_its_beta_is_that_of_the_next(order):
    model, controller = tiny(), BetaController(0.1, beta=2.0, rate=0.5)
    step = vae_gan.alternate(model, lambda t: frames(), descent(model, 1e-3), controller, order=order)
    first = step(0)
    assert first.beta.item() == 2.0
    expected = 2.0 + 0.5 * (first.kl.item() - 0.1)
    assert controller.beta.item() == pytest.approx(expected, rel=1e-12) and controller.updates == 1
    assert step(1).beta.item() == pytest.approx(expected, rel=1e-12)


@each_order
def test_beta_is_the_price_of_k(order, same_noise):
    one, three = (moved(tiny(), Recipe(features=0.0), order, beta=beta)[0]["encoder"] for beta in (1.0, 3.0))
    close([3 * way for way in one], three)


@each_order
@each_plug
def test_a_step_measures_the_same_terms_in_either_order(order, plug, same_noise):
    model = tiny(plug).eval()
    expected = vae_gan.losses(model, frames(), BETA, Recipe(prior_fakes=True)).terms
    found = moved(model, Recipe(prior_fakes=True), order, rate=0.0)[1]
    assert isinstance(found, vae_gan.Terms) and found._fields == expected._fields
    close(tuple(t.detach().double() for t in found), tuple(t.detach().double() for t in expected))


# Adam


def test_adam_makes_one_optimiser_for_each_network():
    model = tiny("batch norm")
    optimisers = vae_gan.adam(model, 3e-4, 5e-4)
    assert isinstance(optimisers, vae_gan.Optimisers)
    for optimiser, name, rate in zip(optimisers, NETWORKS, (3e-4, 3e-4, 5e-4)):
        (group,) = optimiser.param_groups
        assert isinstance(optimiser, torch.optim.Adam) and group["lr"] == rate
        assert [id(p) for p in group["params"]] == [id(p) for p in parameters(model, name)]


def end(beta: float, shared: bool, steps: int = 300) -> float:
    """Where Adam takes w, pulled to 3 by (w - 3)^2 and to 0 by beta w^2, with one Adam for both or one for each."""
    w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    pulls: list[Callable[[], Tensor]] = [lambda: (w - 3) ** 2, lambda: beta * w**2]
    pulls = [lambda: (w - 3) ** 2 + beta * w**2] if shared else pulls
    optimisers = [torch.optim.Adam([w], 0.01, eps=1e-12) for _ in pulls]
    for _ in range(steps):
        for pull, optimiser in zip(pulls, optimisers):
            w.grad = torch.autograd.grad(pull(), w)[0]
            optimiser.step()
    return w.item()


def test_with_an_adam_for_each_loss_beta_would_do_nothing_and_with_one_it_decides():
    assert end(100.0, shared=False) == pytest.approx(end(0.01, shared=False), abs=1e-6)  # Adam undoes any scale
    assert end(0.01, shared=True) > 2 and abs(end(100.0, shared=True)) < 0.1


# A discriminator that rests


@each_order
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_balanced_discriminator_rests_while_it_is_well_ahead(order, balanced, ahead, monkeypatch, same_noise):
    model, recipe = tiny(), Recipe(balanced=balanced, prior_fakes=True)
    loss = vae_gan.losses(copy.deepcopy(model), frames(), BETA, recipe).terms
    here = (loss.real + loss.drawn).item() / 2 if order == "together" else loss.real.item()
    monkeypatch.setattr(vae_gan, "RESTS_BELOW", here + 1e-9 if ahead and order == "together" else here * 2 * ahead)
    way = moved(model, recipe, order)[0]
    assert (size_of(way["discriminator"]) == 0) == (balanced and ahead)
    assert size_of(way["encoder"]) > 0 and size_of(way["decoder"]) > 0


def test_it_rests_where_its_losses_are_on_average_below_half_of_what_guessing_costs(monkeypatch, same_noise):
    assert vae_gan.RESTS_BELOW == pytest.approx(math.log(2) / 2, abs=0.01)
    model, recipe = tiny(), Recipe(balanced=True)
    loss = vae_gan.losses(copy.deepcopy(model), frames(), BETA, recipe).terms
    monkeypatch.setattr(vae_gan, "RESTS_BELOW", (loss.real + loss.drawn).item() / 2 - 1e-9)
    assert size_of(moved(model, recipe)[0]["discriminator"]) > 0


# The trunk and its scale


def scaled(discriminator: vae_gan.Discriminator, c: float) -> vae_gan.Discriminator:
    """Each of the trunk's four layers times c, and its biases so that phi is c^4 times what it was."""
    other, depth = copy.deepcopy(discriminator), 0
    with torch.no_grad():
        for layer in other.trunk:
            if isinstance(layer, nn.Conv2d):
                depth += 1
                layer.weight.mul_(c), layer.bias.mul_(c**depth)
    assert depth == 4
    return other


@pytest.mark.parametrize("trunk, affine", [("linear", True), ("real norm", True), ("leaky", False)])
def test_phi_is_affine_unless_something_bends_it(trunk, affine):
    d, a, x, y = tiny(trunk=trunk).discriminator, 0.3, frames(seed=5), frames(seed=6)
    phi = [d(image).features for image in (a * x + (1 - a) * y, x, y)]
    assert torch.allclose(phi[0], a * phi[1] + (1 - a) * phi[2], rtol=1e-10, atol=1e-12) == affine


@pytest.mark.parametrize("c", [0.5, 1.7])
@pytest.mark.parametrize("trunk", ["linear", "leaky", "real norm"])
def test_a_trunk_of_four_layers_scales_f_by_the_eighth_power_unless_f_is_measured_in_phis_own_units(trunk, c):
    d = tiny(trunk=trunk).discriminator
    x, drawn = frames(seed=5), frames(seed=6)

    def f(judge: vae_gan.Discriminator) -> Tensor:
        return judge.match(judge(x).features, judge(drawn).features)

    close(scaled(d, c)(x).features, c**4 * d(x).features)
    close(f(scaled(d, c)) / f(d), torch.tensor(1.0 if trunk == "real norm" else c**8, dtype=torch.float64))


def test_real_norm_divides_by_the_variance_of_the_real_features_channel_by_channel():
    real, drawn = torch.randn(2, N, 4, 5, 5, dtype=torch.float64, generator=seeded(0))
    real.requires_grad_()
    found = tiny(trunk="real norm").discriminator.match(real, drawn)
    variance = real.detach().transpose(0, 1).flatten(1).var(1)  # (C,)
    expected = torch.stack([(drawn[:, c] - real[:, c]).pow(2).mean() / variance[c] for c in range(4)]).mean()
    close(found, expected)
    expected_gradient = -2 * (drawn - real.detach()) / variance.view(1, 4, 1, 1) / real.numel()
    close(torch.autograd.grad(found, real)[0], expected_gradient)  # none through the variance


def test_a_batch_norm_trunk_has_features_of_variance_one_whatever_its_weights():
    for c in (1.0, 10.0):
        phi = scaled(tiny(trunk="batch norm").discriminator, c)(frames()).features
        assert phi.mean((0, 2, 3)).abs().max() < 1e-10
        assert phi.var((0, 2, 3), correction=0).sub(1).abs().max() < 2e-2


def test_a_spectral_trunk_holds_the_largest_singular_value_of_every_layer_at_one():
    d = tiny(trunk="spectral").discriminator
    with torch.no_grad():
        for layer in [*d.trunk, *d.head]:
            if hasattr(layer, "parametrizations"):
                layer.parametrizations.weight.original.mul_(50)
        for _ in range(100):
            d(frames(2))
    layers = [layer for layer in [*d.trunk, *d.head] if hasattr(layer, "weight")]
    assert len(layers) == 6
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_only_bent_trunks_have_a_slope_in_the_head():
    for trunk, slope in (("linear", 0.0), ("leaky", 0.2), ("spectral", 0.2), ("batch norm", 0.0), ("real norm", 0.0)):
        d = vae_gan.Discriminator(33, (2, 3, 4, 4), 5, trunk)
        assert {layer.negative_slope for layer in d.head if isinstance(layer, nn.LeakyReLU)} == {slope}
