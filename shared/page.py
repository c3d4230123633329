"""Renders a report's page: HTML that holds its own pictures and loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.progress import printable


def render_page(template: Path, **values: Any) -> str:
    """Return the page that `template`, which extends shared/page.html, makes of `values`.

    `title` is text, `figures` are boxes of a large value over its name. The filters `png` and
    `jpeg` turn a picture's bytes into the `src` of an image. Every other value becomes escaped
    text, in which characters that could steer a terminal or reorder a line are written out.
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
    return environment.get_template(template.name).render(values)


def _escaped(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(printable(str(value))))


def _embedder(kind: str):
    prefix = f"data:image/{kind};base64,"
    return lambda data: Markup(prefix + base64.b64encode(data).decode())
