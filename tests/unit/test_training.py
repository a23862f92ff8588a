"""The training loop: it does what a loop by hand does, and survives NaN, Ctrl-C and SIGKILL."""

from __future__ import annotations

import io
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import Terms, Toy, same, train

from vaelab import training
from vaelab.training import CannotResume, History, NotFinite, descend, fit


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return tmp_path / "checkpoints" / "toy.pt"


def finished(steps: int = 60, **options) -> dict[str, Any]:
    """Everything about a toy trained without interruption."""
    toy = Toy()
    return toy.everything(fit(toy.step, steps, **options))


def resumed(checkpoint: Path, steps: int = 60, **options) -> dict[str, Any]:
    """Everything about a toy of another seed, so that what is right about it came out of the checkpoint."""
    toy = Toy(seed=99)
    return toy.everything(fit(toy.step, steps, state=toy.state, checkpoint=checkpoint, **options))


def no_step(t: int):
    raise AssertionError(f"step {t} was called")


# The gradient step


class Loss(NamedTuple):
    loss: Tensor


def gradient_step(gradient: tuple[float, float], clip: float | None) -> list[float]:
    """Where one step of plain descent moves two parameters from zero, by gradients of our choice."""
    a, b = (nn.Parameter(torch.zeros(())) for _ in range(2))
    optimiser = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    descend(lambda t: Loss(gradient[0] * a + gradient[1] * b), optimiser, clip)(0)
    return [-a.item(), -b.item()]


def test_a_step_follows_the_gradient():
    assert gradient_step((3, 4), clip=None) == [3, 4]


def test_clipping_shortens_the_whole_gradient_to_the_norm_and_keeps_its_direction():
    assert gradient_step((3, 4), clip=1.0) == pytest.approx([0.6, 0.8], rel=1e-5)
    assert gradient_step((3, 4), clip=6.0) == pytest.approx([3, 4])


def test_gradients_do_not_add_up_over_steps():
    a = nn.Parameter(torch.zeros(()))
    step = descend(lambda t: Loss(2 * a), torch.optim.SGD([a], lr=1.0))
    for t in range(3):
        assert step(t)._fields == ("loss",)
    assert a.item() == -6


def test_the_loss_is_told_the_number_of_the_step():
    a, seen = nn.Parameter(torch.zeros(())), []
    step = descend(lambda t: (seen.append(t), Loss(a * 1))[1], torch.optim.SGD([a], lr=1.0))
    fit(step, 4)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("clip", [0, -1.0, float("nan")])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(ValueError, match=f"clip is {clip}; it must be positive, or None"):
        descend(lambda t: None, torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0), clip)


# The loop


def test_it_does_what_a_loop_by_hand_does_bit_for_bit():
    toy = Toy()
    terms = [toy.step(t) for t in range(250)]
    by_hand, toy = toy.everything(), Toy()
    history = fit(toy.step, 250)
    assert isinstance(history, History) and same(toy.everything(), by_hand)
    assert list(history.terms) == ["loss", "beta"]
    for name, series in history.terms.items():
        assert series.dtype == np.float32 and series.shape == (250,)
        np.testing.assert_array_equal(series, np.float32([getattr(term, name).item() for term in terms]))


@pytest.mark.parametrize("every", [1, 7, 60, 1000])
def test_how_often_it_looks_changes_nothing(every, checkpoint):
    toy = Toy()
    history = fit(toy.step, 60, state=toy.state, checkpoint=checkpoint, every=every)
    assert same(toy.everything(history), finished())


def test_terms_may_be_plain_numbers_and_need_no_gradient():
    class Numbers(NamedTuple):
        square: float
        tensor: Tensor

    history = fit(lambda t: Numbers(t**2, torch.tensor(t, dtype=torch.float64)), 4)
    assert history.terms["square"].tolist() == [0, 1, 4, 9] and history.terms["tensor"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("steps, every", [(0, 10), (10, 0), (-3, 10)])
def test_no_steps_are_refused(steps, every):
    with pytest.raises(ValueError, match=f"steps is {steps}, every is {every}; both must be at least 1"):
        fit(no_step, steps, every=every)


# NaN


@pytest.mark.parametrize("at", [0, 37, 99, 100, 149])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_term_that_is_not_finite_is_named_with_its_exact_step(at, value):
    def step(t: int) -> Terms:
        return Terms(torch.tensor(1.0), torch.tensor(float(value) if t >= at else 1.0))

    with pytest.raises(NotFinite, match=rf"^beta is {value} at step {at}\."):
        fit(step, 150)


def test_the_first_term_to_go_wrong_is_the_one_named():
    def step(t: int) -> Terms:
        return Terms(torch.tensor(1.0 if t < 9 else torch.nan), torch.tensor(1.0 if t < 8 else torch.inf))

    with pytest.raises(ValueError, match="^beta is inf at step 8"):
        fit(step, 50)


def test_a_spoilt_training_does_not_go_on_for_long():
    begun = []
    with pytest.raises(NotFinite):
        fit(lambda t: (begun.append(t), Terms(torch.tensor(torch.nan), torch.tensor(1.0)))[1], 10_000)
    assert len(begun) <= 100


@pytest.mark.parametrize("at", [21, 25, 29])
def test_the_checkpoint_is_then_still_the_last_good_one(checkpoint, at):
    toy = Toy()

    def step(t: int) -> Terms:
        terms = toy.step(t)
        return terms if t != at else terms._replace(loss=torch.tensor(torch.nan))

    with pytest.raises(NotFinite, match=f"loss is nan at step {at}"):
        fit(step, 60, state=toy.state, checkpoint=checkpoint, every=10)
    assert same(resumed(checkpoint, 20), finished(20))  # it holds steps 0 … 19, so none is called


def spoilt_from(at: int):
    return lambda t: Terms(torch.tensor(1.0), torch.tensor(1.0 if t < at else torch.nan))


# Evaluation


def test_it_evaluates_after_exactly_the_steps_asked_for():
    count, seen = [0], []

    def step(t: int) -> Terms:
        count[0] += 1
        return Terms(torch.tensor(1.0), torch.tensor(1.0))

    def evaluate() -> dict[str, float]:
        seen.append(count[0])
        return {"steps": count[0], "half": torch.tensor(count[0] / 2)}

    history = fit(step, 150, evaluate=evaluate, evaluate_at=[1, 7, 100, 150, 151])
    assert seen == [1, 7, 100, 150]
    assert history.evaluated_at.tolist() == seen and history.evaluated_at.dtype == np.int64
    assert history.evaluations["steps"].tolist() == seen and history.evaluations["half"].tolist() == [0.5, 3.5, 50, 75]
    assert history.evaluations["half"].dtype == np.float64


def test_an_evaluation_that_draws_from_every_generator_does_not_disturb_the_training():
    def evaluate() -> dict[str, float]:
        random.gauss(0, 1), np.random.randn(), torch.randn(3), random.seed(1), torch.manual_seed(1)
        return {"zero": 0.0}

    disturbed, left_alone = finished(evaluate=evaluate, evaluate_at=range(0, 60, 3)), finished()
    assert len(disturbed.pop("evaluated_at")) == 19 and len(left_alone.pop("evaluated_at")) == 0
    assert set(disturbed.pop("evaluations")) == {"zero"} and left_alone.pop("evaluations") == {}
    assert same(disturbed, left_alone)


def test_evaluations_run_without_gradients_and_training_goes_on_with_them():
    gradients = []

    def step(t: int) -> Terms:
        gradients.append(torch.is_grad_enabled())
        return Terms(torch.tensor(1.0), torch.tensor(1.0))

    fit(step, 3, evaluate=lambda: {"on": gradients.append(torch.is_grad_enabled()) or 0.0}, evaluate_at=[2])
    assert gradients == [True, True, False, True]


def test_without_evaluations_there_are_none():
    history = fit(Toy().step, 5)
    assert history.evaluated_at.tolist() == [] and history.evaluations == {}


# Checkpoints


def crash_at(toy: Toy, at: int):
    def step(t: int) -> Terms:
        if t == at:
            raise OSError("the machine is gone")
        return toy.step(t)

    return step


@pytest.mark.parametrize("at", [10, 37, 59])
def test_a_crashed_training_resumes_bit_for_bit(checkpoint, at):
    def run(toy: Toy, step, path: Path | None) -> dict[str, Any]:
        def evaluate() -> dict[str, float]:
            return {"weight": toy.model.weight.sum(), "draw": random.random()}

        options = {"evaluate": evaluate, "evaluate_at": range(5, 60, 5), "every": 10}
        return toy.everything(fit(step, 60, state=toy.state, checkpoint=path, **options))

    undisturbed = run(toy := Toy(), toy.step, None)
    crashed = Toy()
    with pytest.raises(OSError, match="the machine is gone"):
        run(crashed, crash_at(crashed, at), checkpoint)
    again = run(toy := Toy(seed=99), toy.step, checkpoint)
    assert again["evaluated_at"].tolist() == list(range(5, 60, 5))
    assert same(again, undisturbed)


def test_it_resumes_at_the_step_of_the_last_checkpoint(checkpoint):
    crashed, called = Toy(), []
    with pytest.raises(OSError):
        fit(crash_at(crashed, 37), 60, state=crashed.state, checkpoint=checkpoint, every=10)
    toy = Toy()
    fit(lambda t: (called.append(t), toy.step(t))[1], 60, state=toy.state, checkpoint=checkpoint, every=10)
    assert called == list(range(30, 60))


def test_a_checkpoint_between_two_looks_at_the_terms_holds_all_of_them(checkpoint):
    crashed = Toy()
    with pytest.raises(OSError):
        fit(crash_at(crashed, 270), 300, state=crashed.state, checkpoint=checkpoint, every=130)
    assert same(resumed(checkpoint, 300), finished(300))


def test_a_checkpoint_between_two_looks_at_the_terms_is_not_written_of_a_spoilt_training(checkpoint):
    with pytest.raises(NotFinite, match="at step 125"):
        fit(spoilt_from(125), 300, state={}, checkpoint=checkpoint, every=130)
    assert not checkpoint.exists()


def test_a_finished_run_returns_the_same_history_without_a_step(checkpoint):
    def run(toy: Toy, step) -> dict[str, Any]:
        numbers = {"evaluate": lambda: {"a": 1.5}, "evaluate_at": [3]}
        return toy.everything(fit(step, 20, state=toy.state, checkpoint=checkpoint, **numbers))

    first = run(toy := Toy(), toy.step)
    assert same(run(Toy(seed=99), no_step), first)


def test_a_finished_run_can_be_prolonged(checkpoint):
    resumed(checkpoint, 20)
    assert same(resumed(checkpoint, 60), resumed(checkpoint.with_name("in one go.pt"), 60))


def test_a_checkpoint_of_nothing_is_refused(checkpoint):
    with pytest.raises(ValueError, match="name everything that changes"):
        fit(no_step, 5, checkpoint=checkpoint)


def test_what_is_drawn_in_between_can_be_undone_whatever_happens():
    before = training.generator_states()["torch"]
    with pytest.raises(OSError), training.undisturbed():
        torch.randn(3)
        raise OSError
    assert training.generator_states()["torch"].equal(before)


def test_fewer_steps_than_the_checkpoint_has_are_refused(checkpoint):
    finished(60, state={}, checkpoint=checkpoint)
    with pytest.raises(CannotResume, match="60.*40"):
        finished(40, state={}, checkpoint=checkpoint)


def test_a_checkpoint_is_written_every_so_often_and_at_the_end(checkpoint, monkeypatch):
    written, write_whole = [], training.files.write_whole
    monkeypatch.setattr(training.files, "write_whole", lambda *a: (written.append(len(called)), write_whole(*a)))
    toy, called = Toy(), []
    fit(lambda t: (called.append(t), toy.step(t))[1], 25, state=toy.state, checkpoint=checkpoint, every=10)
    assert written == [10, 20, 25]
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_a_controller_may_count_in_numpys_numbers(checkpoint):
    toy = Toy()
    toy.controller.beta = np.float64(0.5)
    fit(toy.step, 10, state=toy.state, checkpoint=checkpoint)
    assert resumed(checkpoint, 10)["controller"] == toy.controller.state_dict()


def other_parts() -> dict[str, dict]:
    wide = nn.Linear(4, 1)
    adam = torch.optim.Adam([*nn.Linear(3, 1).parameters(), nn.Parameter(torch.zeros(1))])
    return {
        "a part is missing": {"optimiser": None},
        "a part is new": {"ema": nn.Linear(3, 1)},
        "a part has another shape": {"model": wide},
        "a part has other parameters": {"optimiser": adam},
        "a generator became a module": {"generator": nn.Linear(3, 1)},
        "a module became a generator": {"model": torch.Generator()},
    }


@pytest.mark.parametrize("difference", list(other_parts()))
def test_a_checkpoint_of_another_training_is_refused_and_kept(checkpoint, difference):
    toy, changed = Toy(), other_parts()[difference]
    fit(toy.step, 5, state=toy.state, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    state = {name: part for name, part in (toy.state | changed).items() if part is not None}
    with pytest.raises(CannotResume, match=next(iter(changed))) as raised:
        fit(no_step, 5, state=state, checkpoint=checkpoint)
    assert str(checkpoint) in str(raised.value)
    assert checkpoint.read_bytes() == before


def saved(item) -> bytes:
    torch.save(item, content := io.BytesIO())
    return content.getvalue()


GARBAGE = {
    "empty": b"", "text": b"this is no checkpoint", "a list": saved([1, 2]), "parts alone": saved({"parts": {}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(checkpoint, kind):
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(GARBAGE[kind])
    with pytest.raises(CannotResume, match="Move it away to start anew") as raised:
        fit(no_step, 5, state={}, checkpoint=checkpoint)
    assert str(checkpoint) in str(raised.value)
    assert checkpoint.read_bytes() == GARBAGE[kind]


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(checkpoint, share):
    toy = Toy()
    fit(toy.step, 5, state=toy.state, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CannotResume, match="toy.pt is no checkpoint of this loop"):
        fit(no_step, 5, state=toy.state, checkpoint=checkpoint)


def test_generator_states_go_there_and_back():
    seeds = Toy(seed=5).everything()["defaults"]
    random.gauss(0, 1), np.random.randn()  # each keeps a second draw for later
    before = training.generator_states()
    draws = [(random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()) for _ in range(2)]
    training.set_generator_states(before)
    assert [(random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()) for _ in range(2)] == draws
    assert not same(seeds, before)


# Ctrl-C


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at", [0, 13, 59])
def test_ctrl_c_finishes_the_step_writes_the_checkpoint_and_can_be_resumed_bit_for_bit(checkpoint, at):
    toy, done = Toy(), []

    def step(t: int) -> Terms:
        if t == at:
            interrupt()
        terms = toy.step(t)
        done.append(t)
        return terms

    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {at + 1} of 60"):
        fit(step, 60, state=toy.state, checkpoint=checkpoint)
    assert done == list(range(at + 1)) and checkpoint.exists()
    assert same(resumed(checkpoint), finished())


def test_ctrl_c_between_two_steps_writes_the_checkpoint_too(checkpoint, monkeypatch):
    class Bar(training.tqdm):
        def update(self, n=1):
            if len(done) == 13:
                interrupt()
            return super().update(n)

    toy, done = Toy(), []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "tqdm", Bar)
        fit(lambda t: (toy.step(t), done.append(t))[0], 60, state=toy.state, checkpoint=checkpoint)
    assert checkpoint.exists()
    called, again = [], Toy(seed=99)
    fit(lambda t: (called.append(t), again.step(t))[1], 60, state=again.state, checkpoint=checkpoint)
    assert called[0] == len(done)


def test_a_second_ctrl_c_stops_at_once(checkpoint):
    done = []

    def step(t: int) -> Terms:
        interrupt(), interrupt()
        done.append(t)

    with pytest.raises(KeyboardInterrupt):
        fit(step, 60, state={}, checkpoint=checkpoint)
    assert done == [] and not checkpoint.exists()


@pytest.mark.parametrize("ending", ["done", "crash", "Ctrl-C"])
def test_afterwards_ctrl_c_means_what_it_meant_before(ending, monkeypatch):
    def mine(number, frame):
        raise AssertionError

    def step(t: int) -> Terms:
        assert signal.getsignal(signal.SIGINT) is not mine
        if ending == "crash":
            raise OSError
        if ending == "Ctrl-C":
            interrupt()
        return Terms(torch.tensor(1.0), torch.tensor(1.0))

    before = signal.signal(signal.SIGINT, mine)
    try:
        fit(step, 3)
    except (OSError, KeyboardInterrupt):
        assert ending != "done"
    finally:
        assert signal.signal(signal.SIGINT, before) is mine


def test_it_works_in_a_thread_which_may_not_handle_signals():
    before, histories = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: histories.append(fit(Toy().step, 20)))
    thread.start()
    thread.join()
    assert len(histories[0].terms["loss"]) == 20
    assert signal.getsignal(signal.SIGINT) is before


# SIGKILL

STEPS, EVERY = 100, 1


@pytest.fixture(scope="module")
def undisturbed(processes, tmp_path_factory) -> tuple[dict[str, Any], float]:
    """Everything about a training in a process that nobody kills, and the seconds it took."""
    folder, started = tmp_path_factory.mktemp("undisturbed"), processes.Event()
    arguments = (str(folder / "c.pt"), str(folder / "end.pt"), STEPS, EVERY, started)
    process = processes.Process(target=train, args=arguments)
    process.start()
    assert started.wait(60)
    begun = time.perf_counter()
    process.join()
    return torch.load(folder / "end.pt"), time.perf_counter() - begun


def test_a_training_killed_again_and_again_ends_as_if_nothing_had_happened(processes, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, result, kills = random.Random(0), tmp_path / "end.pt", 0
    while not result.exists():
        started = processes.Event()
        process = processes.Process(target=train, args=(str(tmp_path / "c.pt"), str(result), STEPS, EVERY, started))
        process.start()
        assert started.wait(60)
        process.join(rng.uniform(0, (0.2 + 0.02 * kills) * seconds))  # longer and longer, so that it ends some day
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert same(torch.load(result), expected)


@pytest.mark.parametrize("moment", ["half written", "before it is named", "after it is named"])
def test_a_training_killed_while_it_writes_a_checkpoint_ends_as_if_nothing_had_happened(
    processes, undisturbed, tmp_path, moment
):
    result = tmp_path / "end.pt"
    for death in ((moment, 1), (moment, 3), None):
        arguments = (str(tmp_path / "c.pt"), str(result), STEPS, EVERY, None, death)
        process = processes.Process(target=train, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if death else 0)
        assert result.exists() == (death is None)
    assert same(torch.load(result), undisturbed[0])


# Progress


@pytest.mark.parametrize("variable", ["CI", "VAELAB_QUIET"])
def test_it_is_quiet_under_ci_and_where_asked_to_be(monkeypatch, capsys, variable):
    monkeypatch.delenv("VAELAB_QUIET")
    monkeypatch.setenv(variable, "true")
    assert training.quiet()
    finished(5)
    assert capsys.readouterr() == ("", "")


def test_otherwise_it_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.delenv("VAELAB_QUIET")
    assert not training.quiet()
    finished(5, label="teaching the toy")
    shown = capsys.readouterr()
    assert "teaching the toy" in shown.err and "/5" in shown.err and shown.out == ""
