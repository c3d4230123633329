import io
import json
import math
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

import train.evaluation.neighbours
from shared.errors import LvdError
from train.distributed.ranks import Ranks, process_group
from train.evaluation.neighbours import largest, neighbours, weighted_vote
from train.monitoring.knn import Knn
from train.monitoring.settings import KnnSettings


def brute_force(queries, bank, labels, k, temperature, classes):
    """DINO's classifier, one query at a time in float64; ties by the bank's order, then by class."""
    unit = [row / max(np.linalg.norm(row), 1e-12) for row in bank.astype(np.float64)]
    said = []
    for query in queries.astype(np.float64):
        query = query / max(np.linalg.norm(query), 1e-12)
        cosines = np.array([row @ query for row in unit])
        order = sorted(range(len(bank)), key=lambda n: (-cosines[n], n))[:k]
        votes = np.zeros(classes)
        for n in order:
            votes[labels[n]] += math.exp(cosines[n] / temperature)
        said.append(int(votes.argmax()))
    return said


def predicted(queries, bank, labels, k, temperature, classes):
    cosines, rows = neighbours(torch.from_numpy(queries), torch.from_numpy(bank), k)
    chosen = torch.from_numpy(labels)[rows]
    return weighted_vote(cosines, chosen, classes, temperature).tolist()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(train.evaluation.neighbours, "QUERY_BLOCK", 7)
    monkeypatch.setattr(train.evaluation.neighbours, "BANK_BLOCK", 11)


@pytest.mark.parametrize("k", [1, 5, 20, 60, 100])
@pytest.mark.usefixtures("small_blocks")
def test_knn_equals_brute_force_in_float64_also_where_k_exceeds_the_bank(k):
    generator = np.random.default_rng(k)
    bank = generator.normal(size=(60, 8)).astype(np.float32)
    queries = generator.normal(size=(40, 8)).astype(np.float32)
    labels = generator.integers(0, 5, 60)
    expected = brute_force(queries, bank, labels, k, 0.07, 5)
    assert predicted(queries, bank, labels, k, 0.07, 5) == expected
    assert len(set(expected)) > 1


# Rows with four entries of +-1 or one of 2 have the length 2, and cosines that floats hold exactly:
# ties are ties in any precision.
EXACT = np.array([[a, b, c, d] for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)])
EXACT = np.concatenate([EXACT, 2 * np.eye(4), -2 * np.eye(4)]).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 3)), min_size=1, max_size=40),
    st.lists(st.integers(0, 23), min_size=1, max_size=12),
    st.integers(1, 45),
)
def test_ties_go_to_the_first_neighbours_and_the_lowest_class(bank, queries, k):
    rows = EXACT[[row for row, _ in bank]]
    labels = np.array([label for _, label in bank])
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(train.evaluation.neighbours, "BANK_BLOCK", 6)
        context.setattr(train.evaluation.neighbours, "QUERY_BLOCK", 5)
        ours = predicted(EXACT[queries], rows, labels, k, 0.5, 4)
    assert ours == brute_force(EXACT[queries], rows, labels, k, 0.5, 4)


def test_of_equal_values_the_first_are_taken_in_order():
    values = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    top, columns = largest(values, 4)
    assert top.tolist() == [[3, 3, 2, 2], [0, 0, 0, 0]]
    assert columns.tolist() == [[1, 3, 2, 4], [0, 1, 2, 3]]
    assert largest(values, 9)[1].tolist() == [[1, 3, 2, 4, 5, 0], [0, 1, 2, 3, 4, 5]]


def test_one_near_neighbour_outweighs_several_far_ones():
    cosines = torch.tensor([[0.9, 0.7, 0.7, 0.7]])
    labels = torch.tensor([[1, 0, 0, 0]])
    assert weighted_vote(cosines, labels, 2, 0.07).tolist() == [1]
    assert weighted_vote(cosines, labels, 2, 10.0).tolist() == [0]
    assert weighted_vote(cosines, labels, 2, 1e-4).tolist() == [1]


def write_set(path, count, seed, broken=()):
    """Write `count` noisy pictures of three classes, each of a colour of its own."""
    generator = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for n in range(count):
            label = n % 3
            pixels = generator.integers(0, 170, (8, 8, 3))
            pixels[..., label] += 40
            stream = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
            data = stream.getvalue()[:50] if n in broken else stream.getvalue()
            for name, content in ((f"{n:03d}.png", data), (f"{n:03d}.cls", b"%d" % label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def features(images):
    return images.flatten(1)[:, ::7], None


def score(folder, ranks, of=features, **options):
    data = {"train": str(folder / "train.tar"), "test": str(folder / "test.tar")}
    knn = Knn(KnnSettings(**data, batch_size=4, **options), size=8, scratch=folder, ranks=ranks)
    found = knn.scores(of, nullcontext())
    assert math.isnan(found["knn"]) == math.isnan(found["linear"])
    return found["knn"], found["linear"]


ALONE = Ranks(0, 1, 0, torch.device("cpu"))
UNEVEN = ((31, 15, 5), (30, 16, 4), (3, 2, 20), (2, 1, 1))


def in_each_process(folder):
    with process_group("cpu") as ranks:
        scores = []
        for number, (_, _, k) in enumerate(UNEVEN):
            calls = []

            def counted(images, calls=calls):
                calls.append(len(images))
                return features(images)

            found = score(folder / str(number), ranks, counted, k=k)
            scores.append((found, len(calls)))
        (folder / f"{ranks.rank}.json").write_text(json.dumps(scores))


# pitfall 17
def test_two_processes_find_the_score_of_one_whatever_the_number_of_images(tmp_path):
    for number, (voters, tested, _) in enumerate(UNEVEN):
        (tmp_path / str(number)).mkdir()
        write_set(tmp_path / str(number) / "train.tar", voters, number, broken={4, 7})
        write_set(tmp_path / str(number) / "test.tar", tested, 10 + number, broken={3, 8, 9})
    run_ranks(in_each_process, tmp_path, folder=tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = [score(tmp_path / str(n), ALONE, k=k) for n, (_, _, k) in enumerate(UNEVEN)]
    assert [tuple(found) for found, _ in first] == alone
    assert first == second  # and called the sharded model as often as each other
    assert 0.3 < alone[0][0] < 1


def test_a_score_counts_each_whole_test_image_once(tmp_path):
    write_set(tmp_path / "train.tar", 30, 0)
    write_set(tmp_path / "test.tar", 11, 1, broken={10})
    found, _ = score(tmp_path, ALONE, k=3)
    assert found * 10 == pytest.approx(round(found * 10))

    def pixels(name, numbers):
        with tarfile.open(tmp_path / name) as tar:
            opened = [Image.open(tar.extractfile(f"{n:03d}.png")) for n in numbers]
            stacked = np.stack([np.asarray(image) for image in opened]).astype(np.float32) / 255
        stacked = (stacked - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return stacked.transpose(0, 3, 1, 2).reshape(len(numbers), -1)[:, ::7]

    bank, queries = pixels("train.tar", range(30)), pixels("test.tar", range(10))
    said = brute_force(queries, bank, np.arange(30) % 3, 3, 0.07, 3)
    assert found == pytest.approx(np.mean(np.array(said) == np.arange(10) % 3))


def test_features_that_are_not_finite_have_no_score(tmp_path):
    write_set(tmp_path / "train.tar", 6, 0)
    write_set(tmp_path / "test.tar", 3, 1)
    bad = score(tmp_path, ALONE, lambda images: (features(images)[0] * math.nan, None))
    assert all(map(math.isnan, bad))
    write_set(tmp_path / "train.tar", 2, 0, broken={0, 1})
    assert all(map(math.isnan, score(tmp_path, ALONE)))


def test_settings_without_data_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="needs 'train' and 'test'"):
        KnnSettings(every=10, train="somewhere")
    with pytest.raises(LvdError, match=r"knn\.train is not set"):
        Knn(KnnSettings(), size=8, scratch=Path(tmp_path), ranks=ALONE)
