"""The command `lvd-train eval`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("eval")
@click.argument("tasks", nargs=-1, metavar="TASK...")
@click.option(
    "--model",
    "names",
    multiple=True,
    metavar="NAME",
    help="What to evaluate; once for each line of the table.",
)
@click.option("--train", metavar="PATH", help="What classifiers and heads are trained on.")
@click.option("--test", metavar="PATH", help="What their scores are taken on, and nothing else.")
@click.option("--data", metavar="PATH", help="What retrieval and attention are scored on.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/eval"),
    show_default=True,
    help="Gets table.txt, table.parquet and table.json, in place of earlier ones.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("runs/features"),
    show_default=True,
    help="Where features are kept, by model and data: a second call reads them.",
)
@click.option(
    "--size",
    type=int,
    metavar="PX",
    help="Side of the models' input; by default each model's own.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as knn.k=[20], linear.epochs=30, segment.steps=500 or device=cpu "
    "(a wrong name lists the right ones). Repeatable.",
)
def evaluate(
    tasks: tuple[str, ...],
    names: tuple[str, ...],
    train: str | None,
    test: str | None,
    data: str | None,
    out: Path,
    cache: Path,
    size: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Score frozen models in one or several TASKs: one table, a line for each model.

    \b
    lvd-train eval knn linear --model runs/train/tiny --model untrained:runs/train/tiny \\
        --train data/train --test 'data/test-*.tar'
    lvd-train eval knn logreg --model vit_small_patch14_dinov2.lvd142m --model ViT-B-32:openai \\
        --model vit_small_patch14_dinov2.lvd142m+ViT-B-32:openai --train ... --test ...
    lvd-train eval segment --model runs/train/s --train ADE20K --test ADE20K
    lvd-train eval knn --model ... --train ... --test ... --size 224 --set resize=256    as DINOv2
    lvd-train eval retrieval attention --model ...    each with a --data of its own: two calls

    \b
    TASK       reads           gives
    knn        --train --test  top-1 of the weighted vote of the k nearest
    linear     --train --test  top-1 of a linear probe, the best of many on held-out images
    logreg     --train --test  top-1 of logistic regression
    segment    --train --test  mean IoU and accuracy of a linear head on patch tokens
    depth      --train --test  RMSE, abs-rel and delta1 of a linear head on patch tokens
    retrieval  --data          mean average precision, easy, medium and hard
    attention  --data          Jaccard index of CLS attention and objects

    \b
    NAME is one of
      FOLDER         config.json and model.safetensors, as a run's OUT/model and timm's folders
      RUN            the OUT of a run, or one of its checkpoints/step-... folders: the teacher
      NAME           a model of timm (timm:NAME too), or hf-hub:OWNER/NAME
      ARCH:TAG       a model of open_clip, such as ViT-B-16-SigLIP:webli
      bundled        the model that comes with the project; bundled-copies: the one for copies
      pixels         a baseline: the pixels themselves
      untrained:NAME a baseline: the same network with random weights
      A+B            several, their features side by side

    \b
    PATH holds
      for knn, linear, logreg   ROOT/CLASS/IMAGE folders; WebDataset shards with a .cls, or a `cls`
                                or `label` in the .json, beside each image; Parquet with such a
                                column; a folder, file, glob, brace list or fsspec URL of these
      for segment, attention    images/ and annotations/ (ADE20K), JPEGImages/ and
                                SegmentationClass/ (VOC), or images/ and masks/; a mask's pixels are
                                numbers of classes, 255 counts for nothing (attention.void=-1 for
                                masks of 0 and 255)
      for depth                 NYU's pairs, or images/ (or rgb/) and depth/: PNGs of 16 bits in
                                millimetres, or .npy in metres; 0 is unknown
      for retrieval             gnd.json and jpg/ (revisited Oxford and Paris), or queries/ and
                                gallery/ of class folders
    """
    from train.evaluation.tasks import check_data, check_request, named

    places = {"train": train, "test": test, "data": data}
    check_request(tasks, names, places)
    from shared.config import apply_overrides, validate
    from shared.errors import LvdError
    from train.evaluation.settings import EvalSettings

    tree = apply_overrides({}, overrides)
    settings = validate(EvalSettings, tree, file="the settings of eval", overrides=overrides)
    check_data(tasks, named(places), settings.retrieval.crop_queries)
    from train.evaluation.table_files import make_folder, write_table
    from train.evaluation.table_text import as_text

    make_folder(out)  # what cannot be written is said before hours of work, not behind them
    from train.evaluation.evaluate import evaluate as evaluated

    table = evaluated(
        names,
        list(dict.fromkeys(tasks)),
        places,
        settings,
        cache=cache,
        size=size,
        after_each=lambda so_far: write_table(so_far, out) if so_far.figures() else None,
    )
    if not any(row.scores for row in table.rows):
        raise LvdError(table.failures()[0])
    click.echo(as_text(table), nl=False)
    if failures := table.failures():
        raise LvdError(f"{len(failures)} failed, and all else is in {out}: {'; '.join(failures)}")
