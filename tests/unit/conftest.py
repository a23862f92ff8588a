"""What all unit tests share: a known environment, no network, no file of the reader's touched."""

from __future__ import annotations

import ipaddress
import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from vaelab import data, metrics
from vaelab.lab import seed_everything

hypothesis.settings.register_profile("same every time", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("same every time")
torch.set_num_threads(1)  # the tensors are tiny
READERS_FOLDER = data.folder()


class Offline(OSError):
    """A test tried to reach another machine."""


def _is_here(host: str) -> bool:
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guarded(connect: Callable) -> Callable:
    def guard(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            raise Offline(f"unit tests stay off the network, but one asked for {address}")
        return connect(self, address)

    return guard


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Let no test reach another machine, by name or by address."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        if host is not None and not _is_here(host if isinstance(host, str) else host.decode()):
            raise Offline(f"unit tests stay off the network, but one looked up {host}")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    """The data folder of all tests that do not bring their own: a judge trained there serves them all."""
    metrics._judges.clear()  # those of tests elsewhere, which read another folder
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def known_environment(monkeypatch, data_folder):
    """The variables that vaelab reads: the book's preset, the CPU, silence, a data folder that is thrown away."""
    for name in ("CI", "VAELAB_FRESH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VAELAB_DATA", str(data_folder))
    monkeypatch.setenv("VAELAB_DEVICE", "cpu")
    monkeypatch.setenv("VAELAB_PRESET", "book")
    monkeypatch.setenv("VAELAB_QUIET", "1")
    seed_everything(0)


@pytest.fixture
def readers_data(monkeypatch) -> Path:
    """The data folder of whoever runs the tests, to read from."""
    monkeypatch.setenv("VAELAB_DATA", str(READERS_FOLDER))
    return READERS_FOLDER


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.BaseContext:
    """Processes that can be killed; torch is imported once for all of them, so that each starts at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork server on this system")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "vaelab.runs"])  # the former is what the first Adam imports
    return context
