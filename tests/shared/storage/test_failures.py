"""The table of causes, and trying again: without a second of waiting."""

import errno
import io
import socket
import ssl
import urllib.error
from email.message import Message

import pytest
from PIL import Image

from shared.errors import LvdError
from shared.storage import failures
from shared.storage.failures import RetryPolicy, as_line, cause_of, kind_of, retry, retrying


def of_library(name, base=Exception, **attributes):
    """Return an exception like one of a storage library that is not installed here."""
    module, _, name = name.rpartition(".")
    return type(name, (base,), {"__module__": module, **attributes})("it says so")


def answered(status):
    return of_library("aiohttp.client_exceptions.ClientResponseError", status=status)


def aws(code, status):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return of_library("botocore.exceptions.ClientError", response=answer)


def translated(error, code):
    """Return an error as s3fs gives it: of a builtin class, raised for botocore's."""
    error.__cause__ = aws(code, 400)
    return error


def wrapped(error):
    outer = of_library("ray.exceptions.RayTaskError")
    outer.cause = error
    return outer


TRANSIENT = [
    *(
        OSError(getattr(errno, name), name)
        for name in ["ECONNRESET", "EAGAIN", "EIO", "ESTALE", "EBUSY"]
    ),
    TimeoutError(),
    ConnectionResetError(),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ssl.SSLError(8, "EOF occurred in violation of protocol"),
    urllib.error.URLError(ConnectionRefusedError()),
    urllib.error.HTTPError("http://x", 503, "Service Unavailable", Message(), io.BytesIO()),
    *map(answered, (408, 429, 500, 502, 503, 504)),
    aws("SlowDown", 503),
    aws("Throttling", 400),
    of_library("aiohttp.client_exceptions.ClientPayloadError"),
    of_library("aiohttp.client_exceptions.ServerDisconnectedError", ConnectionError),
    of_library("botocore.exceptions.EndpointConnectionError", ConnectionError),
    of_library("requests.exceptions.ConnectionError", OSError),
    of_library("gcsfs.retry.HttpError", code=429),
    of_library("azure.core.exceptions.HttpResponseError", status_code=503),
    OSError("When reading: AWS Error SLOW_DOWN during GetObject operation"),
    OSError("curlCode: 28, Timeout was reached: operation timed out"),
    wrapped(TimeoutError()),
]

FATAL = [
    FileNotFoundError("s3://bucket/gone"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EROFS, "Read-only file system"),
    ssl.SSLCertVerificationError(1, "certificate verify failed"),
    urllib.error.HTTPError("http://x", 403, "Forbidden", Message(), io.BytesIO()),
    *map(answered, (401, 403, 404)),
    aws("ExpiredToken", 400),
    translated(TimeoutError("it says so"), "ExpiredToken"),
    aws("AccessDenied", 403),
    of_library("botocore.exceptions.NoCredentialsError"),
    of_library("google.auth.exceptions.RefreshError"),
    of_library("azure.core.exceptions.ResourceNotFoundError"),
    OSError("Forbidden: bucket/name"),
    LvdError("a line"),
    KeyboardInterrupt(),
    wrapped(LvdError("a line")),
]

UNIT = [
    ValueError("connection reset"),
    MemoryError(),
    ZeroDivisionError(),
    OSError("image file is truncated"),
    EOFError("Compressed file ended before the end-of-stream marker was reached"),
    of_library("pyarrow.lib.ArrowInvalid", ValueError),
    Image.DecompressionBombError("large"),
]

NAMED = [
    (k, e) for k, es in (("transient", TRANSIENT), ("fatal", FATAL), ("unit", UNIT)) for e in es
]


@pytest.mark.parametrize(("kind", "error"), NAMED, ids=lambda value: repr(value)[:60])
def test_every_failure_has_its_kind(kind, error):
    assert kind_of(error) == kind


def test_no_two_causes_claim_the_same_evidence():
    for column in ("errnos", "codes", "classes"):
        words = [w for cause in failures.CAUSES for w in getattr(cause, column).split()]
        assert len(words) == len(set(words))
    assert all(hasattr(errno, w) for cause in failures.CAUSES for w in cause.errnos.split())
    statuses = [s for cause in failures.CAUSES for s in cause.statuses]
    assert len(statuses) == len(set(statuses))


class Flaky:
    """A function that fails with each of `errors` before it returns 7."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_what_may_pass_is_tried_again_with_growing_waits_and_said_once(capsys):
    waits = []
    flaky = Flaky(*[TimeoutError("no answer")] * 5)
    assert retrying(sleep=waits.append)(flaky) == 7
    assert flaky.calls == 6
    assert len(waits) == 5
    assert all(0 <= wait <= 0.2 * 2**n for n, wait in enumerate(waits))
    assert capsys.readouterr().err == "storage is slow to answer: no answer; trying again\n"


def test_one_retry_is_not_worth_a_line(capsys):
    assert retrying(sleep=lambda _: None)(Flaky(TimeoutError())) == 7
    assert capsys.readouterr().err == ""


def test_waits_are_bounded_and_jittered():
    waits = []
    flaky = Flaky(*[TimeoutError()] * 199)
    assert retrying(RetryPolicy(attempts=200, first=1.0, most=3.0), waits.append)(flaky) == 7
    assert max(waits) <= 3.0
    assert len(set(waits)) > 190
    assert 1.0 < sum(waits[5:]) / len(waits[5:]) < 2.0


def test_the_last_failure_is_raised_as_it_is(monkeypatch):
    monkeypatch.setattr(failures, "_pause", lambda _: None)
    errors = [TimeoutError(str(n)) for n in range(9)]
    with pytest.raises(TimeoutError, match=r"^5$"):
        retry(Flaky(*errors))


def test_the_first_try_is_one_of_all(monkeypatch):
    waits = []
    monkeypatch.setattr(failures, "_pause", waits.append)
    flaky = Flaky(*[TimeoutError()] * 5)
    assert retry(flaky) == 7
    assert (flaky.calls, len(waits)) == (6, 5)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), ValueError("x"), LvdError("x")], ids=repr
)
def test_other_failures_are_raised_at_once(error):
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        retrying(sleep=lambda _: pytest.fail("waited"))(flaky)
    assert flaky.calls == 1
    with pytest.raises(type(error)):
        retry(Flaky(error, ValueError("called again")))


@pytest.mark.parametrize("error", [*TRANSIENT, *FATAL[:-3], *UNIT], ids=lambda e: repr(e)[:60])
def test_a_line_names_place_reason_and_remedy(error):
    line = str(as_line(error, "dataset 'crawl'"))
    assert line.startswith("dataset 'crawl': ")
    assert "\n" not in line
    cause = cause_of(error)
    assert (cause.what in line and line.endswith(cause.remedy)) if cause else str(error) in line


def test_a_line_names_the_file_that_vanished_or_may_not_be_read(tmp_path):
    with pytest.raises(FileNotFoundError) as gone:
        (tmp_path / "gone.jpg").read_bytes()
    assert str(as_line(gone.value, "part 00000")) == (
        f"part 00000: {tmp_path}/gone.jpg: it is not there (any more) (No such file or directory): "
        "put it back, or run the same command again to take what is there now"
    )
    assert as_line(line := LvdError("a line"), "part 00000") is line
