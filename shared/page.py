"""The frame of a report: a page of HTML that holds its own pictures and loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from shared.progress import printable

STYLE = """
body { margin: 2rem auto; max-width: 1360px; padding: 0 1.5rem; color: #1c2833;
       font: 14px/1.45 system-ui, sans-serif; background: #fff; color-scheme: light; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .2rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.2rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: 0 0 .8rem; color: #5d6970; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1.2rem; }
.figures div { border: 1px solid #d5dbdf; border-radius: 6px; padding: .5rem 1rem; min-width: 8rem; }
.figures b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.figures span { color: #5d6970; }
figure { margin: 0; }
figcaption { font-size: 12px; overflow: hidden; }
figcaption span { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
figcaption span + span { color: #7b868d; }
table { border-collapse: collapse; }
td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; background: #f6f7f8;
      padding: .8rem; }
summary { cursor: pointer; margin-top: .8rem; }
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a whole page of the given parts, under its title; `style` is CSS beside the common one.

    Parts are HTML, in which all that comes from outside is `escaped`; the title is text.
    """
    title = escaped(title)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        # Should an escape ever be missed, a browser still runs and fetches nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{STYLE}{style}</style></head><body>",
        f"<h1>{title}</h1>",
        *body,
        "</body></html>\n",
    ]
    return "\n".join(parts)


def numbers(figures: Iterable[tuple[str, str]]) -> str:
    """Return a line of boxes, each a large value over its name."""
    cells = [
        f"<div><b>{escaped(value)}</b><span>{escaped(name)}</span></div>" for value, name in figures
    ]
    return f'<div class="figures">{"".join(cells)}</div>'


def embedded(data: bytes, kind: str) -> str:
    """Return the `src` of a picture, `kind` being `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def escaped(value: str) -> str:
    """Return text as HTML, with what could steer a terminal or reorder a line written out."""
    return html.escape(printable(value))
