"""Does curation help? `make proof` composes a pool, curates it, and trains on what each arm keeps.

The pool is made of pictures that no bundled model was trained on. Arms are trained for equal steps
and for equal epochs, with several seeds; each finished training stands in `proof.md` at once, and
the same command goes on where it was cut off. `--quick` shows in two minutes that everything runs,
on drawn pictures; it measures nothing.

    make proof DATA=.../tiny-imagenet OUT=runs/proof
    make proof DATA=... OUT=... ARGS='--jobs 14 --set parallel.device=cuda --set data.resident=true'
    make proof DATA=... OUT=... ARGS='--steps 2400 --arm random --arm oracle'    longer, beside the others
    make proof DATA=... OUT=... ARGS=--loop     a model selects what the next is trained on: loop.md
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from benchmarks.proof import loop, table
from benchmarks.proof.arms import ARMS, RUNS, choose, precision
from benchmarks.proof.drawn import drawn_classes
from benchmarks.proof.pool import (
    ASKED,
    HELD_OUT,
    LABELLED,
    POOL,
    SEED,
    SHOWN,
    TAIL,
    TEST,
    TRUTH,
    Composition,
    compose,
    key_of,
    read_labelled,
    write,
    write_labelled,
    write_tar,
)
from benchmarks.proof.trainings import (
    IN_PROCESS,
    FailedError,
    Length,
    Training,
    command,
    finish,
    finish_beside,
)
from shared.storage.files import read_json, write_json

ARM_SIZES = "arms.json"


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    composition: Composition
    batch: int
    lengths: tuple[Length, ...]
    seeds: int
    arms: tuple[str, ...] = ARMS
    recipe: str = "proof"
    init: str | None = None
    settings: tuple[str, ...] = ()
    """Of the trainings."""
    curation: tuple[str, ...] = ()
    """Of `lvd-curate run`."""


def _lengths(steps: int, epochs: int) -> tuple[Length, Length]:
    return Length(table.STEPS, steps), Length(table.EPOCHS, epochs, passes=True)


FULL = Plan(Composition(), batch=64, lengths=_lengths(600, 20), seeds=3)
QUICK = Plan(
    Composition(wanted=4, seeds=6, head=12, tail=4, most_copies=8),
    batch=8,
    lengths=_lengths(2, 1),
    seeds=1,
    settings=("crops.global_size=16", "crops.local_size=8", "model.options.depth=1",
              "crops.local_views=1", "optimiser.warmup_epochs=0",
              "group_size=8", "optimiser.freeze_last_layer_epochs=0", "log.tensorboard=false"),
    curation=("calibrate.originals=20", "retrieve.threshold=0.3", "dedup.threshold=0.95"),
)  # fmt: skip


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="The folder of Tiny-ImageNet's tars.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/proof"), show_default=True
)
@click.option("--quick", is_flag=True, help="Tiny, on drawn pictures: to see that everything runs.")
@click.option(
    "--measured",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The proof.json of an OUT that is gone: what it trained on the same arms is not trained again.",
)
@click.option(
    "--loop",
    "looped",
    is_flag=True,
    help="In place of the arms: rounds, each curated by the model of the one before.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Of each training, in place of the equal steps and the equal epochs of the proof.",
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    type=click.Choice(ARMS),
    metavar="ARM",
    help=f"Train these alone: {', '.join(ARMS)}.",
)
@click.option("--recipe", help="Of these trainings, in place of `proof`; needs --steps.")
@click.option(
    "--init", metavar="MODEL", help="What they start from, as lvd-train's; needs --steps."
)
@click.option("--batch", type=click.IntRange(min=1), help="Of these trainings; needs --steps.")
@click.option("--most", type=int, help="End behind so many trainings; the next call goes on.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings at a time, each in a process of its own.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of all trainings, such as parallel.device=cuda and data.resident=true.",
)
def main(
    data: Path | None,
    out: Path,
    quick: bool,
    measured: Path | None,
    looped: bool,
    steps: int | None,
    arms: tuple[str, ...],
    recipe: str | None,
    init: str | None,
    batch: int | None,
    most: int | None,
    jobs: int,
    settings: tuple[str, ...],
) -> None:
    """Print what arms of curation are worth."""
    if looped and jobs > 1:
        raise click.UsageError("--loop trains one at a time, as each round needs the one before")
    if looped and (steps or arms):
        raise click.UsageError(
            "--loop has its own arms and their length: leave out --steps and --arm"
        )
    plan = QUICK if quick else FULL
    if (recipe or init or batch) and not steps:
        raise click.UsageError(
            "--recipe, --init and --batch are of other trainings: give --steps too"
        )
    if steps:
        name = f"{steps:,} steps" + (f" of {batch}" if batch else "")
        name += (f", {recipe}" if recipe else "") + (f" from {Path(init).name}" if init else "")
        plan = replace(plan, lengths=(Length(name, steps),), batch=batch or plan.batch)
        plan = replace(plan, recipe=recipe or plan.recipe, init=init)
    if arms:
        plan = replace(plan, arms=arms)
    if quick:
        os.environ[IN_PROCESS] = "1"
    try:
        _prepare(data, out, plan, quick)
        if measured is not None:
            _take_over(out, plan, read_json(measured))
        if looped:
            for _ in islice(_rounds(out, plan, settings), most):
                pass
        else:
            planned = _trainings(out, plan, settings)
            trainings = [each for each in planned if not table.has(out, each.about)][:most]
            finished = map(finish, trainings) if jobs == 1 else finish_beside(trainings, jobs)
            for row in finished:
                table.add(out, row)
    except FailedError as error:
        raise click.ClickException(str(error)) from None
    text, file = (loop.TEXT, loop.FILE) if looped else (table.TEXT, table.FILE)
    click.echo((out / text).read_text() if (out / text).exists() else "")
    click.echo(f"{out / text}, {out / file}; the arms: {out / ARM_SIZES}")


def _prepare(data: Path | None, out: Path, plan: Plan, quick: bool) -> None:
    """Compose and curate the pool, and write the shards of all arms, unless that is done."""
    asked = asked_of(plan)
    if (out / ARM_SIZES).exists():
        if read_json(out / ARM_SIZES)["asked"] != asked:
            raise FailedError(f"{out} holds another proof: name another OUT, or remove it")
        return
    shutil.rmtree(out, ignore_errors=True)
    places = out / "data"
    if quick:
        pictures = drawn_classes(9, 60, seed=0)
        labelled, test = drawn_classes(9, 70, seed=0), drawn_classes(9, 70, seed=0)
        labelled = {label: of[60:65] for label, of in labelled.items()}
        test = {label: of[65:] for label, of in test.items()}
    else:
        if data is None or not (data / "val-00000.tar").is_file():
            raise FailedError(
                f"no val-00000.tar in {data}: name Tiny-ImageNet's folder, --data DIR"
            )
        tars = sorted(data.glob("train-*.tar"))
        pictures = read_labelled([tars[number] for number in HELD_OUT])
        labelled = read_labelled([tars[number] for number in SHOWN])
        test = read_labelled([*(tars[number] for number in ASKED), *sorted(data.glob("val-*.tar"))])
    pool = compose(pictures, plan.composition)
    write(pool, places)
    write_labelled(labelled, pool.wanted, places / LABELLED)
    write_labelled(test, pool.wanted, places / TEST)
    write_labelled(test, pool.wanted[len(pool.wanted) // 2 :], places / TAIL)
    runs = {arm: out / "runs" / arm.replace(" ", "-") for arm in RUNS}
    for arm, own in RUNS.items():
        sets = [word for text in (*plan.curation, *own) for word in ("--set", text)]
        command(
            *("lvd-curate", "run", "--pipeline", "sample", "--crawl", places / POOL),
            *("--seed", places / SEED, "--out", runs[arm], "--work", out / "work"),
            *("--executor", "inline", *sets),
        )
    known = {key_of(n): item.data for n, item in enumerate(pool.items)}
    chosen = choose(known, places / TRUTH, runs, plan.composition.seed)
    known_digest = {key: hashlib.sha256(data).hexdigest() for key, data in known.items()}
    for arm, keys in chosen.items():
        folder = _shards(out, arm)
        folder.mkdir(parents=True)
        members = ((f"{n:06d}.jpg", known[key]) for n, key in enumerate(keys))
        write_tar(folder / "00000.tar", members)
    sizes = {
        arm: {
            "images": len(keys),
            "precision": precision(keys, places / TRUTH),
            "digest": hashlib.sha256(
                "".join(known_digest[key] for key in keys).encode()
            ).hexdigest(),
        }
        for arm, keys in chosen.items()
    }
    write_json(out / ARM_SIZES, {"asked": asked, "pool": len(pool.items), "arms": sizes})
    for arm, size in sizes.items():
        click.echo(f"{arm:<32} {size['images']:>7,} images, {size['precision']:.1%} wanted and new")


def asked_of(plan: Plan) -> dict[str, Any]:
    """Return what an OUT was made for; one of anything else is refused."""
    scored = {"labelled": list(SHOWN), "classified": list(ASKED)}
    curated = {"composition": asdict(plan.composition), "curation": list(plan.curation)}
    return curated | {"scored": scored}


def _take_over(out: Path, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    """Take trainings of another OUT into the table, where they saw the same pictures as often."""
    arms = read_json(out / ARM_SIZES)["arms"]
    steps = {length.name: length.steps for length in plan.lengths}
    for row in rows:
        about = arms[row["arm"]]
        wanted = (
            steps[row["length"]](about["images"], plan.batch) if row["length"] in steps else None
        )
        if row["digest"] != about["digest"] or wanted not in (None, row["steps"]):
            raise FailedError(
                f"--measured: {row['arm']}, {row['length']}, seed {row['seed']} was of other "
                "pictures or steps than those of OUT"
            )
        if not table.has(out, row):
            table.add(out, row)


def _rounds(out: Path, plan: Plan, settings: Sequence[str]) -> Iterator[int]:
    """Do the rounds of the loop of each seed, one after another, and yield those that were not done."""
    for each in _trainings(out, plan, settings):
        if each.about["arm"] == table.RANDOM and each.about["length"] == table.STEPS:
            yield from loop.add_rounds(out, each, plan.curation)


def _trainings(out: Path, plan: Plan, settings: Sequence[str]) -> Iterator[Training]:
    """Yield what is to be trained, done or not: all arms once, before any of them again."""
    arms = read_json(out / ARM_SIZES)["arms"]
    for seed in range(plan.seeds):
        for length in plan.lengths:
            for arm in plan.arms:
                name = {"arm": arm, "length": length.name, "seed": seed}
                images = arms[arm]["images"]
                about = {"digest": arms[arm]["digest"], "images": images}
                steps = length.steps(images, plan.batch)
                yield Training(
                    about={**name, **about, "steps": steps, "seen": steps * plan.batch},
                    shards=_shards(out, arm),
                    data=out / "data",
                    out=out / "trainings" / " ".join(map(str, name.values())).replace(" ", "-"),
                    recipe=plan.recipe,
                    init=plan.init,
                    settings=(
                        *(f"steps={steps}", f"seed={seed}", f"batch_size={plan.batch}"),
                        *(*plan.settings, *settings),
                    ),
                )


def _shards(out: Path, arm: str) -> Path:
    return out / "arms" / arm.replace(" ", "-")


if __name__ == "__main__":
    main()
