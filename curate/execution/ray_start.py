"""What is looked at before Ray starts: whether a cluster answers, and where sockets may lie."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile

from shared.errors import LvdError

SECONDS_TO_ANSWER = 10.0
"""That the address of a cluster has to accept a connection."""


def require_answer(address: str) -> None:
    """Raise LvdError, in seconds, where nobody listens at the address of a cluster."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # `auto`, `local` and the like
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise LvdError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}): "
            "start one there, or unset RAY_ADDRESS for a local one"
        ) from error


def short_folder() -> str | None:
    """Return a folder for Ray's sockets where those of TMPDIR would be longer than 107 bytes.

    Also where the usual one, /tmp/ray, is somebody else's.
    """
    usual = os.path.join(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")  # noqa: PTH118
    tail = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    theirs = os.path.exists(usual) and not os.access(usual, os.W_OK | os.X_OK)  # noqa: PTH110
    if len(usual + tail) <= 100 and not theirs:
        return None
    for number in itertools.count():
        folder = f"/tmp/ray-{os.getuid()}-{number}"
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
        except OSError as error:
            raise LvdError(
                f"Ray has no folder for its sockets ({error}): set TMPDIR to a short path that "
                "you can write to"
            ) from error
        if os.stat(folder).st_uid == os.getuid():  # noqa: PTH116
            return folder
    return None


def remedy(address: str | None) -> str:
    """Return what to do where Ray did not start."""
    if address:
        return (
            f"is a cluster of this Ray version at RAY_ADDRESS={address}? unset it for a local one"
        )
    return "run it again, check free space in /tmp and /dev/shm, or say --executor inline"
