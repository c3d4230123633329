"""Processes killed at every stage: the next run finishes the work to the same bytes."""

import signal

from curated_site import content, leftovers
from killed_runs import run_killed

MOMENTS = {
    "embed": "work/vectors/*",
    "remembered": "work/places/*",
    "catalogue": "work/catalogue/*",
    "cluster": "work/cluster/*",
    "dedup": "work/dedup/*",
    "holdout": "work/holdout/*",
    "retrieve": "work/retrieve/*",
    "select": "work/select/*",
    "export": "out.partial/shards/*_stats.json",
    "tables": "out.partial/reports/*",
    "used": "out.partial/used.json",
    "last": "out.partial/files.json",
    "in place": "out",
}
"""What a run is about to make or to name, below a site's root, when it is killed."""


def test_a_run_killed_at_every_stage_finishes_to_the_same_bytes(site, undisturbed):
    for moment, pattern in MOMENTS.items():
        assert run_killed(site.arguments(), site.root, at=pattern) == -signal.SIGKILL, moment
        assert not (site.root / "out").exists()
    site.run()
    assert content(site.root / "out") == content(undisturbed.root / "out")
    assert leftovers(site) == []


def test_a_run_killed_again_and_again_finishes_to_the_same_bytes(site, undisturbed):
    kills, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        kills += 1
        status = run_killed(site.arguments(), site.root, count=47 * kills)  # each goes further
    assert status == 0
    assert kills > 3
    assert content(site.root / "out") == content(undisturbed.root / "out")
    assert leftovers(site) == []
