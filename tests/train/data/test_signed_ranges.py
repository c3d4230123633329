"""Ranges by URLs that s3fs has signed: as s3fs would read them, and left to it where they could not be."""

import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs

import fsspec
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from s3_server import Fault

from shared.pictures.images import ImageError
from train.data.file_ranges import FileRanges, Range
from train.data.signed_ranges import SignedRanges

CONTENT = np.random.default_rng(0).bytes(20_000)
URL = "s3://bucket/shards/00000 ü.tar"
RANGES = [Range(URL, 700 * number, 1 + 300 * number, None) for number in range(20)]
BYTES = [CONTENT[each.offset : each.offset + each.size] for each in RANGES]


@pytest.fixture
def store(s3, monkeypatch):
    """The server with one object; what it is asked by a signed URL has `X-Amz-Signature`."""
    fsspec.filesystem("s3").pipe_file(URL, CONTENT)
    s3.requests.clear()
    monkeypatch.setattr("shared.storage.failures._pause", lambda seconds: None)
    return s3


def queries(store) -> list[dict[str, list[str]]]:
    return [parse_qs(request.query) for request in store.requests]


def signed(store) -> list[bool]:
    return ["X-Amz-Signature" in query for query in queries(store)]


def set_s3fs(monkeypatch, **settings) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)


def test_each_range_is_one_request_by_a_signed_url(store):
    files = FileRanges()
    for _ in range(3):
        assert list(files.read(RANGES)) == BYTES
    assert signed(store) == [True] * 60
    assert all(request.range for request in store.requests)


@pytest.mark.parametrize("way", ["SlowDown", "InternalError", "reset", "cut", "whole"])
def test_what_fails_is_asked_for_by_s3fs(store, way):
    store.faults.append(Fault(way, query="X-Amz-Signature", every=2))
    assert list(FileRanges().read(RANGES)) == BYTES
    assert store.faults[0].failed == 10
    assert signed(store).count(False) == 10


@pytest.mark.parametrize(
    "wanted",
    [
        Range("s3://bucket/gone.tar", 0, 9, 9),
        Range(URL, 30_000, 9, None),
        Range(URL, 19_999, 9, None),
    ],
    ids=["vanished", "behind the end", "past the end"],
)
def test_what_is_not_there_has_the_reason_that_s3fs_gives(store, monkeypatch, wanted):
    [reason] = FileRanges().read([wanted])
    assert isinstance(reason, ImageError)
    set_s3fs(monkeypatch, requester_pays=True)
    [other] = FileRanges().read([wanted])
    assert str(reason) == str(other)
    assert signed(store) == [True, False, False]


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        (
            {"token": "of-a-session", "client_kwargs": {"region_name": "eu-west-3"}},
            {"X-Amz-Credential": "/eu-west-3/", "X-Amz-Security-Token": "of-a-session"},
        ),
        (
            {"key": "another", "config_kwargs": {"signature_version": "s3"}},
            {"AWSAccessKeyId": "another"},
        ),
        ({"anon": True}, {}),
    ],
    ids=str,
)
def test_settings_that_a_url_holds_are_sent(store, monkeypatch, settings, sent):
    fsspec.filesystem("s3").chmod(URL, "public-read")
    store.requests.clear()
    set_s3fs(monkeypatch, **{"key": "own", "secret": "secret"} | settings)
    assert SignedRanges().read(RANGES) == BYTES
    for query in queries(store):
        assert bool(query) == bool(sent)
        for name, value in sent.items():
            assert value in query[name][0]


@pytest.mark.parametrize(
    "settings",
    [
        {"requester_pays": True},
        {"s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256"}},
        {"client_kwargs": {"verify": "/nowhere/own.pem"}},
        {"config_kwargs": {"proxies": {"http": "http://proxy:3128"}}},
        {"config_kwargs": {"max_pool_connections": 1}},
    ],
    ids=str,
)
def test_a_setting_that_no_url_holds_leaves_all_to_s3fs(store, monkeypatch, settings):
    set_s3fs(monkeypatch, **settings)
    assert SignedRanges().read(RANGES) == [None] * len(RANGES)
    assert not store.requests


def test_what_leads_elsewhere_leaves_all_to_fsspec(store, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert SignedRanges().read(RANGES[:1]) == [None]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert SignedRanges().read(RANGES[:1]) == BYTES[:1]
    assert SignedRanges().read([Range("memory://bucket/x", 0, 9, None)]) == [None]


def test_without_credentials_s3fs_says_so(store, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    set_s3fs(monkeypatch, max_concurrency=9)  # s3fs as of another test had credentials
    [reason] = FileRanges().read(RANGES[:1])
    assert "Unable to locate credentials" in str(reason)
    assert not store.requests


def test_credentials_that_have_expired_are_renewed(store, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given = tmp_path / "credentials.json"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {given}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    set_s3fs(monkeypatch, max_concurrency=8)

    def give(key: str) -> None:
        expiration = datetime.now(UTC) + timedelta(minutes=1)
        said = {"AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": f"token-of-{key}"}
        said |= {"Version": 1, "Expiration": expiration.isoformat()}
        given.write_text(json.dumps(said))

    files = FileRanges()
    give("first")
    assert list(files.read(RANGES)) == BYTES
    give("second")
    store.faults.append(Fault("ExpiredToken", query="token-of-first"))
    store.requests.clear()
    assert list(files.read(RANGES[:1])) == BYTES[:1]
    assert list(files.read(RANGES)) == BYTES
    keys = [query["X-Amz-Credential"][0][:6] for query in queries(store) if query]
    assert keys == ["first/", *["second"] * 20]


def test_signatures_are_renewed_before_they_expire(store, monkeypatch):
    own = SignedRanges()
    now = 1000.0
    monkeypatch.setattr("train.data.signed_ranges.time.monotonic", lambda: now)
    own.read(RANGES[:3])
    before = own._signed[URL]
    now += 599
    own.read(RANGES[:3])
    assert own._signed[URL] is before
    now += 2
    assert own.read(RANGES[:3]) == BYTES[:3]
    assert own._signed[URL] is not before
    assert len(own._signed) == 1


def test_signatures_are_kept_of_so_many_objects(store, monkeypatch):
    monkeypatch.setattr("train.data.signed_ranges._MOST_URLS", 3)
    own = SignedRanges()
    for number in range(8):
        own.read([Range(f"s3://bucket/{number}", 0, 1, None)])
        assert len(own._signed) <= 3


def test_a_store_that_refuses_signed_urls_is_left_to_s3fs_for_a_while(store, monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr("train.data.signed_ranges.time.monotonic", lambda: now)
    store.faults.append(Fault("AccessDenied", query="X-Amz-Signature"))
    files = FileRanges()
    for _ in range(6):
        assert list(files.read(RANGES)) == BYTES
    assert 64 <= signed(store).count(True) < 80 + 16
    [line] = capsys.readouterr().err.splitlines()
    assert "storage does not answer requests by signed URLs (HTTP 403)" in line
    store.faults.clear()
    store.requests.clear()
    now += 61
    assert list(files.read(RANGES)) == BYTES
    assert all(signed(store))


@contextmanager
def serve_object(seen: list[int], certificate: Path | None = None) -> Iterator[str]:
    """A server of the object that keeps connections, as moto's does not; notes each request's port."""

    class Keeping(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            seen.append(self.client_address[1])
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            self.wfile.write(CONTENT[first : last + 1])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keeping)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # of a client that does not trust the certificate
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        endpoint = f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_port}"
        set_s3fs(patch, endpoint_url=endpoint, key="own", secret="secret")
        yield endpoint
    server.shutdown()
    server.server_close()


@pytest.fixture
def ports():
    seen: list[int] = []
    with serve_object(seen):
        yield seen


def test_connections_are_kept_but_not_by_a_forked_process(ports):
    own = SignedRanges()
    assert own.read(RANGES[:16]) == BYTES[:16]
    opened = set(ports)
    assert own.read(RANGES[4:]) == BYTES[4:]
    assert len(ports) == 32
    assert set(ports) == opened
    ports.clear()
    child = os.fork()
    if not child:
        os._exit(0 if own.read(RANGES) == BYTES else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(ports) == len(RANGES)
    assert opened.isdisjoint(ports)
    ports.clear()
    assert own.read(RANGES[:16]) == BYTES[:16]
    assert set(ports) == opened


def test_only_a_certificate_that_is_trusted_is_taken(monkeypatch, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "own")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "own.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with serve_object([], tmp_path / "own.pem"):
        assert SignedRanges().read(RANGES[:1]) == [None]
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "own.pem"))
        assert SignedRanges().read(RANGES[:1]) == BYTES[:1]
