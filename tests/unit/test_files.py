"""A file is written whole or not at all."""

from __future__ import annotations

import os

import pytest

from vaelab import files


@pytest.mark.parametrize("content, stored", [(b"\x00\xff", b"\x00\xff"), ("µ\n", b"\xc2\xb5\n"), ("", b"")])
def test_bytes_and_text_arrive_as_they_are(tmp_path, content, stored):
    path = files.write_whole(tmp_path / "file", content)
    assert path == tmp_path / "file"
    assert path.read_bytes() == stored


def test_missing_folders_are_made_and_a_string_names_a_file(tmp_path):
    assert files.write_whole(str(tmp_path / "a" / "b" / "file"), "new").read_text() == "new"


def test_old_content_is_replaced_and_nothing_else_is_left(tmp_path):
    for content in ("a long old content", "new"):
        files.write_whole(tmp_path / "file", content)
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
def test_after_a_failure_the_old_content_stands_and_nothing_else_is_left(tmp_path, monkeypatch, failing, error):
    files.write_whole(tmp_path / "file", "old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        files.write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_content_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.fstat(handle).st_size), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("named"), replace(a, b)))
    files.write_whole(tmp_path / "file", "four")
    assert order[:2] == [4, "named"]


def test_others_may_read_the_file(tmp_path):
    assert files.write_whole(tmp_path / "file", "x").stat().st_mode & 0o444 == 0o444
