"""Images of the same bytes in several parts are embedded once; what is made of parts stays the same."""

import pytest
from made_collection import files_of
from pictures import encoded, picture, write_tar

from curate.embedding import embed as embedding
from curate.embedding.embed import Forwards
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.embedding.stage import embed
from curate.execution.session import open_runner
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings

IMAGES = [encoded(picture(number)) for number in range(9)]
BROKEN = IMAGES[0][:-300]
DESCRIPTORS = (
    EmbedderSettings(kind="descriptor", batch_size=2),
    EmbedderSettings(kind="descriptor", decode="full", batch_size=2),
)
LOOKS = ("luminance", "measures")


@pytest.fixture
def crawl(tmp_path):
    """Three tars that share images, good and broken ones, and one of the bytes of the last."""
    for name, numbers in {"b": [0, 1, 2, 2], "c": [2, 3, 0], "d": [3, 4, 2]}.items():
        members = {f"{place}.jpg": IMAGES[number] for place, number in enumerate(numbers)}
        write_tar(tmp_path / "crawl" / f"{name}.tar", members | {"x.jpg": BROKEN})
    (tmp_path / "crawl" / "e.tar").write_bytes((tmp_path / "crawl" / "d.tar").read_bytes())
    return tmp_path / "crawl"


@pytest.fixture
def seen(monkeypatch):
    """By embedder, what is handed to it."""
    seen, plain = ([], []), Forwards.embed

    def count(self, place, batch):
        seen[place].extend(image.tobytes() for image in batch)
        return plain(self, place, batch)

    monkeypatch.setattr(Forwards, "embed", count)
    return seen


def made(crawl, work, once=True, by=DESCRIPTORS, looks=LOOKS):
    """Embed a crawl; return the files of all its units, by where they lie."""
    parts = list_parts("crawl", DatasetSettings(path=str(crawl)))
    asked = EmbedRequest(work, EmbedSettings(once=once), by, (), 1, looks)
    with open_runner(work, EngineSettings(), "inline") as runner, runner.at_work("embed"):
        done = embed(runner, "crawl", "crawl", parts, asked)
        assert list(runner.used) == [
            str(unit.relative_to(work))
            for unit in dict.fromkeys(
                unit for content in done.contents for unit in asked.units(content)
            )
        ]
    assert not [*work.glob("lent-*/*/*")]
    units = {unit for content in done.contents for unit in asked.units(content)}
    return {str(unit.relative_to(work)): files_of(unit) for unit in units}


def test_what_several_parts_hold_is_embedded_once_and_no_byte_is_another(tmp_path, crawl, seen):
    after = made(crawl, tmp_path / "work")
    assert not [
        path for name in ("digests", "repeats") for path in (tmp_path / "work" / name).glob("*/*")
    ]
    assert [len(images) for images in seen] == [5, 5]
    assert [len(set(images)) for images in seen] == [5, 5]
    assert after == made(crawl, tmp_path / "plain", once=False)
    assert len(seen[0]) == 5 + 3 + 3 + 3  # repeats inside a part are none then either


def test_of_a_part_that_comes_first_only_what_is_new_is_embedded(tmp_path, crawl, seen):
    made(crawl, tmp_path / "work")
    for images in seen:
        images.clear()
    members = {f"{number}.jpg": IMAGES[number] for number in (1, 3, 5)}
    write_tar(crawl / "a.tar", members)
    write_tar(crawl / "f.tar", members | {"6.jpg": IMAGES[6]})
    after = made(crawl, tmp_path / "work")
    assert [len(images) for images in seen] == [2, 2]
    assert after == made(crawl, tmp_path / "plain", once=False)


def test_another_look_embeds_nothing_and_another_embedder_all_once(tmp_path, crawl, seen):
    made(crawl, tmp_path / "work", by=DESCRIPTORS[:1], looks=LOOKS[:1])
    made(crawl, tmp_path / "work", by=DESCRIPTORS[:1])
    assert [len(images) for images in seen] == [5, 0]
    after = made(crawl, tmp_path / "work")
    assert [len(images) for images in seen] == [5, 5]
    assert after == made(crawl, tmp_path / "plain", once=False)


@pytest.mark.parametrize("batches", [1, 3, 5, 7])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    tmp_path, crawl, seen, monkeypatch, batches
):
    left, counting = [batches], Forwards.embed

    def die(self, place, batch):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return counting(self, place, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Forwards, "embed", die)
        with pytest.raises(KeyboardInterrupt):
            made(crawl, tmp_path / "work")
    write_tar(crawl / "a.tar", {"0.jpg": IMAGES[4], "7.jpg": IMAGES[7]})
    after = made(crawl, tmp_path / "work")
    assert len(seen[0]) + len(seen[1]) <= 12 + 6  # of the part that was at work
    assert after == made(crawl, tmp_path / "plain", once=False)


def test_a_part_that_fails_to_lend_costs_the_others_nothing(tmp_path, crawl, monkeypatch):
    make = embedding._make

    def fail(state, copy, request, *rest):
        if request.lends:
            raise ValueError("it lends nothing")
        make(state, copy, request, *rest)

    plain = made(crawl, tmp_path / "plain", once=False)
    monkeypatch.setattr(embedding, "_make", fail)
    assert made(crawl, tmp_path / "work") == plain
