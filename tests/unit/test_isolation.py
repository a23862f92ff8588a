"""The unit tests themselves: off the network, away from the reader's files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import platformdirs
import pytest

from vaelab import data


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80), ("example.org", 443)])
def test_no_other_machine_can_be_reached(address):
    with pytest.raises(OSError, match="unit tests stay off the network"):
        socket.create_connection(address, timeout=1)


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_the_readers_data_folder_is_out_of_reach(data_folder):
    assert data.folder() == data_folder != Path(platformdirs.user_cache_dir("vaelab"))
    assert "CI" not in os.environ
