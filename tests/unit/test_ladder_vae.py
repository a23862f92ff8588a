"""The ladder VAE: its groups from coarse to fine, its terms, its bound, its samples."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from vaelab.divergences import balance_kl
from vaelab.models import ladder_vae
from vaelab.models.cvae import binarise
from vaelab.models.ladder_vae import Group, LadderTerms, LadderVAE


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stirred(model: LadderVAE, scale: float = 0.3, seed: int = 0) -> LadderVAE:
    """Move every weight, so that priors differ from standard normal ones and all groups matter."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.empty_like(weight).normal_(generator=generator))
    return model


def tiny(size: int = 8, groups: tuple[int, ...] = (2, 1), base: int = 2, width: int = 4, latent: int = 2) -> LadderVAE:
    return stirred(LadderVAE(size=size, groups=groups, base=base, width=width, latent=latent)).double()


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return binarise(torch.rand(count, 1, size, size, dtype=torch.float64, generator=seeded(seed)), seeded(seed))


def stripes(count: int, size: int = 8) -> Tensor:
    """(count, 1, size, size) two kinds of images: stripes lying and stripes standing, in single precision."""
    row = (torch.arange(size) % 4 < 2).float().expand(size, size)
    return torch.stack([row if i % 2 else row.T for i in range(count)]).unsqueeze(1)


def pixel_nll(logits: Tensor, x: Tensor) -> Tensor:
    return -Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))


def normals(group: Group) -> tuple[Normal, Normal]:
    """Return posterior and prior: the posterior adds to the prior's mean and multiplies its sigma."""
    prior_sigma, change = (0.5 * group.logvar).exp(), (0.5 * group.dlogvar).exp()
    return Normal(group.m + group.dm, prior_sigma * change), Normal(group.m, prior_sigma)


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.fixture
def model() -> LadderVAE:
    return tiny()


# The groups


@pytest.mark.parametrize(
    "groups, sides",
    [((2, 4), (4, 4, 8, 8, 8, 8)), ((1,), (4,)), ((2, 2, 1), (4, 4, 8, 8, 16))],
)
def test_groups_run_from_coarse_to_fine_and_everything_has_its_shape(groups, sides):
    model = LadderVAE(groups=groups, width=4, latent=3)
    assert model.sides == sides
    assert model.sizes.tolist() == [side * side for side in sides] and model.sizes.dtype == torch.float32
    x = binarise(torch.rand(2, 1, 28, 28))
    terms = model(x, seeded(0))
    assert isinstance(terms, LadderTerms) and terms._fields == ("nll", "kl")
    assert terms.nll.shape == (2,) and terms.kl.shape == (2, len(sides)) and terms.elbo.shape == (2,)
    logits, drawn = model.infer(x, seeded(0))
    assert logits.shape == (2, 1, 28, 28) and logits.is_contiguous()
    assert len(drawn) == len(sides)
    for group, side in zip(drawn, sides):
        assert isinstance(group, Group)
        assert {part.shape for part in (*group, group.kl, group.log_ratio)} == {(2, 3, side, side)}
    assert model.sample(5, seeded(0)).shape == (5, 1, 28, 28)
    assert model.log_weights(x, seeded(0)).shape == (2,)


@pytest.mark.parametrize("size, base", [(28, 4), (32, 4), (5, 2), (7, 1), (9, 3), (3, 2)])
def test_images_of_any_size_are_padded_and_cut_back(size, base):
    model, x = tiny(size=size, groups=(1,), base=base), images(3, size)
    logits, _ = model.infer(x, seeded(0))
    assert logits.shape == x.shape == model.sample(3).shape
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, seeded(0)).kl.sum(), x)
    assert (gradient != 0).any(0).all()  # the posterior sees every pixel


def reach(gradient: Tensor) -> list[int]:
    """First and last row, first and last column of a map (1, C, side, side) in which a gradient is not zero."""
    seen = (gradient != 0).any(1)[0]
    return [int(i) for along in (1, 0) for i in seen.any(along).nonzero()[[0, -1], 0]]


@pytest.mark.parametrize("size", [19, 20])
def test_the_image_lies_in_the_middle_of_the_padded_one_on_the_way_in_and_out(size):
    model = tiny(size=size, groups=(1,), base=16)  # the group's map has 16 x 16 positions for 32 x 32 pixels
    x, begin = images(1, size).requires_grad_(), (32 - size) // 2
    logits, (group,) = model.infer(x, seeded(0))
    for row, column in ((0, 0), (0, size - 1), (size - 1, 0), (size // 2, size // 2)):
        (painted_from,) = torch.autograd.grad(logits[0, 0, row, column], group.z, retain_graph=True)
        first, last, left, right = reach(painted_from)
        assert abs((first + last) - (row + begin)) <= 3 and abs((left + right) - (column + begin)) <= 3
        assert last - first < 10 and right - left < 10  # a position paints its surroundings
    (seen,) = torch.autograd.grad(group.dm[0, :, 8, 7].sum(), x)
    first, last, left, right = reach(seen)
    assert abs((first + last) / 2 + begin - 16) <= 2 and abs((left + right) / 2 + begin - 14) <= 2


def test_coarse_groups_see_the_whole_image_and_fine_ones_their_surroundings(monkeypatch):
    monkeypatch.setattr(ladder_vae, "reparametrise", lambda mu, *_: torch.zeros_like(mu))  # nothing is passed down
    model = tiny(size=32, groups=(1, 1, 1, 1))
    x = images(1, 32).requires_grad_()
    _, drawn = model.infer(x)
    spans = []
    for group in drawn:
        side = group.m.shape[-1]
        (gradient,) = torch.autograd.grad(group.dm[..., side // 2, side // 2].sum(), x, retain_graph=True)
        first, last, *_ = reach(gradient)
        spans.append(last - first + 1)
    assert spans == sorted(spans, reverse=True) and spans[0] == 32 and spans[-1] < 16 < spans[1]


@pytest.mark.parametrize("groups, base", [((), 4), ((0,), 4), ((2, 0, 1), 4), ((2, -1), 4), ((1, 1, 1, 1), 4),
                                          ((1,), 32), ((1, 1), 16), ((1,), 28), ((2,), 0), ((2,), -4)])  # fmt: skip
def test_layouts_that_name_no_groups_or_outgrow_the_image_are_refused(groups, base):
    with pytest.raises(ValueError, match="groups are .* from side"):
        LadderVAE(groups=groups, base=base, width=2)


def test_a_new_models_priors_are_standard_normal():
    _, drawn = LadderVAE(groups=(1, 2), width=4).infer(binarise(torch.rand(2, 1, 28, 28)))
    assert all((group.m == 0).all() and (group.logvar == 0).all() for group in drawn)
    assert all((group.kl.sum((1, 2, 3)) > 0).all() for group in drawn)


def test_a_new_models_groups_each_see_the_image_and_reach_the_decoder():
    model = LadderVAE(size=8, groups=(1, 2), base=2, width=4).double()
    x = images(2).requires_grad_()
    logits, drawn = model.infer(x, seeded(0))
    for group in drawn:
        assert (torch.autograd.grad(group.dm.sum(), x, retain_graph=True)[0] != 0).any()
        assert (torch.autograd.grad(logits.sum(), group.z, retain_graph=True)[0] != 0).any()


def test_every_group_draws_from_its_own_posterior_with_the_generators_noise(model):
    x = images(3)
    _, drawn = model.infer(x, seeded(0))
    generator = seeded(0)
    for group in drawn:
        q, _ = normals(group)
        noise = torch.empty_like(group.m).normal_(generator=generator)
        torch.testing.assert_close(group.z, q.mean + q.stddev * noise)


def test_a_group_depends_on_those_above_and_not_on_those_below(model):
    _, drawn = model.infer(images(2), seeded(0))
    for i, below in enumerate(drawn):
        for j, above in enumerate(drawn):
            for part in (below.m, below.logvar, below.dm, below.dlogvar):
                gradient = torch.autograd.grad(part.sum(), above.z, retain_graph=True, allow_unused=True)[0]
                assert (gradient is not None and (gradient != 0).any()) == (j < i)


def test_moments_stay_within_bounds_whatever_the_weights(model):
    _, drawn = stirred(model, 100.0).infer(images(2), seeded(0))
    for group in drawn:
        assert max(group.m.abs().max(), group.dm.abs().max()) <= 5
        assert max(group.logvar.abs().max(), group.dlogvar.abs().max()) <= 10
    assert all(part.isfinite().all() for part in model(images(2), seeded(0)))


def test_images_of_a_batch_do_not_see_each_other(model):
    x = images(3).requires_grad_()
    terms = model(x, seeded(0))
    (gradient,) = torch.autograd.grad(terms.elbo[1], x)
    assert (gradient[1] != 0).any() and (gradient[[0, 2]] == 0).all()


# Who sees the image


def test_told_none_all_groups_see_the_image_and_that_is_the_rule(model):
    x = images(2)
    for told in (None, 3, 99):
        logits, drawn = model.infer(x, seeded(0), told=told)
        assert logits.equal(model.infer(x, seeded(0))[0])
        assert all((group.kl > 0).any() for group in drawn)


def test_told_nothing_the_groups_follow_the_prior_and_the_image_does_not_matter(model):
    (logits, drawn), (other, _) = (model.infer(images(4, seed=s), seeded(1), told=0) for s in (0, 1))
    assert logits.equal(other) and not logits.equal(model.infer(images(4), seeded(1))[0])
    torch.testing.assert_close(logits.sigmoid(), model.sample(4, seeded(1)))
    for group in drawn:
        assert (group.dm == 0).all() and (group.dlogvar == 0).all()
        assert (group.kl == 0).all() and (group.log_ratio == 0).all()


@pytest.mark.parametrize("told", [0, 1, 2])
def test_only_the_groups_told_see_the_image(model, told):
    x = images(2)
    _, drawn = model.infer(x, seeded(0), told=told)
    _, more = model.infer(x, seeded(0), told=told + 1)
    for i in range(told):  # those told draw the same, whatever those below do
        assert drawn[i].z.equal(more[i].z) and (drawn[i].kl > 0).any()
    assert drawn[told].m.equal(more[told].m) and drawn[told].logvar.equal(more[told].logvar)  # the prior does not look
    assert differ(drawn[told].z, more[told].z)
    generator = seeded(0)
    for i, group in enumerate(drawn):
        noise = torch.empty_like(group.m).normal_(generator=generator)
        if i >= told:  # those not told draw from the prior, given what those above have drawn
            assert (group.dm == 0).all() and (group.kl == 0).all() and (group.log_ratio == 0).all()
            torch.testing.assert_close(group.z, group.m + (0.5 * group.logvar).exp() * noise)


# The terms


def some_group(seed: int = 0) -> Group:
    generator = seeded(seed)
    z, m, logvar, dm, dlogvar = torch.randn(5, 3, 2, 4, 4, dtype=torch.float64, generator=generator)
    return Group(z, m, 2 * logvar, dm, dlogvar)


def test_the_kl_of_a_group_is_that_of_its_two_normals():
    torch.testing.assert_close(some_group().kl, kl_divergence(*normals(some_group())))


def test_the_log_ratio_of_a_group_is_that_of_its_two_normals():
    q, p = normals(some_group())
    z = some_group().z
    torch.testing.assert_close(some_group().log_ratio, q.log_prob(z) - p.log_prob(z))


def test_the_kl_is_the_mean_log_ratio_of_draws():
    group, draws = some_group(), 20_000
    q, _ = normals(group)
    torch.manual_seed(0)
    ratios = group._replace(z=q.sample((draws,))).log_ratio.sum((2, 3, 4))  # (draws, 3)
    error = ratios.std(0) / math.sqrt(draws)
    assert ((ratios.mean(0) - group.kl.sum((1, 2, 3))).abs() < 4 * error).all()


def test_a_posterior_that_changes_nothing_costs_nothing():
    group = some_group()
    group = group._replace(dm=torch.zeros_like(group.m), dlogvar=torch.zeros_like(group.m))
    assert (group.kl == 0).all() and (group.log_ratio == 0).all()


def test_the_terms_are_those_of_the_distributions(model):
    x = images(4)
    terms = model(x, seeded(0))
    logits, drawn = model.infer(x, seeded(0))
    torch.testing.assert_close(terms.nll, pixel_nll(logits, x))
    for i, group in enumerate(drawn):
        torch.testing.assert_close(terms.kl[:, i], kl_divergence(*normals(group)).sum((1, 2, 3)))
    torch.testing.assert_close(terms.elbo, -terms.nll - sum(terms.kl[:, i] for i in range(3)))
    assert terms.elbo.equal(-(terms.nll + terms.kl.sum(1)))


# The bound


def test_weights_are_joint_over_posterior_of_one_draw(model):
    x = images(3)
    logits, drawn = model.infer(x, seeded(0))
    expected = -pixel_nll(logits, x)
    for group in drawn:
        q, p = normals(group)
        expected = expected + (p.log_prob(group.z) - q.log_prob(group.z)).sum((1, 2, 3))
    weights = model.log_weights(x, seeded(0))
    torch.testing.assert_close(weights, expected.detach())
    assert not weights.requires_grad


def test_the_mean_log_weight_is_the_bound_and_the_log_mean_weight_no_less(model):
    draws = 4000
    x = images(1).expand(draws, -1, -1, -1)
    with torch.no_grad():
        log_weights, elbos = model.log_weights(x, seeded(0)), model(x, seeded(1)).elbo
    error = (log_weights.var() / draws + elbos.var() / draws).sqrt()
    assert abs(log_weights.mean() - elbos.mean()) < 4 * error
    log_mean = log_weights.logsumexp(0) - math.log(draws)
    assert log_mean > log_weights.mean() + 10 * error  # Jensen's gap: this posterior is far from the true one


def every_image() -> Tensor:
    """(16, 1, 2, 2) all binary images of four pixels."""
    return torch.tensor([[n >> bit & 1 for bit in range(4)] for n in range(16)]).view(16, 1, 2, 2).double()


@pytest.fixture(scope="module", params=[1, 2], ids=["one group", "two groups"])
def fitted(request) -> LadderVAE:
    """A model of four pixels, fitted for a moment: weights of a poor posterior would have no variance to speak of."""
    torch.manual_seed(0)
    model = stirred(LadderVAE(size=2, groups=(request.param,), base=1, width=3, latent=1).double(), 0.1)
    x = torch.cat([every_image(), every_image()[[0, 3, 12, 15]].repeat(12, 1, 1, 1)])  # rows alike, mostly
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(150):
        optimiser.zero_grad()
        (-model(x, seeded(step)).elbo.mean()).backward()
        optimiser.step()
    return model


def test_weights_are_unbiased_so_all_images_together_have_probability_one(fitted):
    draws = 4000
    x = every_image().repeat_interleave(draws, 0)
    with torch.no_grad():
        weights = fitted.log_weights(x, seeded(0)).exp().view(16, draws)
        by_prior = (-pixel_nll(fitted.infer(x, seeded(1), told=0)[0], x)).exp().view(16, draws)
        terms = fitted(x, seeded(2))
    assert terms.kl.sum(1).mean() > 0.2  # or the lines below would hold without a posterior
    error = weights.std(1) / math.sqrt(draws)
    assert error.square().sum().sqrt() < 0.02
    assert abs(weights.mean(1).sum() - 1) < 4 * error.square().sum().sqrt()
    both = (error.square() + by_prior.var(1) / draws).sqrt()
    assert ((weights.mean(1) - by_prior.mean(1)).abs() < 4 * both).all()
    elbos = terms.elbo.view(16, draws).mean(1)
    assert elbos.exp().sum() < 1 and (elbos < weights.mean(1).log()).all()  # lower bounds on log p(x)


def test_draws_are_reproducible_by_their_generator_and_leave_the_default_one_alone(model):
    x = images(3)
    before = torch.get_rng_state()
    for draw in (lambda g: model(x, g).elbo, lambda g: model.infer(x, g)[0], lambda g: model.log_weights(x, g),
                 lambda g: model.sample(3, g)):  # fmt: skip
        first = draw(seeded(0))
        assert first.equal(draw(seeded(0))) and not first.equal(draw(seeded(1)))
    assert torch.get_rng_state().equal(before)
    assert not model(x).elbo.equal(model(x).elbo)  # without one, the default one moves on


# Samples


def test_samples_are_pixel_means(model):
    drawn = model.sample(6, seeded(0))
    assert drawn.shape == (6, 1, 8, 8) and drawn.dtype == torch.float64 and not drawn.requires_grad
    assert 0 < drawn.min() and drawn.max() < 1
    assert differ(drawn[0], drawn[1])


def test_temperature_scales_every_sigma(model):
    still, once, twice = (model.sample(4, seeded(0), temperature=t) for t in (1e-12, 1e-6, 2e-6))
    torch.testing.assert_close(still, still[:1].expand_as(still))  # the one image of the means
    torch.testing.assert_close(twice - still, 2 * (once - still), rtol=1e-4, atol=1e-10)
    assert (once - still).abs().max() > 1e-8
    assert model.sample(4, seeded(0), temperature=1.0).equal(model.sample(4, seeded(0)))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(model, temperature):
    with pytest.raises(ValueError, match=rf"temperature is {temperature}"):
        model.sample(1, temperature=temperature)


# Training


def test_every_parameter_gets_a_finite_gradient():
    model = LadderVAE(size=8, groups=(2, 1), base=2, width=4)
    terms = model(stripes(4), seeded(0))
    (terms.nll + balance_kl(terms.kl, model.sizes).kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_away_from_its_start_every_parameter_matters(model):
    (-model(images(4), seeded(0)).elbo.mean()).backward()
    assert all((p.grad != 0).any() for p in model.parameters())


def test_the_gradients_of_the_whole_model_are_those_of_finite_differences():
    model = tiny(size=3, groups=(1, 1), base=1, width=2, latent=1)
    names, weights = zip(*model.named_parameters())
    x = images(2, 3)

    def loss(*values):
        return -torch.func.functional_call(model, dict(zip(names, values)), (x, seeded(0))).elbo.mean()

    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


def test_balanced_training_lowers_the_loss_and_raises_the_bound():
    torch.manual_seed(0)
    model = LadderVAE(size=8, groups=(1, 2), base=2, width=8)
    x, generator = stripes(16), seeded(0)
    optimiser = torch.optim.Adamax(model.parameters(), lr=0.01)
    losses, elbos = [], []
    for _ in range(60):
        terms = model(x, generator)
        loss = (terms.nll + balance_kl(terms.kl, model.sizes).kl).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        elbos.append(terms.elbo.mean().item())
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 10
    assert np.mean(elbos[-10:]) > np.mean(elbos[:10]) + 10


# The model as an object


def test_a_saved_model_is_the_same_model_again(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = tiny()
    stirred(again, seed=5)
    x = images(2)
    assert not again(x, seeded(0)).elbo.equal(model(x, seeded(0)).elbo)
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert again(x, seeded(0)).elbo.equal(model(x, seeded(0)).elbo)


def test_a_deep_copy_gives_the_same_and_goes_its_own_way(model):
    x, twin = images(2), copy.deepcopy(model)
    before = model(x, seeded(0)).elbo
    assert twin(x, seeded(0)).elbo.equal(before) and twin.sides == model.sides
    stirred(twin, seed=5)
    assert model(x, seeded(0)).elbo.equal(before) and not twin(x, seeded(0)).elbo.equal(before)


@pytest.mark.parametrize("count", [1, 3])
def test_the_memory_layout_of_images_does_not_matter(model, count):
    x = images(count)
    spread = images(2 * count)[::2].copy_(x)  # strided
    for layout in (x.contiguous(), x.to(memory_format=torch.channels_last), spread):
        terms = model(layout, seeded(0))
        torch.testing.assert_close(tuple(terms), tuple(model(x, seeded(0))))


def test_two_models_of_one_seed_are_equal_and_sizes_are_no_parameter():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(LadderVAE(size=8, groups=(1, 1), base=2, width=4).state_dict())
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert "sizes" not in states[0]


def test_images_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match="this model takes"):
        model(torch.zeros(2, 1, 5, 5))
    with pytest.raises(ValueError, match="this model takes"):
        model(torch.zeros(2, 3, model.size, model.size))
