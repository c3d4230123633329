import io
import json
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import train.data.labelled
from shared.embedders.evaluation_transform import square
from shared.errors import LvdError
from train.data.labelled import LabelledImages, class_numbers


def png(value, size=(4, 4)):
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def images(path, tmp_path, size=4, batch_size=3, **options):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return LabelledImages(
        "knn.train",
        str(path),
        transform=square(size),
        batch_size=batch_size,
        scratch=scratch,
        **options,
    )


def read(dataset):
    """Return (place, grey value of the first pixel, label) of the images that come out."""
    rows = []
    for batch in dataset.batches():
        rows += zip(batch.places.tolist(), batch.images[:, 0, 0, 0].tolist(), strict=True)
    return [(place, value, dataset.labels[place]) for place, value in rows]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_cls_member_is_the_label_of_the_image_beside_it(tmp_path, name):
    members = {"x/2.cls": b"7\n", "x/1.png": png(10), "x/2.png": png(20), "x/1.cls": b"3"}
    write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w")
    assert read(images(tmp_path / name, tmp_path)) == [(0, 10, "3"), (1, 20, "7")]


@pytest.mark.parametrize("field", ["cls", "label"])
@pytest.mark.parametrize(("value", "label"), [(4, "4"), (4.0, "4"), ("dog", "dog")])
def test_a_field_of_the_json_member_is_the_label(tmp_path, field, value, label):
    note = json.dumps({field: value}).encode()
    write_tar(tmp_path / "a.tar", {"1.png": png(10), "1.json": note})
    assert read(images(tmp_path / "a.tar", tmp_path)) == [(0, 10, label)]


def test_a_parquet_column_is_the_label(tmp_path):
    table = pa.table({"image": [png(10), png(20)], "label": pa.array([5, 6], pa.int64())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(images(tmp_path / "a.parquet", tmp_path)) == [(0, 10, "5"), (1, 20, "6")]


def test_the_first_folder_is_the_label(tmp_path):
    for path, value in {"cat/1.png": 10, "dog/deep/1.png": 20, "dog/2.png": 30}.items():
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_bytes(png(value))
    found = {(value, label) for _, value, label in read(images(tmp_path / "root", tmp_path))}
    assert found == {(10, "cat"), (20, "dog"), (30, "dog")}


def test_what_has_no_label_or_no_picture_is_left_out_and_named(tmp_path, capsys):
    members = {"1.png": png(10), "1.cls": b"0", "2.png": png(20), "3.png": png(30)[:40]}
    members |= {"3.cls": b"1", "4.png": png(40), "4.cls": b"1"}
    write_tar(tmp_path / "a.tar", members)
    dataset = images(tmp_path / "a.tar", tmp_path)
    assert read(dataset) == [(0, 10, "0"), (2, 40, "1")]
    said = capsys.readouterr().err
    assert "1 images have no label" in said
    assert "a/2" in said
    assert "1 images cannot be decoded" in said
    assert "a/3" in said


def test_two_labels_that_disagree_are_none(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in [("1.png", png(1)), ("1.cls", b"0"), ("1.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(LvdError, match=r"none of the images at .* has a label: put a \.cls"):
        read(images(tmp_path / "a.tar", tmp_path))


def test_data_that_is_not_there_is_an_error_before_anything_is_read(tmp_path):
    with pytest.raises(LvdError, match=r"knn\.train"):
        images(tmp_path / "nothing", tmp_path)


def test_the_centre_of_an_image_is_kept_in_its_proportions(tmp_path):
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255  # the middle square is white
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    write_tar(tmp_path / "a.tar", {"1.png": stream.getvalue(), "1.cls": b"0"})
    (batch,) = images(tmp_path / "a.tar", tmp_path, size=10).batches()
    assert batch.images.shape == (1, 3, 10, 10)
    assert batch.images.dtype == torch.uint8
    assert (batch.images[..., 1:-1] > 250).all()


# pitfall 17
@pytest.mark.parametrize("count", [1, 2, 7, 12, 13])
def test_processes_share_images_once_each_in_as_many_batches(tmp_path, count):
    members = {f"{n:02d}.png": png(n) for n in range(count)}
    members |= {f"{n:02d}.cls": b"%d" % (n % 3) for n in range(count)}
    write_tar(tmp_path / "a.tar", members)
    for world in (1, 2, 5):
        shares = [
            images(tmp_path / "a.tar", tmp_path, rank=rank, world=world) for rank in range(world)
        ]
        assert len({len(list(share.batches())) for share in shares}) == 1
        found = sorted(row for share in shares for row in read(share))
        assert found == [(n, n, str(n % 3)) for n in range(count)]


def test_a_second_pass_reads_nothing_where_the_first_was_small(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    members = {f"{n}.png": png(n) for n in range(8)} | {f"{n}.cls": b"1" for n in range(8)}
    write_tar(path, members)
    kept, read_again = images(path, tmp_path), images(path, tmp_path)
    monkeypatch.setattr(train.data.labelled, "KEPT_BYTES", 8 * 3 * 4 * 4)
    first = read(kept)
    monkeypatch.setattr(train.data.labelled, "KEPT_BYTES", 8 * 3 * 4 * 4 - 1)
    assert read(read_again) == first
    assert read(read_again) == first
    path.unlink()
    assert read(kept) == first
    with pytest.raises(FileNotFoundError):
        read(read_again)


def test_classes_are_numbered_by_value_or_by_text_and_alike_in_all_sets():
    count, (some, others) = class_numbers(["10", "9", "10"], ["-1", "9"])
    assert (count, some.tolist(), others.tolist()) == (3, [2, 1, 2], [0, 1])
    count, (some,) = class_numbers(["dog", "10", "cat"])
    assert (count, some.tolist()) == (3, [2, 0, 1])


def test_one_batch_is_decoded_while_another_is_at_work_and_no_more(tmp_path, monkeypatch):
    decoded = threading.Semaphore(0)
    picture = LabelledImages._picture

    def noted(self, reader, member):
        try:
            return picture(self, reader, member)
        finally:
            decoded.release()

    monkeypatch.setattr(LabelledImages, "_picture", noted)
    members = {f"{n:02d}.png": png(n) for n in range(20)}
    members |= {f"{n:02d}.cls": b"0" for n in range(20)}
    write_tar(tmp_path / "a.tar", members)
    batches = images(tmp_path / "a.tar", tmp_path, batch_size=3).batches()
    first = next(batches)
    assert all(decoded.acquire(timeout=30) for _ in range(6))
    assert not decoded.acquire(blocking=False)
    assert [*first.places.tolist(), *next(batches).places.tolist()] == list(range(6))
    batches.close()
