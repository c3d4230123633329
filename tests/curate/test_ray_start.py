"""Where Ray's sockets may lie: the kernel takes no long path, and another user's folder is no use."""

import os
import tempfile
from pathlib import Path

import pytest

from curate.execution.ray_start import short_folder
from shared.errors import LvdError

LONGEST = 107
"""Bytes of a socket's path."""
SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


@pytest.fixture
def temporary(monkeypatch):
    """Set the folder for temporary files."""

    def choose(folder):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))

    return choose


def test_where_a_path_of_a_socket_would_be_too_long_another_folder_of_ours_is_taken(temporary):
    temporary("/tmp")
    if os.access("/tmp/ray", os.W_OK) or not Path("/tmp/ray").exists():
        assert short_folder() is None
    temporary("/tmp/" + 90 * "x")
    folder = short_folder()
    assert Path(folder).stat().st_uid == os.getuid()
    assert len(f"{folder}/{SOCKET}") <= LONGEST


def test_the_folder_of_another_user_is_not_taken(temporary, tmp_path, monkeypatch):
    (tmp_path / "ray").mkdir()
    temporary(tmp_path)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != str(tmp_path / "ray") and access(path, mode)
    )
    folder = short_folder()
    assert folder.startswith("/tmp/ray-")
    assert os.access(folder, os.W_OK)


def test_where_no_folder_can_be_made_one_line_says_what_to_set(temporary, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    temporary("/tmp/" + 90 * "x")
    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(LvdError, match="set TMPDIR to a short path") as caught:
        short_folder()
    assert len(str(caught.value).splitlines()) == 1
