"""The pixel VAE: who sees whom, what an image costs, what is drawn."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.distributions import Bernoulli

from vaelab.models import pixel_vae
from vaelab.models.pixel_vae import MaskedConv2d, PixelDecoder, PixelEncoder
from vaelab.models.vae import VAE
from vaelab.posteriors import Gaussian

SIZE, LATENT = 5, 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module in double precision, every parameter random, so that none can hide behind its start at zero."""
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def binary(count: int, size: int = SIZE) -> torch.Tensor:
    return torch.randint(0, 2, (count, 1, size, size)).double()


@pytest.fixture
def decoder() -> PixelDecoder:
    return shaken(PixelDecoder(SIZE, LATENT, channels=4, layers=3, kernel=3, z_layers=2))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return binary(6), torch.randn(6, LATENT, dtype=torch.float64)


@pytest.fixture
def smooth(decoder, monkeypatch) -> PixelDecoder:
    """The decoder with a softplus for its ReLU, so that no path from pixel to pixel is switched off by chance."""
    monkeypatch.setattr(pixel_vae.F, "relu", torch.nn.functional.softplus)
    return decoder


# Masks


def seen(layer: MaskedConv2d, size: int) -> torch.Tensor:
    """Return (size*size, size*size) booleans: does the output at a row's pixel depend on the input at a column's?"""
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    return torch.autograd.functional.jacobian(layer, x).view(size**2, size**2) != 0


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_masked_convolution_sees_the_part_of_its_window_that_comes_before(kind, kernel):
    def sees(out: tuple[int, int], into: tuple[int, int]) -> bool:
        inside = all(abs(a - b) <= kernel // 2 for a, b in zip(out, into))
        return inside and (into < out or (kind == "B" and into == out))

    pixels = list(itertools.product(range(4), repeat=2))  # (row, column) in raster order, which is how pairs compare
    expected = torch.tensor([[sees(out, into) for into in pixels] for out in pixels])
    assert torch.equal(seen(shaken(MaskedConv2d(1, 1, kernel, kind)), 4), expected)


def test_a_masked_convolution_is_the_plain_one_with_zeros_in_its_window():
    layer = shaken(MaskedConv2d(2, 3, 3, "B"))
    full = torch.zeros(3, 2, 3, 3, dtype=torch.float64)
    full[:, :, 0] = layer.weight[:, :, 0]
    full[:, :, 1, :2] = layer.weight[:, :, 1, :2]
    h = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(h), torch.nn.functional.conv2d(h, full, layer.bias, padding=1))


def test_kind_a_differs_from_b_by_the_centre_alone():
    a, b = MaskedConv2d(1, 1, 5, "A").mask, MaskedConv2d(1, 1, 5, "B").mask
    assert (b - a).tolist() == [[0] * 5, [0] * 5, [0, 0, 1, 0, 0]]


def test_masked_weights_are_kept_as_they_are_and_get_no_gradient():
    layer = shaken(MaskedConv2d(1, 2, 3, "A"))
    before = layer.weight.detach().clone()
    layer(binary(2)).square().sum().backward()
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight.grad != 0, (layer.mask != 0).expand_as(before))


def test_the_mask_moves_with_its_layer_and_is_copied_with_it():
    layer = MaskedConv2d(1, 1, 3, "A").double()
    assert layer.mask.dtype == torch.float64
    assert dict(layer.named_buffers()).keys() == {"mask"}
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.mask, layer.mask) and twin.mask is not layer.mask
    assert layer.to("meta").mask.is_meta


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_a_window_without_a_centre_is_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel is {kernel}; it must be odd"):
        MaskedConv2d(1, 1, kernel, "A")


def test_a_third_kind_of_mask_is_refused():
    with pytest.raises(ValueError, match="kind is 'C'"):
        MaskedConv2d(1, 1, 3, "C")


# Causality


def test_every_pixel_sees_all_pixels_before_it_and_no_other(smooth, batch):
    x, z = batch[0][:1], batch[1][:1]
    shifts = smooth._shifts(z)  # not `logits`, which takes nothing but zeros and ones
    jacobian = torch.autograd.functional.jacobian(lambda image: smooth._stack(image, shifts), x)
    influence = jacobian.view(SIZE**2, SIZE**2) != 0
    assert torch.equal(influence, torch.ones_like(influence).tril(-1))


def test_turning_a_pixel_leaves_itself_and_all_before_it(decoder, batch):
    x, z = batch
    before = decoder.logits(x, z).flatten(1)
    for i in range(SIZE**2):
        turned = x.flatten(1).clone()
        turned[:, i] = 1 - turned[:, i]
        after = decoder.logits(turned.view_as(x), z).flatten(1)
        assert torch.equal(after[:, : i + 1], before[:, : i + 1])
        assert i == SIZE**2 - 1 or not torch.equal(after, before)


@pytest.mark.parametrize("z_layers", [1, 2, 3])
def test_every_logit_hears_of_every_coordinate_of_z(batch, z_layers, monkeypatch):
    monkeypatch.setattr(pixel_vae.F, "relu", torch.nn.functional.softplus)
    decoder = shaken(PixelDecoder(SIZE, LATENT, channels=4, layers=3, kernel=3, z_layers=z_layers))
    x, z = batch[0][:1], batch[1][:1]
    jacobian = torch.autograd.functional.jacobian(lambda code: decoder.logits(x, code), z)
    assert (jacobian.view(SIZE**2, LATENT) != 0).all()
    assert decoder.code.weight.shape == (4 * z_layers, LATENT)


def test_the_first_pixel_depends_on_z_alone(decoder, batch):
    x, z = batch
    first = decoder.logits(x, z[:1].expand_as(z))[:, 0, 0, 0]
    torch.testing.assert_close(first, first[:1].expand(6))
    assert decoder.logits(x, z)[:, 0, 0, 0].unique().numel() == 6


# Probabilities


def test_the_probabilities_of_all_images_sum_to_one():
    decoder = shaken(PixelDecoder(3, LATENT, channels=4, layers=2, kernel=3))
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64).view(512, 1, 3, 3)
    for z in torch.randn(3, 1, LATENT, dtype=torch.float64):
        log_p = -decoder(images, z.expand(512, LATENT))
        torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
        assert log_p.exp().max() < 0.9  # not one image alone


def test_the_cost_is_the_bernoullis(decoder, batch):
    x, z = batch
    expected = -Bernoulli(logits=decoder.logits(x, z)).log_prob(x).sum((1, 2, 3))
    cost = decoder(x, z)
    assert cost.shape == (6,)
    torch.testing.assert_close(cost, expected)


def test_the_stack_is_what_its_formula_says(batch):
    decoder = shaken(PixelDecoder(SIZE, LATENT, channels=4, layers=3, kernel=3, z_layers=2))
    (x, z), (first, second, third) = batch, decoder.layers
    u1, u2 = (z @ decoder.code.weight.T).view(6, 2, 4, 1, 1).unbind(1)
    h = (first(x) + decoder.place + u1).relu()
    h = h + (second(h) + u2).relu()
    h = h + third(h).relu()
    torch.testing.assert_close(decoder.logits(x, z), decoder.head(h))


def test_samples_come_as_often_as_the_model_says():
    decoder = shaken(PixelDecoder(2, LATENT, channels=3, layers=2, kernel=3))
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64).view(16, 1, 2, 2)
    for z in 2 * torch.randn(2, 1, LATENT, dtype=torch.float64):
        count = 20_000
        expected = count * (-decoder(images, z.expand(16, LATENT))).exp().detach()
        drawn = decoder.sample(z.expand(count, LATENT), seeded(0))
        assert drawn.shape == (count, 1, 2, 2) and drawn.dtype == torch.float64
        numbers = (drawn.flatten(1) @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long()
        often = expected > 5
        chi_square = ((numbers.bincount(minlength=16) - expected)[often].square() / expected[often]).sum()
        assert often.sum() >= 5
        assert chi_square < 37.7  # the 99.9th percentile for 15 degrees of freedom


def test_each_sample_goes_by_its_own_code(decoder):
    with torch.no_grad():
        decoder.code.weight.zero_()
        decoder.head.weight.fill_(1)
        decoder.code.weight[:4, 0] = 100
        decoder.head.bias.fill_(-50)
    z = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64).repeat(3, 1)
    x = decoder.sample(z, seeded(0))
    assert (x[::2] == 1).all() and (x[1::2] == 0).all()


def test_a_generator_repeats_its_draw_and_none_takes_the_default(decoder):
    z = torch.zeros(8, LATENT, dtype=torch.float64)
    assert torch.equal(decoder.sample(z, seeded(1)), decoder.sample(z, seeded(1)))
    assert not torch.equal(decoder.sample(z, seeded(1)), decoder.sample(z, seeded(2)))
    torch.manual_seed(3)
    default = decoder.sample(z)
    torch.manual_seed(3)
    assert torch.equal(default, decoder.sample(z))
    assert not default.requires_grad


# Gradients and copies


def test_gradients_are_right(smooth):
    x = binary(2)
    z = torch.randn(2, LATENT, dtype=torch.float64, requires_grad=True)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in smooth.named_parameters()))

    def cost(z, *values):
        return torch.func.functional_call(smooth, dict(zip(names, values)), (x, z))

    assert torch.autograd.gradcheck(cost, (z, *values), fast_mode=True)


def test_a_state_dict_restores_the_decoder(decoder, batch):
    twin = PixelDecoder(SIZE, LATENT, channels=4, layers=3, kernel=3, z_layers=2).double()
    assert not torch.equal(twin(*batch), decoder(*batch))
    twin.load_state_dict(decoder.state_dict())
    assert torch.equal(twin(*batch), decoder(*batch))


def test_a_copy_is_its_own(decoder, batch):
    before = decoder(*batch)
    twin = copy.deepcopy(decoder)
    assert torch.equal(twin(*batch), before)
    with torch.no_grad():
        twin.place.add_(1)
    assert torch.equal(decoder(*batch), before) and not torch.equal(twin(*batch), before)


# Encoder and VAE


def test_the_encoder_gives_a_pair_for_every_image_by_itself():
    encoder = shaken(PixelEncoder(SIZE, LATENT, hidden=(7,)))
    x = binary(6)
    mu, spread = encoder(x)
    assert mu.shape == spread.shape == (6, LATENT)
    torch.testing.assert_close(torch.cat([mu, spread], 1), encoder.net(x.view(6, SIZE**2)))
    torch.testing.assert_close(encoder(x[2:3])[0], mu[2:3])


def test_a_pixel_vae_is_put_together_from_its_parts():
    vae = pixel_vae.pixel_vae(SIZE, LATENT, hidden=(7,), channels=4, layers=3, kernel=3, z_layers=2).double()
    assert isinstance(vae, VAE) and isinstance(vae.encoder, PixelEncoder) and isinstance(vae.decoder, PixelDecoder)
    assert vae.encoder.net[0].out_features == 7
    assert [layer.weight.shape for layer in vae.decoder.layers] == [(4, 1, 5, 9), (4, 4, 2, 3), (4, 4, 2, 3)]
    assert [layer.mask[-1].sum() for layer in vae.decoder.layers] == [4, 2, 2]  # A, then B
    x = binary(6)
    bound = vae(x, seeded(0))
    assert bound.nll.shape == (6,) and bound.kl.shape == (6, LATENT)
    bound.elbo.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_a_pixel_vae_takes_another_posterior():
    class Fixed(torch.nn.Module):
        def forward(self, mu, spread):
            return Gaussian(mu * 0 + 3, spread * 0)

    vae = pixel_vae.pixel_vae(SIZE, LATENT, posterior=Fixed(), channels=4, layers=1)
    torch.testing.assert_close(vae(binary(2).float()).kl, torch.full((2, LATENT), 4.5))  # 3^2 / 2


def test_training_learns_what_pixels_say_of_each_other():
    x = torch.zeros(2, 1, SIZE, SIZE)
    x[1] = 1  # all black or all white: one bit, and no code needed
    decoder = PixelDecoder(SIZE, LATENT, channels=4, layers=2, kernel=3)
    z = torch.zeros(2, LATENT)
    adam = torch.optim.Adam(decoder.parameters(), 0.05)
    for _ in range(80):
        adam.zero_grad()
        decoder(x, z).mean().backward()
        adam.step()
    cost = decoder(x, z).mean().item()
    assert 0.69 < cost < 0.8  # log 2 for the first pixel, hardly anything for the others


# Bad input


@pytest.mark.parametrize("bad", [0.5, 2.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["encoder", "cost", "logits"])
def test_a_pixel_that_is_neither_zero_nor_one_is_refused(decoder, batch, part, bad):
    x, z = batch
    x[3, 0, 2, 1] = bad
    calls = {
        "encoder": lambda: PixelEncoder(SIZE, LATENT).double()(x),
        "cost": lambda: decoder(x, z),
        "logits": lambda: decoder.logits(x, z),
    }
    with pytest.raises(ValueError, match=f"x holds {bad:g}; every pixel must be 0 or 1"):
        calls[part]()


@pytest.mark.parametrize("shape", [(6, 1, 4, 5), (6, 1, 6, 6), (6, 2, 5, 5), (6, 5, 5), (6, 25)])
def test_images_of_another_shape_are_refused(decoder, batch, shape):
    x = torch.zeros(shape, dtype=torch.float64)
    for call in (lambda: PixelEncoder(SIZE, LATENT).double()(x), lambda: decoder(x, batch[1])):
        with pytest.raises(ValueError, match=r"x has shape .*; it must be \(N, 1, 5, 5\)"):
            call()


@pytest.mark.parametrize("shape", [(6, 3), (6, 1), (5, 2), (6,), (6, 2, 1)])
def test_codes_of_another_shape_are_refused(decoder, batch, shape):
    with pytest.raises(ValueError, match=r"z has shape .*; it must be \(6, 2\)"):
        decoder(batch[0], torch.zeros(shape, dtype=torch.float64))


def test_sampling_refuses_codes_of_another_width(decoder):
    with pytest.raises(ValueError, match=r"z has shape \(6, 3\); it must be \(6, 2\)"):
        decoder.sample(torch.zeros(6, 3, dtype=torch.float64))


def test_a_decoder_without_layers_is_refused():
    with pytest.raises(ValueError, match="layers is 0"):
        PixelDecoder(SIZE, LATENT, layers=0)


@pytest.mark.parametrize("z_layers", [0, 4])
def test_z_goes_to_one_layer_at_least_and_to_no_more_than_there_are(z_layers):
    with pytest.raises(ValueError, match=f"z_layers is {z_layers}; it must be from 1 to layers, which is 3"):
        pixel_vae.pixel_vae(SIZE, LATENT, layers=3, z_layers=z_layers)
