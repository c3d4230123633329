"""A large seed is searched in clusters: what is found is exact, and what is lost is measured."""

import numpy as np
import pytest
from made_collection import Made, clumps, exact_cosines, from_vectors, made_collection

from curate.catalogue import collection
from curate.catalogue.collection import Catalogued, Collection
from curate.execution.session import open_runner
from curate.forecast.measure import own_bytes
from curate.neighbours import cluster
from curate.retrieval import nearest_seeds
from curate.retrieval.nearest_seeds import Retrieved, found, retrieve
from curate.retrieval.seed_index import SeedIndexSettings, index_seed
from curate.stage import EngineSettings

VECTORS, SEEDS = clumps(0, 12, 10, 8, 0.4), clumps(1, 40, 8, 8, 0.4)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("seed-index")


@pytest.fixture(scope="module")
def crawl(work):
    return from_vectors(work, VECTORS)


@pytest.fixture(scope="module")
def seed(work):
    return from_vectors(work, SEEDS, name="seed")


def retrieved(work, crawl: Collection, seed: Collection, k=5, **settings) -> Retrieved:
    groups = work / "groups"
    groups.mkdir(exist_ok=True)
    np.save(groups / "representative.npy", np.arange(len(crawl)))
    datasets = (Catalogued(x.folder.parent.name, [], x, str(x.folder)) for x in (crawl, seed))
    with open_runner(work, EngineSettings(), "inline") as runner:
        one, other = datasets
        large = SeedIndexSettings(**settings)
        [result] = retrieve(runner, one, groups, "all", [other], k, 1, large)
    return result


def nearest_of(result: Retrieved, crawl: Collection) -> tuple[np.ndarray, np.ndarray]:
    return found(result.folders, result.block, np.arange(len(crawl)))[1:]


def test_in_all_clusters_the_nearest_are_those_of_brute_force(work, crawl, seed):
    whole = retrieved(work, crawl, seed)
    assert whole.recall is None
    large = retrieved(work, crawl, seed, exact=len(SEEDS) - 1, probes=len(SEEDS))
    for one, other in zip(nearest_of(whole, crawl), nearest_of(large, crawl), strict=True):
        np.testing.assert_array_equal(one, other)
    assert large.recall == {"queries": 120, "pairs": 600, "found": 600, "recall": 1.0}
    best = -np.sort(-exact_cosines(VECTORS, SEEDS), axis=1)[:, :5]
    np.testing.assert_allclose(nearest_of(large, crawl)[0], best, atol=1e-6)


def test_a_seed_has_the_root_of_its_images_in_clusters_where_a_crawl_has_more(
    tmp_path, seed, monkeypatch
):
    monkeypatch.setattr(cluster, "FINER", 10)
    dataset = Catalogued("seed", [], seed, "seed")
    with open_runner(tmp_path, EngineSettings(), "inline") as runner, runner.at_work("retrieve"):
        index = index_seed(runner, dataset, SeedIndexSettings(exact=1), 1)
    assert index is not None
    assert len(index.clusters.load()) == round(len(SEEDS) ** 0.5)
    assert cluster.count_clusters(len(SEEDS), cluster.ClusterSettings()) > len(SEEDS) ** 0.5 + 1


def test_what_a_block_has_freed_goes_back_to_the_system(work, crawl, seed, monkeypatch):
    search, pins = nearest_seeds.nearest_in_clusters, []

    def frees(*args):
        arrays = [np.ones(8_000) for _ in range(2_000)]
        pins.append(np.ones(8_000))  # behind them, so that the heap does not end before them
        del arrays
        return search(*args)

    monkeypatch.setattr(nearest_seeds, "nearest_in_clusters", frees)
    before = own_bytes()
    retrieved(work, crawl, seed, exact=len(SEEDS) - 1, probes=7)
    assert pins
    assert own_bytes() - before < 60e6


@pytest.mark.parametrize("probes", [1, 3])
def test_what_is_lost_in_few_clusters_is_what_is_measured(work, crawl, seed, probes):
    large = retrieved(work, crawl, seed, exact=1, probes=probes)
    similarity, seeds = nearest_of(large, crawl)
    exact = exact_cosines(VECTORS, SEEDS)
    np.testing.assert_allclose(similarity, np.take_along_axis(exact, seeds, 1), atol=1e-6)
    assert (np.diff(similarity, axis=1) <= 0).all()
    nearest = np.argsort(-exact, axis=1)[:, :5]
    hits = sum(len(set(a) & set(b)) for a, b in zip(seeds, nearest, strict=True))
    assert 0 < hits < seeds.size
    assert large.recall["found"] == hits
    assert large.recall["recall"] == hits / seeds.size


def test_a_sample_of_the_searched_measures_it(work, crawl, seed):
    sampled = retrieved(work, crawl, seed, exact=1, probes=1, recall_sample=30).recall
    assert (sampled["queries"], sampled["pairs"]) == (30, 150)
    none = retrieved(work, crawl, seed, exact=1, probes=1, recall_sample=0).recall
    assert none["recall"] is None


def test_more_images_are_searched_together_than_a_block_holds(
    work, crawl, seed, tmp_path, monkeypatch
):
    whole = retrieved(work, crawl, seed, exact=1, probes=3)
    monkeypatch.setattr(collection, "LEAST_BLOCK", 16)
    monkeypatch.setattr(nearest_seeds, "IN_CLUSTERS", 64)
    again = retrieved(tmp_path, crawl, seed, exact=1, probes=3)
    assert (len(whole.folders), len(again.folders)) == (1, 2)
    for one, other in zip(nearest_of(whole, crawl), nearest_of(again, crawl), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.recall == whole.recall


def test_where_the_nearest_clusters_hold_too_few_all_are_searched(work, crawl, seed):
    """One cluster of about eight images cannot hold the forty that are asked for."""
    large = retrieved(work, crawl, seed, k=40, exact=1, probes=1)
    best = -np.sort(-exact_cosines(VECTORS, SEEDS), axis=1)[:, :40]
    np.testing.assert_allclose(nearest_of(large, crawl)[0], best, atol=1e-6)


def test_of_the_same_bytes_and_of_equal_vectors_the_first_keys_are_named(tmp_path):
    kinds = SEEDS[[0, 20]]
    images = [
        Made(f"s/{row:03d}", kinds[row % 2], content=str(row // 4)) for row in range(200)
    ]  # two images of each content, and those of a kind are of equal vectors
    images = [
        Made(x.key, x.vector, content=f"{row % 2}-{x.content}") for row, x in enumerate(images)
    ]
    seed = made_collection(tmp_path, images, name="seed")
    crawl = from_vectors(tmp_path, kinds)
    large = retrieved(tmp_path, crawl, seed, k=9, exact=1, probes=4)
    for kind, named in enumerate(nearest_of(large, crawl)[1]):
        first = [f"s/{row:03d}" for row in range(200) if row % 4 == kind]
        assert seed.keys(named) == first[:9]
