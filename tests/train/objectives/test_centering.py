"""Centering is what the papers write, in float64 loops, on one process, two, and any chunks."""

import math

import pytest
import torch
from forked import run_ranks
from given_logits import given
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from train.distributed.ranks import process_group
from train.objectives import tiles
from train.objectives.centering import EmaCentre, SinkhornKnopp, build_centering
from train.objectives.settings import CenteringSettings
from train.objectives.targets import Targets

ROWS, PROTOTYPES = 11, 9
TEMPERATURE = 0.07
SPLITS = {"uneven": 7, "one without rows": ROWS}
"""How many rows the first of two processes has."""


def drawn(rows=ROWS, prototypes=PROTOTYPES, scale=0.3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, prototypes, generator=generator, dtype=torch.float64)
    return logits.to(dtype)


def published_sinkhorn(logits, temperature, iterations):
    """SwAV's listing, entry by entry, in float64."""
    rows, prototypes = logits.shape
    q = [[math.exp(value / temperature) for value in row] for row in logits.tolist()]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        sums = [sum(row[k] for row in q) for k in range(prototypes)]
        q = [[row[k] / sums[k] / prototypes for k in range(prototypes)] for row in q]
        q = [[value / sum(row) / rows for value in row] for row in q]
    return torch.tensor([[value * rows for value in row] for row in q], dtype=torch.float64)


def published_centre(logits, centre, temperature):
    """DINO's softmax of centred logits, entry by entry, in float64."""
    rows = []
    for row in logits.tolist():
        powers = [math.exp((z - c) / temperature) for z, c in zip(row, centre, strict=True)]
        rows.append([power / sum(powers) for power in powers])
    return torch.tensor(rows, dtype=torch.float64)


def joined(targets):
    return torch.cat([chunk.probabilities() for chunk in targets])


def sinkhorn(logits, iterations=3, temperature=TEMPERATURE, bound=None):
    chunk = given(logits)._replace(bound=bound)
    return joined(SinkhornKnopp(iterations).targets([chunk], temperature))


def in_each_process(folder):
    """What one of two processes makes of its rows, written to `folder`."""
    found = {}
    with process_group("cpu") as ranks:
        for name, first in SPLITS.items():
            own = drawn(dtype=torch.float32).split([first, ROWS - first])[ranks.rank]
            found[f"sinkhorn {name}"] = sinkhorn(own)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiles, "CPU_KEPT", 0)
                patch.setattr(tiles, "CPU_TILE", 2 * PROTOTYPES)
                found[f"tiled sinkhorn {name}"] = sinkhorn(own)
            centering = EmaCentre(PROTOTYPES, 0.9)
            centering.targets([given(own)], TEMPERATURE)
            centering.update()
            found[f"centre {name}"] = centering.centre
    save_file(found, folder / f"{ranks.rank}.safetensors")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_ranks(in_each_process, folder, folder=folder)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


# pitfall 4
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_sinkhorn_is_the_published_sequence(iterations):
    logits = drawn()
    expected = published_sinkhorn(logits, TEMPERATURE, iterations)
    torch.testing.assert_close(sinkhorn(logits, iterations), expected)


# pitfall 4
@settings(max_examples=30, deadline=None)
@examples(
    rows=st.integers(1, 8),
    prototypes=st.integers(1, 8),
    scale=st.floats(0, 1),
    temperature=st.floats(0.02, 1),
    seed=st.integers(0, 99),
)
def test_sinkhorn_in_float32_is_the_published_sequence(rows, prototypes, scale, temperature, seed):
    logits = drawn(rows, prototypes, scale, seed, torch.float32)
    found = sinkhorn(logits, temperature=temperature)
    expected = published_sinkhorn(logits.double(), temperature, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


# pitfall 4
def test_targets_of_sinkhorn_add_up_to_one_by_row_and_nearly_even_by_prototype():
    targets = sinkhorn(drawn(), iterations=50)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(ROWS, dtype=torch.float64))
    even = torch.full((PROTOTYPES,), ROWS / PROTOTYPES, dtype=torch.float64)
    torch.testing.assert_close(targets.sum(dim=0), even, rtol=1e-4, atol=0)


# pitfall 4
@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_sinkhorn_of_logits_whose_exponentials_overflow(shift):
    logits = drawn(scale=2.0, dtype=torch.float32) + shift
    assert (logits / 0.04).exp().isinf().any()
    expected = published_sinkhorn(logits.double(), 0.04, 3)
    found = sinkhorn(logits, temperature=0.04)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-6)


# pitfall 4
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_sinkhorn_is_finite_whatever_the_logits(scale):
    logits = drawn(scale=scale, dtype=torch.float32)
    logits[0] -= 10 * scale
    logits[:, 0] -= 10 * scale
    found = sinkhorn(logits, temperature=0.04)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(ROWS))


# pitfall 4
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["sinkhorn", "tiled sinkhorn"])
def test_sinkhorn_is_the_same_on_one_and_two_processes(two_processes, kind, split):
    found = torch.cat([results[f"{kind} {split}"] for results in two_processes])
    torch.testing.assert_close(found, sinkhorn(drawn(dtype=torch.float32)))
    parts = drawn(dtype=torch.float32).split([7, ROWS - 7])
    alone = torch.cat([sinkhorn(part) for part in parts])
    assert (found - alone).abs().max() > 0.01


# pitfall 20
@pytest.mark.parametrize("sizes", [(4, 7), (0, 11), (3, 0, 1, 7)])
def test_several_chunks_are_centred_as_one(sizes):
    logits = drawn()
    chunks = [given(chunk) for chunk in logits.split(sizes)]
    targets = SinkhornKnopp().targets(chunks, TEMPERATURE)
    assert [len(chunk) for chunk in targets] == list(sizes)
    torch.testing.assert_close(joined(targets), sinkhorn(logits))


@pytest.mark.parametrize("block", [1, 3 * PROTOTYPES])
def test_the_size_of_blocks_changes_nothing(monkeypatch, block):
    logits = drawn()
    expected = sinkhorn(logits)
    monkeypatch.setattr(tiles, "CPU_BLOCK", block)
    torch.testing.assert_close(sinkhorn(logits), expected)


def test_sinkhorn_of_bfloat16_logits_is_the_published_sequence_on_their_values():
    logits = drawn(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn(logits)
    expected = published_sinkhorn(logits.double(), TEMPERATURE, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.25)]
)
def test_sinkhorn_of_cosines_is_the_published_sequence(dtype, error, kept, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_KEPT", 10**6 if kept else 0)
    monkeypatch.setattr(tiles, "CPU_TILE", 2 * PROTOTYPES)
    temperature = 1 / 32 + 1e-6  # the lowest at which cosines are close
    logits = drawn(scale=0.5).clamp(-1, 1)
    logits[0], logits[:, 0] = 1, -1  # a prototype that no row is near, and a row near all others
    logits = logits.to(dtype)
    assert tiles.are_close(given(logits)._replace(bound=1.0), temperature)
    found = sinkhorn(logits, temperature=temperature, bound=1.0)
    expected = published_sinkhorn(logits.double(), temperature, 3)
    # In bfloat16 an exponent of 32 is rounded by 1/16 at most, in Q and in its sums.
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=0)


@pytest.mark.parametrize("kind", ["sinkhorn", "ema"])
def test_a_batch_without_rows_has_no_targets_and_teaches_nothing(kind):
    centering = build_centering(CenteringSettings(kind=kind), PROTOTYPES)
    (targets,) = centering.targets([given(torch.zeros(0, PROTOTYPES))], TEMPERATURE)
    centering.update()
    assert targets.probabilities().shape == (0, PROTOTYPES)
    for buffer in centering.buffers():
        torch.testing.assert_close(buffer, torch.zeros(PROTOTYPES))


def test_the_centre_follows_the_mean_and_sharpens_what_comes_after():
    centering = EmaCentre(PROTOTYPES, momentum=0.75)
    centre = [0.0] * PROTOTYPES
    for seed in range(4):
        logits = drawn(seed=seed, dtype=torch.float32) + 1
        targets = centering.targets([given(rows) for rows in logits.split([4, 7])], TEMPERATURE)
        centering.update()
        expected = published_centre(logits.double(), centre, TEMPERATURE)
        torch.testing.assert_close(joined(targets).double(), expected, rtol=1e-4, atol=1e-6)
        mean = logits.double().mean(dim=0).tolist()
        centre = [0.75 * c + 0.25 * m for c, m in zip(centre, mean, strict=True)]
    torch.testing.assert_close(centering.centre.double(), torch.tensor(centre).double())


# pitfall 16
def test_a_skipped_step_leaves_the_centre_as_it_was():
    centering = EmaCentre(PROTOTYPES, momentum=0.5)
    centering.targets([given(torch.full((2, PROTOTYPES), torch.nan))], TEMPERATURE)
    torch.testing.assert_close(centering.centre, torch.zeros(PROTOTYPES))
    centering.targets([given(torch.ones(2, PROTOTYPES))], TEMPERATURE)
    centering.update()
    centering.update()
    torch.testing.assert_close(centering.centre, torch.full((PROTOTYPES,), 0.5))


@pytest.mark.parametrize("split", SPLITS)
def test_the_centre_is_the_same_on_one_and_two_processes(two_processes, split):
    alone = EmaCentre(PROTOTYPES, 0.9)
    alone.targets([given(drawn(dtype=torch.float32))], TEMPERATURE)
    alone.update()
    for results in two_processes:
        torch.testing.assert_close(results[f"centre {split}"], alone.centre)


# pitfall 15
def test_the_state_of_the_centre_is_its_buffer():
    centering, resumed = EmaCentre(PROTOTYPES), EmaCentre(PROTOTYPES)
    centering.targets([given(drawn(dtype=torch.float32))], TEMPERATURE)
    centering.update()
    resumed.load_state_dict(centering.state_dict())
    for some in (centering, resumed):
        some.targets([given(drawn(seed=1, dtype=torch.float32))], TEMPERATURE)
        some.update()
    assert torch.equal(resumed.centre, centering.centre)
    assert SinkhornKnopp().state_dict() == {}


def test_some_rows_of_targets_are_those_of_all():
    targets = Targets(drawn(dtype=torch.float32).exp(), torch.rand(PROTOTYPES))
    torch.testing.assert_close(targets.probabilities(slice(3, 6)), targets.probabilities()[3:6])


def test_an_impossible_setting_is_an_error():
    with pytest.raises(ValidationError):
        CenteringSettings(iterations=0)
    with pytest.raises(ValidationError):
        CenteringSettings(kind="softmax")
