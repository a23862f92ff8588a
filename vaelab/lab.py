"""Where a run happens: which preset, on which device, from which seed."""

from __future__ import annotations

import os
import random
from typing import NamedTuple, TypeVar

import numpy as np
import torch

PRESETS = ("smoke", "book", "paper")
T = TypeVar("T")

# Gradients of dark border pixels sink into denormal numbers, on which a CPU is ten times slower: the first
# 150 steps of a CVAE took 34 ms each instead of 3. The setting is inherited by threads started later, so it
# stands here, before torch starts any.
torch.set_flush_denormal(True)


class Lab(NamedTuple):
    """What a chapter needs to know about where it runs."""

    preset: str  # "smoke", "book" or "paper"
    device: torch.device
    seed: int

    def pick(self, *, smoke: T, book: T, paper: T | None = None) -> T:
        """Return the value for this preset; `paper` falls back to `book`.

        >>> Lab("smoke", torch.device("cpu"), 0).pick(smoke=20, book=5000)
        20
        """
        if self.preset == "smoke":
            return smoke
        return book if self.preset == "book" or paper is None else paper


def preset() -> str:
    """Return the preset named by the environment variable `VAELAB_PRESET` (default: `book`).

    Raises:
        ValueError: the variable names no preset.
    """
    name = os.environ.get("VAELAB_PRESET", "book")
    if name not in PRESETS:
        raise ValueError(f"VAELAB_PRESET is {name!r}; it must be one of {', '.join(PRESETS)}")
    return name


def flag(name: str) -> bool:
    """Say whether an environment variable asks for something: set, and not to 0, no or false."""
    return os.environ.get(name, "").lower() not in ("", "0", "no", "false")


def device() -> torch.device:
    """Return the device that everything runs on: `VAELAB_DEVICE` if set, else a GPU if there is one."""
    chosen = os.environ.get("VAELAB_DEVICE")
    return torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))


def seed_everything(seed: int) -> None:
    """Seed every generator that a run may draw from: Python's, NumPy's and torch's, on all devices."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**32)")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a generator for what an epoch draws, a pure function of both: a resumed run needs no state for it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def several_processes() -> bool:
    """Say whether `torch.distributed` runs, so that statistics of a batch must be taken over all processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_over_processes(total: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, with gradients; alone, the tensor itself.

    The shape is that of `total`, alike in all processes; each of them must call this.

    Each one's share of the loss depends on every one's input, so gradients add up over processes as well.

    >>> sum_over_processes(torch.tensor([2.0]))
    tensor([2.])
    """
    return _AllReduce.apply(total) if several_processes() else total


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, total: torch.Tensor) -> torch.Tensor:
        total = total.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def start(seed: int = 0) -> Lab:
    """Seed everything, choose preset and device, and print them.

    This is the first line of every chapter.
    """
    seed_everything(seed)
    lab = Lab(preset(), device(), seed)
    where = torch.cuda.get_device_name() if lab.device.type == "cuda" else "CPU"
    meaning = {
        "smoke": "seconds, embedded data only: the numbers mean nothing",
        "book": "what the printed pages show",
        "paper": "the papers' sizes: wants a GPU",
    }[lab.preset]
    print(f"VAE Lab · preset {lab.preset} ({meaning})")
    print(f"{where} · torch {torch.__version__} · {torch.get_num_threads()} threads · seed {seed}")
    if lab.device.type == "cpu" and lab.preset == "paper":
        print("No GPU found: preset paper will take hours here. Colab: Runtime ▸ Change runtime type ▸ GPU.")
    return lab
