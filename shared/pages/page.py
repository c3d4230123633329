"""Renders a report's page: HTML that holds its own pictures and loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.progress import printable

PNG = b"\x89PNG"
ENLARGE = Path(__file__).with_name("enlarge.js")
"""The script of pages whose pictures enlarge: `macros.html` has their tiles and the dialog."""


def render_page(template: Path, *, script: str = "", connects: bool = False, **values: Any) -> str:
    """Return the page that `template`, which extends shared/pages/page.html, makes of `values`.

    `title` is text, `figures` are boxes of a large value over its name. The filters `png`, `jpeg`
    and, for either, `picture` turn a picture's bytes into the `src` of an image; `words` lets a
    command break between its words only, `name` lets a long name break at its marks first. Every
    other value becomes escaped text, in which characters that could steer a terminal or reorder a line are
    written out. `script` is the only one that a browser runs on the page; where it `connects`, it
    may ask the page's own server, and nobody else.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    for kind in ("png", "jpeg"):
        environment.filters[kind] = _embedder(kind)
    environment.filters["picture"] = lambda data: _embedder(
        "png" if data.startswith(PNG) else "jpeg"
    )(data)
    environment.filters["words"] = _words
    environment.filters["name"] = _name
    environment.tests["png"] = lambda data: data.startswith(PNG)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template.name).render(
        values,
        script=Markup(script),
        script_policy=Markup(
            (f"; script-src 'sha256-{digest}'" if script else "")
            + ("; connect-src 'self'" if connects else "")
        ),
    )


def _escaped(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(printable(str(value))))


def _words(command: str) -> Markup:
    """Return a command each word of which is an element of its own; report.js does the same."""
    pieces = re.split(r"(\s+)", command)
    return Markup("").join(
        Markup('<span class="word">{}</span>').format(_escaped(piece))
        if piece.strip()
        else _escaped(piece)
        for piece in pieces
    )


def _name(text: str) -> Markup:
    """Return a name or path with places to break behind its marks, before any letter breaks."""
    pieces = re.split(r"(?<=\w[/_-])(?=\w)|(?<=\w)(?=\.[A-Za-z])", text)
    return Markup("<wbr>").join(map(_escaped, pieces))


def _embedder(kind: str) -> Callable[[bytes], Markup]:
    prefix = f"data:image/{kind};base64,"
    return lambda data: Markup(prefix + base64.b64encode(data).decode())
