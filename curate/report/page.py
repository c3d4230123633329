"""Writes the report's page: HTML that holds its own pictures and loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curate.report.contact_sheets import Sheet, Tile
from curate.report.summary import SOURCES, headline, share
from shared.page import embedded, escaped, numbers, page

CHART_OF = {"threshold": "similarities", "borderline_copies": "copy_similarities"}

STYLE = """
.chart { width: 100%; max-width: 900px; display: block; margin-bottom: .8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, 152px); gap: 10px; }
figure { width: 152px; }
figure .picture { width: 150px; height: 150px; border: 1px solid #d5dbdf; background: #f6f7f8;
       display: flex; align-items: center; justify-content: center; color: #7b868d;
       font-size: 12px; text-align: center; overflow: hidden;
       overflow-wrap: anywhere; }
figure.reference .picture { border: 2px solid #2471a3; width: 148px; height: 148px; }
.pairs { display: flex; flex-wrap: wrap; gap: 16px 26px; }
.pairs > div { display: flex; gap: 4px; }
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
    parts = [
        _figures(funnel),
        _chart(charts["funnel"], "what became of the crawled images"),
    ]
    for sheet in sheets:
        chart = charts.get(CHART_OF.get(sheet.name, ""))
        parts.extend(_section(sheet, chart, thumbs))
    parts.extend(_settings(funnel))
    return page(headline(funnel, run), parts, STYLE)


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
    return numbers(
        (f"{count:,}", name if name == "crawled" else f"{name} · {share(count, images)}")
        for name, count in figures
        if count or name in ("crawled", "kept")
    )


def _section(
    sheet: Sheet, chart: bytes | None, thumbs: Mapping[tuple[bool, str], bytes]
) -> Iterator[str]:
    yield f"<h2>{escaped(sheet.title)}</h2><p>{escaped(sheet.note)}</p>"
    if chart is not None:
        yield _chart(chart, "histogram")
    for strip in sheet.strips:
        if strip.heading:
            yield f"<h3><bdi>{escaped(strip.heading)}</bdi></h3>"
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
        picture = escaped(tile.absent[:300])
    else:
        picture = f'<img alt="" src="{embedded(jpeg, "jpeg")}">'
    return (
        f'<figure class="{escaped(tile.mark)}" title="{escaped(tile.detail)}">'
        f'<div class="picture">{picture}</div><figcaption>'
        f"<span><bdi>{escaped(tile.caption)}</bdi></span><span><bdi>{escaped(tile.key)}</bdi></span>"
        "</figcaption></figure>"
    )


def _chart(png: bytes, alt: str) -> str:
    return f'<img class="chart" alt="{alt}" src="{embedded(png, "png")}">'


def _settings(funnel: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Thresholds, settings, versions</h2><table>"
    for name, setting in funnel.get("thresholds", {}).items():
        if setting and setting.get("value") is not None:
            source = SOURCES.get(setting.get("source"), setting.get("source") or "")
            value = f"cosine &ge; {setting['value']:.6g}"
            yield f"<tr><td>{escaped(name)}</td><td>{value}</td><td>{escaped(source)}</td></tr>"
    recall = funnel.get("dedup_recall") or {}
    if recall.get("recall") is not None:
        against = f"{recall['pairs']:,} pairs by exact search of {recall['queries']:,} images"
        yield f"<tr><td>dedup recall</td><td>{recall['recall']:.4f}</td><td>{against}</td></tr>"
    yield "</table>"
    for name in ("problems", "settings", "versions"):
        if value := funnel.get(name):
            lines = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).split("\n")
            text = "\n".join(escaped(line) for line in lines)
            yield f"<details><summary>{name}</summary><pre>{text}</pre></details>"
