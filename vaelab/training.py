"""The one training loop.

A chapter writes `step(t) -> terms`, which takes step number t and returns a named tuple of scalar tensors.
For a model with one loss and one optimiser, `descend` writes it. `fit` calls it again and again and adds
what every training needs: a progress bar, a history, a stop at the first NaN, checkpoints::

    batches = Shuffle(len(train), batch_size=128, seed=0)
    step = descend(lambda t: model(*train[batches(t)]), optimiser)
    history = fit(step, steps=5000, state={"model": model, "optimiser": optimiser}, checkpoint="cvae.pt")

Run the same lines again after a crash, and training goes on where the checkpoint stands, bit for bit.
What else moves from step to step is part of the `state`, like the weight of a KL under a `BetaController`.
"""

from __future__ import annotations

import io
import math
import random
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaelab import files
from vaelab.lab import flag

Step = Callable[[int], NamedTuple]


class NotFinite(ValueError):
    """A term of the loss turned NaN or infinite."""


class CannotResume(ValueError):
    """A checkpoint does not belong to the run that asks for it."""


class History(NamedTuple):
    """What a training run left behind, as arrays."""

    terms: dict[str, np.ndarray]  # name -> (steps,) float32, one value a step
    evaluated_at: np.ndarray  # (k,) int64 step counts
    evaluations: dict[str, np.ndarray]  # name -> (k,) float64


def descend(
    loss: Callable[[int], NamedTuple],
    optimiser: torch.optim.Optimizer,
    clip: float | None = None,
) -> Step:
    """Return the step that follows the gradient of `loss(t).loss`.

    Args:
        loss: takes the step number, returns a named tuple of scalar tensors with an attribute `loss`.
        optimiser: its parameters are the ones that move.
        clip: the largest allowed norm of the whole gradient; None does not clip.

    Raises:
        ValueError: `clip` is not positive.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}; it must be positive, or None")
    parameters = [p for group in optimiser.param_groups for p in group["params"]]

    def step(t: int) -> NamedTuple:
        terms = loss(t)
        optimiser.zero_grad(set_to_none=True)
        terms.loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        return terms

    return step


def fit(
    step: Step,
    steps: int,
    *,
    state: Mapping[str, Any] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_at: Collection[int] = (),
    checkpoint: str | Path | None = None,
    every: int = 1000,
    label: str = "training",
) -> History:
    """Call `step(0)`, …, `step(steps - 1)` and return the history of the terms.

    Args:
        step: does everything one step does and returns a named tuple of scalar tensors.
        steps: how many steps in all, those before an interruption included.
        state: everything that changes while training, by name: models, optimisers, `torch.Generator`s,
            controllers. Each has `state_dict` and `load_state_dict` (a generator: `get_state`, `set_state`).
        evaluate: returns numbers worth following; it runs without gradients and cannot disturb the draws
            of training, because the default generators are put back afterwards.
        evaluate_at: after how many steps (counted from 1) to call it.
        checkpoint: a file to write every `every` steps and at the end, and to resume from if it exists.
        every: also how often the bar and the check for NaN look at the terms, but at least every 100 steps;
            a look costs a GPU a wait.
        label: what the progress bar says.

    Raises:
        NotFinite: a term was NaN or infinite; the message names it and the step. The checkpoint on disk
            is then still the last good one.
        CannotResume: the checkpoint has other parts than `state`.
        KeyboardInterrupt: after Ctrl-C, once the step under way is done and the checkpoint written.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps is {steps}, every is {every}; both must be at least 1")
    if checkpoint and state is None:
        raise ValueError("checkpoint is given, but no state: name everything that changes while training")
    log = _Log()
    first = _resume(checkpoint, state or {}, log) if checkpoint else 0
    if first > steps:
        raise CannotResume(f"{checkpoint} stands at step {first}, but only {steps} are asked for")
    evaluate_at, look = set(evaluate_at), min(every, 100)
    with _bar(first, steps, label) as bar, _interrupts() as interrupted:
        for t in range(first, steps):
            log.add(step(t))
            done = t + 1
            bar.update()
            stop = interrupted()  # asked once a step: a Ctrl-C from here on is for the next
            if done % look == 0 or done == steps or stop:
                bar.set_postfix(log.settle(done), refresh=False)
            if done in evaluate_at and evaluate is not None:
                log.evaluation(done, _aside(evaluate))
            if checkpoint and (done % every == 0 or done == steps or stop):
                log.settle(done)
                _save(checkpoint, done, state or {}, log)
            if stop:
                raise KeyboardInterrupt(f"stopped after step {done} of {steps}")
        if interrupted():  # after the last step's question
            raise KeyboardInterrupt(f"stopped after step {steps} of {steps}")
    return log.history()


class _Log:
    """The terms so far: settled ones as arrays, fresh ones still as tensors on the device."""

    def __init__(self):
        self.names: tuple[str, ...] = ()
        self.fresh: list[Tensor] = []  # (terms,) each
        self.settled: list[Tensor] = []  # (steps, terms) each, float32, on the CPU
        self.at: list[int] = []
        self.values: dict[str, list[float]] = {}

    def add(self, terms: NamedTuple) -> None:
        self.names = terms._fields
        self.fresh.extend(torch.as_tensor(term).detach() for term in terms)

    def settle(self, done: int) -> dict[str, str]:
        """Move the fresh terms to the CPU, check them, and return the last ones for the bar."""
        if self.fresh:
            device = self.fresh[0].device
            block = torch.stack([term.to(device).float() for term in self.fresh]).cpu()
            block = block.view(-1, len(self.names))  # (steps, terms)
            _check_finite(block, self.names, done - len(block))
            self.settled.append(block)
            self.fresh = []
        last = self.settled[-1][-1].tolist() if self.settled else []
        return {name: f"{value:.4g}" for name, value in zip(self.names, last)}

    def evaluation(self, done: int, numbers: Mapping[str, float]) -> None:
        self.at.append(done)
        for name, value in numbers.items():
            self.values.setdefault(name, []).append(float(value))

    def state_dict(self) -> dict[str, Any]:
        table = torch.cat(self.settled) if self.settled else torch.empty(0, len(self.names))
        return {"names": list(self.names), "table": table, "at": self.at, "values": self.values}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.names, self.settled = tuple(saved["names"]), [saved["table"]]
        self.at, self.values = list(saved["at"]), {k: list(v) for k, v in saved["values"].items()}

    def history(self) -> History:
        table = torch.cat(self.settled).numpy()  # (steps, terms)
        terms = {name: table[:, i].copy() for i, name in enumerate(self.names)}
        values = {name: np.array(series) for name, series in self.values.items()}
        return History(terms, np.array(self.at, dtype=np.int64), values)


def _check_finite(block: Tensor, names: tuple[str, ...], before: int) -> None:
    bad = (~block.isfinite()).nonzero()  # (k, 2), rows in order of time
    if len(bad):
        row, column = bad[0].tolist()
        raise NotFinite(
            f"{names[column]} is {block[row, column].item()} at step {before + row}. "
            "The parameters are spoilt from there on: lower the learning rate, clip the gradient, "
            "or look for a log or a division of zero."
        )


def _aside(evaluate: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """Evaluate without gradients and without moving any default generator."""
    with undisturbed(), torch.no_grad():
        return evaluate()


# Checkpoints


def generator_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's default generators, as tensors and plain numbers."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Put the default generators back into the states that `generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the default generators back afterwards, whatever happens in between."""
    before = generator_states()
    try:
        yield
    finally:
        set_generator_states(before)


def _part_state(part: Any) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else _loadable(part.state_dict())


def _loadable(value: Any) -> Any:
    """Turn NumPy's numbers into Python's, which `torch.load` reads without trusting the file."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: _loadable(v) for k, v in value.items()}
    return type(value)(map(_loadable, value)) if type(value) in (list, tuple) else value


def _set_part_state(part: Any, saved: Any) -> None:
    part.set_state(saved) if isinstance(part, torch.Generator) else part.load_state_dict(saved)


def _save(path: str | Path, done: int, state: Mapping[str, Any], log: _Log) -> None:
    content = io.BytesIO()
    parts = {name: _part_state(part) for name, part in state.items()}
    torch.save(
        {"step": done, "parts": parts, "generators": generator_states(), "log": log.state_dict()}, content
    )
    files.write_whole(path, content.getvalue())


def _resume(path: str | Path, state: Mapping[str, Any], log: _Log) -> int:
    """Load a checkpoint, if there is one, into the parts, the generators and the log; return its step."""
    if not Path(path).exists():
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        parts, done, generators, terms = (saved[name] for name in ("parts", "step", "generators", "log"))
    except Exception as error:  # torch.load raises a dozen kinds
        raise CannotResume(f"{path} is no checkpoint of this loop ({error}). Move it away to start anew.") from error
    if set(parts) != set(state):
        raise CannotResume(
            f"{path} holds {sorted(parts)}, but this run's state has {sorted(state)}. "
            "Move it away to start anew, or pass the same parts."
        )
    for name, part in state.items():
        try:
            _set_part_state(part, parts[name])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CannotResume(f"{path}: part {name!r} does not fit this run ({error})") from error
    set_generator_states(generators)
    log.load_state_dict(terms)
    return int(done)


# Progress and interruption


def quiet() -> bool:
    """Say whether progress bars keep silent: under CI, and where `VAELAB_QUIET` is set."""
    return flag("CI") or flag("VAELAB_QUIET")


def _bar(first: int, steps: int, label: str) -> tqdm:
    return tqdm(total=steps, initial=first, desc=label, unit="step", mininterval=0.5, disable=quiet(), leave=False)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a flag, so that a step is never cut in half; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# The weight of a KL


class BetaController:
    r"""Move the weight beta of a KL after every step, so that the KL comes to stand at a target.

    The loss is F + beta K, with K in nats per latent dimension (their mean, not their sum). `update(K)` raises
    beta while K is above the target T and lowers it below, then keeps it in [floor, ceiling]:

    .. math::
        \text{additive:} \quad \beta &\leftarrow \beta + \text{rate} \, (K - T) \\
        \text{log:} \quad \ln\beta &\leftarrow \ln\beta + \text{rate} \, \mathrm{clip}(K / T - 1, -1, 1)

    **Why the log rule keeps pace where the additive one cannot.** Both integrate the error. Additively that means
    beta = beta_0 + rate * sum(K - T): it climbs only as far as K has been too large for long enough. Say
    K = g / beta, with a pull g of the reconstruction that grows by e^r a step. The beta that is needed, g / T,
    grows as fast, but the additive one only like sqrt(2 rate g / r), so that K grows, too, like
    sqrt(g r / (2 rate)), without end. With g at rest it forgets an error in g / (rate T^2) steps: the larger the
    pull, the slower. The log rule moves in relative units. It forgets in 1 / rate steps whatever g is, and under
    growth K stands at T (1 + r / rate), as long as r is below the rate.

    **Which rate.** For the log rule well above r, and at most 1 / (4 tau) where K takes tau steps to follow
    beta: a faster one overshoots. So 0.1 suits an encoder that answers in two or three steps, 0.01 one that takes
    25. An additive rate is in units of beta per nat, and no one value suits a whole training.

    Args:
        target: T, nats per latent dimension: at least 0; for the log rule positive.
        beta: where it starts.
        rate: beta per nat for the additive rule; for the log rule the longest step of ln beta. The clip binds
            where K is above 2 T (as K >= 0, never below), so that no batch multiplies beta by more than e^rate.
        rule: "additive" or "log".
        floor: the smallest beta: at least 0; for the log rule positive, as a factor never moves a beta of 0.
        ceiling: the largest beta; None: there is none.
        smoothing: share of the past in a moving average that takes the place of K, in [0, 1), its start corrected
            for as Adam does. It calms a noisy K and adds about 1 / (1 - smoothing) steps to tau.

    Attributes:
        beta: () float64, where the last K was (at first on the CPU), without gradient. Each update makes a new
            tensor, so that the old one can stay in a graph or a history.

    Raises:
        ValueError: an argument outside what is said above.

    Source: the additive rule is the dual gradient step of Peng et al. 2019 (arXiv 1810.00821). A weight steered by
    feedback to a set KL is ControlVAE's idea (Shao et al. 2020, arXiv 2004.05988), there with a proportional term
    and a bounded beta; a weight multiplied by the exponential of an error is GECO's (Rezende and Viola 2018,
    arXiv 1810.00597), there for the reconstruction.

    >>> controller = BetaController(target=0.1, rule="log")
    >>> [round(controller.update(K).item(), 3) for K in (0.1, 0.2, 30.0)]  # ten times e^0, e^0.1, e^0.2
    [10.0, 11.052, 12.214]
    """

    def __init__(
        self,
        target: float,
        beta: float = 10.0,
        rate: float = 0.1,
        rule: str = "additive",
        floor: float = 1e-3,
        ceiling: float | None = None,
        smoothing: float = 0.0,
    ):
        ceiling = math.inf if ceiling is None else ceiling
        _check_rule(rule, target, floor)
        _check_range("rate", rate, rate > 0, "be positive")
        _check_range("smoothing", smoothing, 0 <= smoothing < 1, "lie in [0, 1)")
        if not ceiling >= floor:
            raise ValueError(f"ceiling is {ceiling}; it must be at least floor, which is {floor}, or None")
        self.target, self.rate, self.rule = target, rate, rule
        self.floor, self.ceiling, self.smoothing = floor, ceiling, smoothing
        self.load_state_dict({"beta": beta, "average": 0.0, "updates": 0})

    def update(self, kl: Tensor | float) -> Tensor:
        """Move beta by the K of one step, () or a plain number, nats per latent dimension; return the new beta.

        K is detached, and never looked at, so that a GPU costs no wait. If it is NaN or infinite, beta turns NaN
        and stays so, past clip and bounds and on every device: `fit` then stops at the first term that went
        wrong, and the checkpoint holds the last good beta. Where several processes train, pass the mean over all
        of them, or their betas drift apart.

        Raises:
            ValueError: `kl` has axes.
        """
        K = torch.as_tensor(kl, dtype=torch.float64).detach()
        if K.ndim:
            raise ValueError(f"kl has shape {tuple(K.shape)}; it must be one number, (): take the mean")
        self.updates += 1
        self.average = self.smoothing * self.average.to(K.device) + (1 - self.smoothing) * K
        moved = self._moved(self.beta.to(K.device), self.average / (1 - self.smoothing**self.updates))
        self.beta = torch.where(K.isfinite(), moved.clamp(self.floor, self.ceiling), torch.nan)
        return self.beta

    def _moved(self, beta: Tensor, K: Tensor) -> Tensor:
        if self.rule == "additive":
            return beta + self.rate * (K - self.target)
        return beta * torch.exp(self.rate * (K / self.target - 1).clamp(-1, 1))

    def state_dict(self) -> dict[str, Any]:
        """Return what changes while training: beta, the moving average of K, the number of updates."""
        return {"beta": self.beta, "average": self.average, "updates": self.updates}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; target, rate, rule and bounds stay those of this controller.

        Raises:
            ValueError: its beta is not finite, or out of the bounds.
        """
        beta, average = (torch.as_tensor(saved[name], dtype=torch.float64) for name in ("beta", "average"))
        fits = self.floor <= float(beta) <= self.ceiling
        _check_range("beta", float(beta), fits, f"lie between floor and ceiling, {self.floor} and {self.ceiling}")
        self.beta, self.average, self.updates = beta, average, int(saved["updates"])


def _check_rule(rule: str, target: float, floor: float) -> None:
    if rule not in ("additive", "log"):
        raise ValueError(f"rule is {rule!r}; it must be 'additive' or 'log'")
    positive = rule == "log"
    allowed = "be positive for the log rule" if positive else "be at least 0"
    for name, value in (("target", target), ("floor", floor)):
        _check_range(name, value, value > 0 if positive else value >= 0, allowed)


def _check_range(name: str, value: float, fits: bool, allowed: str) -> None:
    if not (fits and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must {allowed}, and be finite")
