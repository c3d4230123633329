"""URLs and domains in the form in which they are compared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

_DOMAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_SPACE = re.compile(r"\s")
_PORTS = {"http": 80, "https": 443, "ftp": 21}


def normalise_url(text: str) -> str:
    """Return a URL with scheme and host in lower case, and no default port and no fragment.

    A host of other letters than ASCII's is written in them (IDNA), and an empty path is `/`. Path,
    query and user stay as they are, but for space in them, which is written as browsers do (`%20`).
    ValueError for what has no scheme and host.
    """
    parts = _split(text)
    host = _normalise_host(parts.hostname)
    if not parts.scheme or not host:
        raise ValueError("a URL is like https://example.org/a.jpg")
    user = parts.netloc.rpartition("@")[0]
    port = parts.port if parts.port != _PORTS.get(parts.scheme) else None
    place = (user and f"{user}@") + (f"[{host}]" if ":" in host else host)
    place += "" if port is None else f":{port}"
    path, query = (
        _SPACE.sub(lambda found: quote(found[0]), part) for part in (parts.path, parts.query)
    )
    return urlunsplit((parts.scheme, place, path or "/", query, ""))


def normalise_domain(text: str) -> str:
    """Return a domain in lower case, in ASCII, without a dot at its end; ValueError for another."""
    domain = _normalise_host(text.strip())
    if not _DOMAIN.fullmatch(domain):
        raise ValueError("a domain is like example.org: no scheme, port, path or *")
    return domain


def host_of(url: str | None) -> str:
    """Return the host of a URL as `normalise_domain` writes it; "" where there is none."""
    try:
        return _normalise_host(_split(url or "").hostname)
    except ValueError:  # no URL
        return ""


def domains_of(host: str) -> Iterator[str]:
    """Yield a host and the domains that it is below of, the longest first."""
    labels = host.split(".") if host else []
    yield from (".".join(labels[at:]) for at in range(len(labels)))


def _split(url: str) -> SplitResult:
    """Return the parts of a URL without its fragment, and the space around what is left."""
    return urlsplit(url.partition("#")[0].strip())


def _normalise_host(host: str | None) -> str:
    host = (host or "").lower().rstrip(".")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode().lower().rstrip(".")
    except UnicodeError:  # no name that the domain name system can hold
        return host
