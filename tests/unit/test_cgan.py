"""The CGAN: label planes, networks, losses, the alternating step, and what train mode does to a label."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vaelab import metrics, networks
from vaelab.models import cgan
from vaelab.models.cgan import CGAN, CGANTerms

PLACES = ("planes", "dense", "late")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> CGAN:
    torch.manual_seed(0)
    return CGAN(networks.ConvGenerator(latent_dim=5, width=1 / 32), networks.ConvDiscriminator(width=1 / 32))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(20, 1, 28, 28, generator=seeded(1)), torch.arange(20) % 10


def adam(module: nn.Module, rate: float = 2e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=rate, betas=(0.5, 0.999))


# Planes


def test_the_plane_of_the_label_is_one_and_all_others_are_zero():
    planes = networks.one_hot_planes(torch.tensor([2, 0]), 3, 4, num_classes=3)
    by_hand = torch.zeros(2, 3, 3, 4)
    by_hand[0, 2] = 1
    by_hand[1, 0] = 1
    assert planes.shape == (2, 3, 3, 4) and planes.dtype == torch.float32 and planes.equal(by_hand)


def test_planes_are_the_one_hot_label_at_every_pixel():
    y = torch.randint(10, (30,))
    planes = networks.one_hot_planes(y, 2, 5)
    assert all(planes[:, :, i, j].equal(networks.one_hot(y, 10)) for i in range(2) for j in range(5))


@pytest.mark.parametrize("bad", [-1, 10])
def test_planes_of_a_label_outside_its_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"labels span .* must lie in \[0, 10\)"):
        networks.one_hot_planes(torch.tensor([3, bad]), 4, 4)


def test_planes_of_no_labels_are_refused():
    with pytest.raises(ValueError, match="y is empty"):
        networks.one_hot_planes(torch.empty(0, dtype=torch.int64), 4, 4)


@pytest.mark.parametrize("height, width", [(0, 4), (4, 0), (-1, 4), (4, -2)])
def test_planes_without_a_pixel_are_refused(height, width):
    with pytest.raises(ValueError, match=f"height is {height}, width is {width}; both must be at least 1"):
        networks.one_hot_planes(torch.tensor([3]), height, width)


# Networks


def test_the_generator_draws_one_image_for_each_label(model):
    images = model.generator(torch.randn(20, 5), torch.arange(20) % 10)
    assert images.shape == (20, 1, 28, 28) and 0 <= images.min() and images.max() <= 1


def test_at_width_one_the_networks_are_those_of_the_post():
    generator, discriminator = networks.ConvGenerator(), networks.ConvDiscriminator()
    shapes = [tuple(p.shape) for p in generator.parameters() if p.ndim > 1]
    assert shapes == [(1024, 72), (6272, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    shapes = [tuple(p.shape) for p in discriminator.parameters() if p.ndim > 1]
    assert shapes[:3] == [(64, 11, 4, 4), (128, 64, 4, 4), (1024, 6272)]


def test_the_discriminators_differ_only_in_where_the_label_enters():
    def shapes(place):
        discriminator = networks.ConvDiscriminator(width=0.25, label_at=place)
        return {name: tuple(p.shape) for name, p in discriminator.named_parameters()}

    plain = {"planes": (16, 1, 4, 4), "dense": (256, 1568), "late": (128, 256)}
    for place in PLACES:
        differs = {name for name in shapes(place) if len({shapes(other)[name] for other in PLACES}) > 1}
        assert differs == {f"parts.{part}.0.weight" for part in PLACES}
        for part in PLACES:
            extra = 10 * (part == place)
            wanted = (plain[part][0], plain[part][1] + extra, *plain[part][2:])
            assert shapes(place)[f"parts.{part}.0.weight"] == wanted


def test_batch_normalisation_of_the_dense_layer_is_there_only_if_asked_for(batch):
    plain, normed = (networks.ConvDiscriminator(width=1 / 32, dense_norm=norm) for norm in (False, True))
    assert [type(m) for m in plain.parts["dense"]] == [nn.Linear, nn.LeakyReLU]
    assert [type(m) for m in normed.parts["dense"]] == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU]
    assert normed(*batch).shape == (20,)


@pytest.mark.parametrize("place", PLACES)
def test_the_discriminator_gives_a_logit_for_each_image_that_depends_on_its_label(place, batch):
    x, y = batch
    discriminator = networks.ConvDiscriminator(width=1 / 32, label_at=place).eval()
    logits = discriminator(x, y)
    assert logits.shape == (20,)
    other = discriminator(x, y.roll(1))
    assert (logits != other).all()
    assert discriminator(x[:1], y[:1]).allclose(logits[:1])


@pytest.mark.parametrize("place", PLACES)
def test_all_parts_of_a_discriminator_get_a_gradient(place, batch):
    discriminator = networks.ConvDiscriminator(width=1 / 32, label_at=place)
    discriminator(*batch).square().sum().backward()
    # before batch normalisation a bias is a shift that the mean takes away
    weights = [p for name, p in discriminator.named_parameters() if name.endswith("weight")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


def test_another_place_for_the_label_is_refused():
    with pytest.raises(ValueError, match="label_at is 'early'; it must be 'planes', 'dense' or 'late'"):
        networks.ConvDiscriminator(label_at="early")


@pytest.mark.parametrize("network", [networks.ConvGenerator, networks.ConvDiscriminator])
def test_a_width_without_channels_is_refused(network):
    with pytest.raises(ValueError, match="width is 0.001; it must leave every layer at least one channel"):
        network(width=0.001)


@pytest.mark.parametrize("bad", [-1, 10])
def test_a_label_outside_its_range_is_refused_everywhere(model, bad):
    x, y = torch.rand(4, 1, 28, 28), torch.full((4,), bad)
    calls = [lambda draw=draw: draw(y) for draw in (model.sample, model.sample_in_train_mode)]
    calls += [lambda: model.generator(torch.randn(4, 5), y)]
    calls += [lambda p=place: networks.ConvDiscriminator(width=1 / 32, label_at=p)(x, y) for place in PLACES]
    for call in calls:
        with pytest.raises(ValueError, match=r"must lie in \[0, 10\)"):
            call()


# Losses


def test_the_losses_are_binary_cross_entropies():
    real, fake = 3 * torch.randn(2, 50, dtype=torch.float64, generator=seeded(0))
    one, zero = torch.ones_like(real), torch.zeros_like(real)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(cgan.discriminator_loss(real, fake), bce(real, one) + bce(fake, zero))
    torch.testing.assert_close(cgan.generator_loss(fake), bce(fake, one))


def test_the_losses_in_closed_form():
    undecided, sure = torch.zeros(7), torch.full((7,), math.log(3.0))  # probabilities 1/2 and 3/4
    assert cgan.discriminator_loss(undecided, undecided).item() == pytest.approx(2 * math.log(2))
    assert cgan.discriminator_loss(sure, -sure).item() == pytest.approx(2 * math.log(4 / 3))
    assert cgan.generator_loss(-sure).item() == pytest.approx(math.log(4))


def test_a_generator_that_loses_badly_still_gets_a_gradient():
    logits = torch.full((4,), -60.0, requires_grad=True)
    cgan.generator_loss(logits).backward()
    assert logits.grad.allclose(torch.full((4,), -0.25))


# The step


def test_weights_start_small_and_biases_at_zero(model):
    wide = CGAN(networks.ConvGenerator(width=0.25), networks.ConvDiscriminator(width=0.25))
    for module in wide.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            assert not module.bias.any()
            if module.weight.numel() > 5000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert (module.weight == 1).all()


def test_a_step_moves_the_discriminator_first_and_then_the_generator_against_the_new_one(model, batch):
    lone = copy.deepcopy(model)
    optimiser_d, optimiser_g = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (lone.discriminator, lone.generator))
    torch.manual_seed(7)
    drawn = lone.generator(lone.noise(batch[1]), batch[1])
    real, fake = lone.discriminator(*batch), lone.discriminator(drawn.detach(), batch[1])
    loss_d = F.softplus(-real).mean() + F.softplus(fake).mean()
    loss_d.backward()
    optimiser_d.step()
    loss_g = F.softplus(-lone.discriminator(drawn, batch[1])).mean()
    optimiser_g.zero_grad()
    loss_g.backward()
    optimiser_g.step()

    torch.manual_seed(7)
    sgd = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model.discriminator, model.generator)]
    terms = cgan.alternate(model, lambda t: batch, *sgd)(0)
    assert isinstance(terms, CGANTerms) and terms._fields == ("loss_d", "loss_g")
    torch.testing.assert_close(tuple(terms), (loss_d, loss_g))
    for ours, theirs in zip(model.parameters(), lone.parameters()):
        torch.testing.assert_close(ours, theirs)
    assert all(p.requires_grad for p in model.parameters())


def test_each_optimiser_moves_only_its_own_network(model, batch):
    before = copy.deepcopy(model.state_dict())
    still = torch.optim.SGD(model.discriminator.parameters(), lr=0.0)
    cgan.alternate(model, lambda t: batch, still, adam(model.generator))(0)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {"generator"}


def test_the_step_asks_for_its_own_batch(model, batch):
    asked = []

    def remember(t):
        asked.append(t)
        return batch

    step = cgan.alternate(model, remember, adam(model.discriminator), adam(model.generator))
    step(4)
    step(9)
    assert asked == [4, 9]


def test_what_the_discriminator_is_told_is_all_it_knows_of_the_label(batch):
    """Told the same of every image, its losses are those of a batch with that label throughout."""
    x, y = batch
    seen = []

    class Spy(networks.ConvDiscriminator):
        def forward(self, x, y):
            seen.append(y)
            return super().forward(x, y)

    torch.manual_seed(0)
    model = CGAN(networks.ConvGenerator(latent_dim=5, width=1 / 32), Spy(width=1 / 32))
    drawn = []
    model.generator.register_forward_hook(lambda module, arguments, output: drawn.append(arguments[1]))
    optimisers = adam(model.discriminator), adam(model.generator)
    cgan.alternate(model, lambda t: (x, y), *optimisers, told=torch.zeros_like)(0)
    assert len(seen) == 3 and not any(labels.any() for labels in seen) and drawn[0].equal(y)
    seen.clear()
    cgan.alternate(model, lambda t: (x, y), *optimisers)(0)
    assert all(labels.equal(y) for labels in seen)


def test_the_generator_learns_which_label_means_what():
    """Two classes, black and white: after a few steps the label decides the picture; shifted labels, the wrong one."""
    y = torch.arange(32) % 2
    x = y.float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def whiteness(shift):
        torch.manual_seed(0)
        generator, discriminator = networks.ConvGenerator(2, 3, 1 / 8), networks.ConvDiscriminator(2, 1 / 8)
        model, fast = CGAN(generator, discriminator), adam(generator, 1e-2)
        step = cgan.alternate(model, lambda t: (x, (y - shift) % 2), adam(discriminator, 1e-3), fast)
        for t in range(100):
            step(t)
        return model.sample(y, seeded(0)).mean((1, 2, 3))

    told, shifted = whiteness(0), whiteness(1)
    assert told[y == 1].min() > told[y == 0].max() + 0.5 and shifted[y == 0].min() > shifted[y == 1].max() + 0.5


# Sampling


@pytest.mark.parametrize("training", [True, False])
def test_sampling_is_in_eval_mode_and_leaves_the_model_as_it_was(model, training):
    model.generator.train(training)
    before = copy.deepcopy(model.state_dict())
    labels = torch.arange(10)
    images = model.sample(labels, seeded(0))
    assert images.shape == (10, 1, 28, 28) and not images.requires_grad
    model.sample_in_train_mode(labels, seeded(0))
    assert model.generator.training == training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    z, lone = model.noise(labels, seeded(0)), model.generator.eval()
    one_by_one = torch.cat([lone(z[i : i + 1], labels[i : i + 1]) for i in range(10)])  # no neighbour matters
    torch.testing.assert_close(images, one_by_one, rtol=1e-3, atol=1e-4)


def test_train_mode_sampling_is_the_generator_in_train_mode(model):
    labels = torch.arange(10)
    drawn = model.sample_in_train_mode(labels, seeded(0))
    torch.testing.assert_close(drawn, model.generator.train()(model.noise(labels, seeded(0)), labels))
    assert not drawn.allclose(model.sample(labels, seeded(0)))


def test_sampling_leaves_the_mode_alone_also_when_it_fails(model):
    with pytest.raises(ValueError):
        model.sample(torch.tensor([10]))
    assert model.generator.training


def test_samples_are_reproducible_by_their_generator(model):
    before = torch.get_rng_state()
    labels = torch.tensor([0, 1, 1])
    for draw in (model.sample, model.sample_in_train_mode):
        assert draw(labels, seeded(0)).equal(draw(labels, seeded(0)))
        assert not draw(labels, seeded(0)).equal(draw(labels, seeded(1)))
    assert torch.get_rng_state().equal(before)


def test_noise_is_standard_normal(model):
    z = model.noise(torch.zeros(20_000, dtype=torch.int64), seeded(0))
    assert z.shape == (20_000, 5)
    assert z.mean(0).abs().max() < 5 / math.sqrt(20_000) and (z.std(0) - 1).abs().max() < 0.03


def test_the_statistics_of_one_image_are_refused(model):
    with pytest.raises(ValueError, match="labels has 1 entries; the statistics of a batch need at least two"):
        model.sample_in_train_mode(torch.tensor([3]))


def strong_label() -> CGAN:
    """A CGAN whose generator listens to its label far more than to its code."""
    torch.manual_seed(0)
    model = CGAN(networks.ConvGenerator(latent_dim=6, width=1 / 16), networks.ConvDiscriminator(width=1 / 16))
    with torch.no_grad():
        model.generator.net[0].weight[:, 6:] *= 50
        for _ in range(50):  # let the running averages see mixed batches
            model.generator(torch.randn(100, 6), torch.arange(100) % 10)
    return model


def test_in_a_train_mode_batch_of_one_class_the_label_is_gone():
    """A label that all share adds a constant before batch normalisation, which takes constants away."""
    model = strong_label()
    drawn = [model.sample_in_train_mode(torch.full((40,), label), seeded(3)) for label in range(10)]
    for images in drawn[1:]:
        torch.testing.assert_close(images, drawn[0], rtol=1e-4, atol=1e-5)
    in_eval = [model.sample(torch.full((40,), label), seeded(3)) for label in range(10)]
    assert all((images - in_eval[0]).abs().mean() > 100 * (drawn[1] - drawn[0]).abs().mean() for images in in_eval[1:])


def test_the_finer_the_arithmetic_the_less_of_the_label_is_left():
    """What is left of it in single precision is rounding, because in double precision it is a billionth of that."""
    model = strong_label().double()
    z = torch.randn(40, 6, dtype=torch.float64, generator=seeded(3))
    model.generator.train()
    labels = [torch.full((40,), label) for label in range(10)]
    first = nn.Sequential(*model.generator.net[:2])
    hidden = [first(torch.cat([z, networks.one_hot(y, 10).double()], 1)) for y in labels]
    assert all((h - hidden[0]).abs().max() < 1e-11 for h in hidden)
    moved = [first.eval()(torch.cat([z, networks.one_hot(y, 10).double()], 1)) for y in labels[:2]]
    assert (moved[1] - moved[0]).abs().mean() > 0.1


def test_in_a_mixed_train_mode_batch_the_label_is_still_there():
    model, z = strong_label(), torch.randn(100, 6, generator=seeded(0))
    y = torch.arange(100) % 10
    with torch.no_grad():
        drawn, other = (model.generator.train()(z, labels) for labels in (y, (y + 1) % 10))
    assert (drawn - other).abs().mean() > 1e-3


# Classes drawn


def test_classes_drawn_are_those_with_more_than_their_share():
    judged = torch.tensor([0] * 989 + [1] * 10 + [2])  # 98.9 %, 1 %, 0.1 %
    assert metrics.classes_drawn(judged, 10) == 1
    assert metrics.classes_drawn(judged, 10, share=0.005) == 2
    assert metrics.classes_drawn(judged, 10, share=0.0) == 3
    assert metrics.classes_drawn(torch.arange(1000) % 10, 10) == 10


@pytest.mark.parametrize("judged", [torch.tensor([0, 3]), torch.tensor([-1]), torch.empty(0, dtype=torch.int64)])
def test_classes_outside_their_range_or_none_are_refused(judged):
    with pytest.raises(ValueError, match=r"must hold a class in \[0, 3\) per image"):
        metrics.classes_drawn(judged, 3)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=f"share is {share}"):
        metrics.classes_drawn(torch.tensor([0]), 3, share)
