"""Says which exception is which kind of failure, in one table, and tries again what may pass."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from shared.errors import LvdError
from shared.progress import say

P = ParamSpec("P")
T = TypeVar("T")

Kind = Literal["transient", "fatal", "unit"]
"""`transient`: of the storage, for a moment. `fatal`: of settings, credentials, disk or missing
data. `unit`: anything else, which fails for reasons of its own. (An ImageError never gets here.)"""


@dataclass(frozen=True)
class Cause:
    """A row of the table: how a failure is recognised, and what the user can do about it.

    `classes` are `package.Class` of the exception or of a base, so that no storage library has to
    be imported; `codes` are those of S3, Azure and gRPC; `statuses` those of HTTP; `text` is looked
    for in errors of the storage that carry nothing else.
    """

    what: str
    kind: Kind
    remedy: str
    errnos: str = ""
    statuses: tuple[int, ...] = ()
    codes: str = ""
    classes: str = ""
    text: str = ""


_NOT_THERE = "it is not there (any more)"
_LATER = "check the storage and the network, and run the same command again"

CAUSES = (
    Cause(
        "there is no space left",
        "fatal",
        "free some, or name another folder, and run the same command again (what is done is kept)",
        errnos="ENOSPC EDQUOT EFBIG",
        statuses=(507,),
        text=r"no space left|disk quota exceeded",
    ),
    Cause(
        "it is on a read-only file system",
        "fatal",
        "name a folder that can be written",
        errnos="EROFS",
        text=r"read-only file system",
    ),
    Cause(
        "the storage does not accept the credentials, or has none",
        "fatal",
        "provide valid ones, in the environment (such as AWS_ACCESS_KEY_ID with "
        "AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS) or in the configuration file of "
        "the storage, and run the same command again",
        statuses=(401, 407),
        codes="AuthenticationFailed ExpiredToken ExpiredTokenException InvalidAccessKeyId "
        "InvalidToken RequestTimeTooSkewed SignatureDoesNotMatch TokenRefreshRequired "
        "UNAUTHENTICATED UnrecognizedClientException",
        classes="azure.ClientAuthenticationError azure.CredentialUnavailableError "
        "botocore.CredentialRetrievalError botocore.NoCredentialsError "
        "botocore.PartialCredentialsError botocore.ProfileNotFound botocore.SSOError "
        "botocore.TokenRetrievalError botocore.UnauthorizedSSOTokenError "
        "google.DefaultCredentialsError google.RefreshError",
        text=r"(token|credentials?)\b.* (has |have |is |are )?expired|expired token|"
        r"(no|invalid|missing|unable to locate) credentials|unauthori[sz]ed|"
        r"access key id you provided|signature we calculated",
    ),
    Cause(
        "it may not be read or written",
        "fatal",
        "give this user (or these credentials) the right to it",
        errnos="EACCES EPERM",
        statuses=(402, 403, 451),
        codes="AccessDenied AccountProblem AllAccessDisabled PERMISSION_DENIED",
        classes="builtins.PermissionError",
        text=r"access.?denied|forbidden|permission denied|not authori[sz]ed",
    ),
    Cause(
        _NOT_THERE,
        "fatal",
        "put it back, or run the same command again to take what is there now",
        errnos="EISDIR ELOOP ENAMETOOLONG ENODEV ENOENT ENOTDIR ENXIO",
        statuses=(404, 405, 410, 416),
        codes="BlobNotFound ContainerNotFound InvalidRange NOT_FOUND NoSuchBucket NoSuchKey",
        classes="azure.ResourceNotFoundError builtins.FileNotFoundError "
        "builtins.IsADirectoryError builtins.NotADirectoryError",
        text=r"no such (file|bucket|key)|(file|path|key|bucket|blob)\b.* (not found|does not exist)",
    ),
    Cause(
        "its certificate is not trusted",
        "fatal",
        "install the certificate authority of the storage, or correct the address",
        classes="aiohttp.ClientConnectorCertificateError aiohttp.ClientConnectorSSLError "
        "ssl.SSLCertVerificationError",
        text=r"certificate verify failed",
    ),
    Cause(
        "the storage asks for fewer requests",
        "transient",
        _LATER,
        statuses=(420, 429, 503, 509, 529),
        codes="BandwidthLimitExceeded ProvisionedThroughputExceededException "
        "RESOURCE_EXHAUSTED RequestLimitExceeded RequestThrottled ServerBusy SlowDown "
        "Throttling ThrottlingException TooManyRequests TooManyRequestsException",
        text=r"slow.?down|throttl|too many requests|(request|rate|bandwidth).?limit|"
        r"reduce your request rate|server.?busy",
    ),
    Cause(
        "the storage does not answer in time",
        "transient",
        _LATER,
        errnos="ETIMEDOUT EAGAIN EINTR",
        statuses=(408, 425, 460, 504, 524, 598, 599),
        codes="DEADLINE_EXCEEDED OperationTimedOut RequestTimeout",
        classes="botocore.ConnectTimeoutError botocore.ReadTimeoutError builtins.TimeoutError "
        "httpx.TimeoutException httpx2.TimeoutException requests.Timeout "
        "urllib3.TimeoutError",
        text=r"timed? ?-?out|deadline exceeded|try again",
    ),
    Cause(
        "the connection to the storage is lost",
        "transient",
        _LATER,
        errnos="ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH ENETDOWN "
        "ENETRESET ENETUNREACH ENOBUFS ENOTCONN EPIPE EPROTO ESHUTDOWN",
        codes="UNAVAILABLE IncompleteBody",
        classes="aiohttp.ClientConnectionError aiohttp.ClientPayloadError "
        "azure.IncompleteReadError azure.ServiceRequestError "
        "azure.ServiceResponseError botocore.ConnectionError botocore.HTTPClientError "
        "botocore.IncompleteReadError botocore.ResponseStreamingError "
        "builtins.ConnectionError gcsfs.ChecksumError "
        "google.TransportError http.HTTPException httpx.TransportError "
        "httpx2.TransportError paramiko.SSHException requests.ChunkedEncodingError "
        "requests.ConnectionError socket.gaierror "
        "ssl.SSLError urllib3.HTTPError",
        text=r"connection (was |is )?(reset|closed|aborted|refused|lost|broken)|broken pipe|"
        r"network.?connection|server disconnected|incomplete (read|body|payload)|"
        r"name resolution|ended prematurely",
    ),
    Cause(
        "the storage fails",
        "transient",
        _LATER,
        errnos="EBUSY EIO EMFILE ENFILE ENOLCK EREMOTEIO ESTALE",
        statuses=(500, 502, 520, 521, 522, 523),
        codes="INTERNAL InternalError InternalServerError OperationAborted ServiceUnavailable",
        text=r"internal (server )?error|service unavailable|temporarily unavailable|bad gateway",
    ),
)
"""The one list of causes for the whole project. What an exception carries counts in the order code,
class, error number, HTTP status, text; of several causes the first."""

_STORAGE = """adlfs aiobotocore aiohttp azure botocore fsspec gcsfs google httpx httpx2 paramiko
requests s3fs urllib urllib3"""
"""Packages whose exceptions are of the storage, so that their text may be looked at."""


def kind_of(error: BaseException) -> Kind:
    """Return the kind of a failure; what no cause fits fails for its own reasons."""
    if not isinstance(error, Exception) or any(isinstance(e, LvdError) for e in _chain(error)):
        return "fatal"
    cause = cause_of(error)
    return cause.kind if cause else "unit"


def cause_of(error: BaseException) -> Cause | None:
    """Return the row of the table that an exception, or what it was raised for, belongs to."""
    chain = list(_chain(error))
    # s3fs makes a TimeoutError of an expired token: the code of what it was raised for tells
    if cause := next(filter(None, map(_by_code, chain)), None):
        return cause
    evidence = (_by_class, _by_number, _by_status, _by_text)
    return next(filter(None, (look(one) for one in chain for look in evidence)), None)


def as_line(error: BaseException, place: str, absent: str | None = None) -> LvdError:
    """Return the one line that says what failed, where, and what to do; an LvdError as it is.

    `absent` is what to do where nothing is there, of what settings name.
    """
    if isinstance(error, LvdError):
        return error
    cause = cause_of(error)
    name = getattr(error, "filename", None)
    thing = f"{place}: {name}" if name and str(name) not in place else place
    said = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    if cause is None:
        return LvdError(f"{thing}: {type(error).__name__}: {said}")
    said = f" ({said})" if said and said != str(name) and said not in thing else ""
    if absent and cause.what == _NOT_THERE:
        return LvdError(f"{thing} is not there{said}: {absent}")
    return LvdError(f"{thing}: {cause.what}{said}: {cause.remedy}")


@contextmanager
def reword(place: str, absent: str | None = None) -> Iterator[None]:
    """Turn a failure of the storage into the one line of `as_line`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LvdError) or kind_of(error) == "unit":
            raise
        raise as_line(error, place, absent) from error


def raise_if_storage(error: Exception) -> None:
    """Raise an error again that says nothing of the data which was read, but of the storage.

    Libraries report damaged data as an OSError too.
    """
    if kind_of(error) != "unit":
        raise error


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after how many seconds, what may pass is tried again.

    The wait before try n + 1 is drawn evenly from 0 to `first` * 2 ** (n - 1), at most `most`
    (exponential back-off with full jitter).
    """

    attempts: int = 6
    first: float = 0.2
    most: float = 20.0


def retry(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(...)`, tried again while its failure is transient; the last is raised."""
    try:  # what succeeds at once, as nearly all does, needs none of tenacity's bookkeeping
        return function(*args, **kwargs)
    except Exception as error:
        if kind_of(error) != "transient":
            raise
        failed = [error]

    def attempt() -> T:
        if failed:
            raise failed.pop()
        return function(*args, **kwargs)

    return retrying()(attempt)


def retrying(
    policy: RetryPolicy = RetryPolicy(),
    sleep: Callable[[float], None] | None = None,
) -> Retrying:
    """Return tenacity's caller of functions: `retrying()(function, *args)`, or `.wraps(function)`.

    The second failure in a row is said on stderr, in one line.
    """
    return Retrying(
        sleep=sleep or _pause,
        stop=stop_after_attempt(policy.attempts),
        wait=wait_random_exponential(multiplier=policy.first, max=policy.most),
        retry=retry_if_exception(lambda error: kind_of(error) == "transient"),
        before_sleep=_say_once,
        reraise=True,
    )


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _say_once(state: RetryCallState) -> None:
    if state.attempt_number == 2 and state.outcome is not None:
        error = state.outcome.exception()
        said = " ".join(str(error).split())[:120] or type(error).__name__
        say(f"storage is slow to answer: {said}; trying again")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it wraps or, of the storage, was raised for."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Ray keeps the worker's exception in `cause`, urllib the socket's in `reason`
        inner = [getattr(error, name, None) for name in ("cause", "reason")]
        inner += [error.__cause__] if _of_storage(error) else []
        error = next((one for one in inner if isinstance(one, BaseException)), None)


def _by_code(error: BaseException) -> Cause | None:
    codes = {code for code in _answers(error) if isinstance(code, str)}
    return _first(lambda cause: not codes.isdisjoint(cause.codes.split()))


def _by_class(error: BaseException) -> Cause | None:
    names = (f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(error).__mro__)
    causes = (cause for name in names for cause in CAUSES if name in cause.classes.split())
    return next(causes, None)


def _by_number(error: BaseException) -> Cause | None:
    name = errno.errorcode.get(getattr(error, "errno", None) or 0)
    return _first(lambda cause: name in cause.errnos.split())


def _by_status(error: BaseException) -> Cause | None:
    statuses = {int(status) for status in _answers(error) if str(status).isdecimal()}
    return _first(lambda cause: not statuses.isdisjoint(cause.statuses))


def _by_text(error: BaseException) -> Cause | None:
    if not _of_storage(error):
        return None
    said = str(error)
    return _first(lambda cause: bool(cause.text and re.search(cause.text, said, re.IGNORECASE)))


def _of_storage(error: BaseException) -> bool:
    return (
        isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _STORAGE.split()
    )


def _first(fits: Callable[[Cause], bool]) -> Cause | None:
    return next((cause for cause in CAUSES if fits(cause)), None)


def _answers(error: BaseException) -> Iterator[int | str]:
    """Yield the HTTP statuses and the codes that an exception carries."""
    response = getattr(error, "response", None)
    values = [
        getattr(holder, name, None)
        for holder in (error, response)
        for name in ("status", "status_code", "code", "error_code")
    ]
    if isinstance(response, dict):  # botocore's
        values.append(response.get("Error", {}).get("Code"))
        values.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for value in values:
        value = getattr(value, "name", value)  # gRPC's are enumerations
        if isinstance(value, (int, str)):
            yield value
