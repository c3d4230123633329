"""What a result holds that a run adds to: it ranks first, and stands for itself and for its copies."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import (
    Made,
    best_first,
    clear,
    clumps,
    clustered,
    exact_cosines,
    from_vectors,
    grouped,
    made_collection,
    ranked,
)

from curate.catalogue.exported import EXPORTED, Exported
from curate.dedup.groups import group
from curate.dedup.near import DedupSettings
from shared.errors import LvdError


def as_exported(folder, collection, numbers):
    """Write images of a collection as a result holds them, in the order of `numbers`."""
    facts = collection.facts(np.array(numbers), ["sha256"])
    table = pa.table(
        [facts["key"], facts["sha256"], pa.array(np.arange(len(numbers)))], names=EXPORTED.names
    )
    pq.write_table(table.cast(EXPORTED), folder / "exported.parquet")
    return Exported("runs/mine", folder / "exported.parquet", "digest")


@pytest.mark.parametrize("mode", ["greedy", "components"])
@pytest.mark.parametrize("per_image", [1, 10**6])
def test_it_stands_for_itself_and_first_for_others(tmp_path, mode, per_image):
    vectors = clumps(3, 12, 25, 8, 0.5)
    plain = from_vectors(tmp_path, vectors, name="plain")
    numbers = np.random.default_rng(1).permutation(len(vectors))[:40].tolist()
    crawl = from_vectors(tmp_path, vectors, exported=as_exported(tmp_path, plain, numbers))
    assert crawl.exported.tolist() == sorted([n, place] for place, n in enumerate(numbers))
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.9)
    plainly = best_first(plain, tmp_path).tolist()
    order = sorted(plainly, key=lambda n: (n not in numbers, plainly.index(n)))
    assert best_first(crawl, tmp_path).tolist() == order

    expected = np.arange(len(vectors))
    if mode == "greedy":
        stands = []
        for n in order:
            near = [r for r in stands if exact[n, r] >= threshold]
            if near and n not in numbers:
                expected[n] = near[0]
            else:
                stands.append(n)
    else:
        left = set(order)
        while left:
            piece, fresh = set(), {min(left)}
            while fresh:
                piece |= fresh
                fresh = {m for n in fresh for m in left - piece if exact[n, m] >= threshold}
            left -= piece
            best = min(piece, key=order.index)
            for n in piece - set(numbers):
                expected[n] = best
    clusters, _ = clustered(crawl, tmp_path)
    chosen = DedupSettings(groups=mode, edges_per_image=per_image, probes=10**6)
    folder, _ = grouped(crawl, clusters, tmp_path, threshold, chosen)
    np.testing.assert_array_equal(np.load(folder / "representative.npy"), expected)
    assert (expected[numbers] == numbers).all()
    assert (exact[np.ix_(numbers, numbers)] >= threshold).sum() > len(numbers)


def test_it_stands_for_itself_whichever_units_find_what_joins_it(tmp_path):
    images = [Made(f"p/{n}", np.eye(4)[n]) for n in range(3)]
    plain = made_collection(tmp_path, images, name="plain")
    crawl = made_collection(tmp_path, images, exported=as_exported(tmp_path, plain, [0, 1]))
    ranks, folders = ranked(crawl, tmp_path), []
    for better in (0, 1):  # of two units, each of which joins the last image with one that stays
        folders.append(tmp_path / f"search-{better}")
        folders[-1].mkdir()
        np.save(folders[-1] / "edges.npy", np.array([[2, better]]))
        np.save(folders[-1] / "truncated.npy", np.empty(0, np.int64))
    for mode in ("greedy", "components"):
        group(ranks, folders, mode, 64, None, 2, out=tmp_path)
        assert np.load(tmp_path / "representative.npy").tolist() == [0, 1, 0]


def test_it_stands_for_all_that_has_its_bytes(tmp_path):
    images = [Made(f"p/{n}", np.eye(4)[n % 4], content=f"{n % 2}") for n in range(6)]
    plain = made_collection(tmp_path, images, name="plain")
    assert best_first(plain, tmp_path).tolist() == [0, 1]
    crawl = made_collection(tmp_path, images, exported=as_exported(tmp_path, plain, [4]))
    assert best_first(crawl, tmp_path).tolist() == [4, 1]
    for mode in ("greedy", "components"):
        clusters, _ = clustered(crawl, tmp_path)
        folder, _ = grouped(crawl, clusters, tmp_path, 0.9, DedupSettings(groups=mode))
        assert np.load(folder / "representative.npy").tolist() == [4, 1, 4, 1, 4, 1]


def test_what_is_gone_changed_or_no_longer_admitted_is_told(tmp_path):
    images = [Made(f"p/{n}", np.eye(4)[n]) for n in range(4)]
    held = as_exported(tmp_path, made_collection(tmp_path, images, name="plain"), [2, 1])
    with pytest.raises(LvdError, match=r"1 images that runs/mine holds, as 'p/2', are gone"):
        made_collection(tmp_path, images[:2], exported=held)
    changed = [*images[:2], Made("p/2", np.eye(4)[2], content="other")]
    with pytest.raises(LvdError, match="or have other bytes now: take them out"):
        made_collection(tmp_path, changed, exported=held)
    corrupt = [images[0], Made("p/1", None, problem="no image"), images[2]]
    with pytest.raises(LvdError, match="'p/1', would not be kept now: the first is corrupt"):
        made_collection(tmp_path, corrupt, exported=held)
