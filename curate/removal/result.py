"""A result without some of its images: written beside it, and swapped with it whole at the end.

Images that stay keep their `output_key`: a rewritten shard, or list, has gaps in its keys, and a
shard that loses all of its images goes. Files that hold none of what goes are linked, not copied.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from curate.execution.output import FILES, RUN, Output
from curate.export.selection_list import list_files
from curate.redraw import picture_files, redraw
from curate.removal.centroids import drop_centroids
from curate.removal.embeddings import drop_embeddings
from curate.removal.gone import REMOVED, Gone, read_removed
from curate.report import groups as group_table
from curate.report.datasheet import DATASHEET, write_datasheet
from curate.report.pairs import PAIRS, REGROUPED
from curate.report.schemas import BEHIND_JUDGEMENT
from curate.report.tables import image_files, read_funnel, table_files
from curate.selection.balance import describe_clusters
from shared.shard_folder.shards import drop_samples
from shared.storage.files import fingerprint, link_or_copy, read_json, write_json

VERSION = 1
BALANCE = "reports/balance.parquet"
_MEASURED = ("contents", "diameter", "lowest_similarity", "chain", "sampled")


def rewrite(
    output: Output, gone: Sequence[Gone], source: dict[str, Any], work: Path | None
) -> None:
    """Take images out of a result: its shards, tables, counts and pictures.

    `source` says where the list was (`name`, `kind`, `path`, `content`). The pictures are drawn
    with what `work` and the crawl still have of the others, without a `work` with the shards alone.
    """
    out, new = output.out, output.partial
    output.begin(fingerprint([VERSION, source, [each.key for each in gone]]))
    made = {RUN, FILES, DATASHEET, *_write_reports(out, new, gone)}
    made |= {*_write_shards(out, new, gone), *_write_list(out, new, gone)}
    made |= {*drop_embeddings(out, new, gone), *drop_centroids(out, new, gone)}
    run = read_json(out / RUN)
    removed = [*run.get("removed", []), {**source, "images": len(gone)}]
    write_json(new / RUN, {**run, "removed": removed}, output.scratch)
    drawn = set(picture_files(out))
    linked = _link_others(out, new, made | drawn)
    if drawn:
        _draw(new, work)
    if (out / DATASHEET).exists():
        write_datasheet(new)
    hashes = read_json(out / FILES) if (out / FILES).exists() else {}
    output.publish({name: entry for name, entry in hashes.items() if name in linked})


def _write_shards(out: Path, new: Path, gone: Sequence[Gone]) -> Iterator[str]:
    """Write the shards that lose images; yield the names of the files that are not to be linked."""
    keys: dict[str, set[str]] = defaultdict(set)
    for each in gone:
        if each.shard is not None and each.output_key is not None:
            keys[each.shard].add(each.output_key)
    if list_files(out):
        return
    (new / "shards").mkdir(exist_ok=True)
    for shard, lost in sorted(keys.items()):
        drop_samples(out / "shards" / f"{shard}.tar", lost, new / "shards")
        yield from (f"shards/{shard}{end}" for end in (".tar", ".parquet", "_stats.json"))


def _write_list(out: Path, new: Path, gone: Sequence[Gone]) -> Iterator[str]:
    """Write a list without what goes, row group by row group; yield the names of its files."""
    lost = pa.array([each.output_key for each in gone if each.output_key], pa.string())
    for path in list_files(out):
        name = path.relative_to(out).as_posix()
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        with (
            pq.ParquetFile(path) as there,
            pq.ParquetWriter(new / name, there.schema_arrow, compression="zstd") as written,
        ):
            for number in range(there.num_row_groups):
                group = there.read_row_group(number)
                left = group.filter(pc.invert(pc.is_in(group["output_key"], lost)))
                if len(left):
                    written.write_table(left, row_group_size=len(left))
        yield name


def _write_reports(out: Path, new: Path, gone: Sequence[Gone]) -> Iterator[str]:
    """Write tables and counts; yield the names of the files that are not to be linked."""
    crawled = [each for each in gone if each.table == "images"]
    keys = pa.array([each.key for each in crawled], pa.string())
    left = _groups_left(out, keys)
    alone = pa.array([group for group, members in left.items() if members == 1], pa.int64())
    for name, start, path in image_files(out):
        table, own = pq.read_table(path), [each for each in gone if each.table == name]
        here = [each for each in own if start <= each.row < start + len(table)]
        _write(out, new, path, _without_images(table, start, here, alone))
        yield path.relative_to(out).as_posix()
    for name in ("retrieval", "duplicates"):
        for path in table_files(out, name):
            table = pq.read_table(path)
            stays = pc.invert(pc.is_in(table["key"], keys))
            if name == "duplicates":
                stays = pc.and_(stays, pc.invert(pc.is_in(table["group"], alone)))
            _write(out, new, path, table.filter(stays))
            yield path.relative_to(out).as_posix()
    if (out / "reports" / f"{PAIRS}.parquet").exists():
        [path] = table_files(out, PAIRS)
        table = pq.read_table(path)
        goes = pc.or_(pc.is_in(table["key"], keys), pc.is_in(table["better"], keys))
        _write(out, new, path, table.filter(pc.invert(goes)))
        # Which thresholds group what was counted with the images that go.
        yield from (f"reports/{name}.parquet" for name in (PAIRS, REGROUPED))
    counts = _balance_left(out, new)
    if counts is not None:
        pq.write_table(counts, new / BALANCE, compression="zstd")
        yield BALANCE
    chains = 0
    for path in _group_files(out):
        table = _groups_of(pq.read_table(path), left)
        chains += pc.sum(table["chain"]).as_py() or 0
        _write(out, new, path, table)
        yield path.relative_to(out).as_posix()
    said = pa.Table.from_pylist(
        [
            {
                "seed": each.seed,
                "key": each.key,
                "sha256": each.sha256,
                "decision": each.was,
                "reason": each.reason,
                "list": each.list,
                "pdq": each.pdq,
            }
            for each in gone
        ],
        REMOVED,
    )
    there = [read_removed(out), said]
    removed = pa.concat_tables(there, promote_options="default").sort_by("key")
    pq.write_table(removed, new / "reports" / "removed.parquet", compression="zstd")
    yield "reports/removed.parquet"
    groups = {group: members for group, members in left.items() if members > 1}
    funnel = _count(read_funnel(out), gone, removed, groups, chains)
    if counts is not None:
        funnel["balance"] |= describe_clusters(counts)
    if funnel.get("top_up"):
        funnel["top_up"] |= {"kept": funnel["decisions"]["kept"]}
    write_json(new / "reports" / "funnel.json", funnel)
    yield "reports/funnel.json"


def _balance_left(out: Path, new: Path) -> pa.Table | None:
    """Return the counts of clusters with what is left to be drawn in the tables of `new`."""
    if not (out / BALANCE).exists():
        return None
    counts = pq.read_table(out / BALANCE)
    kept, weight = np.zeros(len(counts), np.int64), np.zeros(len(counts), np.int64)
    for path in table_files(new, "images"):
        images = pq.read_table(path, columns=["balance_cluster", "weight"])
        drawn = images.filter(pc.is_valid(images["weight"]))
        own = drawn["balance_cluster"].to_numpy()
        kept += np.bincount(own, minlength=len(counts))
        np.add.at(weight, own, drawn["weight"].to_numpy())
    return counts.set_column(2, "kept", [kept]).set_column(3, "weight", [weight])


def _groups_left(out: Path, keys: pa.Array) -> dict[int, int]:
    """Return how many members each group has that loses none of them, or not all."""
    groups: list[Int64[np.ndarray, " _"]] = [np.empty(0, np.int64)]
    for path in table_files(out, "duplicates"):
        table = pq.read_table(path, columns=["group", "key"])
        groups.append(table.filter(pc.invert(pc.is_in(table["key"], keys)))["group"].to_numpy())
    numbers, members = np.unique(np.concatenate(groups), return_counts=True)
    return dict(zip(numbers.tolist(), members.tolist(), strict=True))


def _group_files(out: Path) -> list[Path]:
    """Return the files of the table of groups; an earlier version wrote none where there were no groups."""
    there = (out / "reports" / f"{group_table.NAME}.parquet").exists()
    return table_files(out, group_table.NAME) if there else []


def _groups_of(groups: pa.Table, left: dict[int, int]) -> pa.Table:
    """Return a table of groups as they are left: nobody measured how far smaller ones reach."""
    sizes = [left.get(group, 0) for group in groups["group"].to_pylist()]
    size = pa.array(sizes, pa.int64())
    smaller = pc.not_equal(size, groups["size"])
    for name in _MEASURED:
        values = pc.if_else(smaller, pa.scalar(None, groups.schema.field(name).type), groups[name])
        groups = groups.set_column(groups.schema.get_field_index(name), name, values)
    groups = groups.set_column(groups.schema.get_field_index("size"), "size", size)
    return groups.filter(pc.greater(size, 1)).cast(group_table.GROUPS)


def _without_images(
    images: pa.Table, start: int, gone: Sequence[Gone], alone: pa.Array
) -> pa.Table:
    """Return a file of a table of images in which those that go are `unsafe`."""
    mask = np.zeros(len(images), bool)
    mask[[each.row - start for each in gone]] = True
    goes = pa.array(mask)
    reasons = pa.array([each.reason for each in gone], pa.string())
    changed = {
        "decision": pc.if_else(goes, "unsafe", images["decision"]),
        "reason": pc.replace_with_mask(images["reason"].combine_chunks(), goes, reasons),
    }
    for name in filter(images.column_names.__contains__, BEHIND_JUDGEMENT):
        empty = pa.scalar(None, images.schema.field(name).type)
        changed[name] = pc.if_else(goes, empty, images[name])
    if "group" in changed:
        lonely = pc.is_in(changed["group"], alone, skip_nulls=True)
        changed["group"] = pc.if_else(lonely, pa.scalar(None, pa.int64()), changed["group"])
    columns = [changed.get(name, images[name]) for name in images.column_names]
    return pa.table(columns, schema=images.schema)


def _count(
    funnel: dict[str, Any],
    gone: Sequence[Gone],
    removed: pa.Table,
    groups: dict[int, int],
    chains: int,
) -> dict[str, Any]:
    """Return the funnel with the counts of what is left of the crawl, and of included seeds."""
    decisions = Counter(funnel["decisions"])
    seeds = {name: {**said} for name, said in funnel.get("seeds", {}).items()}
    included = {name: Counter(said.get("included", {})) for name, said in seeds.items()}
    for each in gone:
        counts = decisions if each.seed is None else included[each.seed]
        counts.subtract([each.was])
        counts["unsafe"] += 1
    for name, counts in included.items():
        if "included" in seeds[name]:
            seeds[name]["included"] = {decision: n for decision, n in counts.items() if n}
    by_list = Counter(removed["list"].to_pylist())
    return {
        **funnel,
        "decisions": dict(decisions),
        **({"seeds": seeds} if seeds else {}),
        "groups": {"count": len(groups), "members": sum(groups.values()), "chains": chains},
        "removed": {"images": len(removed), "lists": dict(by_list)},
    }


def _write(out: Path, new: Path, path: Path, table: pa.Table) -> None:
    place = new / path.relative_to(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, place, compression="zstd")


def _link_others(out: Path, new: Path, made: set[str]) -> set[str]:
    """Link, or copy, the files of a result that are not `made` anew; return their names."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    for name in sorted(files.keys() - made):
        link_or_copy(files[name], new / name)
    return files.keys() - made


def _draw(new: Path, work: Path | None) -> None:
    if work is not None:
        redraw(new, work)
        return
    with tempfile.TemporaryDirectory() as nowhere:
        redraw(new, Path(nowhere))
