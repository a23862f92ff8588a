"""M2: its terms, the expectation over the class by every road, what it costs, and extremes."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal, RelaxedOneHotCategorical, kl_divergence
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vaelab import networks
from vaelab.models.cvae import CVAE, binarise
from vaelab.models.semi_supervised_vae import (
    BoundTerms,
    SemiSupervisedVAE,
    StyleEncoder,
    bernoulli_nll,
    squared_error,
)
from vaelab.networks import ConditionalMLP
from vaelab.posteriors import gumbel_log_softmax, gumbel_softmax, straight_through

DRAWS = [gumbel_softmax, straight_through]
HALF = [torch.float16, torch.bfloat16]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Given(nn.Module):
    """A classifier that says the same whatever it sees: (K,) logits, or (N, K) for a batch of N."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def tiny(
    classes: int = 3, latent: int = 2, side: int = 2, sees_label: bool = True, batch_norm: bool = False, **more
) -> SemiSupervisedVAE:
    """A model in double precision whose label matters, for images of 2 x 2 pixels."""
    torch.manual_seed(0)
    pixels = side * side
    model = SemiSupervisedVAE(
        nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)),
        StyleEncoder(pixels, classes, (5,), latent, sees_label, batch_norm=batch_norm),
        ConditionalMLP(latent, classes, (7,), pixels, batch_norm),
        classes,
        latent,
        **more,
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return model.double()


def images(count: int = 6, side: int = 2) -> Tensor:
    return binarise(torch.rand(count, 1, side, side, dtype=torch.float64, generator=seeded()), seeded(1))


def hush(model: SemiSupervisedVAE, noise: Tensor | None = None) -> SemiSupervisedVAE:
    """Give a model's z the same noise at every draw: (N, D), or none."""
    silence = torch.zeros(1, model.latent_dim, dtype=torch.float64)
    model._noise = lambda x, generator: (silence if noise is None else noise).to(x).expand(len(x), -1)
    return model


def class_costs(model: SemiSupervisedVAE, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, K) nll and kl, image by image and class by class, from torch.distributions."""
    rows = []
    for image, epsilon in zip(x.flatten(1), noise):
        for y in torch.eye(model.num_classes, dtype=x.dtype):
            mu, logvar = model.encoder(image[None], y[None])
            q_z = Normal(mu, (0.5 * logvar).exp())
            p_x = Bernoulli(logits=model.decoder(q_z.loc + q_z.scale * epsilon, y[None]))
            divergence = kl_divergence(q_z, Normal(torch.zeros_like(mu), 1.0))
            rows.append(torch.stack([-p_x.log_prob(image).sum(), divergence.sum()]))
    nll, kl = torch.stack(rows).view(len(x), -1, 2).unbind(-1)
    return nll, kl


def gradients(model: nn.Module, terms: BoundTerms) -> tuple[Tensor, ...]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(-terms.elbo, parameters, retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found))


@pytest.fixture
def model() -> SemiSupervisedVAE:
    return tiny()


@pytest.fixture
def x() -> Tensor:
    return images()


# The networks


@pytest.mark.parametrize("hidden", [(5,), (5, 4)])
def test_a_conditional_mlp_is_an_mlp_over_both_inputs_side_by_side(hidden):
    net = ConditionalMLP(3, 2, hidden, 4)
    a, b = torch.randn(6, 3), torch.randn(6, 2)
    whole = nn.Sequential(net.first, *net.rest)
    torch.testing.assert_close(net(a, b), whole(torch.cat([a, b], 1)))
    kinds = [type(layer) for layer in whole]
    assert kinds == [nn.Linear, nn.ReLU] * len(hidden) + [nn.Linear]


def test_without_a_condition_a_conditional_mlp_is_a_plain_one():
    net, a = ConditionalMLP(3, 0, (5,), 4), torch.randn(6, 3)
    torch.testing.assert_close(net(a), nn.Sequential(net.first, *net.rest)(a))
    assert net(a).shape == (6, 4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_broadcast_inputs_of_a_conditional_mlp_give_what_copied_out_ones_give(batch_norm):
    net = ConditionalMLP(3, 2, (5, 4), 6, batch_norm).double()
    a, b = torch.randn(7, 1, 3).double(), torch.randn(2, 2).double()
    close(net(a, b), net(a.expand(-1, 2, -1), b.expand(7, -1, -1)))
    assert net(a, b).shape == (7, 2, 6)


def test_batch_norm_in_a_conditional_mlp_normalises_over_all_leading_axes_together():
    net, a, b = ConditionalMLP(3, 2, (5,), 4, batch_norm=True), torch.randn(7, 1, 3), torch.randn(2, 2)
    normalised = net.rest[0](net.first(torch.cat([a.expand(-1, 2, -1), b.expand(7, -1, -1)], -1)).flatten(0, 1))
    torch.testing.assert_close(normalised.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(net(a, b), net.rest[1:](normalised).view(7, 2, 4))


def test_the_style_encoder_looks_at_the_label_only_if_it_is_to(x):
    flat, y = x.flatten(1)[:, None], torch.eye(3, dtype=x.dtype)
    mu, logvar = StyleEncoder(4, 3, (5,), 2).double()(flat, y)
    assert mu.shape == logvar.shape == (6, 3, 2) and not mu.equal(logvar)
    assert not mu[:, 0].allclose(mu[:, 1])
    blind = StyleEncoder(4, 3, (5,), 2, sees_label=False).double()
    mu, logvar = blind(flat, y)
    assert mu.shape == logvar.shape == (6, 1, 2)
    assert blind.net.first.in_features == 4


def test_a_noisy_style_encoder_keeps_sigma_between_1_and_1_65(x):
    torch.manual_seed(0)
    noisy, plain = (StyleEncoder(4, 3, (5,), 2, noisy=noisy).double() for noisy in (True, False))
    plain.load_state_dict(noisy.state_dict())
    arguments = 50 * x.flatten(1), torch.eye(3, dtype=x.dtype).repeat(2, 1)
    (mu, logvar), (same_mu, raw) = noisy(*arguments), plain(*arguments)
    assert mu.equal(same_mu) and logvar.equal(raw.sigmoid()) and raw.min() < 0 and raw.max() > 1
    sigma = (0.5 * logvar).exp()
    assert sigma.min() >= 1 and sigma.max() <= math.exp(0.5)


# The likelihoods


def test_the_bernoulli_nll_is_that_of_torch_distributions():
    logits, x = 5 * torch.randn(3, 4, 6).double(), binarise(torch.rand(3, 4, 6).double())
    close(bernoulli_nll(logits, x), -Bernoulli(logits=logits).log_prob(x).sum(-1))


def test_the_squared_error_is_the_nll_of_a_gaussian_less_its_constant():
    logits, x = 5 * torch.randn(3, 4, 6).double(), torch.rand(3, 4, 6).double()
    gaussian = Normal(logits.sigmoid(), math.sqrt(0.5))
    close(squared_error(logits, x) + 6 / 2 * math.log(math.pi), -gaussian.log_prob(x).sum(-1))


@pytest.mark.parametrize("likelihood", [bernoulli_nll, squared_error])
def test_likelihoods_broadcast_either_way(likelihood):
    logits, x = torch.randn(3, 4, 6).double(), binarise(torch.rand(3, 1, 6).double())
    close(likelihood(logits, x), likelihood(logits, x.expand(-1, 4, -1)))
    close(likelihood(logits[:, :1], x.expand(-1, 4, -1)), likelihood(logits[:, :1].expand(-1, 4, -1), x))
    assert likelihood(logits, x).shape == (3, 4)


@pytest.mark.parametrize("likelihood", [bernoulli_nll, squared_error])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_likelihoods_are_finite_at_extremes(likelihood, dtype):
    x = torch.ones(2, 784, dtype=dtype)
    x[:, ::2] = 0
    logits = (100 * torch.stack([2 * x[0] - 1, 1 - 2 * x[0]])).requires_grad_()  # right and wrong with certainty
    nll = likelihood(logits, x)
    nll.sum().backward()
    wrong = 100 * 784 if likelihood is bernoulli_nll else 784  # 78,400 is more than float16 can hold
    right, surely_wrong = nll.tolist()
    assert right < 1e-3 and surely_wrong == pytest.approx(wrong, rel=1e-2) and logits.grad.isfinite().all()


def test_squares_are_over_all_pixels_and_not_their_mean():
    assert squared_error(torch.zeros(2, 8), torch.ones(2, 8)).tolist() == [2.0, 2.0]


# With a label


def test_labelled_terms_are_those_of_the_distributions(model, x):
    y, noise = torch.tensor([0, 1, 2, 2, 1, 0]), torch.randn(6, 2).double()
    terms = hush(model, noise).labelled(x, y)
    nll, kl = (part.gather(1, y[:, None]).mean() for part in class_costs(model, x, noise))
    assert isinstance(terms, BoundTerms) and terms._fields == ("nll", "kl", "kl_y", "elbo")
    close(terms.nll, nll)
    close(terms.kl, kl)
    close(terms.kl_y, torch.tensor(3.0).double().log())  # -log p(y)
    close(terms.elbo, -(nll + kl) - math.log(3))


def test_with_the_same_weights_it_is_a_cvae_and_the_labels_own_term(x):
    cvae = CVAE(size=2, num_classes=3, latent_dim=2, hidden=(5,)).double()
    model = SemiSupervisedVAE(
        nn.Identity(), StyleEncoder(4, 3, (5,), 2), ConditionalMLP(2, 3, (5,), 4), 3, 2, bernoulli_nll
    ).double()
    for ours, theirs in ((model.encoder.net, cvae.encoder.net), (model.decoder, cvae.decoder.net)):
        nn.Sequential(ours.first, *ours.rest).load_state_dict(theirs.state_dict())
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    ours, theirs = model.labelled(x, y, seeded(3)), cvae(x, y, seeded(3))
    close(ours.nll, theirs.nll)
    close(ours.kl, theirs.kl)
    close(ours.elbo, theirs.elbo - math.log(3))


def test_the_likelihood_is_the_one_given(model, x):
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    other = tiny(likelihood=squared_error)
    assert model.likelihood is bernoulli_nll and other.likelihood is squared_error
    hush(model), hush(other)
    mu, _ = model.encoder(x.flatten(1), networks.one_hot(y, 3).double())
    means = model.decoder(mu, networks.one_hot(y, 3).double()).sigmoid()
    close(other.labelled(x, y).nll, (x.flatten(1) - means).square().sum(1).mean())
    assert not other.labelled(x, y).nll.isclose(model.labelled(x, y).nll)


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_label_outside_its_range_is_refused(model, x, bad):
    y = torch.full((6,), bad)
    for call in (lambda: model.labelled(x, y), lambda: model.sample(y)):
        with pytest.raises(ValueError, match=r"labels span .*; they must lie in \[0, 3\)"):
            call()


# Without one: all classes


def test_the_unlabelled_bound_is_the_sum_over_classes_with_the_entropy_added(model, x):
    noise = torch.randn(6, 2).double()
    terms = hush(model, noise).unlabelled(x)
    nll, kl = class_costs(model, x, noise)
    q = Categorical(logits=model.classifier(x))
    inside = -nll - kl - math.log(3)  # -L(x,y): log p(y) inside
    close(terms.elbo, ((q.probs * inside).sum(1) + q.entropy()).mean())
    close(terms.nll, (q.probs * nll).sum(1).mean())
    close(terms.kl, (q.probs * kl).sum(1).mean())
    close(terms.kl_y, kl_divergence(q, Categorical(probs=torch.ones(3).double())).mean())
    expected = torch.autograd.grad(((q.probs * inside).sum(1) + q.entropy()).mean(), tuple(model.parameters()))
    torch.testing.assert_close(gradients(model, terms), tuple(-g for g in expected))


class Bound(nn.Module):
    """One way to the bound, as a function of the model's weights."""

    def __init__(self, model: SemiSupervisedVAE, way: Callable[[SemiSupervisedVAE], BoundTerms]):
        super().__init__()
        self.model, self.way = model, way

    def forward(self) -> Tensor:
        return self.way(self.model).elbo


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x: m.labelled(x, torch.tensor([0, 1]), seeded(1)),
        lambda m, x: m.unlabelled(x, seeded(1)),
        lambda m, x: m.unlabelled_loop(x, seeded(1)),
        lambda m, x: m.unlabelled_sampled(x, 0.7, gumbel_softmax, seeded(1)),
        lambda m, x: m.unlabelled_relaxed(x, 0.7, 0.6, seeded(1)),
    ],
    ids=["labelled", "unlabelled", "loop", "sampled", "relaxed"],
)
def test_gradients_are_those_of_finite_differences(way):
    model, x = tiny(classes=2, latent=1), images(2)
    bound = Bound(model, lambda m: way(m, x))
    names, weights = zip(*bound.named_parameters())

    def elbo(*values):
        return torch.func.functional_call(bound, dict(zip(names, values)), ())

    assert torch.autograd.gradcheck(elbo, weights)


def test_where_all_classes_cost_the_same_the_gradient_leads_to_the_uniform_guess(x):
    model = tiny(sees_label=False)
    model.classifier = Given(torch.tensor([2.0, 0.0, -1.0]).double())
    with torch.no_grad():
        model.decoder.first.weight[:, 2:] = 0  # the decoder ignores the label
    terms = model.unlabelled(x)
    (step,) = torch.autograd.grad(terms.kl_y, model.classifier.logits, retain_graph=True)
    q = model.classifier.logits.softmax(0)
    close(gradients(model, terms)[0], step)  # no other term pulls
    assert ((q - 1 / 3) @ step > 0) and ((model.classifier.logits - 1 / 3) @ step > 0)  # descent flattens
    entropy_before = Categorical(probs=q).entropy()
    assert Categorical(logits=model.classifier.logits - 0.1 * step).entropy() > entropy_before
    assert Categorical(logits=model.classifier.logits + 0.1 * step).entropy() < entropy_before  # Recipe.entropy -1


def test_the_best_guess_is_the_softmax_of_the_negative_costs(model, x):
    hush(model)
    nll, kl = (part.detach() for part in class_costs(model, x, torch.zeros(6, 2).double()))
    model.classifier = Given(-nll - kl)
    best = model.unlabelled(x)
    close(gradients(model, best)[0], torch.zeros(6, 3).double())
    close(best.elbo, ((-nll - kl).logsumexp(1) - math.log(3)).mean())
    for seed in range(5):
        model.classifier = Given(-nll - kl + 0.5 * torch.randn(6, 3, generator=seeded(seed)).double())
        assert model.unlabelled(x).elbo < best.elbo - 1e-4


def test_the_bound_lies_below_log_p_of_x_by_the_kl_to_the_true_posterior():
    model, draws = tiny(latent=1), 20_000
    x, z = images(1), torch.linspace(-14, 14, 6001).double()  # z (M,)
    flat, y = x.flatten(1), torch.eye(3, dtype=x.dtype)
    with torch.no_grad():
        logits = model.decoder(z[:, None, None], y)  # (M, K, pixels)
        log_joint = Bernoulli(logits=logits).log_prob(flat).sum(-1) + Normal(0.0, 1.0).log_prob(z)[:, None]
        log_joint = log_joint - math.log(3)  # (M, K)
        evidence = torch.trapezoid(log_joint.exp(), z, dim=0).sum().log()
        mu, logvar = model.encoder(flat[:, None], y)
        log_q = Normal(mu[0, :, 0], (0.5 * logvar[0, :, 0]).exp()).log_prob(z[:, None])  # (M, K)
        log_q = log_q + model.classifier(x).log_softmax(1)
        gap = torch.trapezoid(log_q.exp() * (log_q - log_joint + evidence), z, dim=0).sum()
        # A normal distribution's quantiles in the place of noise: the mean over the batch is the expectation over z.
        quantiles = Normal(0.0, 1.0).icdf((torch.arange(draws).double() + 0.5) / draws)[:, None]
        elbo = hush(model, quantiles).unlabelled(x.expand(draws, -1, -1, -1)).elbo
    assert gap > 0.05 and elbo < evidence
    torch.testing.assert_close(evidence - elbo, gap, rtol=1e-3, atol=1e-3)


def test_a_batch_counts_by_its_mean(model, x):
    noise = torch.randn(6, 2).double()
    once = hush(model, noise).unlabelled(x)
    twice = hush(model, noise.repeat(2, 1)).unlabelled(x.repeat(2, 1, 1, 1))
    for a, b in zip(once, twice):
        close(a, b)


def test_noise_comes_from_the_generator_afresh_at_every_call(model, x):
    before = torch.get_rng_state()
    generator = seeded(1)
    first, second = model.unlabelled(x, generator), model.unlabelled(x, generator)
    assert first.nll == model.unlabelled(x, seeded(1)).nll != second.nll
    assert torch.get_rng_state().equal(before)
    noise = model._noise(torch.zeros(50_000, 4), seeded())
    assert noise.shape == (50_000, 2) and noise.dtype == torch.float32
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02


def test_the_classifier_looks_at_the_view_and_only_the_classifier(model, x):
    other = 1 - x
    seen = model.unlabelled(x, seeded(), view=other)
    q = model.classifier(other).softmax(1)
    nll, kl = class_costs(model, x, model._noise(x, seeded()))
    close(seen.nll, (q * nll).sum(1).mean())
    close(seen.kl, (q * kl).sum(1).mean())
    close(seen.kl_y, math.log(3) - Categorical(probs=q).entropy().mean())


# The same by other roads


@pytest.mark.parametrize("sees_label", [True, False])
def test_the_loop_gives_what_the_batch_gives_in_value_and_gradient(sees_label, x):
    model = hush(tiny(sees_label=sees_label), torch.randn(6, 2).double())
    batch, loop = model.unlabelled(x), model.unlabelled_loop(x)
    for a, b in zip((*batch, *gradients(model, batch)), (*loop, *gradients(model, loop))):
        close(a, b)


def test_the_loop_draws_z_anew_for_each_class(model, x):
    drawn, noise = [], model._noise
    model._noise = lambda *given: drawn.append(noise(*given)) or drawn[-1]
    model.unlabelled_loop(x)
    assert len(drawn) == 3 and not drawn[0].equal(drawn[1])
    drawn.clear()
    model.unlabelled(x)
    assert len(drawn) == 1


@pytest.mark.parametrize("sees_label", [True, False])
@pytest.mark.parametrize("classes_at_once", [1, 3, 5, 50])
def test_classes_in_parts_give_what_all_at_once_give_in_value_and_gradient(classes_at_once, sees_label, x):
    model = tiny(classes=5, sees_label=sees_label)
    whole, parts = model.unlabelled(x, seeded()), model.unlabelled(x, seeded(), classes_at_once)
    for a, b in zip((*whole, *gradients(model, whole)), (*parts, *gradients(model, parts))):
        close(a, b)


@pytest.mark.parametrize("classes_at_once", [0, -1])
def test_at_least_one_class_at_a_time(model, x, classes_at_once):
    with pytest.raises(ValueError, match=f"classes_at_once is {classes_at_once}; it must be at least 1, or None"):
        model.unlabelled(x, classes_at_once=classes_at_once)


class Meter(TorchDispatchMode):
    """Follow the bytes that tensors made under it hold, backward passes included; `peak` is the most at any time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, count: int) -> None:
        self.now -= count


def peak(classes: int, classes_at_once: int | None) -> int:
    """Return the most bytes held while a step with wide images is worked out, less those of its gradients."""
    model = tiny(classes, side=12, sees_label=False)
    x = images(20, side=12)
    with Meter() as meter:
        (-model.unlabelled(x, classes_at_once=classes_at_once).elbo).backward()
    return meter.peak - sum(p.numel() * p.element_size() for p in model.parameters())


def test_in_parts_memory_does_not_grow_with_the_number_of_classes():
    table = 60 * 20 * 8  # bytes of one number for each image and each class more
    assert peak(80, None) - peak(20, None) > 2 * 144 * table  # logits and softplus of every pixel, at least
    assert peak(80, 4) - peak(20, 4) < 12 * table  # costs, guesses and their gradients
    assert peak(80, 4) < peak(80, None) / 8


def test_what_waits_for_the_backward_pass_does_not_grow_either():
    def saved(classes: int) -> int:
        storages, x, model = {}, images(20, side=12), tiny(classes, side=12, sees_label=False)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            terms = model.unlabelled(x, classes_at_once=4)
        assert terms.elbo.isfinite()
        return sum(storages.values())

    table = 60 * 20 * 8
    assert saved(80) - saved(20) < 25 * table  # costs and guesses; the activations would come to 300 tables


@pytest.mark.parametrize("sees_label", [True, False])
def test_what_does_not_depend_on_the_class_is_worked_out_once(sees_label, monkeypatch):
    model, x, rows, given = tiny(5, latent=2, side=3, sees_label=sees_label), images(6, side=3), [], []
    linear = F.linear

    def counting(a: Tensor, *rest: Tensor) -> Tensor:
        rows.append((a.shape[-1], a.shape[:-1].numel()))
        return linear(a, *rest)

    model.classifier = Given(torch.zeros(5).double())
    model.decoder.register_forward_pre_hook(lambda net, inputs: given.append([part.shape for part in inputs]))
    monkeypatch.setattr(networks.F, "linear", counting)
    model.unlabelled(x)
    assert [n for width, n in rows if width == 9] == [6]  # the product with the image: N rows, and not N K
    assert [n for width, n in rows if width == 5] == ([5, 30] if sees_label else [6]) + [5]  # codes; encoder's hidden
    z, y = given[0]
    assert y == (5, 5) and z == ((6, 5, 2) if sees_label else (6, 1, 2))
    assert [n for width, n in rows if width == 2] == [30 if sees_label else 6]
    assert [n for width, n in rows if width == 7] == [30]  # the decoder's hidden layer sees both


# Batch norm


def costs_seen(model: SemiSupervisedVAE, call: Callable[[], BoundTerms]) -> Tensor:
    """Return the (N, K) nll that a call to the bound came by, whether at once or class by class."""
    seen, costs = [], model.costs

    def spy(*given):
        nll, kl = costs(*given)
        seen.append(nll.detach())
        return nll, kl

    model.costs = spy
    call()
    model.costs = costs
    return seen[0] if seen[0].ndim == 2 else torch.stack(seen, 1)


def test_a_batch_norm_subtracts_the_label_where_a_batch_has_but_one(x):
    model = hush(tiny(sees_label=False, batch_norm=True), torch.randn(6, 2).double()).train()
    loop = costs_seen(model, lambda: model.unlabelled_loop(x))
    batch = costs_seen(model, lambda: model.unlabelled(x))
    close(loop, loop[:, :1].expand(-1, 3))  # blind to the class
    assert (batch.max(1).values - batch.min(1).values).min() > 1e-2
    (pull,) = torch.autograd.grad(model.unlabelled_loop(x).nll, model.classifier[1].bias)
    assert pull.abs().max() < 1e-10  # so the images teach the guess nothing
    (pull,) = torch.autograd.grad(model.unlabelled(x).nll, model.classifier[1].bias)
    assert pull.abs().max() > 1e-3


def test_an_encoder_with_batch_norm_loses_the_label_as_well(x):
    model = hush(tiny(sees_label=True, batch_norm=True), torch.randn(6, 2).double()).train()
    loop = costs_seen(model, lambda: model.unlabelled_loop(x))
    close(loop, loop[:, :1].expand(-1, 3))
    batch = costs_seen(model, lambda: model.unlabelled(x))
    assert (batch.max(1).values - batch.min(1).values).min() > 1e-3


@pytest.mark.parametrize("sees_label", [True, False])
def test_in_eval_mode_batch_norm_leaves_the_label_alone(sees_label, x):
    model = hush(tiny(sees_label=sees_label, batch_norm=True), torch.randn(6, 2).double())
    model.unlabelled(x)  # running statistics of some batch
    model.eval()
    loop = costs_seen(model, lambda: model.unlabelled_loop(x))
    assert (loop.max(1).values - loop.min(1).values).min() > 1e-2
    close(loop, costs_seen(model, lambda: model.unlabelled(x)))
    for a, b in zip(model.unlabelled(x), model.unlabelled_loop(x)):
        close(a, b)


# One draw of the class


def test_a_hard_draw_estimates_the_bound_without_bias(model):
    draws, x = 60_000, images(1)
    hush(model)
    terms = model.unlabelled_sampled(x.expand(draws, -1, -1, -1), 0.5, straight_through, seeded())
    exact = model.unlabelled(x)
    nll, kl = class_costs(model, x, torch.zeros(1, 2).double())
    spread = Categorical(logits=model.classifier(x)).probs[0]
    for name, part in (("nll", nll), ("kl", kl), ("elbo", nll + kl)):
        variance = spread @ part[0].square() - (spread @ part[0]) ** 2
        error = abs(getattr(terms, name) - getattr(exact, name))
        assert variance > 1e-4 and error < 4 * (variance / draws).sqrt()
    close(terms.kl_y, exact.kl_y)  # exact, not drawn


def test_a_soft_draw_shows_the_decoder_a_mixture_whose_cost_is_another(model):
    draws, x = 60_000, images(1).expand(60_000, -1, -1, -1)
    hush(model)
    soft, exact = model.unlabelled_sampled(x, 1.0, generator=seeded()), model.unlabelled(x[:1])
    assert abs(soft.nll - exact.nll) > 8 / math.sqrt(draws)


@pytest.mark.parametrize("draw", DRAWS)
def test_the_gradient_flows_through_the_draw_into_the_classifier(draw, model, x):
    terms = model.unlabelled_sampled(x, 0.7, draw, seeded())
    for part in (terms.nll, terms.kl):
        for weight in model.classifier.parameters():
            (pull,) = torch.autograd.grad(part, weight, retain_graph=True)
            assert pull.abs().max() > 1e-6
    assert all(g.abs().sum() > 0 for g in gradients(model, terms))


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_is_the_one_asked_for(draw, model, x):
    generator = seeded(5)
    y = draw(model.classifier(x), 0.7, generator)
    nll, kl = model.costs(x.flatten(1), y, model._noise(x, generator))
    terms = model.unlabelled_sampled(x, 0.7, draw, seeded(5))
    close(terms.nll, nll.mean())
    close(terms.kl, kl.mean())
    close(terms.elbo, -(nll.mean() + kl.mean() + terms.kl_y))


def test_at_a_low_temperature_a_soft_draw_is_the_hard_one(model, x):
    soft, hard = (model.unlabelled_sampled(x, 1e-4, draw, seeded(2)) for draw in DRAWS)
    for a, b in zip(soft, hard):
        close(a, b)
    warm = model.unlabelled_sampled(x, 1.0, gumbel_softmax, seeded(2))
    assert abs(warm.nll - hard.nll) > 1e-3


@pytest.mark.parametrize("temperature, prior_temperature", [(0.5, 0.5), (0.7, 0.3), (2.0, 1.0)])
def test_the_relaxed_kl_is_the_log_ratio_of_torchs_densities(temperature, prior_temperature, model, x):
    generator = seeded(4)
    logits = model.classifier(x)
    log_y = gumbel_log_softmax(logits, temperature, generator)
    nll, kl = model.costs(x.flatten(1), log_y.exp(), model._noise(x, generator))
    terms = model.unlabelled_relaxed(x, temperature, prior_temperature, seeded(4))
    tau, prior_tau = torch.tensor([temperature, prior_temperature]).double()
    for family, point in ((ExpRelaxedCategorical, log_y), (RelaxedOneHotCategorical, log_y.exp())):
        q = family(tau, logits=logits, validate_args=False)
        p = family(prior_tau, logits=torch.zeros_like(logits), validate_args=False)
        close(terms.kl_y, (q.log_prob(point) - p.log_prob(point)).mean(), 1e-6)
    close(terms.nll, nll.mean())
    close(terms.kl, kl.mean())
    close(terms.elbo, -(nll.mean() + kl.mean() + terms.kl_y))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_must_be_positive_and_finite(temperature, model, x):
    refused = pytest.raises(ValueError, match=f"temperature is {temperature}; it must be positive and finite")
    for draw in DRAWS:
        with refused:
            model.unlabelled_sampled(x, temperature, draw)
    with refused:
        model.unlabelled_relaxed(x, temperature, 0.5)
    with refused:
        model.unlabelled_relaxed(x, 0.5, temperature)


# Extremes


EXTREME = [[100.0, -100.0, -100.0], [100.0, 100.0, -100.0], [0.0, 0.0, 0.0], [-100.0, 0.0, 100.0]]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 1e3])
def test_certain_guesses_and_any_temperature_give_numbers(temperature, dtype):
    model = tiny().to(dtype)
    model.classifier = Given(torch.tensor(EXTREME, dtype=dtype))
    x = images(4).to(dtype)
    bounds = [
        model.unlabelled(x),
        model.unlabelled_loop(x),
        model.unlabelled(x, classes_at_once=2),
        *(model.unlabelled_sampled(x, temperature, draw) for draw in DRAWS),
        *(model.unlabelled_relaxed(x, temperature, prior) for prior in (1e-3, 0.5, temperature)),
    ]
    for terms in bounds:
        assert all(term.isfinite() for term in terms)
        assert all(g.isfinite().all() for g in gradients(model, terms))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_comes_near_the_double_in_every_way(dtype):
    model, x, y = tiny(), images(4), torch.tensor([0, 1, 2, 0])
    for noise in (torch.zeros(4, 2).double(), torch.ones(4, 2).double()):
        hush(model.double(), noise)
        exact = model.unlabelled(x), model.unlabelled_loop(x), model.labelled(x, y)
        model.to(dtype)
        half = model.unlabelled(x.to(dtype)), model.unlabelled_loop(x.to(dtype)), model.labelled(x.to(dtype), y)
        for a, b in zip(half, exact):
            torch.testing.assert_close(a.elbo.double(), b.elbo, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", HALF)
def test_under_autocast_every_way_gives_numbers_and_gradients(dtype):
    model, x = tiny().float(), images(4).float()
    y = torch.tensor([0, 1, 2, 0])
    ways = [
        lambda: model.labelled(x, y),
        lambda: model.unlabelled(x),
        lambda: model.unlabelled(x, classes_at_once=2),
        lambda: model.unlabelled_loop(x),
        lambda: model.unlabelled_sampled(x, 0.5, straight_through),
        lambda: model.unlabelled_relaxed(x, 0.5, 0.3),
    ]
    for way in ways:
        with torch.autocast("cpu", dtype=dtype):
            terms = way()
        assert terms.elbo.isfinite() and all(g.isfinite().all() for g in gradients(model, terms))


def test_a_certain_guess_costs_log_k_and_leaves_the_cost_of_its_class(x):
    model = hush(tiny())
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    model.classifier = Given(200 * networks.one_hot(y, 3).double() - 100)
    for a, b in zip(model.unlabelled(x), model.labelled(x, y)):
        close(a, b)


# Drawings


def test_samples_are_decoded_draws_of_the_prior_one_for_each_label(model):
    labels = torch.tensor([0, 1, 2, 2, 2])
    before = torch.get_rng_state()
    drawn = model.sample(labels, seeded(3))
    assert drawn.shape == (5, 4) and drawn.dtype == torch.float64 and not drawn.requires_grad
    z = torch.randn(5, 2, generator=seeded(3), dtype=torch.float64)
    close(drawn, model.decoder(z, networks.one_hot(labels, 3).double()).sigmoid().detach())
    assert torch.get_rng_state().equal(before)
    assert model.float().sample(labels, seeded(3)).dtype == torch.float32


def test_sampling_keeps_to_the_mode_that_the_model_is_in(x):
    model = tiny(batch_norm=True)
    model.unlabelled(x)
    labels = torch.tensor([1, 1, 1, 1])
    trained = model.sample(labels, seeded())
    model.eval()
    assert not trained.allclose(model.sample(labels, seeded())) and not model.training
