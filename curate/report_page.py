"""Writes the report's page: HTML that holds its own pictures and loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curate.contact_sheets import Sheet, Tile
from curate.summary import SOURCES, headline, share
from shared.progress import printable

CHART_OF = {"threshold": "similarities", "borderline_copies": "copy_similarities"}

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
.chart { width: 100%; max-width: 900px; display: block; margin-bottom: .8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, 152px); gap: 10px; }
figure { margin: 0; width: 152px; }
figure .picture { width: 150px; height: 150px; border: 1px solid #d5dbdf; background: #f6f7f8;
       display: flex; align-items: center; justify-content: center; color: #7b868d;
       font-size: 12px; text-align: center; overflow: hidden;
       overflow-wrap: anywhere; }
figure.reference .picture { border: 2px solid #2471a3; width: 148px; height: 148px; }
.pairs { display: flex; flex-wrap: wrap; gap: 16px 26px; }
.pairs > div { display: flex; gap: 4px; }
figcaption { font-size: 12px; overflow: hidden; }
figcaption span { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
figcaption span + span { color: #7b868d; }
table { border-collapse: collapse; }
td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; background: #f6f7f8;
      padding: .8rem; }
summary { cursor: pointer; margin-top: .8rem; }
"""


def report_page(
    funnel: dict[str, Any],
    run: dict[str, Any],
    charts: Mapping[str, bytes],
    sheets: Sequence[Sheet],
    thumbs: Mapping[tuple[bool, str], bytes],
) -> str:
    """Return the whole page. Everything that comes from the crawl is escaped, nothing is a link.

    `charts` are PNGs by name (`funnel`, and those of `CHART_OF` that there are), `thumbs` the JPEGs
    of the sheets' tiles by `(seed, key)`.
    """
    title = _text(headline(funnel, run))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        # Should an escape ever be missed, a browser still runs and fetches nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        _figures(funnel),
        _chart(charts["funnel"], "what became of the crawled images"),
    ]
    for sheet in sheets:
        chart = charts.get(CHART_OF.get(sheet.name, ""))
        parts.extend(_section(sheet, chart, thumbs))
    parts.extend(_settings(funnel))
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _figures(funnel: dict[str, Any]) -> str:
    counts, images = funnel["decisions"], funnel["images"]
    rejected = sum(counts[name] for name in ("corrupt", "unsafe", "low_quality"))
    figures = [
        ("crawled", images),
        ("rejected", rejected),
        ("near a holdout", counts["holdout"]),
        ("copies", counts["duplicate"]),
        ("irrelevant", counts["irrelevant"]),
        ("over budget", counts["over_budget"]),
        ("kept", counts["kept"]),
    ]
    cells = [
        f"<div><b>{count:,}</b><span>{name}"
        + ("" if name == "crawled" else f" · {_text(share(count, images))}")
        + "</span></div>"
        for name, count in figures
        if count or name in ("crawled", "kept")
    ]
    return f'<div class="figures">{"".join(cells)}</div>'


def _section(
    sheet: Sheet, chart: bytes | None, thumbs: Mapping[tuple[bool, str], bytes]
) -> Iterator[str]:
    yield f"<h2>{_text(sheet.title)}</h2><p>{_text(sheet.note)}</p>"
    if chart is not None:
        yield _chart(chart, "histogram")
    for strip in sheet.strips:
        if strip.heading:
            yield f"<h3><bdi>{_text(strip.heading)}</bdi></h3>"
        figures = [_figure(tile, thumbs.get((tile.seed, tile.key))) for tile in strip.tiles]
        if sheet.pairs:
            couples = zip(figures[::2], figures[1::2], strict=True)
            yield '<div class="pairs">'
            yield from (f"<div>{one}{other}</div>" for one, other in couples)
        else:
            yield '<div class="tiles">'
            yield from figures
        yield "</div>"


def _figure(tile: Tile, jpeg: bytes | None) -> str:
    if jpeg is None:
        picture = _text(tile.absent[:300])
    else:
        picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
    return (
        f'<figure class="{_text(tile.mark)}" title="{_text(tile.detail)}">'
        f'<div class="picture">{picture}</div><figcaption>'
        f"<span><bdi>{_text(tile.caption)}</bdi></span><span><bdi>{_text(tile.key)}</bdi></span>"
        "</figcaption></figure>"
    )


def _chart(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="chart" alt="{alt}" src="data:image/png;base64,{data}">'


def _settings(funnel: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Thresholds, settings, versions</h2><table>"
    for name, setting in funnel.get("thresholds", {}).items():
        if setting and setting.get("value") is not None:
            source = SOURCES.get(setting.get("source"), setting.get("source") or "")
            value = f"cosine &ge; {setting['value']:.6g}"
            yield f"<tr><td>{_text(name)}</td><td>{value}</td><td>{_text(source)}</td></tr>"
    recall = funnel.get("dedup_recall") or {}
    if recall.get("recall") is not None:
        against = f"{recall['pairs']:,} pairs by exact search of {recall['queries']:,} images"
        yield f"<tr><td>dedup recall</td><td>{recall['recall']:.4f}</td><td>{against}</td></tr>"
    yield "</table>"
    for name in ("problems", "settings", "versions"):
        if value := funnel.get(name):
            lines = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).split("\n")
            text = "\n".join(_text(line) for line in lines)
            yield f"<details><summary>{name}</summary><pre>{text}</pre></details>"


def _text(value: str) -> str:
    return html.escape(printable(value))
