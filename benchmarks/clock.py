"""How long a call takes, on whatever device."""

from __future__ import annotations

import statistics
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


def medians(contestants: dict[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, float]:
    """Let the contestants take turns and return the median seconds of each, after turns that do not count."""
    times = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, go in contestants.items():
            taken = seconds(go)
            if turn >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
