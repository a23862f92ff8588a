"""The CVAE: its terms, its bound, its samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from vaelab.models.cvae import CVAE, CVAETerms, binarise, cvae_terms
from vaelab.networks import one_hot


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def parts() -> tuple[torch.Tensor, ...]:
    """mu, logvar, logits and binary images of a batch of 4."""
    mu, logvar = torch.randn(2, 4, 3, dtype=torch.float64)
    logits = 3 * torch.randn(4, 1, 5, 5, dtype=torch.float64)
    return mu, logvar, logits, binarise(torch.rand(4, 1, 5, 5, dtype=torch.float64))


@pytest.fixture
def model() -> CVAE:
    return CVAE(size=4, num_classes=3, latent_dim=2, hidden=(8, 6))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return binarise(torch.rand(6, 1, 4, 4)), torch.tensor([0, 1, 2, 0, 1, 2])


# Terms


def test_the_terms_are_those_of_the_distributions(parts):
    mu, logvar, logits, x = parts
    nll, kl, elbo = cvae_terms(*parts)
    log_likelihood = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))  # (4,) nats per image
    divergence = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), 1.0)).sum(1)
    torch.testing.assert_close(nll, -log_likelihood.mean())
    torch.testing.assert_close(kl, divergence.mean())
    torch.testing.assert_close(elbo, (log_likelihood - divergence).mean())


def test_the_loss_is_the_bound_turned_round(parts):
    terms = cvae_terms(*parts)
    assert isinstance(terms, CVAETerms) and terms._fields == ("nll", "kl", "elbo")
    assert terms.loss == -terms.elbo == terms.nll + terms.kl


def test_a_batch_counts_by_its_mean_so_a_doubled_one_gives_the_same(parts):
    doubled = cvae_terms(*(torch.cat([part, part]) for part in parts))
    torch.testing.assert_close(tuple(doubled), tuple(cvae_terms(*parts)))


def test_pixels_and_coordinates_count_by_their_sum(parts):
    mu, logvar, logits, x = parts
    twice = cvae_terms(mu.repeat(1, 2), logvar.repeat(1, 2), logits.repeat(1, 1, 2, 1), x.repeat(1, 1, 2, 1))
    torch.testing.assert_close(twice.nll, 2 * cvae_terms(*parts).nll)
    torch.testing.assert_close(twice.kl, 2 * cvae_terms(*parts).kl)


def test_a_certain_and_right_decoder_at_the_prior_costs_nothing():
    x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    terms = cvae_terms(torch.zeros(1, 2), torch.zeros(1, 2), 200 * x - 100, x)
    assert terms.nll < 1e-30 and terms.kl == 0


def test_the_gradients_of_the_loss_are_those_of_finite_differences(parts):
    *free, x = parts
    arguments = [part.requires_grad_() for part in free]
    assert torch.autograd.gradcheck(lambda *a: cvae_terms(*a, x).loss, arguments)


def test_the_gradients_of_the_whole_model_are_those_of_finite_differences():
    model = CVAE(size=2, num_classes=2, latent_dim=1, hidden=(3,)).double()
    names, weights = zip(*model.named_parameters())
    x, y = binarise(torch.rand(3, 1, 2, 2, dtype=torch.float64)), torch.tensor([0, 1, 0])

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values)), (x, y, seeded(0))).loss

    assert torch.autograd.gradcheck(loss, weights)


# The bound


def integral(values: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Integrate (N, K) values over (K,) codes; the trapezoid is exact enough on a smooth decaying function."""
    return torch.trapezoid(values, z, dim=1)


def test_the_elbo_is_a_lower_bound_and_its_gap_the_kl_to_the_true_posterior():
    torch.manual_seed(0)
    model = CVAE(size=2, num_classes=2, latent_dim=1, hidden=(8,)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)  # far from the prior, so that the gap is wide
        x = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64).view(3, 1, 2, 2)
        y = torch.tensor([0, 1, 1])
        hot = one_hot(y, 2).double()
        z = torch.linspace(-15, 15, 6001, dtype=torch.float64)  # (K,)
        codes, labels = z.repeat(3).unsqueeze(1), hot.repeat_interleave(len(z), dim=0)  # (3K, 1), (3K, 2)
        logits = model.decoder(codes, labels)  # (3K, 1, 2, 2)
        images = x.repeat_interleave(len(z), dim=0)
        log_likelihood = Bernoulli(logits=logits).log_prob(images).sum((1, 2, 3)).view(3, -1)  # (3, K)
        log_joint = log_likelihood + Normal(0.0, 1.0).log_prob(z)
        evidence = integral(log_joint.exp(), z).log()  # (3,) log p(x|y)
        mu, logvar = model.encoder(x, hot)
        log_q = Normal(mu, (0.5 * logvar).exp()).log_prob(z)  # (3, K)
        gap = integral(log_q.exp() * (log_q - log_joint + evidence.unsqueeze(1)), z)  # KL(q || p(z|x,y))
        reconstruction = -integral(log_q.exp() * log_likelihood, z)  # E_q[-log p(x|z,y)]
        # the model's own terms: its KL as it is, its nll as a mean over many draws
        draws = 20_000
        for i in range(3):
            terms = model(x[i : i + 1].expand(draws, -1, -1, -1), y[i : i + 1].expand(draws), seeded(i))
            noise = integral(log_q.exp() * (log_likelihood + reconstruction.unsqueeze(1)) ** 2, z)[i].sqrt()
            assert abs(terms.nll - reconstruction[i]) < 5 * noise / math.sqrt(draws)
            elbo = -(reconstruction[i] + terms.kl)
            assert elbo < evidence[i] - 1e-3
            torch.testing.assert_close(evidence[i] - elbo, gap[i], rtol=1e-7, atol=1e-9)


# The model


def test_the_model_puts_encoder_draw_and_decoder_together(model, batch):
    x, y = batch
    mu, logvar, logits = model.infer(x, y, seeded(0))
    assert mu.shape == logvar.shape == (6, 2) and logits.shape == (6, 1, 4, 4)
    torch.testing.assert_close(tuple(model(x, y, seeded(0))), tuple(cvae_terms(mu, logvar, logits, x)))
    z = mu + (0.5 * logvar).exp() * torch.empty_like(mu).normal_(generator=seeded(0))
    torch.testing.assert_close(logits, model.decoder(z, one_hot(y, 3)))


def test_the_decoder_widens_as_the_encoder_narrows(model):
    def widths(net):
        return [layer.out_features for layer in net if hasattr(layer, "out_features")]

    assert widths(model.encoder.net) == [8, 6, 4] and widths(model.decoder.net) == [6, 8, 16]


def test_every_parameter_gets_a_gradient(model, batch):
    model(*batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_training_raises_the_bound(model, batch):
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    elbos = []
    for _ in range(150):
        terms = model(*batch)
        optimiser.zero_grad()
        terms.loss.backward()
        optimiser.step()
        elbos.append(terms.elbo.item())
    assert np.mean(elbos[-10:]) > np.mean(elbos[:10]) + 3


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_label_outside_its_range_is_refused(model, batch, bad):
    x, y = batch
    y = y.clone().fill_(bad)
    for call in (lambda: model(x, y), lambda: model.infer(x, y), lambda: model.sample(y)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 3\)"):
            call()


def test_samples_are_pixel_means_one_image_for_each_label(model):
    images = model.sample(torch.tensor([0, 1, 2, 2, 2]))
    assert images.shape == (5, 1, 4, 4) and not images.requires_grad
    assert 0 < images.min() and images.max() < 1


def test_samples_are_reproducible_by_their_generator_and_differ_by_label_and_code(model):
    labels = torch.tensor([0, 1, 1])
    before = torch.get_rng_state()
    first = model.sample(labels, seeded(0))
    assert first.equal(model.sample(labels, seeded(0))) and not first.equal(model.sample(labels, seeded(1)))
    assert not first.allclose(model.sample(torch.tensor([1, 0, 0]), seeded(0)))
    assert not first[1].allclose(first[2])
    assert torch.get_rng_state().equal(before)


def test_samples_are_decoded_draws_of_the_prior(model):
    labels = torch.full((20_000,), 1)
    z = torch.randn(20_000, 2, generator=seeded(1))
    with torch.no_grad():
        expected = model.decoder(z, one_hot(labels, 3)).sigmoid()
    images = model.sample(labels, seeded(0))
    assert ((images.mean(0) - expected.mean(0)).abs() < 8 * expected.std(0) / math.sqrt(20_000)).all()
    torch.testing.assert_close(images.std(0), expected.std(0), rtol=0.05, atol=1e-4)


def test_a_model_in_double_precision_also_samples(model):
    assert model.double().sample(torch.tensor([0, 1])).dtype == torch.float64


# Binarisation


def test_binary_images_have_the_grey_as_their_mean():
    grey = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    drawn = binarise(grey.expand(40_000, 5), seeded(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and drawn.dtype == grey.dtype
    assert (drawn.mean(0)[[0, 4]] == grey[[0, 4]]).all()  # black stays black, white stays white
    assert ((drawn.mean(0) - grey).abs() <= 5 * (grey * (1 - grey) / 40_000).sqrt()).all()


def test_binary_images_are_drawn_afresh_from_the_generator_given():
    grey, generator = torch.full((1, 1, 8, 8), 0.5), seeded(0)
    before = torch.get_rng_state()
    first, second = binarise(grey, generator), binarise(grey, generator)
    assert not first.equal(second) and first.equal(binarise(grey, seeded(0)))
    assert torch.get_rng_state().equal(before)
