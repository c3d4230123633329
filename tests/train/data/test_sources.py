"""What a run trains on, as the command and the recipe name it: lists, mixtures, and what fits neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_run import command, lines, write_config, write_shards

from shared.errors import LvdError
from train.cli import main
from train.data.crops import Views
from train.data.loader import make_loader
from train.data.mixture import MixedIndex
from train.data.resident import read_resident
from train.data.settings import CropSettings, DataSettings
from train.data.sources import make_order, open_index
from train.distributed.ranks import process_group
from train.persistence.run_folder import RunFolder
from train.recipe import read_recipe

CROPS = CropSettings(global_size=16, local_size=8, local_views=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("web", "small"):
        write_shards(folder / name)
    write_config(folder)
    return folder


def mix(place: Path, batches: str = "mixed", moved: str = "small") -> list[str]:
    sources = {
        "web": {"shards": str(place / "web"), "ratio": 3},
        "small": {"shards": str(place / moved), "ratio": 1},
    }
    return [f"data.mix={json.dumps(sources)}", f"data.mix_batches={batches}"]


def asked(place: Path, out: str, *values: str, options: tuple[str, ...] = ()) -> list[str]:
    words = command(place / "pipelines.yaml", place, place / out)
    at = words.index("--shards")
    del words[at : at + 2]
    return [*words, *options, *(word for value in values for word in ("--set", value))]


def opened(place: Path, tmp_path: Path, batches: str) -> tuple[MixedIndex, object]:
    recipe = read_recipe(place / "pipelines.yaml", "small", mix(place, batches))
    index = open_index(recipe, None, None, tmp_path / "index")
    return index, make_order(recipe, index)


def load(index, order, *, ranks=(0, 1), steps=(0, 7), resident=None):
    return make_loader(
        index, order, Views(CROPS, 5), settings=DataSettings(workers=0), ranks=ranks,
        accumulate=1, start_step=steps[0], stop_step=steps[1], resident=resident,
    )  # fmt: skip


def shown(batches) -> list:
    return [
        [batch.step, batch.epoch, batch.keys, batch.global_views.numpy().tobytes()]
        for batch in batches
    ]


# pitfall 21
@pytest.mark.parametrize("batches", ["mixed", "homogeneous"])
def test_a_mixture_is_the_same_resumed_and_on_two_ranks(place, tmp_path, batches):
    index, order = opened(place, tmp_path, batches)
    whole = list(load(index, order))
    again = opened(place, tmp_path, batches)[1]
    assert shown(load(index, again, steps=(4, 7))) == shown(whole[4:])
    for batch, *own in zip(whole, *(load(index, order, ranks=(n, 2)) for n in (0, 1)), strict=True):
        assert batch.keys == [key for each in own for key in each.keys]
        if batches == "homogeneous":
            assert len({key.partition(":")[0] for key in batch.keys}) == 1


def test_a_mixture_may_lie_on_the_device(place, tmp_path):
    index, order = opened(place, tmp_path, "mixed")
    with process_group("cpu") as ranks:
        resident = read_resident(index, None, workers=0, prefetch=1, ranks=ranks)
    found = [batch.keys for batch in load(index, order, resident=resident)]
    assert found == [batch.keys for batch in load(index, order)]


def test_a_mixture_is_trained_on_and_knows_its_images_where_they_have_moved(place, tmp_path):
    more = ("steps=2", "checkpoints.every=1", "objectives.ibot=0", "masks=null", "heads.ibot=null")
    result = CliRunner().invoke(main, asked(place, "out", *mix(place), *more))
    assert result.exit_code == 0, result.output
    assert [line["step"] for line in lines(place / "out") if "loss" in line] == [0, 1]
    (place / "copied").symlink_to(place / "small")
    result = CliRunner().invoke(main, asked(place, "out", *mix(place, moved="copied"), *more))
    assert result.exit_code == 0, result.output
    assert "nothing to do" in result.output
    other = [*mix(place), "data.mix.small.ratio=2", *more]
    result = CliRunner().invoke(main, asked(place, "out", *other))
    assert result.exit_code == 2
    assert "data.mix.small.ratio=1.0, not 2.0" in result.output


def test_a_dry_run_says_what_is_mixed(place):
    result = CliRunner().invoke(main, asked(place, "dry", *mix(place), options=("--dry-run",)))
    assert result.exit_code == 0, result.output
    assert "75.0% web" in result.output
    assert f"at {place / 'small'}" in result.output
    assert not (place / "dry").exists()


@pytest.mark.parametrize(
    ("options", "values", "said"),
    [
        ((), (), "give --shards, or --select with a list"),
        (("--shards", "web"), "mix", "leave out --shards and --select"),
        (("--select", "nowhere"), (), "--select: no list at 'nowhere'"),
        ((), ('data.mix={a: {ratio: 1}}',), "it names no images: add shards, or select"),
        ((), ('data.mix={a: {shards: x, ratio: 0}}',), "data.mix.a.ratio"),
        ((), ('data.mix={a: {shards: nowhere, ratio: 1}}',), "data.mix.a: --shards: no images"),
        ((), ("data.mix_batches=alike",), "homogeneous"),
        ((), "large", "data.mix.small: 36 images are fewer than the 64"),
    ],
)  # fmt: skip
def test_what_names_no_images_or_too_few_is_refused_in_one_line(place, options, values, said):
    if values == "mix":
        values = mix(place)
    elif values == "large":
        values = [*mix(place, "homogeneous"), "batch_size=64", "data.mix.web.shards=" + str(place)]
    result = CliRunner().invoke(main, asked(place, "none", *values, options=options))
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert said in line


def test_an_index_is_shared_by_runs_or_lies_where_the_recipe_says(place, tmp_path):
    one, two = (RunFolder(tmp_path / "runs" / name).index for name in ("one", "two"))
    assert one == two == tmp_path / "runs" / ".index"
    shared = tmp_path / "shared"
    recipe = read_recipe(place / "pipelines.yaml", "small", [f"data.index={shared}"])
    open_index(recipe, str(place / "web"), None, one)
    assert list(shared.glob("*.arrow"))
    assert not one.exists()
    (tmp_path / "file").touch()
    recipe = read_recipe(place / "pipelines.yaml", "small", [f"data.index={tmp_path / 'file'}"])
    with pytest.raises(LvdError, match=r"data\.index .*cannot be made"):
        open_index(recipe, str(place / "web"), None, one)
