"""Two processes that train together, for tests of statistics over a global batch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed


@contextmanager
def one_of_two(rank: int, folder: str) -> Iterator[dict]:
    """Be one of two processes; what is put into the dictionary is left in a file, written whole.

    They meet in a file, no port is opened.
    """
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    results: dict = {}
    try:
        yield results
        torch.save(results, Path(folder) / f"{rank}.part")
        (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def run_both(
    processes: multiprocessing.context.BaseContext, folder: Path, share: Callable[[int, str], None]
) -> list[dict]:
    """Call share(rank, folder) in two processes, and return what each left."""
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    workers = [processes.Process(target=share, args=(rank, str(folder))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(130)
        worker.kill()  # in vain where it has ended
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
