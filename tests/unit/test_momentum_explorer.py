"""MomentumExplorer in Python: its stream against closed forms, Monte Carlo and BatchKL; its errors."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.divergences import BatchKL, moment_bias
from vaelab.widgets.momentum import MomentumExplorer, Numbers, Stream, codes, stream

VERSIONS = [True, False]
MOMENTA = [0.0, 0.5, 0.9, 0.99]
DRAWS = 400


def one_by_one(seed: int, count: int) -> list[float]:
    """mulberry32, then Box and Muller, in whole numbers of any size."""
    state, drawn = seed, []

    def uniform() -> float:
        nonlocal state
        state = (state + 0x6D2B79F5) % 2**32
        t = (state ^ (state >> 15)) * (state | 1) % 2**32
        t ^= (t + (t ^ (t >> 7)) * (t | 61)) % 2**32
        return ((t ^ (t >> 14)) + 1) / 2**32

    for _ in range(count):
        radius = math.sqrt(-2 * math.log(uniform()))
        drawn.append(radius * math.cos(2 * math.pi * uniform()))
    return drawn


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_draws_are_those_of_the_browsers_generator(seed):
    draws = np.array(one_by_one(seed, 9 * 200)).reshape(9, 200)
    expected = math.sqrt(0.3) * draws[0] + math.sqrt(0.7) * draws[1:]
    np.testing.assert_allclose(codes(8, drift=0.0, rho=0.3, seed=seed), expected.T, atol=1e-13)


def test_a_larger_batch_holds_a_smaller_ones_codes():
    np.testing.assert_array_equal(codes(32, 1.5, 0.4, 7)[:, :8], codes(8, 1.5, 0.4, 7))
    assert abs(np.corrcoef(codes(256, 0.0, 0.0, 7).ravel(), codes(256, 0.0, 0.0, 8).ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_codes_have_the_moments_that_the_stream_calls_true(rho):
    z = np.stack([codes(16, 1.2, rho, seed) for seed in range(DRAWS)])  # (draws, 200, 16)
    track = stream(batch_size=16, drift=1.2, rho=rho)
    assert track.true_mean[[0, 100]].tolist() == [1.2, -1.2]
    np.testing.assert_allclose(track.true_kl, track.true_mean**2 / 2)
    away = z - track.true_mean[:, None]
    assert abs(away.mean()) < 4 * math.sqrt((rho + (1 - rho) / 16) / (DRAWS * 200))
    assert away.var() == pytest.approx(1, abs=0.02)
    assert away.mean(2).var() == pytest.approx(rho + (1 - rho) / 16, rel=0.02)
    assert z.var(2, ddof=1).mean() == pytest.approx(1 - rho, rel=0.02)
    assert (away**4).mean() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("as_written", VERSIONS)
@pytest.mark.parametrize("momentum", MOMENTA)
def test_batch_kl_says_the_same(momentum, as_written):
    """Value after value; and the gradient's share is the one read out."""
    explorer = MomentumExplorer(momentum, 24, 1.3, 0.6, as_written, seed=3)
    track, module = explorer.stream(), BatchKL(momentum, as_written=as_written).double()
    assert isinstance(track, Stream) and all(part.shape == (200,) for part in track)
    for t, batch in enumerate(explorer.codes()):
        z = torch.tensor(batch[:, None], requires_grad=True)
        kl = module(z)
        assert kl.item() == pytest.approx(track.kl[t], abs=1e-12)
    kl.sum().backward()
    M, V, n = track.mean[-1], track.variance[-1], 24 * (1 + momentum) / (1 - momentum)
    left = momentum**200
    n *= (1 - left) / (1 + left)
    # Moving all codes of the batch by one moves M, and about the average's mean the second moment.
    turned = 0 if as_written else (1 - 1 / V) * (track.batch_mean[-1] - M) * n / (n - 1)
    assert z.grad.sum().item() == pytest.approx(explorer.numbers().gradient * (M + turned), rel=1e-9)


def test_as_written_averages_what_batches_have_from_the_prior_on():
    z, track = codes(16, 1.0, 0.5, 2), stream(0.75, 16, 1.0, 0.5, True, 2)
    M, V = 0.0, 1.0
    for t, batch in enumerate(z):
        M, V = 0.75 * M + 0.25 * batch.mean(), 0.75 * V + 0.25 * batch.var(ddof=1)
        assert (track.mean[t], track.variance[t]) == (pytest.approx(M), pytest.approx(V))
        assert track.kl[t] == pytest.approx(0.5 * (M**2 + V - 1 - math.log(V)))


def test_corrected_weighs_all_codes_so_far():
    z, track = codes(16, 1.0, 0.5, 2), stream(0.75, 16, 1.0, 0.5, False, 2)
    for t in (0, 1, 7, 199):
        weights = np.repeat(0.75 ** np.arange(t, -1, -1), 16)
        weights /= weights.sum()
        n, seen = 1 / (weights**2).sum(), z[: t + 1].ravel()
        M = weights @ seen
        V = weights @ (seen - M) ** 2 * n / (n - 1)
        assert (track.mean[t], track.variance[t]) == (pytest.approx(M), pytest.approx(V))
        assert track.kl[t] == pytest.approx(0.5 * (M**2 + V - 1 - math.log(V)) - moment_bias(n))


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_without_momentum_each_batch_stands_by_itself(rho):
    written, corrected = (stream(0.0, 32, 1.0, rho, version) for version in VERSIONS)
    np.testing.assert_allclose(written.kl, written.batch_kl, atol=1e-13)
    np.testing.assert_allclose(corrected.kl, written.batch_kl - moment_bias(32), atol=1e-12)
    np.testing.assert_allclose(corrected.mean, written.batch_mean, atol=1e-13)


@pytest.fixture(scope="module")
def still_streams():
    """Many streams without drift: (rho, as_written) -> the last step's mean, variance and K, and all batches' K."""

    def tracks(rho: float, as_written: bool):
        found = [stream(0.8, 8, 0.0, rho, as_written, seed) for seed in range(DRAWS)]
        last = np.array([(track.mean[-1], track.variance[-1], track.kl[-1]) for track in found])
        return (*last.T, np.concatenate([track.batch_kl for track in found]))

    return {(rho, version): tracks(rho, version) for rho in (0.0, 0.8) for version in VERSIONS}


@pytest.mark.parametrize("rho", [0.0, 0.8])
@pytest.mark.parametrize("as_written", VERSIONS)
def test_the_average_is_worth_as_many_codes_as_it_says(still_streams, rho, as_written):
    mean, _, kl, batch_kl = still_streams[rho, as_written]
    numbers = MomentumExplorer(0.8, 8, 0.0, rho, as_written).numbers()
    assert isinstance(numbers, Numbers)
    assert numbers.effective == pytest.approx(72) and numbers.independent == pytest.approx(72 / (1 + 7 * rho))
    assert mean.var() == pytest.approx(1 / numbers.independent, rel=4 * math.sqrt(2 / DRAWS))
    assert numbers.bias == pytest.approx(moment_bias(72))
    assert numbers.excess == pytest.approx(-math.log(1 - rho) / 2)
    # The noise in a batch's mean is (1 - rho) / N, not the 1 / N that the bias has in it.
    assert batch_kl.mean() == pytest.approx(numbers.excess + moment_bias(8) - rho / 16, abs=0.01)
    if rho == 0:
        error = 4 * kl.std() / math.sqrt(DRAWS)
        assert kl.mean() == pytest.approx(numbers.bias if as_written else 0, abs=error) and error < 0.003


def test_only_raw_moments_see_what_lies_between_batches(still_streams):
    _, variance, kl, _ = still_streams[0.8, True]
    assert variance.mean() == pytest.approx(0.2, abs=0.01)
    assert kl.mean() == pytest.approx(0.5 * (0.8 / 9 + 0.2 - 1 - math.log(0.2)), abs=0.03)
    _, variance, kl, _ = still_streams[0.8, False]
    # n / (n - 1) of 1 - Var[M]: all but what the average itself sways.
    assert variance.mean() == pytest.approx((1 - 0.8 / 9 - 0.2 / 72) * 72 / 71, abs=0.06)
    assert kl.mean() < 0.12


@pytest.mark.parametrize("momentum", MOMENTA)
def test_memory_lag_and_bias(momentum):
    numbers, k = MomentumExplorer(momentum, 16).numbers(), np.arange(5000)
    weights = (1 - momentum) * momentum**k
    assert numbers.lag == pytest.approx(weights @ k) and numbers.memory == pytest.approx(numbers.lag + 1)
    assert numbers.effective == pytest.approx(16 / (weights**2).sum())
    assert numbers.bias == pytest.approx(moment_bias(16 / (weights**2).sum()))


@pytest.mark.parametrize("as_written", VERSIONS)
@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.9])
def test_the_average_trails_the_drift_as_far_as_it_says(momentum, as_written):
    tracks = [stream(momentum, 256, 2.0, 0.0, as_written, seed) for seed in range(20)]
    behind = np.mean([track.mean - track.true_mean for track in tracks], 0)[100:]  # (100,), half a swing
    angle = 2 * math.pi * np.arange(100, 200) / 200
    amplitude = math.hypot(np.cos(angle) @ behind / 50, np.sin(angle) @ behind / 50)
    assert MomentumExplorer(momentum, drift=2.0).numbers().trail == pytest.approx(amplitude, abs=0.01)


def test_the_start():
    for seed in range(5):
        z = codes(64, 2.0, 0.0, seed)[0]
        assert stream(0.9, 64, 2.0, 0.0, True, seed).mean[0] == pytest.approx(0.1 * z.mean())
        assert stream(0.9, 64, 2.0, 0.0, False, seed).mean[0] == pytest.approx(z.mean())
    written, corrected = (stream(0.9, 64, 2.0, 0.0, version) for version in VERSIONS)
    assert written.kl[0] < 0.05 and corrected.kl[0] > 1.5 and written.true_kl[0] == 2


def test_final_and_error_are_those_of_the_moving_average():
    for version in VERSIONS:
        explorer = MomentumExplorer(0.9, 64, 1.0, 0.8, version, seed=5)
        track, numbers = explorer.stream(), explorer.numbers()
        assert numbers.final == track.kl[199]
        assert numbers.error == pytest.approx(math.sqrt(np.mean((track.kl[100:] - track.true_kl[100:]) ** 2)))
    assert numbers.error < 0.5 * MomentumExplorer(0.9, 64, 1.0, 0.8, True, seed=5).numbers().error
    shares = [MomentumExplorer(0.9, as_written=version).numbers().gradient for version in VERSIONS]
    assert shares == [pytest.approx(0.1), 1.0]


BAD = [("momentum", -0.01), ("momentum", 0.991), ("momentum", math.nan), ("batch_size", 7), ("batch_size", 257),
       ("drift", -0.1), ("drift", 2.1), ("drift", math.nan), ("drift", math.inf), ("rho", -0.01), ("rho", 0.96),
       ("rho", math.nan), ("seed", -1), ("seed", 2**32)]  # fmt: skip


@pytest.mark.parametrize("name, value", [*BAD, ("batch_size", 8.5), ("seed", 0.5), ("batch_size", math.nan)])
def test_the_stream_names_what_is_wrong(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
        stream(**{name: value})
    if name != "momentum":
        with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
            codes(**{name: value})


@pytest.mark.parametrize("trait, value", BAD)
def test_the_slider_names_what_is_wrong(trait, value):
    with pytest.raises(ValueError, match=f"^{trait} must be .*, got"):
        MomentumExplorer(**{trait: value})
    with pytest.raises(ValueError, match=f"^{trait} must be .*, got"):
        setattr(MomentumExplorer(), trait, value)


@pytest.mark.parametrize("as_written", VERSIONS)
@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_of_the_sliders_can_be_set(end, as_written):
    ends = {"momentum": (0, 0.99), "batch_size": (8, 256), "drift": (0, 2), "rho": (0, 0.95), "seed": (0, 2**32 - 1)}
    setting = {name: pair[end] for name, pair in ends.items()}
    explorer = MomentumExplorer(**setting, as_written=as_written)
    assert {name: getattr(explorer, name) for name in setting} == setting
    assert all(map(math.isfinite, explorer.numbers())) and np.isfinite(explorer.stream()).all()


def test_what_the_browser_sends_can_be_read():
    explorer = MomentumExplorer()
    explorer.set_state({"momentum": 0, "drift": 1, "as_written": False, "seed": 4})  # a browser writes 1.0 as 1
    np.testing.assert_array_equal(explorer.stream(), stream(0.0, 64, 1.0, 0.0, False, 4))
    assert explorer.start == {"momentum": 0.9, "batch_size": 64, "drift": 1.0, "rho": 0.0, "as_written": True,
                              "seed": 1}  # fmt: skip


def test_the_still_picture_shows_the_line_below_the_batches_of_clips():
    explorer = MomentumExplorer(0.9, 64, 0.0, 0.8, as_written=False)
    ink = explorer.still()
    assert ink.shape == (160, 320) and set(ink.ravel().tolist()) == {0.0, 0.4, 0.6, 1.0}
    assert (ink[:, :-1] == 1).any(0).all()  # the line crosses every column
    height = 160 - np.argmax(ink == 1, 0)[:-1].mean()
    assert height < 30 and (ink[:80] == 0.4).any()  # the average near 0, single batches far above it
    written = MomentumExplorer(0.9, 64, 0.0, 0.8).still()
    assert 160 - np.argmax(written == 1, 0)[:-1].mean() > height + 5


def test_viewers_without_widgets_get_words_and_a_picture():
    data, _ = MomentumExplorer(alt="K of a moving average.")._repr_mimebundle_()
    assert data["text/plain"] == "K of a moving average."
    assert Image.open(io.BytesIO(data["image/png"])).size == (640, 320)
    assert "</script" not in MomentumExplorer._esm.lower()
