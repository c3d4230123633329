"""A cluster of several nodes that loses one, with the decoders and networks at work on it."""

import multiprocessing
import os
import re
from dataclasses import replace

import pytest
from curated_site import Site, content, leftovers
from saboteurs import NodeKilled, sabotage

from curate.execution.on_ray import RayExecutor

PATIENCE = 300.0


@pytest.fixture(scope="module")
def cluster(ray_environment):
    """A cluster whose head computes nothing; its nodes stay until a test loses them."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
    except Exception:  # Ray gives a node 30 s to start, too few on a busy machine
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def have_nodes(cluster, count: int) -> None:
    """Give the cluster so many living nodes of one processor and, as they pretend, one GPU."""
    for node in list(cluster.worker_nodes):
        if not node.remaining_processes_alive():
            cluster.remove_node(node, allow_graceful=False)
    for _ in range(count - len(cluster.worker_nodes)):
        cluster.add_node(num_cpus=1, num_gpus=1)


def run_losing_a_node(address: str, site: Site, patience: float = 600, status: int = 0) -> str:
    """Curate on a cluster that loses the node of the first part; from then on, with `patience`.

    The embedder pretends to gain by a GPU.
    """
    os.environ["RAY_ADDRESS"] = address
    fuse = site.root / "fuse"
    run = RayExecutor.run

    def run_impatiently(self, *calls, waiting, **where):
        def note(missing):
            if not fuse.exists():
                self.settings.patience = patience
            waiting(missing)

        return run(self, *calls, waiting=note, **where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayExecutor, "run", run_impatiently)
        patch.setattr("curate.embedding.stage.may_use_gpu", lambda settings: True)
        sabotage(patch, NodeKilled, "curate.embedding.stage", "embed_part", fuse)
        said = site.run(status=status)
    assert not fuse.exists()
    return said


def run_with_gpus(address: str, site: Site) -> str:
    """Curate on a cluster by an embedder that pretends to gain by a GPU."""
    os.environ["RAY_ADDRESS"] = address
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curate.embedding.stage.may_use_gpu", lambda settings: True)
        return site.run()


def run_elsewhere(function, *args, **options):
    """Call a function in a process of its own: this one has joined another Ray."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(function, args, options).get(PATIENCE)


def test_a_node_that_is_lost_while_it_embeds_changes_nothing(cluster, site, undisturbed):
    have_nodes(cluster, 2)
    run_elsewhere(run_losing_a_node, cluster.address, replace(site, executor="ray"))
    assert leftovers(site) == []
    assert content(site.root / "out") == content(undisturbed.root / "out")


def test_the_only_gpu_that_is_lost_for_good_ends_in_a_line(cluster, site):
    have_nodes(cluster, 1)
    on_ray = replace(site, executor="ray")
    said = run_elsewhere(run_losing_a_node, cluster.address, on_ray, patience=2, status=2)
    lacks = "(the Ray cluster has had no GPU free|no node of the Ray cluster has had the CPUs)"
    assert re.search(f"^lvd-curate: {lacks} .* for 2 s: free some", said, re.MULTILINE), said


def test_nodes_without_gpu_decode_and_nodes_without_processors_compute(cluster, site, undisturbed):
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=0, num_gpus=1)  # decodes nothing, and the other holds no network
    said = run_elsewhere(run_with_gpus, cluster.address, replace(site, executor="ray"))
    assert "GPU" not in said  # no lack of one is told
    assert content(site.root / "out") == content(undisturbed.root / "out")
