"""Tells the life of one image, crawled or of an included seed: what became of it and why, and its company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from curate.export.selection_list import list_files
from curate.report.hits import of_included
from curate.report.tables import (
    SEED_IMAGES,
    open_tables,
    read_funnel,
    rows,
    table_patterns,
    threshold,
)
from curate.written_cosine import rounded_down
from shared.errors import LvdError
from shared.progress import printable

MEMBERS = 20  # of a group; its size is told besides
FACTS = ("part", "member", "url", "caption", "sha256", "width", "height", "format", "bytes")


FindSeeds = Callable[[str], list[dict[str, Any]]]
"""Finds the nearest seed images of a key that the reports list none of: as rows of `retrieval`."""


def life(out: Path, name: str, find_seeds: FindSeeds | None = None) -> dict[str, Any]:
    """Return what the run in `out` knows of one image, as JSON-able values.

    `name` is its key; else its member, with its part or without, its URL, or its key in the shards,
    with its shard or without, where only one image has it. What no crawled image is called may be one
    of an included seed. `find_seeds` is asked of a copy.

    `key`, `of_seed` (the included seed that it is of, or None), `decision`, `reason`, `why` (a
    sentence); `facts`; `cluster`; `thresholds` by stage;
    `group`: None, or its `id`, `size`, `representative` (with that one's `decision`) and the first
    `MEMBERS` of its `members`: the representative, this image, the others by similarity;
    `seeds`: the nearest images of seeds, best first; `wanted_by`: the seeds that want it;
    `balance_cluster`: its row in `balance.parquet`, and `weight`: how often it is to be drawn, or
    None; `top_up_similarity`: its cosine with what was held or taken before it, or None; `written`: None, or the `shard`, or list, and the `key` in it.
    Of an image of an included seed, its company are the crawled `copies` of it: their number, and the
    `MEMBERS` most similar ones; None of a crawled image.
    LvdError, with the nearest keys, where no image is called so, and where several are.
    """
    funnel = read_funnel(out)
    with open_tables(out) as tables:
        image = _find(tables, out, name)
        key, of_seed = image["key"], image.get("seed")
        copies = _copies(tables, key, of_seed) if of_seed is not None else None
        group = None if image.get("group") is None else _group(tables, image["group"], key)
        seeds = rows(
            tables,
            "SELECT seed, seed_key, similarity, strategy FROM retrieval WHERE key = ? ORDER BY rank",
            [key],
        )
    if of_seed is not None:
        seeds = []  # those of a crawled image of the same key
    elif find_seeds is not None and not seeds and image["decision"] == "duplicate":
        seeds = find_seeds(key)
    thresholds = {stage: threshold(funnel, stage) for stage in ("dedup", "retrieve", "holdout")}
    written = None
    if image["output_shard"] is not None:
        copied = f"shards/{image['output_shard']}.tar"
        shard = "selection.parquet" if list_files(out) else copied
        written = {"shard": shard, "key": image["output_key"]}
    return {
        "key": key,
        "of_seed": of_seed,
        "decision": image["decision"],
        "reason": image["reason"],
        "why": _why(image, group, thresholds),
        "facts": {fact: image.get(fact) for fact in FACTS},
        "scores": image.get("scores") or {},
        "cluster": image.get("cluster"),
        "group": group,
        "copies": copies,
        "seeds": seeds,
        "wanted_by": image.get("seeds") or [],
        "balance_cluster": image.get("balance_cluster"),
        "weight": image.get("weight"),
        "top_up_similarity": image.get("top_up_similarity"),
        "thresholds": thresholds,
        "written": written,
    }


def explain(out: Path, name: str, find_seeds: FindSeeds | None = None) -> str:
    """Return `life` in words, for a terminal: escaped, a newline last."""
    told = life(out, name, find_seeds)
    facts = told["facts"]
    of_seed = f" (an image of seed {told['of_seed']})" if told["of_seed"] is not None else ""
    lines = [f"{told['key']}{of_seed}: {told['decision']}", f"  {told['why']}", ""]
    size = "unknown size" if facts["width"] is None else f"{facts['width']}×{facts['height']}"
    picture = f"{size}, {facts['format'] or 'unknown format'}, {facts['bytes']:,} bytes"
    lines += _table(
        [
            ("image", picture),
            ("from", f"member {facts['member']} of part {facts['part']}"),
            ("url", facts["url"]),
            ("caption", facts["caption"]),
            ("sha256", facts["sha256"]),
            ("scores", _scores(told["scores"])),
            ("cluster", told["cluster"]),
            ("balance", _balance(told)),
            ("top-up", _top_up(told["top_up_similarity"])),
        ]
    )
    lines += [*_group_lines(told), *_copy_lines(told), *_seed_lines(told)]
    if told["written"] is not None:
        lines += ["", f"Written to {told['written']['shard']} as {told['written']['key']}"]
    return "\n".join(printable(line) for line in lines) + "\n"


def _find(tables: duckdb.DuckDBPyConnection, out: Path, name: str) -> dict[str, Any]:
    has_seeds = (out / "reports" / f"{SEED_IMAGES}.parquet").exists()
    if has_seeds:
        tables.read_parquet(table_patterns(out, SEED_IMAGES)).create_view(SEED_IMAGES)
    for table in ("images", SEED_IMAGES) if has_seeds else ("images",):
        if found := _called(tables, table, name):
            break
    if len(found) > 1:
        keys = ", ".join(f"'{printable(row['key'])}'" for row in found[:3])
        more = ", ..." if len(found) > 3 else ""
        raise LvdError(
            f"{out}: '{printable(name)}' is what several images are called: {keys}{more}"
        )
    if not found:
        raise LvdError(_unknown(tables, out, name))
    return found[0]


def _called(tables: duckdb.DuckDBPyConnection, table: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table that have this key; of none, some that are called so otherwise."""
    return rows(
        tables, f"SELECT * FROM {table} WHERE key = ? ORDER BY ALL LIMIT 4", [name]
    ) or rows(
        tables,
        f"""
        SELECT * FROM {table}
        WHERE $1 IN (member, part || '/' || member, url, output_key, output_shard || '/' || output_key)
        ORDER BY key LIMIT 4
        """,
        [name],
    )


def _scores(scores: dict[str, float | None]) -> str:
    said = {name: "no value" if score is None else f"{score:.4g}" for name, score in scores.items()}
    return ", ".join(f"{name} {score}" for name, score in said.items())


def _group(tables: duckdb.DuckDBPyConnection, group: int, key: str) -> dict[str, Any]:
    members = rows(
        tables,
        """
        WITH company AS (
            SELECT key, representative, similarity, method, count(*) OVER () AS size
            FROM duplicates WHERE "group" = $1
            ORDER BY representative DESC, key = $2 DESC, similarity DESC, key LIMIT $3
        )
        SELECT company.*, images.decision FROM company JOIN images USING (key)
        ORDER BY representative DESC, key = $2 DESC, similarity DESC, key
        """,
        [group, key, MEMBERS],
    )
    size = members[0]["size"] if members else 0
    standing = next((member for member in members if member["representative"]), None)
    return {
        "id": group,
        "size": size,
        "representative": standing and {name: standing[name] for name in ("key", "decision")},
        "members": [
            {name: member[name] for name in ("key", "similarity", "method", "decision")}
            for member in members
        ],
    }


def _copies(tables: duckdb.DuckDBPyConnection, key: str, seed: str) -> dict[str, Any]:
    """Return the crawled copies of an image of an included seed, as `life` has them."""
    found = rows(
        tables,
        """
        SELECT key, duplicate_similarity AS similarity, count(*) OVER () AS size FROM images
        WHERE duplicate_of = $1 AND ends_with(reason, $2) ORDER BY similarity DESC, key LIMIT $3
        """,
        [key, of_included(seed), MEMBERS],
    )
    return {
        "size": found[0]["size"] if found else 0,
        "most_similar": [{name: one[name] for name in ("key", "similarity")} for one in found],
    }


def _why(
    image: dict[str, Any], group: dict[str, Any] | None, thresholds: dict[str, float | None]
) -> str:
    decision, reason = image["decision"], image["reason"]
    if image.get("seed") is not None:
        return reason or "its seed is included"
    seed, similarity = image["nearest_seed"], image["seed_similarity"]
    if decision == "duplicate":
        return _why_duplicate(image, group, thresholds["dedup"])
    if similarity is None:
        return reason or "no reason is recorded"
    wanted = thresholds["retrieve"]
    lent = " (by a lent vector)" if image.get("lent") else ""
    nearest = f"cosine {rounded_down(similarity)} with its nearest seed image {seed}{lent}"
    if wanted is not None and decision == "kept":
        if np.float32(similarity) < np.float32(wanted):
            return f"kept from an earlier result, or by a label; the threshold is {wanted:.6g}: {nearest}"
        return f"relevant: {nearest} reaches the threshold {wanted:.6g}"
    if decision == "irrelevant":
        return reason
    return f"{reason}; {nearest}" if reason else nearest


def _why_duplicate(
    image: dict[str, Any], group: dict[str, Any] | None, wanted: float | None
) -> str:
    of, similarity = image["duplicate_of"], image["duplicate_similarity"]
    if group is None or (group["representative"] or {}).get("key") == image["key"]:
        return str(image["reason"])  # of an image of an included seed
    members = group["members"] if group else []
    method = next((one["method"] for one in members if one["key"] == image["key"]), "near")
    if method == "exact" and similarity == 1.0:
        copy = f"the same bytes as {of}"
    elif method not in ("exact", "near"):
        copy = f"{image['reason']} (cosine {rounded_down(similarity)})"
    elif image.get("lent"):
        copy = image["reason"]
    else:
        # Members of a connected component may be further from its representative.
        reached = "" if wanted is None or similarity < wanted else f", threshold {wanted:.6g}"
        copy = f"a near copy of {of} (cosine {rounded_down(similarity)}{reached})"
    became = next((one["decision"] for one in members if one["key"] == of), None)
    return f"{copy}, which stands for its group" + (f" and was {became}" if became else "")


def _group_lines(told: dict[str, Any]) -> list[str]:
    group = told["group"]
    if group is None:
        return []
    lines = ["", f"Group of {group['size']:,}, the first represents it"]
    lines += _table(
        [
            (
                rounded_down(member["similarity"]),
                f"{member['method']:<6} {member['decision']:<11}"
                f" {member['key']}" + ("  (this one)" if member["key"] == told["key"] else ""),
            )
            for member in group["members"]
        ]
    )
    if group["size"] > len(group["members"]):
        lines.append(f"  and {group['size'] - len(group['members']):,} more")
    return lines


def _copy_lines(told: dict[str, Any]) -> list[str]:
    copies = told["copies"]
    if not copies or not copies["size"]:
        return []
    lines = ["", f"Crawled copies of it, {copies['size']:,}"]
    lines += _table(
        [(rounded_down(one["similarity"]), one["key"]) for one in copies["most_similar"]]
    )
    if copies["size"] > len(copies["most_similar"]):
        lines.append(f"  and {copies['size'] - len(copies['most_similar']):,} more")
    return lines


def _seed_lines(told: dict[str, Any]) -> list[str]:
    if not told["seeds"]:
        return []
    wanted = told["thresholds"]["retrieve"]
    against = "" if wanted is None else f" (threshold {wanted:.6g})"
    own = ", by the vector of this copy" if told["decision"] == "duplicate" else ""
    lines = ["", f"Nearest seed images{own}{against}"]
    several = len({s["seed"] for s in told["seeds"]}) > 1
    lines += _table(
        [
            (rounded_down(s["similarity"]), s["seed_key"] + (f" of {s['seed']}" if several else ""))
            for s in told["seeds"]
        ]
    )
    if told["wanted_by"]:
        lines.append(f"Wanted by {', '.join(told['wanted_by'])}")
    return lines


def _balance(told: dict[str, Any]) -> str:
    if told["balance_cluster"] is None:
        return ""
    drawn = "" if told["weight"] in (None, 1) else f", to be drawn {told['weight']:,} times"
    return f"in cluster {told['balance_cluster']}{drawn}"


def _top_up(similarity: float | None) -> str:
    if similarity is None:
        return ""
    return f"cosine {rounded_down(similarity)} with the nearest that was held or taken before it"


def _table(pairs: list[tuple[str, Any]]) -> list[str]:
    told = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in told), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in told]


def _unknown(tables: duckdb.DuckDBPyConnection, out: Path, key: str) -> str:
    # Keys are cut for the distance, which takes the product of two lengths.
    near = rows(
        tables,
        "SELECT key FROM images ORDER BY levenshtein(left(key, 200), left($1, 200)), key LIMIT 3",
        [key],
    )
    unknown = (
        f"{out}: no crawled image has the key '{printable(key)}', and no other name of one is that"
    )
    if not near:
        return f"{unknown}: its crawl was empty"
    return f"{unknown}: the nearest are " + ", ".join(f"'{printable(row['key'])}'" for row in near)
