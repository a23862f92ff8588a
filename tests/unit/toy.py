"""A training with everything in it that a checkpoint must hold, and processes that die while it runs."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vaelab import runs
from vaelab.lab import seed_everything
from vaelab.training import History, fit, generator_states


class Terms(NamedTuple):
    loss: Tensor
    beta: Tensor


class Controller:
    """A number that follows the loss, as a balancing controller's does."""

    def __init__(self):
        self.beta = 1.0

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, saved: Mapping[str, float]) -> None:
        self.beta = saved["beta"]


class Toy:
    """A linear regression whose noise comes from every generator there is."""

    def __init__(self, seed: int = 0):
        seed_everything(seed)
        self.model = nn.Linear(3, 1)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.generator = torch.Generator().manual_seed(seed)
        self.controller = Controller()

    @property
    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def step(self, t: int) -> Terms:
        x = torch.randn(4, 3, generator=self.generator)
        noise = random.gauss(0, 1) + float(np.random.randn()) + torch.randn(())
        loss = self.controller.beta * (self.model(x) - x.sum(1, keepdim=True) - noise).pow(2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        terms = Terms(loss.detach(), torch.tensor(self.controller.beta))
        self.controller.beta = 0.9 * self.controller.beta + 0.1 / (1 + loss.item())
        return terms

    def everything(self, history: History | None = None) -> dict[str, Any]:
        """Return all that two equal trainings have in common, to the last bit, in a form that can be saved."""
        found = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "controller": self.controller.state_dict(),
            "defaults": generator_states(),
        }
        if history is not None:
            found["terms"] = {name: torch.from_numpy(series) for name, series in history.terms.items()}
            found["evaluated_at"] = torch.from_numpy(history.evaluated_at)
            found["evaluations"] = {name: torch.from_numpy(series) for name, series in history.evaluations.items()}
        return found


def same(a: Any, b: Any) -> bool:
    """Say whether two nests of dictionaries, lists, tensors and numbers are the same bit for bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.equal(b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# What the processes run that tests kill


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, write: int) -> None:
    """Have this process killed at its write number `write`, at a moment of that write."""
    left, fsync, replace = [write], os.fsync, os.replace

    def syncing(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0 and moment == "half written":
            os.truncate(handle, os.fstat(handle).st_size // 2)
            _die()
        fsync(handle)

    def naming(source, target) -> None:
        if left[0] == 0 and moment == "before it is named":
            _die()
        replace(source, target)
        if left[0] == 0 and moment == "after it is named":
            _die()

    os.fsync, os.replace = syncing, naming


def train(checkpoint: str, result: str, steps: int, every: int, started=None, death=None) -> None:
    """Train to the end, or to this process's, and leave everything in the file `result`."""
    torch.set_num_threads(1)
    if death:
        die_at(*death)
    toy = Toy(seed=0)
    started and started.set()

    def evaluate() -> dict[str, float]:
        return {"weight": float(toy.model.weight.sum()), "draw": random.random()}

    numbers = {"evaluate": evaluate, "evaluate_at": range(1, steps, 7)}
    history = fit(toy.step, steps, state=toy.state, checkpoint=checkpoint, every=every, **numbers)
    torch.save(toy.everything(history), f"{result}.part")
    os.rename(f"{result}.part", result)


def mortal_run(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A run that notes that it was begun, and kills its process where the environment says so."""
    with open(os.environ["TOY_NOTES"], "a") as notes:
        notes.write(f"{config['a']} {seed}\n")
    if os.environ.get("TOY_DEATH") == f"{config['a']} {seed}":
        _die()
    return {"draw": float(torch.rand(())), "curve": np.random.rand(3)}


def sweep(folder: str, environment: dict[str, str], death: tuple[str, int] | None = None) -> None:
    """Sweep over four mortal runs."""
    os.environ.update(environment)
    if death:
        die_at(*death)
    runs.sweep(mortal_run, runs.grid(a=[1, 2]), [0, 1], chapter="toy", folder=folder)
