"""Reads ranges of objects on S3 through libcurl, by URLs that s3fs signs: a sixth of its CPU seconds.

Where an object is, and with whose credentials it may be read, s3fs says: it signs one URL for all
ranges of an object. What does not go into a URL, and what is not answered at the first try by just the
bytes that were asked for, is left to s3fs: to its settings, its retries and its errors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from shared.progress import say

if TYPE_CHECKING:
    from train.data.file_ranges import Range

_VALID = 3600
_USED = 600.0
"""Seconds for which a URL is signed, and for which it is used: botocore renews credentials ten minutes
before they expire, and a signature with them."""
_MOST_URLS = 1024
_MOST_FAILED = 64
_OF_OBJECT = ("HTTP 404", "HTTP 416")
"""Failures that say nothing of the store: the object is not there, or is shorter."""
_PAUSE = 60.0
"""Seconds for which s3fs alone is asked, where so many ranges in a row have failed here."""

_CARRIED = {
    *(
        "anon",
        "endpoint_url",
        "key",
        "secret",
        "token",
        "username",
        "password",
        "profile",
        "use_ssl",
    ),
    *("client_kwargs", "config_kwargs", "cache_regions", "version_aware", "local_expiry_check"),
    *("default_block_size", "default_cache_type", "default_fill_cache", "max_concurrency"),
    *("fixed_upload_size", "use_listings_cache", "listings_expiry_time", "max_paths"),
}
"""Settings of s3fs that a URL holds, or that are of no matter to ranges."""
_CARRIED_OF_CLIENT = {
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url"),
    *("region_name", "use_ssl"),
}
_CARRIED_OF_CONFIG = {
    *("connect_timeout", "read_timeout", "region_name", "retries", "s3", "signature_version"),
}


@dataclass(frozen=True)
class _Signed:
    """How an object is asked for; times in seconds."""

    url: str
    authorities: str
    """File of the certificates that are trusted."""
    connect_timeout: float
    read_timeout: float


class SignedRanges:
    """Keeps signatures and connections, those of a forked process apart. For any threads."""

    def __init__(self) -> None:
        self._signed: dict[str, tuple[float, _Signed | None]] = {}
        self._clients: dict[int, list[_Client]] = {}
        self._failed = 0
        self._ask_again = 0.0

    def read(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """Return the bytes of each range; None for those that s3fs is to be asked for."""
        answers: list[bytes | None] = [None] * len(ranges)
        if time.monotonic() < self._ask_again:
            return answers
        signed = [self._sign(wanted.location) if wanted.size else None for wanted in ranges]
        asked = [(n, by) for n, by in enumerate(signed) if by is not None]
        if not asked:
            return answers
        # A connection that a parent has opened stays its own, and is not even closed here.
        idle = self._clients.setdefault(os.getpid(), [])
        try:
            client = idle.pop()
        except IndexError:
            client = _Client()
        fetched = client.fetch([(by, ranges[n].offset, ranges[n].size) for n, by in asked])
        idle.append(client)
        for (n, _), answer in zip(asked, fetched, strict=True):
            if isinstance(answer, bytes):
                answers[n] = answer
                self._failed = 0
                continue
            self._signed.pop(ranges[n].location, None)
            if answer not in _OF_OBJECT:
                self._count_failed(answer)
        return answers

    def _sign(self, location: str) -> _Signed | None:
        until, signed = self._signed.get(location, (0.0, None))
        if until < time.monotonic():
            if len(self._signed) >= _MOST_URLS:
                self._signed.clear()
            signed = _sign(location)
            self._signed[location] = (time.monotonic() + _USED, signed)
        return signed

    def _count_failed(self, reason: str) -> None:
        self._failed += 1
        if self._failed == _MOST_FAILED:
            self._failed = 0
            self._ask_again = time.monotonic() + _PAUSE
            say(
                f"storage does not answer requests by signed URLs ({reason}): s3fs is asked for a "
                "while, which takes more CPU"
            )


def _sign(location: str) -> _Signed | None:
    """Return how to ask for an object; None where that cannot be as s3fs would."""
    import fsspec

    if find_spec("pycurl") is None:
        return None
    system, path = fsspec.core.url_to_fs(location)
    if f"{type(system).__module__}.{type(system).__name__}" != "s3fs.core.S3FileSystem":
        return None
    settings = dict(system.storage_options)
    config = {"signature_version": "s3v4"} | (settings.get("config_kwargs") or {})
    for given, carried in (
        (settings, _CARRIED),
        (settings.get("client_kwargs") or {}, _CARRIED_OF_CLIENT),
        (config, _CARRIED_OF_CONFIG),
    ):
        if not given.keys() <= carried:
            return None
    from botocore.httpsession import get_cert_path
    from botocore.utils import get_environ_proxies

    signer = type(system)(**settings | {"config_kwargs": config})
    try:
        url = signer.sign(path, _VALID)
    except Exception:  # s3fs fails in the same way, and then it is told
        return None
    if get_environ_proxies(url):
        return None
    of_client = signer.s3.meta.config
    return _Signed(
        url,
        signer.session.get_config_variable("ca_bundle") or get_cert_path(True),
        of_client.connect_timeout,
        of_client.read_timeout,
    )


class _Client:
    """Asks for several ranges at a time, over connections that it keeps. For one thread at a time."""

    def __init__(self) -> None:
        import pycurl

        self._multi = pycurl.CurlMulti()
        self._handles: list[Any] = []

    def fetch(self, wanted: Sequence[tuple[_Signed, int, int]]) -> list[bytes | str]:
        """Return for each object, offset and size the bytes, or why they have not come."""
        import pycurl

        while len(self._handles) < len(wanted):
            self._handles.append(_make_handle())
        handles = self._handles[: len(wanted)]
        bodies = [BytesIO() for _ in wanted]
        for handle, body, (signed, offset, size) in zip(handles, bodies, wanted, strict=True):
            handle.setopt(pycurl.URL, signed.url)
            handle.setopt(pycurl.RANGE, f"{offset}-{offset + size - 1}")
            handle.setopt(pycurl.MAXFILESIZE_LARGE, size)
            handle.setopt(pycurl.WRITEFUNCTION, body.write)
            handle.setopt(pycurl.CAINFO, signed.authorities)
            handle.setopt(pycurl.CONNECTTIMEOUT_MS, round(1000 * signed.connect_timeout))
            handle.setopt(pycurl.LOW_SPEED_TIME, round(signed.read_timeout))
            self._multi.add_handle(handle)
        running = len(handles)
        while running:
            _, running = self._multi.perform()
            if running and self._multi.select(0.05) < 0:  # nothing to wait for yet, as a name
                time.sleep(0.001)
        reasons: dict[Any, str] = {}
        queued = 1
        while queued:
            queued, _, failed = self._multi.info_read()
            reasons |= {handle: message for handle, _, message in failed}
        answers: list[bytes | str] = []
        for handle, body, (_, _, size) in zip(handles, bodies, wanted, strict=True):
            self._multi.remove_handle(handle)
            status, data = handle.getinfo(pycurl.RESPONSE_CODE), body.getvalue()
            if handle not in reasons and status == HTTPStatus.PARTIAL_CONTENT and len(data) == size:
                answers.append(data)
            else:
                answers.append(f"HTTP {status}" if status else reasons[handle])
        return answers


def _make_handle() -> Any:
    import pycurl

    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.PROXY, "")
    handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
    handle.setopt(pycurl.BUFFERSIZE, 1 << 16)
    return handle
