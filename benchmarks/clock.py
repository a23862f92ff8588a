"""How long a call takes, on whatever device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(go: Callable[..., object], *arguments: object) -> float:
    """Call `go` with the arguments and return how long it took, waiting for the GPU before and after."""
    _wait()
    begun = time.perf_counter()
    go(*arguments)
    _wait()
    return time.perf_counter() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
