"""The experiment of Parts 4 to 7: its frames, its training from a seed, every yardstick against a known answer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import same

from vaelab import data, explosion
from vaelab.divergences import BatchKL, gaussian_kl, moment_bias, moment_kl
from vaelab.explosion import FRAMES, LIKE_AUTHOR, MOMENTS, Frames, Setup
from vaelab.lab import seed_everything
from vaelab.models import vae_gan
from vaelab.posteriors import reparametrise
from vaelab.training import BetaController, History, fit

CLIPS, TEST_CLIPS = 66, 6  # 64 clips are left for choosing
TINY = Setup(
    latents=4, encoder=(2, 2, 4), decoder=(4, 2, 2), trunk_widths=(2, 2, 4, 4), hidden=4, clips=2, batch=16, steps=6
)
CONTROLLED = {"target": 0.1, "beta": 2.0, "beta_rate": 0.5}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(clips: int, seed: int) -> data.Split:
    """(clips * 32, 3, 33, 33) frames in [0, 1], each clip of one colour and a ramp that turns; a label for a clip."""
    hue = torch.rand(clips, 1, 3, 1, 1, generator=seeded(seed))
    ramp = torch.linspace(0, 0.5, 33).view(1, 1, 1, 1, 33) * torch.linspace(0, 1, FRAMES).view(1, -1, 1, 1, 1)
    images = (0.5 * hue + ramp).expand(clips, FRAMES, 3, 33, 33).flatten(0, 1).contiguous()
    return data.Split(images, torch.arange(clips).repeat_interleave(FRAMES) % 2)


@pytest.fixture(scope="module")
def ink() -> data.Dataset:
    """A small stand-in for the drawn frames."""
    return data.Dataset("ink", pictures(CLIPS, 0), pictures(TEST_CLIPS, 1), 2, ("even", "odd"), "0" * 16)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, ink) -> None:
    def load(name: str, size: int) -> data.Dataset:
        assert (name, size) == ("ink", 33)
        return ink

    monkeypatch.setattr(explosion.data, "load", load)


@pytest.fixture
def images() -> Frames:
    return explosion.frames(TINY)


@pytest.fixture
def model() -> vae_gan.VAEGAN:
    seed_everything(0)
    return explosion.build(TINY).eval()


# What a setup says


def test_a_setup_is_a_configuration_without_its_name():
    found = explosion.setup_of({"dataset": "ink", "name": "no remedy", "encoder": [2, 3, 4], "target": 0.1})
    assert found == explosion.Setup(encoder=(2, 3, 4), target=0.1)
    assert explosion.setup_of({}) == Setup()


def test_knobs_that_no_setup_has_are_named():
    with pytest.raises(ValueError, match="^no setup has betas, width; it has size, latents, encoder"):
        explosion.setup_of({"name": "a", "width": 3, "betas": 1, "beta": 2.0})


def test_every_part_of_a_recipe_is_a_knob():
    assert set(vae_gan.Recipe._fields) <= set(Setup._fields)
    defaults = Setup()._asdict()
    assert {name: defaults[name] for name in vae_gan.Recipe._fields} == vae_gan.Recipe()._asdict()


@pytest.mark.parametrize("change, plug, said", [
    ({}, vae_gan.SinglePoint, {}),
    ({"kl": "batch", "momentum": 0.9}, vae_gan.BatchPoint, {"momentum": 0.9, "as_written": True}),
    ({"kl": "batch", "as_written": False}, vae_gan.BatchPoint, {"momentum": 0.0, "as_written": False}),
    ({"kl": "batch norm"}, vae_gan.BatchNormCode, {"affine": True}),
    ({"kl": "batch norm", "affine": False}, vae_gan.BatchNormCode, {"affine": False}),
])  # fmt: skip
def test_a_model_is_what_its_setup_says(change, plug, said):
    found = explosion.build(TINY._replace(trunk="leaky", **change))
    assert type(found.plug) is plug and found.discriminator.kind == "leaky"
    assert found.decoder.latents == 4 and found.discriminator(torch.zeros(2, 3, 33, 33)).features.shape[1] == 4
    inner = getattr(found.plug, "batch_kl", getattr(found.plug, "norm", None))
    assert {name: getattr(inner, name) for name in said} == said


def test_an_unknown_kl_is_refused():
    with pytest.raises(ValueError, match="kl is 'both'; it must be one of"):
        explosion.build(TINY._replace(kl="both"))


def test_no_frame_is_in_two_splits_and_all_are_scaled(ink, images):
    assert isinstance(images, Frames)
    whole = 2 * ink.train.images - 1
    assert images.train.equal(whole[: 2 * FRAMES]) and images.validation.equal(whole[2 * FRAMES :])
    assert images.test.images.equal(2 * ink.test.images - 1) and images.test.labels.equal(ink.test.labels)
    assert -1 <= images.train.min() < 0 < images.train.max() <= 1
    assert images.train.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("clips, found", [(1, 1), (2, 2), (640, 2)])
def test_as_many_clips_as_are_asked_for_but_never_those_for_choosing(clips, found):
    split = explosion.frames(TINY._replace(clips=clips))
    assert len(split.train) == found * FRAMES and len(split.validation) == 64 * FRAMES


# Training


def test_a_run_is_followed_from_its_seed_alone(images):
    setup = TINY._replace(kl="batch", momentum=0.5, **CONTROLLED)
    runs = [explosion.train(setup, seed, images) for seed in (3, 3, 4)]
    assert all(isinstance(run, explosion.Trained) and not run.model.training for run in runs)
    states = [run.model.state_dict() for run in runs]
    assert same(states[0], states[1]) and not same(states[0], states[2])
    moments = {max(1, round(share * TINY.steps)) for share in MOMENTS}  # of six steps, the first four are one
    assert len(moments) == 5 and all(len(rows) == 5 for rows in runs[0].seen.values())
    assert same(runs[0].controller.state_dict(), runs[1].controller.state_dict())
    assert set(runs[0].history.terms) == set(vae_gan.Terms._fields)


def test_looking_on_changes_nothing(images, monkeypatch):
    watched = explosion.train(TINY, 0, images)
    monkeypatch.setattr(explosion, "look", lambda model, x: {"nothing": np.zeros(1)})
    alone = explosion.train(TINY, 0, images)
    assert same(watched.model.state_dict(), alone.model.state_dict())


def test_a_model_is_looked_at_on_frames_left_for_choosing(images, monkeypatch):
    shown = []
    monkeypatch.setattr(explosion, "look", lambda model, x: shown.append(x) or {"nothing": np.zeros(1)})
    explosion.train(TINY, 0, images)
    assert all(x.equal(images.validation[::4]) for x in shown)


def test_without_a_target_beta_stays_where_it_is(images):
    found = explosion.train(TINY._replace(beta=0.3, steps=3), 0, images)
    assert found.controller is None and found.history.terms["beta"] == pytest.approx([0.3] * 3)


def test_the_setups_rule_order_and_rates_are_followed(images):
    setup = TINY._replace(target=0.1, beta=2.0, beta_rate=0.3, rule="log", order="author", rate=0.0, steps=2)
    found = explosion.train(setup, 0, images)
    assert (found.controller.rule, found.controller.rate, found.controller.updates) == ("log", 0.3, 2)
    seed_everything(0)
    untrained = explosion.build(setup)
    still = [
        all(a.equal(b) for a, b in zip(getattr(found.model, part).parameters(), getattr(untrained, part).parameters()))
        for part in ("encoder", "decoder", "discriminator")
    ]
    assert still == [True, True, False]


class Killed:
    """A VAE-GAN with everything that moves from step to step: averages, a controller, three optimisers."""

    def __init__(self, images: Tensor, seed: int = 0, as_written: bool = True):
        seed_everything(seed)
        setup = TINY._replace(kl="batch", momentum=0.5, as_written=as_written, prior_fakes=True)
        self.images, self.model, self.controller = images, explosion.build(setup), BetaController(0.1, 2.0, 0.5)
        self.optimisers = vae_gan.adam(self.model)
        self.batches = data.Shuffle(len(images), 16, seed=0)

    @property
    def state(self) -> dict:
        return {"model": self.model, "controller": self.controller, **self.optimisers._asdict()}

    def step(self, order: str):
        def batch(t: int) -> Tensor:
            return self.images[self.batches(t)]

        recipe = vae_gan.Recipe(prior_fakes=True)
        return vae_gan.alternate(self.model, batch, self.optimisers, self.controller, recipe, order)

    def everything(self) -> dict:
        return {name: part.state_dict() for name, part in self.state.items()}


@pytest.mark.parametrize("order, as_written", [("together", True), ("author", False)])
def test_a_killed_training_resumes_bit_for_bit(order, as_written, images, tmp_path):
    whole = Killed(images.train, as_written=as_written)
    expected = fit(whole.step(order), 12)
    killed = Killed(images.train, as_written=as_written)
    step, path = killed.step(order), tmp_path / "checkpoint.pt"

    def dying(t: int):
        if t == 8:
            raise OSError("the machine is gone")
        return step(t)

    with pytest.raises(OSError, match="gone"):
        fit(dying, 12, state=killed.state, checkpoint=path, every=5)
    again = Killed(images.train, seed=99, as_written=as_written)
    found = fit(again.step(order), 12, state=again.state, checkpoint=path, every=5)
    assert same(again.everything(), whole.everything()) and again.controller.updates == 12
    assert len(again.model.plug.batch_kl.mean) == 4
    for name, series in expected.terms.items():
        np.testing.assert_array_equal(found.terms[name], series)


# What is watched


def test_codes_are_drawn_with_the_same_noise_each_time_in_whatever_chunks(model, images):
    x = images.validation[:600]
    mu, logvar, z = explosion.codes(model, x)
    torch.testing.assert_close((mu, logvar), model.encoder(x), rtol=1e-4, atol=1e-5)
    assert z.equal(reparametrise(mu, logvar, seeded(0))) and z.equal(explosion.codes(model, x)[2])


def test_codes_without_noise_are_their_centres(images):
    model = explosion.build(TINY._replace(kl="batch norm")).eval()
    mu, logvar, z = explosion.codes(model, images.test.images)
    assert z.equal(mu) and torch.all(logvar == -40)
    torch.testing.assert_close(mu, model.plug.norm(model.encoder(images.test.images)[0]), rtol=1e-4, atol=1e-5)


def test_codes_from_the_prior_are_the_same_for_every_run(model):
    first, again, other = (explosion.prior_codes(model, 500, seed) for seed in (0, 0, 1))
    assert first.equal(again) and not first.equal(other) and first.shape == (500, 4)
    assert abs(first.mean()) < 0.1 and first.std() == pytest.approx(1, abs=0.1)
    assert explosion.fixed_codes(model, 7).equal(explosion.prior_codes(explosion.build(TINY), 7, 0))


def test_the_spread_is_how_far_two_images_are_apart():
    one, other = torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.3)
    assert explosion.spread(torch.stack([one, other])).item() == pytest.approx(0.3)
    assert explosion.spread(torch.stack([one, one, one])).item() == 0
    noise = torch.randn(2000, 3, 4, 4, generator=seeded(0))
    pairs = (noise[::2] - noise[1::2]).pow(2).mean().sqrt()
    assert explosion.spread(noise).item() == pytest.approx(pairs.item(), rel=0.02)


def test_a_look_has_histograms_places_and_fixed_fakes_and_leaves_the_model_training(model, images):
    x = images.validation[:64]
    mu, logvar, _ = explosion.codes(model, x)
    found = explosion.look(model, x)
    assert model.training
    counted = np.histogram(mu.detach().clamp(-5, 5).numpy(), explosion.MU_EDGES.numpy())[0] / mu.numel()
    np.testing.assert_allclose(found["mu"], counted, atol=2 / mu.numel())
    assert found["mu"].shape == found["log_sigma"].shape == (60,)
    assert found["log_sigma"].sum() == pytest.approx(1, abs=1e-5)
    middle = (explosion.SIGMA_EDGES[1:] + explosion.SIGMA_EDGES[:-1]).numpy() / 2
    assert (found["log_sigma"] * middle).sum() == pytest.approx(0.5 * logvar.mean().item(), abs=0.1)
    centre = mu.mean(0)
    assert found["centre"] == pytest.approx(centre.norm().item(), rel=1e-4)
    assert found["extent"] == pytest.approx((mu - centre).norm(dim=1).mean().item(), rel=1e-4)
    assert found["fakes"].shape == (6, 3, 33, 33) and found["fakes"].dtype == np.uint8
    drawn = model.eval().decoder(explosion.fixed_codes(model))
    assert found["fake_spread"] == pytest.approx(explosion.spread(drawn).item(), rel=1e-4)
    assert np.abs(found["fakes"] - 127.5 * (drawn[:6].detach().numpy() + 1)).max() <= 1


def scaled(model: vae_gan.VAEGAN, c: float) -> vae_gan.VAEGAN:
    with torch.no_grad():
        for depth, layer in enumerate(model.discriminator.trunk, 1):
            layer.weight.mul_(c), layer.bias.mul_(c**depth)
    return model


def test_what_pulls_at_the_encoder_is_measured_in_gradients(model, images):
    x, generator = images.validation[:16], torch.get_rng_state()
    before = explosion.gradients(model, x)
    torch.set_rng_state(generator)
    after = explosion.gradients(scaled(model, 2.0), x)
    for name in ("pull_features", "gain", "amplified"):
        assert after[name] / before[name] == pytest.approx(2.0**8, rel=1e-3)
    for name in ("pull_kl", "cosine"):
        assert after[name] == pytest.approx(before[name], rel=1e-3)
    assert -1 <= before["cosine"] <= 1 and before["pull_kl"] > 0
    kl = gaussian_kl(*model.encoder(x)).mean()
    pull = torch.autograd.grad(kl, list(model.encoder.parameters()))
    assert before["pull_kl"] == pytest.approx(torch.cat([g.flatten() for g in pull]).norm().item(), rel=1e-3)


def test_what_the_trunk_makes_of_noise_does_not_depend_on_the_image_where_it_is_linear(model, images):
    one, other = (explosion.gradients(model, x)["amplified"] for x in (images.train[:16], images.test.images[:16]))
    assert one == pytest.approx(other, rel=1e-3)
    with torch.no_grad():
        noise = 0.1 * torch.randn(images.train[:16].shape, generator=seeded(0))
        trunk = model.discriminator.trunk
        expected = (trunk(noise) - trunk(torch.zeros_like(noise))).pow(2).mean().item() / 0.01
    assert one == pytest.approx(expected, rel=1e-3)


# What is measured at the end


@pytest.mark.parametrize("pixels, decibels", [(4.0, 0.0), (0.04, 20.0), (0.1, 16.0206), (4e-5, 50.0)])
def test_psnr_is_against_the_peak_of_two(pixels, decibels):
    assert explosion.psnr(pixels) == pytest.approx(decibels, abs=1e-4)


def test_looks_are_the_colours_and_edges_of_fields():
    colours = torch.tensor([0.1, -0.4, 0.8]).view(1, 3, 1, 1).expand(1, 3, 33, 33)
    plain = explosion.looks(colours)
    assert plain.shape == (1, 100)
    torch.testing.assert_close(plain[0, :75].view(3, 25), colours[0, :, 0, :1].expand(3, 25))
    assert plain[0, 75:].abs().max() == 0
    ramp = torch.linspace(0, 0.64, 33).expand(2, 3, 33, 33).clone()
    ramp[1] = -ramp[0].transpose(1, 2)  # the other way, downwards: a slope counts by its size
    torch.testing.assert_close(explosion.looks(ramp)[:, 75:], torch.full((2, 25), 0.02))
    corner = torch.zeros(1, 3, 33, 33)
    corner[..., :3, :3] = 1.0
    seen = explosion.looks(corner)[0]
    assert (seen[:75].view(3, 25) > 0).sum(1).tolist() == [1, 1, 1] and (seen[75:] > 0).sum() == 1


def clustered(rho: float, batches: int = 1000, width: int = 6) -> Tensor:
    """(batches * 16, width) codes of variance 1, a share rho of it between batches of 16 neighbours."""
    between = torch.randn(batches, 1, width, dtype=torch.float64, generator=seeded(0))
    within = torch.randn(batches, LIKE_AUTHOR, width, dtype=torch.float64, generator=seeded(1))
    return (math.sqrt(rho) * between + math.sqrt(1 - rho) * within).flatten(0, 1)


PLAIN = SimpleNamespace(plug=vae_gan.SinglePoint())


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_neighbours_exceed_all_codes_by_the_law(rho):
    found = explosion.batch_kl_three_ways(PLAIN, clustered(rho))
    assert found["batch_kl_whole"] == pytest.approx(0, abs=4e-3)
    assert found["batch_kl_shuffled"] == pytest.approx(moment_bias(LIKE_AUTHOR), abs=5e-3)
    assert found["excess"] == pytest.approx(-0.5 * math.log(1 - rho), abs=0.03)
    # of the bias of 16 codes, the mean's 1/32 is only that of the variance within
    exactly = found["batch_kl_whole"] + found["excess"] + moment_bias(LIKE_AUTHOR) - rho / (2 * LIKE_AUTHOR)
    assert found["batch_kl_clips"] == pytest.approx(exactly, abs=0.01)
    assert found["excess_error"] == pytest.approx(rho / (2 * LIKE_AUTHOR), abs=0.01)


def test_the_three_ways_see_off_centre_codes_too_and_only_a_batch_plug_has_its_own():
    z = 2 * clustered(0.3) + 1
    found = explosion.batch_kl_three_ways(PLAIN, z)
    assert found["batch_kl_whole"] == pytest.approx(0.5 * (1 + 4 - 1 - math.log(4)), abs=0.1)
    within = 4 * 0.7
    more = found["excess"] + moment_bias(LIKE_AUTHOR) + (within - 1) / (2 * LIKE_AUTHOR)
    assert found["batch_kl_clips"] - found["batch_kl_whole"] == pytest.approx(more, abs=0.01)
    assert "batch_kl_own" not in found


def test_its_own_statistics_make_up_a_share_of_the_moments():
    z, training = clustered(0.5, batches=3), torch.randn(64, 6, dtype=torch.float64, generator=seeded(9))
    own = BatchKL(momentum=0.9, as_written=True)
    own(training)
    own.eval()
    mean, variance = 0.1 * training.mean(0), 0.9 + 0.1 * training.var(0)  # from 0 and 1 on
    expected = [
        moment_kl(0.9 * mean + 0.1 * batch.mean(0), 0.9 * variance + 0.1 * batch.var(0)).mean().item()
        for batch in z.split(LIKE_AUTHOR)
    ]
    found = explosion.batch_kl_three_ways(SimpleNamespace(plug=vae_gan.BatchPoint(own)), z)
    assert found["batch_kl_own"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_a_model_is_measured_on_test_frames_and_in_evaluation_mode(images):
    seed_everything(0)
    model = explosion.build(TINY).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = explosion.measure(model, images)
    assert same(before, model.state_dict()) and not model.training
    x = images.test.images
    mu, logvar = model.encoder(x)
    z = reparametrise(mu, logvar, seeded(0))
    with torch.no_grad():
        pixels = [(model.decoder(code) - x).pow(2).mean().item() for code in (z, mu)]
        phi = [model.discriminator(image).features for image in (x, model.decoder(z))]
    assert [found["pixels_z"], found["pixels_mu"]] == pytest.approx(pixels, rel=1e-4)
    assert found["features"] == pytest.approx((phi[0] - phi[1]).pow(2).mean().item(), rel=1e-4)
    assert found["gain"] == pytest.approx(found["features"] / found["pixels_z"])
    assert found["sampling_cost"] == pytest.approx(10 * math.log10(pixels[0] / pixels[1]), abs=1e-3)
    nobody = (x - images.train.mean(0)).pow(2).mean().item()
    assert found["pixels_mean_image"] == pytest.approx(nobody, rel=1e-5)
    assert found["kl_single"] == pytest.approx(gaussian_kl(mu, logvar).mean().item(), rel=1e-3)
    assert found["sigma"] == pytest.approx((0.5 * logvar).exp().mean().item(), rel=1e-4)
    assert found["mu_rms"] == pytest.approx(mu.pow(2).mean().sqrt().item(), rel=1e-4)
    assert found["overfit"] == found["real_test"] - found["real_train"]
    assert 0 <= found["probe"] <= 1 and found["information"] <= math.log(len(x)) + 1e-6


class Copies(nn.Module):
    """A decoder that remembers frames: a code's first number says which."""

    def __init__(self, frames: Tensor):
        super().__init__()
        self.frames, self.latents = frames, 4

    def forward(self, z: Tensor) -> Tensor:
        return self.frames[(z[:, 0].abs() * 1000).round().long() % len(self.frames)]


def test_frames_that_are_real_are_as_real_and_as_varied_as_real_ones(images, model):
    noise = explosion.measure(model, images)
    model.decoder = Copies(images.test.images)
    copied = explosion.measure(model, images)
    assert copied["frechet_prior"] < 0.05 * noise["frechet_prior"]
    assert copied["fake_spread"] == pytest.approx(1, abs=0.15) and noise["fake_spread"] < 0.5


# What is said of the course of training


def synthetic(steps: int = 1000, growth: float = 0.004, **more: np.ndarray) -> History:
    """A history in which K and F grow exponentially while pixels fall."""
    t = np.arange(steps)
    terms = {name: np.ones(steps) for name in vae_gan.Terms._fields}
    terms |= {"kl": 0.01 * np.exp(growth * t), "features": np.exp(2 * growth * t), "pixels": np.exp(-growth * t)}
    return History({name: s.astype(np.float32) for name, s in (terms | more).items()}, np.array([]), {})


def seen(moments: int = 8) -> dict[str, np.ndarray]:
    shares = np.zeros((moments, 60), dtype=np.float32)
    shares[:, 20] = shares[:, 40] = 0.5
    fakes = np.linspace(0.2, 0.4, moments)
    fakes[-1] = 0.1
    return {"fake_spread": fakes, "log_sigma": shares, "cosine": np.arange(8.0), "amplified": np.arange(8.0) + 10}


def course(history: History, **setup) -> dict[str, float]:
    return explosion.course(explosion.Trained(None, history, None, seen()), TINY._replace(**setup))


def test_the_course_says_where_terms_end_and_how_they_grew():
    found = course(synthetic())
    assert found["kl_growth"] == pytest.approx(0.004 * 850, rel=1e-3)
    assert found["kl_late"] == pytest.approx(0.004 * 450, rel=1e-3)
    assert found["features_growth"] == pytest.approx(0.008 * 850, rel=1e-3)
    assert found["gained_growth"] == pytest.approx(0.012 * 850, rel=1e-3)
    assert found["kl_end"] == pytest.approx(0.01 * np.exp(0.004 * np.arange(900, 1000)).mean(), rel=1e-4)
    assert found["discriminator_end"] == 2 and found["beta_end"] == 1 and found["beta_late"] == 0
    assert found["features_against_pixels"] == pytest.approx(-1, abs=1e-6)
    assert "miss" not in found and "identity_error" not in found


def test_a_term_that_is_zero_does_not_grow():
    found = course(synthetic(kl=np.zeros(1000)))
    assert found["kl_growth"] == found["kl_late"] == found["kl_end"] == 0


def test_the_course_says_what_became_of_fakes_and_widths():
    found = course(synthetic())
    highest = seen()["fake_spread"].max()
    assert found["fake_fall"] == pytest.approx(0.1 / highest)
    width = (explosion.SIGMA_EDGES[1] - explosion.SIGMA_EDGES[0]).item()
    assert found["sigma_spread_early"] == pytest.approx(10 * width, rel=1e-4)  # two bins, twenty apart
    assert (found["cosine_end"], found["amplified_end"]) == (7, 17)


def test_additively_beta_is_the_sum_of_what_was_missed():
    kl = (0.2 + 0.1 * np.random.default_rng(0).standard_normal(1000)).astype(np.float32)
    beta = 2 + 0.5 * np.concatenate([[0], np.cumsum(kl.astype(np.float64)[:-1] - 0.1)])
    found = course(synthetic(kl=kl, beta=beta), **CONTROLLED)
    assert found["identity_error"] < 1e-4 and found["beta_least"] == pytest.approx(beta.min(), abs=1e-5)
    assert found["miss"] == pytest.approx(kl[900:].mean() / 0.1 - 1, rel=1e-4)
    assert course(synthetic(kl=0.5 * kl, beta=beta), **CONTROLLED)["miss_size"] == pytest.approx(
        abs(kl[900:].mean() / 0.2 - 1), rel=1e-4
    )
    off = course(synthetic(kl=kl, beta=beta + 1), **CONTROLLED)
    assert off["identity_error"] == pytest.approx(1, abs=1e-4)
    assert "identity_error" not in course(synthetic(kl=kl, beta=beta), rule="log", **CONTROLLED)


def test_a_curve_has_forty_windows_and_the_mean_of_its_series():
    history = synthetic(1200)
    found = explosion.curves(history)
    assert set(found) == {f"curve_{name}" for name in vae_gan.Terms._fields}
    assert all(curve.shape == (40,) and curve.dtype == np.float32 for curve in found.values())
    assert found["curve_features"].mean() == pytest.approx(history.terms["features"].mean(), rel=1e-5)
    assert found["curve_kl"][3] == pytest.approx(history.terms["kl"][90:120].mean(), rel=1e-5)
    assert len(explosion.curves(synthetic(6))["curve_kl"]) == 6


# The whole


def numbers(record: dict) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, float)}


@pytest.mark.parametrize("change", [
    {"kl": "batch", "momentum": 0.9, **CONTROLLED},
    {"kl": "batch norm", "prior_fakes": True},
    {"trunk": "spectral", "hinge": True, "order": "author", "pixels": 1.0},
], ids=["batch", "batch norm", "spectral"])  # fmt: skip
def test_a_record_holds_finite_numbers_curves_and_pictures(change, ink):
    record = explosion.experiment(TINY._replace(**change), seed=0)
    found = numbers(record)
    assert len(found) > 50 and all(map(math.isfinite, found.values()))
    assert {"psnr_mu", "kl_end", "normality_kl_covariance", "frechet_fitted", "probe", "excess_error"} < set(found)
    assert {"seen_mu", "seen_log_sigma", "seen_amplified", "curve_kl", "curve_beta"} < set(record)
    assert all(np.isfinite(value).all() for value in record.values())
    assert ("seen_fakes" in record) == bool(change.get("prior_fakes"))
    assert ("identity_error" in record) == ("target" in change)
    assert ("batch_kl_own" in record) == (change.get("kl") == "batch")
    assert record["shown"].shape == (18, 3, 33, 33) and record["shown"].dtype == np.uint8
    clips = 2 * ink.test.images[::FRAMES] - 1
    assert np.abs(record["shown"][:6] - 127.5 * (clips.numpy() + 1)).max() <= 1
    if "target" in change:
        assert record["identity_error"] < 1e-4
    if change.get("kl") == "batch norm":
        assert record["kl_single"] == record["kl_end"] == record["sampling_cost"] == 0


def test_a_record_repeats_and_pictures_come_from_the_first_seed_alone():
    one, again = (explosion.experiment(TINY, seed=1) for _ in range(2))
    assert one.keys() == again.keys() and "shown" not in one and "seen_fakes" not in one
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])


def test_what_is_shown_comes_from_the_centres_of_codes(model, images):
    found = explosion.shown(model, images.test.images, count=3)
    real = images.test.images[:: 2 * FRAMES]
    with torch.no_grad():
        rows = [real, model.decoder(model.encoder(real)[0]), model.decoder(explosion.fixed_codes(model)[:3])]
    assert np.abs(found - 127.5 * (torch.cat(rows).numpy() + 1)).max() <= 1
