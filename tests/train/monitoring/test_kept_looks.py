"""A run keeps pictures of what its teacher sees, bounded in number, without changing the run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import IMAGES, RECIPE, draw

from shared.pictures.images import ImageError
from train.distributed.ranks import Ranks
from train.monitoring.look_files import PICTURES, kept_steps, look_file
from train.monitoring.looks import Looks, due
from train.recipe import Recipe
from train.system import build_system
from train.visualise.sheets import SIDE

BROKEN = 7


class Drawn:
    """An index of drawn images, one of which cannot be read."""

    def __len__(self):
        return IMAGES

    def key(self, number):
        return str(number)

    def read(self, number):
        if number == BROKEN:
            raise ImageError("broken")
        return draw(number)


@pytest.fixture(scope="module")
def system():
    recipe = Recipe.model_validate(RECIPE | {"looks": {"times": 3, "pictures": 5}})
    return build_system(recipe, Ranks(0, 1, 0, torch.device("cpu")))


def taken(system, out, steps=(0, 6)):
    out.mkdir(exist_ok=True)
    looks = Looks(system.recipe.looks, system, Drawn(), out, 12)
    for step in steps:
        looks.take(step)
    return {path.name: path.read_bytes() for path in sorted(out.glob("looks/*"))}


def test_pictures_are_kept_at_both_ends_and_evenly_between():
    assert due(100, 5) == {0, 25, 50, 75, 100}
    assert due(3, 9) == {0, 1, 2, 3}
    assert (due(100, 0), due(100, 1)) == (set(), {100})


def test_each_time_attention_and_patches_of_the_same_pictures_are_kept(system, tmp_path):
    files = taken(system, tmp_path, steps=(0, 1, 6))
    assert kept_steps(tmp_path, "attention") == kept_steps(tmp_path, "patches") == [0, 6]
    assert len(files) == 1 + 2 * 2
    for name in (PICTURES, look_file("attention", 6), look_file("patches", 0)):
        assert Image.open(tmp_path / name).size == (5 * SIDE, SIDE)
    assert files == taken(system, tmp_path / "again", steps=(6, 0))


def test_looking_changes_neither_weights_nor_modes_nor_chance(system, tmp_path):
    def state():
        networks = (system.teacher, system.student)
        modes = [
            (m.training, getattr(m, "fused_attn", None)) for n in networks for m in n.modules()
        ]
        return [t.clone() for n in networks for t in n.state_dict().values()], modes

    before, modes = state()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    taken(system, tmp_path)
    assert torch.equal(torch.rand(4), expected)
    after, modes_after = state()
    assert modes == modes_after
    assert all(map(torch.equal, before, after))
    assert any(p.requires_grad for p in system.student.parameters())


def test_what_is_kept_is_what_the_teacher_sees(system, tmp_path):
    before = taken(system, tmp_path / "a")["attention-0000006.jpg"]
    block = system.teacher.backbone.vit.blocks[-1].attn.qkv
    kept = block.weight.detach().clone()
    with torch.no_grad():
        block.weight.mul_(40)
    after = taken(system, tmp_path / "b")["attention-0000006.jpg"]
    with torch.no_grad():
        block.weight.copy_(kept)
    assert before != after
    assert np.asarray(Image.open(tmp_path / "b" / look_file("attention", 6))).std() > 5


def test_features_that_are_not_finite_give_no_pictures_and_a_warning(system, tmp_path, capfd):
    weight = system.teacher.backbone.vit.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    assert taken(system, tmp_path, steps=(0,)) == {}
    with torch.no_grad():
        weight.copy_(kept)
    assert "no pictures of step 0" in capfd.readouterr().err


def test_other_processes_keep_nothing(system, tmp_path):
    others = SimpleNamespace(**vars(system) | {"ranks": SimpleNamespace(first=False)})
    assert taken(others, tmp_path) == {}


def test_a_sharded_teacher_is_looked_at_whole(sharded_run):
    for what in ("attention", "patches"):
        assert kept_steps(sharded_run, what) == [0, 2]
        first, last = (Image.open(sharded_run / look_file(what, step)) for step in (0, 2))
        assert first.size == last.size == (6 * SIDE, SIDE)
        assert first.tobytes() != last.tobytes()
