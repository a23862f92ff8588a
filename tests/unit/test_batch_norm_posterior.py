"""The posterior that batch normalisation holds up: its floor, its gradients, its modes, and in several processes."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair import one_of_two, run_both
from torch import Tensor, nn

from vaelab import posteriors
from vaelab.divergences import gaussian_kl
from vaelab.posteriors import BatchNormPosterior, FloorEscaped, Gaussian

N = 4  # latent coordinates
VERSIONS = [{"gamma": 0.6}, {"tau": 0.5}]
both = pytest.mark.parametrize("version", VERSIONS, ids=["paper", "Su"])
dtypes = st.sampled_from([torch.float32, torch.float64])
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw(rows: int, scale: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(rows, N) outputs of an encoder, off centre and skewed."""
    noise = torch.randn(2, rows, N, dtype=torch.float64, generator=seeded(seed))
    mu, spread = noise[0] + 0.1 * noise[0] ** 3 + torch.linspace(-2, 3, N), noise[1] - 0.5
    return (scale * mu).to(dtype), (scale * spread).to(dtype)


def learned(version: dict, dtype: torch.dtype = torch.float64, seed: int = 1, **more) -> BatchNormPosterior:
    """A posterior whose learned parameters are no longer where they began."""
    posterior = BatchNormPosterior(N, **version, **more).to(dtype)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.copy_(2 * torch.randn(N, generator=seeded(seed)))
    return posterior


def mean_kl(posterior: Gaussian) -> Tensor:
    """The batch's mean KL in nats, summed over coordinates, worked out in double precision."""
    return gaussian_kl(posterior.mu.double(), posterior.logvar.double()).flatten(0, -2).sum(1).mean()


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


# The floor


@pytest.mark.filterwarnings("ignore::vaelab.posteriors.FloorEscaped")  # the smallest scales are meant to
@given(
    st.integers(2, 200), st.sampled_from([1e-4, 1e-2, 1.0, 30.0]), dtypes, st.floats(0.05, 3), st.floats(0.05, 0.95),
    st.integers(0, 99),
)
def test_no_batch_whatever_the_weights_has_less_kl_than_the_floor(rows, scale, dtype, gamma, tau, seed):
    for version in ({"gamma": gamma}, {"tau": tau}):
        posterior = learned(version, dtype, seed)
        kl = mean_kl(posterior(*raw(rows, scale, dtype, seed)))
        floor = posterior.floor(observed=True).item()
        assert kl >= floor - ROUNDING[dtype] * (N + floor)
        assert floor > 0


@given(st.integers(2, 200), dtypes, st.floats(0.05, 3), st.floats(1e-8, 1e-3))
def test_the_papers_floor_is_reached_where_every_variance_is_one(rows, dtype, gamma, eps):
    posterior = learned({"gamma": gamma}, dtype, eps=eps)
    mu, spread = raw(rows, dtype=dtype)
    kl, floor = mean_kl(posterior(mu, torch.zeros_like(spread))), posterior.floor(observed=True)
    same(kl, floor.double(), 10 * ROUNDING[dtype])
    var = mu.double().var(0, correction=0)
    same(floor.double(), 0.5 * (gamma**2 * var / (var + eps) + posterior.beta.double() ** 2).sum(), 1e-5)
    assert mean_kl(posterior(mu, spread)) > kl + 0.1


@given(st.integers(1, 100), dtypes, st.floats(0.05, 0.95), st.sampled_from([-5.0, 0.0, 2.5]), st.floats(0.5, 5))
def test_sus_floor_is_reached_where_the_standard_deviation_is_constant_but_for_its_sign(
    pairs, dtype, tau, centre, distance
):
    posterior = learned({"tau": tau}, dtype)
    mu, spread = raw(2 * pairs, dtype=dtype)
    sign = torch.tensor([1.0, -1.0], dtype=dtype).repeat(pairs)[:, None]
    q = posterior(mu, (centre + distance * sign).expand(-1, N))
    same(q.logvar.exp(), posterior.gamma_sigma.expand(2 * pairs, N) ** 2 + 1e-4, 1e-4)
    same(mean_kl(q), posterior.floor(observed=True).double(), 20 * ROUNDING[dtype])
    if pairs > 1:
        assert mean_kl(posterior(mu, spread)) > posterior.floor(observed=True) + 0.01


@pytest.mark.parametrize("gamma", [0.1, 0.6, 2.0])
def test_the_papers_floor_in_closed_form(gamma):
    posterior = BatchNormPosterior(32, gamma=gamma)
    assert posterior.floor().item() == pytest.approx(32 * gamma**2 / 2, rel=1e-6)
    with torch.no_grad():
        posterior.beta += 0.5
    assert posterior.floor().item() == pytest.approx(16 * (gamma**2 + 0.25), rel=1e-6)
    posterior.floor().backward()
    same(posterior.beta.grad, posterior.beta.detach(), 1e-6)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_sus_floor_in_closed_form_is_least_where_theta_falls_without_end(tau):
    posterior = BatchNormPosterior(N, tau=tau, variance_floor=1e-9).double()
    floors = []
    for theta in (-40.0, -3.0, 0.0, 3.0):
        with torch.no_grad():
            posterior.theta.fill_(theta)
        floors.append(posterior.floor().item())
        assert floors[-1] == pytest.approx(-N / 2 * math.log((1 - tau) / (1 + math.exp(theta))), rel=1e-6)
    assert floors[0] == min(floors) and floors[0] == pytest.approx(-N / 2 * math.log(1 - tau), rel=1e-6)


def test_what_is_added_to_the_variance_hardly_moves_sus_floor():
    plain, added = (BatchNormPosterior(N, tau=0.5, variance_floor=v).double().floor() for v in (1e-12, 1e-4))
    assert abs(plain - added) < 4 * N * 1e-4


def test_the_moments_of_the_aggregate_posterior_are_those_of_the_version():
    paper, su = learned({"gamma": 0.6}), learned({"tau": 0.5})
    q = paper(*raw(50))
    same(q.mu.mean(0), paper.beta)
    same(q.mu.var(0, correction=0), torch.full((N,), 0.36), 1e-6)
    q = su(*raw(50))
    same(q.mu.mean(0), torch.zeros(N))
    same(q.mu.pow(2).mean(0) + q.logvar.exp().mean(0), torch.full((N,), 1 + 1e-4), 1e-6)  # the prior's


# Against torch, and its parameters


@both
def test_it_is_torchs_batch_norm_scaled_in_training_and_in_evaluation(version):
    posterior = learned(version, eps=1e-3, momentum=0.2)
    theirs = [nn.BatchNorm1d(N, eps=1e-3, momentum=0.2, affine=False).double() for _ in range(2)]

    def expected(mu, spread):
        shift = posterior.beta if "gamma" in version else 0
        if "tau" in version:
            spread = torch.log((theirs[1](spread) * posterior.gamma_sigma) ** 2 + 1e-4)
        return Gaussian(theirs[0](mu) * posterior.gamma_mu + shift, spread)

    for seed in range(5):
        for ours, wanted in zip(posterior(*raw(20, seed=seed)), expected(*raw(20, seed=seed))):
            same(ours, wanted)
    for name in ("running_mean", "running_var"):  # those of the mean, then those of the standard deviation
        for ours, wanted in zip(getattr(posterior.standard, name).split(N), theirs):
            same(ours, getattr(wanted, name))
    for module in (posterior, *theirs):
        module.eval()
    for ours, wanted in zip(posterior(*raw(7, seed=9)), expected(*raw(7, seed=9))):
        same(ours, wanted)


@both
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(version, masked):
    posterior = learned(version)
    (name, parameter), = posterior.named_parameters()
    mask = torch.tensor([True, False, True, True, True, False]) if masked else None

    def outputs(mu, spread, value):
        return torch.func.functional_call(posterior, {name: value}, (mu, spread, mask))

    inputs = [part.clone().requires_grad_() for part in (*raw(6), parameter.detach())]
    assert torch.autograd.gradcheck(outputs, inputs)


@both
def test_only_beta_or_theta_is_learned_and_an_optimiser_moves_it(version):
    posterior = BatchNormPosterior(N, **version)
    (name, parameter), = posterior.named_parameters()
    assert name == ("beta" if "gamma" in version else "theta") and parameter.eq(0).all()
    optimiser = torch.optim.Adam(posterior.parameters(), lr=0.05)
    before = posterior.gamma_mu.detach().clone()
    for seed in range(30):
        q = posterior(*raw(16, dtype=torch.float32, seed=seed))
        optimiser.zero_grad()
        (q.mu - 3).pow(2).sum().backward()
        optimiser.step()
        if "tau" in version:
            same(posterior.gamma_mu**2 + posterior.gamma_sigma**2, torch.ones(N), 1e-6)
            assert (posterior.gamma_mu**2 >= 0.5).all()
    assert (parameter.abs() > 0.5).all()
    assert posterior.gamma_mu.equal(before) == ("gamma" in version)


def test_theta_is_one_vector_for_both_scales():
    posterior = learned({"tau": 0.3})
    s = torch.sigmoid(posterior.theta)
    same(posterior.gamma_mu**2, 0.3 + 0.7 * s)
    same(posterior.gamma_sigma**2, 0.7 * (1 - s))
    with pytest.raises(AttributeError, match="gamma_sigma"):
        _ = BatchNormPosterior(N, gamma=0.6).gamma_sigma


# Copies, types, places


def evaluated(posterior: BatchNormPosterior) -> Tensor:
    return torch.stack(copy.deepcopy(posterior).eval()(*raw(5, seed=8)))


@both
def test_copies_and_what_was_stored_evaluate_alike(version):
    posterior = learned(version)
    early = copy.deepcopy(posterior)
    for one in (posterior, early):
        one(*raw(20))
    assert evaluated(early).equal(evaluated(posterior))
    file = io.BytesIO()
    torch.save(posterior, file)
    whole = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    fresh = BatchNormPosterior(N, **version).double()
    assert not evaluated(fresh).equal(evaluated(posterior))
    file = io.BytesIO()
    torch.save(posterior.state_dict(), file)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    other_scale = BatchNormPosterior(N, gamma=2.0).double() if "gamma" in version else fresh
    other_scale.load_state_dict(posterior.state_dict())  # gamma, too, is stored
    assert evaluated(other_scale).equal(evaluated(posterior))
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior)), whole, fresh):
        assert evaluated(other).equal(evaluated(posterior))


@both
def test_a_copy_goes_its_own_way(version):
    posterior = learned(version)
    posterior(*raw(20))
    before, other = evaluated(posterior), copy.deepcopy(posterior)
    other(*raw(20, scale=7.0))
    assert evaluated(posterior).equal(before) and not evaluated(other).equal(before)


@both
def test_nothing_stays_behind_when_it_moves(version):
    posterior = BatchNormPosterior(N, **version)
    posterior(*raw(5, dtype=torch.float32))
    posterior.double()
    tensors = [*posterior.parameters(), *posterior.buffers()]
    assert len(tensors) == (5 if "gamma" in version else 4) and all(t.dtype == torch.float64 for t in tensors)
    assert all(part.dtype == torch.float64 for part in posterior(*raw(5)))
    posterior.to("meta")
    worked_out = [posterior.gamma_mu, posterior.ratio, posterior.floor(), posterior.floor(observed=True)]
    tensors = [*posterior.parameters(), *posterior.buffers(), *worked_out]
    assert all(t.is_meta for t in tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@both
def test_a_gpu_gives_what_the_cpu_gives(version):
    posterior = learned(version)
    far = copy.deepcopy(posterior).to("cuda")
    for mode in (True, False):
        for ours, theirs in zip(posterior.train(mode)(*raw(20)), far.train(mode)(*(p.cuda() for p in raw(20)))):
            assert theirs.is_cuda
            same(theirs.cpu(), ours)


@both
def test_under_autocast_outputs_are_float32_and_the_floor_holds_for_inputs_that_hardly_vary(version):
    torch.manual_seed(0)
    encoder, posterior = nn.Linear(6, 2 * N), BatchNormPosterior(N, **version)
    nn.init.normal_(encoder.weight, std=1e-3)
    nn.init.zeros_(encoder.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, spread = encoder(torch.randn(64, 6)).chunk(2, 1)
        assert mu.dtype == torch.bfloat16 and mu.std() < 4e-3
        q = posterior(mu, spread)
    for part, expected in zip(q, BatchNormPosterior(N, **version)(mu.float(), spread.float())):
        assert part.dtype == torch.float32
        same(part, expected, 1e-6)  # not one step is taken in half precision
    kl, floor = mean_kl(q), posterior.floor(observed=True)
    assert kl >= floor - 1e-5 and floor > 0.98 * posterior.floor()
    kl.backward()
    assert encoder.weight.grad.isfinite().all() and encoder.weight.grad.abs().max() > 0


# Modes and shapes


@both
def test_in_evaluation_a_row_does_not_depend_on_its_neighbours(version):
    posterior = learned(version)
    posterior(*raw(30))
    posterior.eval()
    mu, spread = raw(8, seed=3)
    whole, statistics = posterior(mu, spread), copy.deepcopy(posterior.state_dict())
    for i in range(8):
        for one, all_rows in zip(posterior(mu[i : i + 1], spread[i : i + 1]), whole):
            same(one[0], all_rows[i])
    assert all(statistics[name].equal(value) for name, value in posterior.state_dict().items())


@both
def test_training_needs_two_examples(version):
    posterior, (mu, spread) = learned(version), raw(3)
    with pytest.raises(ValueError, match=r"the batch has 1 example\(s\); statistics need two"):
        posterior(mu[:1], spread[:1])
    with pytest.raises(ValueError, match=r"has 0 example"):
        posterior(mu, spread, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"has 1 example"):
        posterior.calibrate(mu[:1], spread[:1])
    assert posterior(mu[:2], spread[:2]).mu.isfinite().all()


@both
@pytest.mark.parametrize("training", [True, False])
def test_steps_in_time_count_as_examples(version, training):
    mu, spread = raw(12)
    flat, timed = learned(version).train(training), learned(version).train(training)
    expected = flat(mu, spread)
    q = timed(mu.view(3, 4, N), spread.view(3, 4, N))
    for ours, wanted in zip(q, expected):
        assert ours.shape == (3, 4, N)
        same(ours.flatten(0, 1), wanted)
    assert all(value.equal(flat.state_dict()[name]) for name, value in timed.state_dict().items())


@both
def test_padding_moves_no_statistic_and_no_gradient(version):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    mu, spread = raw(12)
    other_mu, other_spread = (torch.where(mask.flatten()[:, None], part, 100.0) for part in (mu, spread))
    wanted_from = learned(version)
    wanted = wanted_from(mu[mask.flatten()], spread[mask.flatten()])
    for m, s in ((mu, spread), (other_mu, other_spread)):
        posterior = learned(version)
        inputs = [part.reshape(3, 4, N).requires_grad_() for part in (m.clone(), s.clone())]
        q = posterior(*inputs, mask)
        for ours, theirs in zip(q, wanted):
            same(ours[mask], theirs)
        assert all(value.equal(wanted_from.state_dict()[name]) for name, value in posterior.state_dict().items())
        for gradient in torch.autograd.grad(sum(part[mask].pow(3).sum() for part in q), inputs):
            assert gradient[~mask].eq(0).all() and gradient[mask].ne(0).all()
        with pytest.raises(AssertionError):
            same(learned(version)(*inputs).mu[mask], wanted.mu)


@both
def test_after_calibration_a_whole_set_has_the_moments_promised(version):
    posterior = learned(version)
    posterior(*raw(20, scale=5.0))
    mu, spread = raw(101, seed=2)
    padded = [torch.cat([part, torch.full((3, N), 1e3)]) for part in (mu, spread)]
    posterior.calibrate(*padded, torch.arange(104) < 101)
    posterior.eval()
    same(posterior.standard.running_mean[:N], mu.mean(0))
    same(posterior.standard.running_var[:N], mu.var(0, correction=0))
    q = posterior(mu, spread)
    same(q.mu.mean(0), posterior.beta if "gamma" in version else torch.zeros(N), 1e-9)
    same(q.mu.var(0, correction=0), posterior.gamma_mu**2, 1e-6)
    assert mean_kl(q) >= posterior.floor() - 1e-6
    expected = copy.deepcopy(posterior).train()(mu, spread)  # as if the set were one batch
    same(mean_kl(q), mean_kl(expected), 1e-9)
    if "tau" in version:
        same(posterior.standard.running_mean[N:], spread.mean(0))
        same(posterior.standard.running_var[N:], spread.var(0, correction=0))


def test_the_usual_posterior_changes_nothing():
    mu, spread = raw(3)
    q = posteriors.GaussianPosterior()(mu, spread)
    assert isinstance(q, Gaussian) and q.mu is mu and q.logvar is spread
    assert Gaussian._fields == ("mu", "logvar")


def test_it_says_which_version_it_is():
    assert repr(BatchNormPosterior(8, gamma=0.6)).startswith("BatchNormPosterior(\n  8, gamma=0.6, eps=1e-08")
    assert BatchNormPosterior(8, tau=0.5).extra_repr() == "8, tau=0.5, eps=1e-08"


# The hole in the floor


def shrunken(posterior: BatchNormPosterior, steps: int = 500) -> float:
    """Train a small encoder for nothing but a small KL; return that of the whole set, by its own statistics."""
    torch.manual_seed(0)
    x, encoder = torch.randn(256, 4), nn.Linear(4, 2 * N)
    optimiser = torch.optim.Adam([*encoder.parameters(), *posterior.parameters()], lr=2e-3)
    for _ in range(steps):
        kl = mean_kl(posterior(*encoder(x[torch.randint(256, (32,))]).chunk(2, 1)))
        optimiser.zero_grad()
        kl.backward()
        optimiser.step()
    return mean_kl(posterior(*encoder(x).chunk(2, 1))).item()


def test_adam_escapes_through_a_large_eps_and_is_reported_once():
    posterior = BatchNormPosterior(N, gamma=0.6, eps=1e-5)
    with pytest.warns(FloorEscaped, match=r"v / \(v \+ eps\) is 0\.\d+.*in place of 0\.72") as caught:
        kl = shrunken(posterior)
    assert len(caught) == 1
    assert kl < 0.5 * posterior.floor().item()
    assert posterior.gamma.equal(torch.full((N,), 0.6))  # though gamma never moved
    assert kl >= posterior.floor(observed=True).item() - 1e-6 and posterior.ratio.min() < 0.5


def test_with_a_tiny_eps_the_floor_stands_and_nobody_warns():
    posterior = BatchNormPosterior(N, gamma=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kl = shrunken(posterior)
    assert kl == pytest.approx(posterior.floor().item(), rel=0.03)
    assert posterior.ratio.min() > 0.999


@both
def test_the_ratio_is_that_of_the_last_training_batch(version):
    posterior = learned(version, eps=1e-2)
    same(posterior.ratio, torch.full_like(posterior.ratio, 1 / 1.01))  # before the first batch: as if v were 1
    mu, spread = raw(9, scale=0.1)
    with pytest.warns(FloorEscaped) as caught:
        posterior(mu, spread)
    assert caught[0].filename == __file__  # the caller's line, not one of torch's
    ratio = 1 / (1 + 1e-2 / mu.var(0, correction=0))
    if "tau" in version:
        ratio = torch.minimum(ratio, 1 / (1 + 1e-2 / spread.var(0, correction=0)))
    same(posterior.ratio, ratio)
    posterior.eval()(*raw(9, scale=3.0))
    same(posterior.ratio, ratio)


def test_the_watch_looks_at_the_first_batch_and_at_every_hundredth_of_training():
    posterior = BatchNormPosterior(N, gamma=0.6, eps=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior(*raw(5))
        for _ in range(99):
            posterior.eval()(*raw(5))
            posterior.train()(*raw(5, scale=1e-4))
    with pytest.warns(FloorEscaped):
        posterior(*raw(5, scale=1e-4))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0}, "gamma is 0; it must be positive"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"gamma": math.inf}, "gamma is inf"),
        ({}, "give gamma .* or tau"),
        ({"gamma": 0.6, "tau": 0.5}, "gamma is 0.6, tau is 0.5; give .* not both"),
        ({"tau": 0}, "tau is 0; it must lie between 0 and 1"),
        ({"tau": 1}, "tau is 1"),
        ({"tau": 1.5}, "tau is 1.5"),
        ({"tau": math.nan}, "tau is nan"),
        ({"gamma": 1, "eps": 0}, "eps 0, .* must be positive"),
        ({"gamma": 1, "eps": math.nan}, "eps nan"),
        ({"tau": 0.5, "variance_floor": 0}, "variance_floor 0; all must be positive"),
        ({"gamma": 1, "momentum": 0}, "momentum is 0"),
        ({"gamma": 1, "momentum": 1.1}, "momentum is 1.1"),
        ({"gamma": 1, "latent_dim": 0}, "latent_dim is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchNormPosterior(**{"latent_dim": N} | arguments)


@both
@pytest.mark.parametrize(
    ("mu", "spread"), [((5, N + 1), (5, N + 1)), ((5, N), (4, N)), ((5, N), (5, 1)), ((N,), (N,)), ((), ())]
)
def test_shapes_that_do_not_fit_are_named(version, mu, spread):
    posterior = BatchNormPosterior(N, **version)
    for call in (posterior, posterior.calibrate):
        with pytest.raises(ValueError, match=r"mu is \(.*both must be \(\.\.\., 4\)"):
            call(torch.zeros(mu), torch.zeros(spread))


@pytest.mark.parametrize("mask", [torch.ones(3, 2).bool(), torch.ones(3, 4, 1).bool(), torch.ones(12).bool(),
                                  torch.ones(3, 4), torch.ones(3, 4).long()])
def test_a_mask_is_one_yes_or_no_for_each_example(mask):
    mu, spread = (part.view(3, 4, N) for part in raw(12))
    with pytest.raises(ValueError, match=r"mask is .*; it must be \(3, 4\) torch.bool"):
        BatchNormPosterior(N, gamma=0.6).double()(mu, spread, mask)


# Several processes

SPLITS = {"equal halves": (4, 4), "unequal halves": (5, 3), "one each": (1, 1), "one has none": (0, 6)}


def encoder() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2 * N).double()


def trained(lengths: tuple[int, ...], rank: int | None, version: dict) -> dict:
    """Take the gradient on one process's share of a batch, or on the whole, of the mean over all examples.

    A share's loss is its examples' sum over the whole batch's length, times the number of processes, over which
    gradients are averaged afterwards. For equal shares that is the mean over the share.
    """
    inputs = torch.randn(sum(lengths), 3, dtype=torch.float64, generator=seeded(5))
    x, times = (inputs, 1) if rank is None else (inputs.split(lengths)[rank], len(lengths))
    network, posterior = encoder(), learned(version)
    q = posterior(*network(x).chunk(2, 1))
    ((q.mu**3 + q.mu * q.logvar).sum() * times / len(inputs)).backward()
    gradients = {name: p.grad for module in (network, posterior) for name, p in module.named_parameters()}
    statistics = {name: value.clone() for name, value in posterior.named_buffers()}
    posterior.calibrate(*network(x).detach().chunk(2, 1))
    calibrated = {name: value.clone() for name, value in posterior.named_buffers()}
    return {"q": torch.stack([p.detach() for p in q]), "gradients": gradients, "statistics": statistics,
            "calibrated": calibrated}


def normalise_a_share(rank: int, folder: str) -> None:
    """Be one of two processes, and leave in a file what comes out for this one's share of every batch."""
    with one_of_two(rank, folder) as results:
        results |= {(name, i): trained(lengths, rank, version)
                    for name, lengths in SPLITS.items() for i, version in enumerate(VERSIONS)}
        try:
            trained((1, 0), rank, VERSIONS[0])
        except ValueError as error:
            results["refused"] = str(error)


@pytest.fixture(scope="module")
def shares(processes, tmp_path_factory) -> list[dict]:
    """What two processes say that each hold a part of the batch; they meet in a file, no port is opened."""
    return run_both(processes, tmp_path_factory.mktemp("gloo"), normalise_a_share)


@pytest.mark.parametrize("i", range(len(VERSIONS)), ids=["paper", "Su"])
@pytest.mark.parametrize("name", SPLITS)
def test_two_processes_agree_with_one_on_the_joined_batch(shares, name, i):
    alone = trained(SPLITS[name], None, VERSIONS[i])
    parts = [share[name, i] for share in shares]
    same(torch.cat([part["q"] for part in parts], 1), alone["q"])
    for kind in ("statistics", "calibrated"):
        for key, value in alone[kind].items():
            for part in parts:
                same(part[kind][key], value)
    for key, value in alone["gradients"].items():
        same(sum(part["gradients"][key] for part in parts) / 2, value, 1e-11)


def test_statistics_of_each_share_alone_would_differ(shares):
    local = trained((4,), None, VERSIONS[0])
    joint = shares[0]["equal halves", 0]
    key = "standard.running_var"
    assert (joint["statistics"][key] - local["statistics"][key]).abs().max() > 1e-3


def test_one_example_in_all_is_refused_by_every_process(shares):
    assert all("the batch has 1 example(s)" in share["refused"] for share in shares)
