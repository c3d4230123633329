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
NETWORK = "--set=retrieve.embedder=bundled"
"""Makes embed ask for GPUs, which the nodes pretend to have."""


@pytest.fixture
def cluster(ray_environment):
    """A cluster whose head computes nothing."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
    except Exception:  # Ray gives a node 30 s to start, too few on a busy machine
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def run_losing_a_node(address: str, site: Site, patience: float = 600, status: int = 0) -> str:
    """Curate on a cluster that loses the node of the first part; from then on, with `patience`."""
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
        sabotage(patch, NodeKilled, "curate.embedding.stage", "embed_part", fuse)
        said = site.run(NETWORK, status=status)
    assert not fuse.exists()
    return said


def run_elsewhere(function, *args, **options):
    """Call a function in a process of its own: this one has joined another Ray."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(function, args, options).get(PATIENCE)


def test_a_node_that_is_lost_while_it_embeds_changes_nothing(cluster, site):
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1)
    run_elsewhere(run_losing_a_node, cluster.address, replace(site, executor="ray"))
    assert leftovers(site) == []
    inline = replace(site, root=site.root / "inline", work=site.root / "inline" / "work")
    inline.run(NETWORK)
    assert content(site.root / "out") == content(inline.root / "out")


def test_the_only_gpu_that_is_lost_for_good_ends_in_a_line(cluster, site):
    cluster.add_node(num_cpus=1, num_gpus=1)
    on_ray = replace(site, executor="ray")
    said = run_elsewhere(run_losing_a_node, cluster.address, on_ray, patience=2, status=2)
    lacks = "(the Ray cluster has had no GPU free|no node of the Ray cluster has had the CPUs)"
    assert re.search(f"^lvd-curate: {lacks} .* for 2 s: free some", said, re.MULTILINE), said
