"""Lets parts be read again that failed, or that hold corrupt images: `run --retry`."""

from __future__ import annotations

from curate.catalogue.content import forget, recall
from curate.embedding.stage import set_aside_parts
from curate.plan import Plan
from shared.storage.commits import committed, discard
from shared.storage.locks import scratch_folder
from shared.storage.stores import remove


def forget_corrupt(plan: Plan) -> int:
    """Let the parts that hold corrupt images or problems be read anew; return how many.

    What was made of them is removed unit by unit, the way back to it first: a kill in between loses
    no more than a computation.
    """
    count = 0
    with scratch_folder(plan.work / "scratch") as scratch:
        for dataset in plan.datasets:
            asked = plan.embed_request(dataset)
            for part in dataset.parts:
                content = recall(plan.work, part)
                if content is None:
                    continue
                stats = committed(asked.facts / content)
                if stats and (stats["corrupt"] or stats["problems"]):
                    forget(plan.work, part)
                    for unit in asked.units(content):
                        discard(unit, scratch)
                    count += 1
    return count


def forget_set_aside(plan: Plan) -> int:
    """Let the parts that were set aside be tried again; return how many."""
    notes = [
        note
        for dataset in plan.datasets
        for note in set_aside_parts(plan.embed_request(dataset), dataset.parts)
    ]
    for note in notes:
        remove(note)
    return len(notes)
