"""A cluster of machines that share nothing but an object store, and lose one in each stage."""

import re
import threading

import pytest
from curated_site import result
from machines import command_on_head, gateway, machines
from s3_server import Fault, serve

KILLED_IN = (
    *("facts", "vectors", "catalogue", "cluster", "dedup", "retrieve", "select"),
    *("output/[^/]+-tables", "output/[^/]+-shards"),
)
"""Folders of WORK, as patterns: when a node first stores a file in one of them, it is killed."""
SECONDS = 900


@pytest.fixture(scope="module")
def store():
    with gateway() as address, serve(address) as made:
        yield made


def words(store, site) -> list[str]:
    """Return the words of a run whose data, WORK and OUT all lie in the store."""
    urls = {
        name: store.put(site.data / name, f"data/{name}") for name in ("crawl", "animals", "exam")
    }
    return [
        *(
            "run",
            "--executor",
            "ray",
            "--work",
            "s3://bucket/work",
            "--out",
            "s3://bucket/runs/out",
        ),
        *(f"--set=datasets.{name}.path={url}" for name, url in urls.items()),
    ]


def test_a_node_killed_in_each_stage_changes_nothing(store, site, undisturbed, tmp_path):
    config = (site.data / "pipelines.yaml").read_text()
    environment = {**store.environment, "CONFIG": config}
    said = words(store, site)
    store.requests.clear()
    store.faults.append(Fault("SlowDown", "PUT", "/work/", every=23))
    with machines(3, tmp_path, environment) as (head, *nodes):
        by_address = {node.address: node for node in nodes}
        left = list(KILLED_IN)

        def kill(request):
            stage = next((each for each in left if re.search(f"/work/{each}/", request.path)), None)
            if request.method == "PUT" and stage and request.client in by_address:
                left.remove(stage)
                node = by_address[request.client]
                node.kill()
                threading.Thread(target=node.join, args=(head,)).start()

        store.watch = kill
        head.start(command_on_head(head, said, len(nodes)))
        head.await_ray(SECONDS)
        for node in nodes:
            node.join(head)
        head.said(SECONDS)
        store.watch = None
    store.faults.clear()
    assert not left
    fetched = site.root / "fetched"
    for name, data in store.get("runs/out").items():
        (fetched / name).parent.mkdir(parents=True, exist_ok=True)
        (fetched / name).write_bytes(data)
    places = (site.data, "s3://bucket/data")
    assert result(fetched, *places) == result(undisturbed.root / "out", *places)
    of_nodes = [each for each in store.requests if each.client in by_address]
    assert len({each.client for each in of_nodes if each.method == "PUT"}) > 1
    assert not [each.query for each in of_nodes if "list-type" in each.query]
    by_command = [each.path for each in store.requests if each.client == head.address]
    assert not [path for path in by_command if path.endswith("/vectors.npy")]
