"""Score a finished run against a truth.csv (part, member stem, kind, copy_of, transform).

Prints: rows in and out; for every transform the share of copies that share a group with their
original; the precision of pairs inside groups among photographs; by each way in which copies were
found, how many are copies of what stands for them; the areas under the ROC curve of
the seed similarity; what became of each kind.

    .venv/bin/python benchmarks/truth.py runs/curate/sample runs/work/sample/truth.csv
    .venv/bin/python benchmarks/truth.py PROOF/runs/near-dedup PROOF/data/truth.csv --photographs wanted --photographs distractor
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Collection
from itertools import combinations
from math import comb
from pathlib import Path

import click
from sklearn.metrics import roc_auc_score

from curate.report.tables import open_tables, rows

NOT_PHOTOGRAPHS = {"chart", "icon", "screenshot", "document", "meme", "junk"}


def read_truth(path: Path) -> dict[str, dict]:
    """Return the rows of truth.csv by stem; those of the proof's pool are by key."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if rows and "key" in rows[0]:
        for row in rows:
            row |= {"member": _stem(row["key"]), "copy_of": _stem(row["copy_of"])}
            row["transform"] = row["edit"]
    return {row.get("member") or row["stem"]: row for row in rows}


def _stem(key: str) -> str:
    return key.rpartition("/")[2]


def root_of(truth: dict[str, dict], stem: str) -> str:
    """Return the original that an image is a copy of, at the end of the chain."""
    while truth[stem]["copy_of"]:
        stem = truth[stem]["copy_of"]
    return stem


def by_method(
    truth: dict[str, dict], images: dict[str, dict], members: list[dict]
) -> dict[str, tuple[list[str], list[str]]]:
    """Return for each way in which copies were found which of them are copies, and which are not."""
    found: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for member in members:
        stem = member["key"].rpartition("/")[2]
        if images[stem]["duplicate_of"]:
            standing = images[stem]["duplicate_of"].rpartition("/")[2]
            found[member["method"]][root_of(truth, stem) != root_of(truth, standing)].append(stem)
    return found


def read_images(out: Path) -> dict[str, dict]:
    """Return what became of the images of a run, by stem."""
    with open_tables(out) as tables:
        images = rows(tables, "SELECT * FROM images")
    return {image["key"].rpartition("/")[2]: image for image in images}


def count_copies(
    truth: dict[str, dict], images: dict[str, dict], photographs: Collection[str]
) -> tuple[Counter[str], Counter[str]]:
    """Return by transform how many copies share a group with their original, and how many there are.

    Those of other kinds than `photographs` count under their kind, in brackets.
    """
    found, total = Counter(), Counter()
    for stem, row in truth.items():
        if not {stem, row["copy_of"]} <= images.keys():  # no copy, or one of them not crawled
            continue
        if images[stem]["decision"] not in ("corrupt", "low_quality"):
            name = row["transform"] if row["kind"] in photographs else f"({row['kind']})"
            total[name] += 1
            found[name] += images[stem]["group"] is not None and (
                images[stem]["group"] == images[row["copy_of"]]["group"]
            )
    return found, total


def count_pairs(
    truth: dict[str, dict], images: dict[str, dict], photographs: Collection[str]
) -> tuple[int, int]:
    """Return how many pairs of photographs inside groups stem from one picture, and how many there are."""
    groups = defaultdict(list)
    for stem, image in images.items():
        if image["group"] is not None and truth[stem]["kind"] in photographs:
            groups[image["group"]].append(root_of(truth, stem))
    right = sum(one == other for roots in groups.values() for one, other in combinations(roots, 2))
    return right, sum(comb(len(roots), 2) for roots in groups.values())


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("truth_csv", type=click.Path(path_type=Path))
@click.option("--photographs", multiple=True, default=("animal", "object"), show_default=True)
@click.option("--seed-kinds", multiple=True, default=("animal",), show_default=True)
def main(out: Path, truth_csv: Path, photographs: tuple, seed_kinds: tuple) -> None:
    """Print the scores of the run in OUT."""
    truth, by_stem = read_truth(truth_csv), read_images(out)
    with open_tables(out) as tables:
        members = rows(tables, "SELECT key, method FROM duplicates WHERE NOT representative")
        retrieval = rows(tables, "SELECT key, similarity FROM retrieval WHERE rank = 0")
    click.echo(
        f"rows in {len(truth):,}, rows out {len(by_stem):,}, matched {len(truth.keys() & by_stem)}"
    )

    found, total = count_copies(truth, by_stem, photographs)
    for name in sorted(total):
        click.echo(
            f"  recall {name:<16} {found[name]:>4} of {total[name]:>4}  {found[name] / total[name]:.3f}"
        )
    of_photographs = [name for name in total if not name.startswith("(")]
    recall = sum(found[n] for n in of_photographs) / max(1, sum(total[n] for n in of_photographs))
    right, pairs = count_pairs(truth, by_stem, photographs)
    click.echo(
        f"photographs: recall {recall:.4f}  precision {right / max(1, pairs):.4f} ({pairs} pairs)"
    )

    for name, (right, wrong) in sorted(by_method(truth, by_stem, members).items()):
        click.echo(
            f"  found by {name:<8} {len(right + wrong):>4} copies of the one that stands for them, "
            f"{len(wrong)} false: {dict(Counter(truth[stem]['kind'] for stem in wrong))}"
        )

    similarity = {entry["key"].rpartition("/")[2]: entry["similarity"] for entry in retrieval}
    for stem, image in by_stem.items():
        if image["duplicate_of"]:  # a duplicate is judged by the image that stands for it
            standing = image["duplicate_of"].rpartition("/")[2]
            if standing in similarity:
                similarity[stem] = similarity[standing]
    kind = {stem: truth[stem]["kind"] for stem in similarity}
    for name, positive, negative in (
        ("seed kinds against no photographs", set(seed_kinds), NOT_PHOTOGRAPHS),
        ("photographs against no photographs", set(photographs), NOT_PHOTOGRAPHS),
        (
            "seed kinds against other photographs",
            set(seed_kinds),
            set(photographs) - set(seed_kinds),
        ),
    ):
        chosen = [
            s for s in similarity if kind[s] in positive | negative and not truth[s]["copy_of"]
        ]
        labels = [kind[s] in positive for s in chosen]
        if len(set(labels)) == 2:
            area = roc_auc_score(labels, [similarity[s] for s in chosen])
            click.echo(
                f"area {name:<38} {area:.3f}  ({sum(labels)} against {len(labels) - sum(labels)})"
            )
    became = defaultdict(Counter)
    for stem, image in by_stem.items():
        became[truth[stem]["kind"]][image["decision"]] += 1
    for name in sorted(became):
        click.echo(f"  {name:<12} " + "  ".join(f"{d} {n}" for d, n in became[name].most_common()))
    for stem, image in sorted(by_stem.items()):
        if truth[stem]["kind"] == "corrupt":
            click.echo(
                f"  corrupt {stem} ({truth[stem]['transform']}): {image['decision']}: {image['reason']}"
            )


if __name__ == "__main__":
    main()
