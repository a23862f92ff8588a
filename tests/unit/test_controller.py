"""The controllers of beta: what each rule does by its formula, which of them keeps pace, and that both resume."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import same

from vaelab import training
from vaelab.lab import seed_everything
from vaelab.training import BetaController, CannotResume, NotFinite, fit

RULES = ("additive", "log")


def follow(controller: BetaController, kls) -> list[float]:
    return [controller.update(kl).item() for kl in kls]


def noise(steps: int = 200) -> Tensor:
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# The rules


def test_the_additive_rule_is_the_authors():
    assert follow(BetaController(0.1), [0.3, 0.1, 0.0]) == pytest.approx([10.02, 10.02, 10.01], rel=1e-14)
    assert follow(BetaController(0.0, beta=1.0, rate=0.5), [2.0]) == [2.0]


def test_the_log_rule_multiplies_by_the_relative_error():
    found = follow(BetaController(0.2, beta=2.0, rate=0.3, rule="log"), [0.3, 0.2, 0.1, 0.0])
    expected = 2 * np.exp(0.3 * np.cumsum([0.5, 0.0, -0.5, -1.0]))
    assert found == pytest.approx(expected.tolist(), rel=1e-14)


@pytest.mark.parametrize("kl, power", [(0.2, 1), (0.3, 1), (1e30, 1), (0.15, 0.5), (0.0, -1), (-5.0, -1)])
def test_no_batch_moves_log_beta_by_more_than_the_rate(kl, power):
    beta = BetaController(0.1, beta=3.0, rate=0.7, rule="log").update(kl)
    assert beta.item() == pytest.approx(3 * math.exp(0.7 * power), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_additively_beta_is_where_it_began_plus_the_rate_times_the_sum_of_the_errors(smoothing):
    K, controller = noise(1000), BetaController(0.35, beta=40.0, rate=0.02, smoothing=smoothing)
    follow(controller, K)
    if smoothing:
        weights = torch.tensor([[0.9 ** (t - s) * (s <= t) for s in range(1000)] for t in range(1000)])
        K = (weights.double() / weights.double().sum(1, keepdim=True)) @ K  # the corrected average, written out
    expected = 40.0 + 0.02 * (K - 0.35).sum().item()
    assert controller.beta.item() == pytest.approx(expected, rel=1e-12 if not smoothing else 1e-6)


def test_the_moving_average_is_the_weighted_mean_from_its_first_step():
    rough, K = BetaController(0.5, rule="log", smoothing=0.75), [0.2, 0.8, 0.4]
    means = [0.2, (0.75 * 0.2 + 0.8) / 1.75, (0.75**2 * 0.2 + 0.75 * 0.8 + 0.4) / (0.75**2 + 1.75)]
    expected = 10 * np.exp(0.1 * np.cumsum(np.array(means) / 0.5 - 1))
    assert follow(rough, K) == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("rule", RULES)
def test_a_constant_kl_needs_no_smoothing(rule, smoothing):
    found = follow(BetaController(0.1, rule=rule, smoothing=smoothing), [0.13] * 50)
    assert found == pytest.approx(follow(BetaController(0.1, rule=rule), [0.13] * 50), rel=1e-12)


def test_smoothing_calms_a_noisy_kl():
    def roughness(smoothing: float) -> float:
        betas = follow(BetaController(0.5, rule="log", smoothing=smoothing), noise())
        return np.std(np.diff(np.log(betas[100:])))

    assert roughness(0.9) < 0.4 * roughness(0.0)  # sqrt((1 - 0.9) / (1 + 0.9)) = 0.23 in the long run


# Bounds


@pytest.mark.parametrize("rule", RULES)
def test_beta_stops_at_its_bounds_and_leaves_them_at_once(rule):
    controller = BetaController(1.0, beta=1.0, rate=0.2, rule=rule, floor=0.7, ceiling=1.5)
    assert min(follow(controller, [0.0] * 50)) == controller.beta.item() == 0.7
    back = 0.7 + 0.2 if rule == "additive" else 0.7 * math.exp(0.2)
    assert controller.update(2.0).item() == pytest.approx(back, rel=1e-14)
    assert max(follow(controller, [2.0] * 50)) == controller.beta.item() == 1.5
    assert controller.update(0.5).item() < 1.5


def test_the_usual_floor_is_the_authors_and_there_is_no_ceiling():
    controller = BetaController(0.1, beta=0.01)
    assert follow(controller, [0.0, 0.0])[-1] == 1e-3
    assert controller.update(1e9).item() == pytest.approx(1e8)


def test_a_beta_may_sit_on_its_bounds_and_fall_to_zero_where_the_floor_allows_it():
    assert BetaController(0.1, beta=0.0, floor=0.0).update(0.0).item() == 0
    assert BetaController(0.1, beta=2.0, floor=2.0, ceiling=2.0, rule="log").update(5.0).item() == 2


# Which rule keeps pace: K = g(t) / beta, with g growing by e^r a step


def plant(controller: BetaController, pull: Callable[[int], float], steps: int, tau: float = 1.0) -> np.ndarray:
    """Return ln(K / target), (steps,): ln K goes a share 1 / tau of its way to ln(g / beta) in a step."""
    log_kl, errors = math.log(controller.target), []
    for t in range(steps):
        log_kl += (math.log(pull(t) / controller.beta.item()) - log_kl) / tau
        errors.append(log_kl - math.log(controller.target))
        controller.update(math.exp(log_kl))
    return np.array(errors)


GROWTH = 0.005  # e^(0.005 * 2000) = 22,000


def growing(t: int) -> float:
    return math.exp(GROWTH * t)


def off_target(rule: str, rate: float) -> np.ndarray:
    """K / target - 1 under growth, (2000,), from a beta that is right at first."""
    return np.expm1(plant(BetaController(0.1, beta=10.0, rate=rate, rule=rule), growing, 2000))


def test_under_exponential_growth_the_log_rule_keeps_pace_and_the_additive_one_falls_behind():
    log, additive = off_target("log", 0.1), off_target("additive", 0.1)
    assert np.abs(log).max() < 0.1
    assert additive[400] > 0.5 and np.all(np.diff(additive[400:]) > 0)
    assert additive[-1] > 50
    for rate in (1.0, 10.0):  # no additive rate helps for ever
        assert off_target("additive", rate)[-1] > 0.5


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_the_log_rules_lag_is_the_growth_over_the_rate(rate):
    assert off_target("log", rate)[-1] == pytest.approx(GROWTH / rate, rel=1e-6)


def test_growth_faster_than_the_rate_is_too_fast_for_the_log_rule():
    errors = plant(BetaController(0.1, rate=GROWTH / 2, rule="log"), growing, 2000)
    assert np.diff(errors)[-1] == pytest.approx(GROWTH / 2, rel=1e-6)


def test_under_growth_the_additive_kl_grows_like_the_root_of_the_pull():
    K, g = 0.1 * (1 + off_target("additive", 0.1)[-1]), growing(1999)
    assert K == pytest.approx(math.sqrt(g * GROWTH / (2 * 0.1)), rel=0.02)


@pytest.mark.parametrize("g", [1.0, 100.0])
@pytest.mark.parametrize("rule", RULES)
def test_how_fast_an_error_is_forgotten(rule, g):
    controller = BetaController(0.5, beta=1.0001 * g / 0.5, rate=0.1, rule=rule)
    errors = plant(controller, lambda t: g, 2)
    gain = 0.1 if rule == "log" else 0.1 * 0.5**2 / g
    assert 1 - errors[1] / errors[0] == pytest.approx(gain, rel=1e-3)


@pytest.mark.parametrize("rate, overshoots", [(0.02, False), (0.4, True)])
def test_a_rate_beyond_a_quarter_of_the_response_overshoots(rate, overshoots):
    errors = plant(BetaController(0.1, beta=10.0, rate=rate, rule="log"), lambda t: 1.1, 400, tau=10.0)
    assert errors.max() > 0.03 and abs(errors[-1]) < 1e-2
    assert (errors.min() < -0.01) == overshoots


# A weight in a loss


@pytest.mark.parametrize("rule", RULES)
def test_no_gradient_flows_and_the_old_beta_stays_as_it_was(rule):
    w = torch.tensor(2.0, requires_grad=True)
    controller, K = BetaController(0.1, rule=rule), 3 * w
    old, loss = controller.beta, controller.beta * K
    new = controller.update(K)
    assert not new.requires_grad and new is controller.beta and (new > old).item() and old.item() == 10
    loss.backward()  # with the beta of the forward pass, although it has moved since
    assert w.grad.item() == 30 and w.grad.dtype == torch.float32


def test_beta_is_double_whatever_the_kl_is():
    for kl in (0.25, np.float32(0.25), torch.tensor(0.25), torch.tensor(0.25, dtype=torch.bfloat16)):
        beta = BetaController(0.1).update(kl)
        assert beta.shape == () and beta.dtype == torch.float64 and beta.item() == 10 + 0.1 * (0.25 - 0.1)


@pytest.mark.parametrize("rule", RULES)
def test_it_moves_to_the_device_of_the_kl_and_never_looks_at_a_value(rule):
    controller = BetaController(0.1, rule=rule, smoothing=0.5, ceiling=20.0)
    for _ in range(2):  # a meta tensor has no value: whatever would make a GPU wait raises
        assert controller.update(torch.tensor(0.3, device="meta")).device.type == "meta"
    assert controller.updates == 2 and controller.beta.dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_kl_that_is_not_finite_cannot_be_overlooked(rule, value):
    controller = BetaController(0.1, rule=rule, ceiling=50.0, smoothing=0.5)
    betas = follow(controller, [0.2, value, 0.2, 0.1])
    assert np.isnan(betas).tolist() == [False, True, True, True]


# With the training loop


class Terms(NamedTuple):
    loss: Tensor
    K: Tensor
    beta: Tensor


class Regression:
    """A regression with a penalty K that a controller holds at a target."""

    def __init__(self, seed: int = 0, **options):
        seed_everything(seed)
        self.model = nn.Linear(3, 1)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.controller = BetaController(0.3, beta=1.0, rate=0.05, **options)

    @property
    def state(self) -> dict:
        return dict(vars(self))

    def step(self, t: int) -> Terms:
        x = torch.randn(8, 3)
        K = self.model.weight.pow(2).mean()
        loss = (self.model(x) - x.sum(1, keepdim=True)).pow(2).mean() + self.controller.beta * K
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        terms = Terms(loss, K, self.controller.beta)
        self.controller.update(K)
        return terms

    def everything(self) -> dict:
        return {name: part.state_dict() for name, part in self.state.items()}


@pytest.mark.parametrize("options", [{}, {"rule": "log", "smoothing": 0.9}], ids=RULES)
def test_a_killed_training_resumes_bit_for_bit(tmp_path, options):
    whole = Regression(**options)
    expected = fit(whole.step, 60)
    killed, path = Regression(**options), tmp_path / "checkpoint.pt"

    def dying(t: int) -> Terms:
        if t == 37:
            raise OSError("the machine is gone")
        return killed.step(t)

    with pytest.raises(OSError, match="gone"):
        fit(dying, 60, state=killed.state, checkpoint=path, every=10)
    again = Regression(seed=99, **options)
    history = fit(again.step, 60, state=again.state, checkpoint=path, every=10)
    assert same(again.everything(), whole.everything()) and again.controller.updates == 60
    for name, series in expected.terms.items():
        np.testing.assert_array_equal(history.terms[name], series)
    assert len(np.unique(expected.terms["beta"])) > 50


@pytest.mark.parametrize("options", [{}, {"rule": "log"}], ids=RULES)
def test_it_brings_the_penalty_to_its_target(options):
    model = Regression(**options)
    history = fit(model.step, 1500)
    K, beta = history.terms["K"][-300:].mean(), history.terms["beta"][-1]
    assert K == pytest.approx(0.3, rel=0.05)
    assert beta == pytest.approx(3 * (1 / math.sqrt(0.3) - 1), rel=0.1)  # w = 1 / (1 + beta / 3), K = w^2


def test_fit_names_the_kl_that_went_wrong_and_keeps_the_last_good_beta(tmp_path):
    model, path = Regression(rule="log"), tmp_path / "checkpoint.pt"

    def step(t: int) -> Terms:
        terms = model.step(t)
        if t == 25:
            model.controller.update(math.inf)
            return terms._replace(K=torch.tensor(math.inf))
        return terms

    with pytest.raises(NotFinite, match="^K is inf at step 25"):
        fit(step, 60, state=model.state, checkpoint=path, every=10)
    again = Regression(seed=99, rule="log")
    assert len(fit(again.step, 20, state=again.state, checkpoint=path).terms["beta"]) == 20
    assert math.isfinite(again.controller.beta) and math.isnan(model.controller.beta)


def test_a_state_goes_through_a_file_and_leaves_the_settings_alone():
    controller = BetaController(0.1, rule="log", smoothing=0.9)
    follow(controller, [0.3, 0.2])
    torch.save(controller.state_dict(), content := io.BytesIO())
    content.seek(0)
    other = BetaController(0.2, beta=1.0, rate=0.5)
    other.load_state_dict(torch.load(content, weights_only=True))
    assert same(other.state_dict(), controller.state_dict()) and other.beta.dtype == torch.float64
    assert (other.target, other.rate, other.rule, other.smoothing) == (0.2, 0.5, "additive", 0.0)


@pytest.mark.parametrize("beta", [0.5, 50.0, math.nan])
def test_a_state_of_other_bounds_is_refused(beta):
    controller = BetaController(0.1, beta=2.0, floor=1.0, ceiling=10.0)
    with pytest.raises(ValueError, match=f"beta is {beta}; it must lie between floor and ceiling, 1.0 and 10.0"):
        controller.load_state_dict({"beta": beta, "average": 0.0, "updates": 3})
    assert controller.beta.item() == 2 and controller.updates == 0


def test_a_checkpoint_of_other_bounds_is_refused(tmp_path):
    low = Regression(ceiling=1.0)
    fit(low.step, 5, state=low.state, checkpoint=tmp_path / "c.pt")
    assert low.controller.beta.item() <= 1
    high = Regression(seed=99)
    high.controller = BetaController(0.3, beta=5.0, floor=2.0)
    with pytest.raises(CannotResume, match="part .controller. does not fit this run .beta is .* and ceiling, 2.0"):
        fit(high.step, 9, state=high.state, checkpoint=tmp_path / "c.pt")


# Bad input


@pytest.mark.parametrize(
    "options, said",
    [
        ({"target": -0.1}, "target is -0.1; it must be at least 0"),
        ({"target": math.nan}, "target is nan; it must be at least 0"),
        ({"target": math.inf}, "target is inf; .* be finite"),
        ({"target": 0.0, "rule": "log"}, "target is 0.0; it must be positive for the log rule"),
        ({"rule": "pid"}, "rule is 'pid'; it must be 'additive' or 'log'"),
        ({"rate": 0.0}, "rate is 0.0; it must be positive"),
        ({"rate": -1.0}, "rate is -1.0; it must be positive"),
        ({"rate": math.inf}, "rate is inf; it must be positive, and be finite"),
        ({"floor": -1e-3}, "floor is -0.001; it must be at least 0"),
        ({"floor": 0.0, "rule": "log"}, "floor is 0.0; it must be positive for the log rule"),
        ({"beta": 5e-4}, "beta is 0.0005; it must lie between floor and ceiling, 0.001 and inf"),
        ({"beta": 5.0, "ceiling": 4.0}, "beta is 5.0; it must lie between floor and ceiling, 0.001 and 4.0"),
        ({"beta": math.inf}, "beta is inf; .* and be finite"),
        ({"beta": math.nan}, "beta is nan; it must lie between"),
        ({"floor": 2.0, "ceiling": 1.0}, "ceiling is 1.0; it must be at least floor, which is 2.0, or None"),
        ({"ceiling": math.nan}, "ceiling is nan; it must be at least floor"),
        ({"smoothing": 1.0}, r"smoothing is 1.0; it must lie in \[0, 1\)"),
        ({"smoothing": -0.1}, r"smoothing is -0.1; it must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        training.BetaController(**({"target": 0.1} | options))


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)])
def test_a_kl_with_axes_is_refused_and_changes_nothing(shape):
    controller = BetaController(0.1)
    with pytest.raises(ValueError, match=r"kl has shape \(.*\); it must be one number, \(\): take the mean"):
        controller.update(torch.ones(shape))
    assert controller.beta.item() == 10 and controller.updates == 0
