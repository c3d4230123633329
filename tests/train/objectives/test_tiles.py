"""Logits that exist a tile at a time give what whole ones give, in less memory."""

import pytest
import torch
from fake_card import CUDA, fake_card
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.model.logits import Logits
from train.objectives import tiles
from train.objectives.centering import build_centering
from train.objectives.dino_loss import dino_loss
from train.objectives.ibot_loss import ibot_loss
from train.objectives.settings import CenteringSettings

IMAGES, VIEWS, WIDTH, PROTOTYPES = 5, 4, 6, 11
TAUGHT, STUDENT = 0.05, 0.1


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_formula(kind, logits):
    """The teacher's targets, all rows at once."""
    if kind == "ema":  # of a centre that is still 0
        return (logits / TAUGHT).softmax(dim=1)
    q = (logits / TAUGHT).exp()
    for _ in range(3):
        q = q / q.sum(dim=0)
        q = q / q.sum(dim=1, keepdim=True)
    return q


def losses(taught, student):
    """DINO's and iBOT's sums over whole logits, by images, views and pairs."""
    expected = []
    for v in range(VIEWS):
        for g in {0, 1} - {v}:
            own, theirs = (x.unflatten(0, (-1, IMAGES)) for x in (student, taught))
            expected.append(-(theirs[g] * (own[v] / STUDENT).log_softmax(dim=1)).sum(dim=1))
    rows = -(taught * (student[: len(taught)] / STUDENT).log_softmax(dim=1)).sum(dim=1)
    return torch.stack(expected).mean(), rows.sum() / 7


def ours(kind, teacher, student):
    taught, asked = [], teacher.split([3, 2 * IMAGES - 3])
    centering = build_centering(CenteringSettings(kind=kind), PROTOTYPES).double()
    taught = centering.targets([teacher], TAUGHT)
    in_chunks = centering.targets(asked, TAUGHT)
    joined = torch.cat([chunk.probabilities() for chunk in in_chunks])
    torch.testing.assert_close(joined, taught[0].probabilities())
    by_blocks = torch.cat([block.clone() for chunk in in_chunks for block in chunk.blocks()])
    torch.testing.assert_close(by_blocks, joined)
    weights = torch.ones(2 * IMAGES, dtype=torch.float64)
    patches = Logits(student.vectors[: 2 * IMAGES], student.prototypes)
    return (
        dino_loss(student, taught[0], temperature=STUDENT),
        ibot_loss(patches, taught[0], weights, crops=7, temperature=STUDENT),
    )


@pytest.mark.parametrize("kind", ["sinkhorn", "ema"])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 8, 1000])
@pytest.mark.parametrize("bounded", [True, False])
def test_losses_and_gradients_are_those_of_the_formulas_in_tiles_of_any_size(
    kind, kept, rows, bounded, monkeypatch
):
    monkeypatch.setattr(tiles, "CPU_KEPT", 10**6 if kept else 0)
    monkeypatch.setattr(tiles, "CPU_TILE", rows * PROTOTYPES)
    monkeypatch.setattr(tiles, "CPU_BLOCK", 2 * PROTOTYPES)
    teacher = Logits(
        normalize(drawn(2 * IMAGES, WIDTH)),
        normalize(drawn(PROTOTYPES, WIDTH, seed=1)),
        bound=1.0 if bounded else None,
    )
    tokens, lines, gain = (
        drawn(*shape, seed=2).requires_grad_()
        for shape in ((VIEWS * IMAGES, WIDTH), (PROTOTYPES, WIDTH), (PROTOTYPES, 1))
    )

    def logits():
        bound = gain.abs().max().item() if bounded else None
        return Logits(normalize(tokens), torch._weight_norm(lines, gain, 0), bound)

    assert tiles.are_close(teacher, TAUGHT) is tiles.are_close(logits(), STUDENT) is bounded
    taught = by_formula(kind, teacher.whole())
    expected = losses(taught, logits().whole())
    found = ours(kind, teacher, logits())
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(0.5 * of_views + 2 * of_patches, (tokens, lines, gain))
        for of_views, of_patches in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("bound", "temperature", "close"),
    [
        (1.0, 0.04, True),
        (1.0, 1 / 32, True),
        (1.0, 0.03, False),
        (5.0, 0.1, False),
        (None, 1.0, False),
    ],
)
def test_logits_are_close_where_a_bound_says_so(bound, temperature, close):
    assert tiles.are_close(Logits(drawn(1, 1), drawn(1, 1), bound), temperature) is close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_change_the_result_by_rounding_alone_and_repeat_it_exactly(dtype, monkeypatch):
    teacher = Logits(
        normalize(drawn(2 * IMAGES, WIDTH, dtype=dtype)), drawn(PROTOTYPES, WIDTH, dtype=dtype) / 3
    )
    vectors = normalize(drawn(VIEWS * IMAGES, WIDTH, seed=1, dtype=dtype)).requires_grad_()
    prototypes = teacher.prototypes.clone().requires_grad_()

    def found():
        loss = sum(ours("sinkhorn", teacher, Logits(vectors, prototypes)))
        return loss.detach(), *torch.autograd.grad(loss, (vectors, prototypes))

    whole = found()
    monkeypatch.setattr(tiles, "CPU_KEPT", 0)
    monkeypatch.setattr(tiles, "CPU_TILE", 8 * PROTOTYPES)
    tiled, again = found(), found()
    assert all(torch.equal(one, other) for one, other in zip(tiled, again, strict=True))
    for one, other in zip(tiled, whole, strict=True):
        assert (one - other).abs().max() <= 8 * torch.finfo(dtype).eps * other.abs().max()


def peak(step):
    """Return the bytes that torch's allocator gave out at most during `step`, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


class Peak(TorchDispatchMode):
    """While entered, notes the most bytes that tensors, fake ones too, had at a time."""

    def __init__(self):
        super().__init__()
        self.most, self._held = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return made


def test_a_full_sized_head_takes_the_bytes_that_the_estimate_counts(monkeypatch):
    monkeypatch.setattr(tiles, "DEVICE_BLOCK", 2**27)  # as half of a tile, which is quicker here
    rows, prototypes, width = 8704, 131_072, 256
    assert not tiles.are_kept(rows, prototypes, CUDA)
    common = {"device": CUDA, "dtype": torch.bfloat16}
    with fake_card(), Peak() as peak:
        teacher = Logits(
            torch.empty(rows, width, **common), torch.empty(prototypes, width, **common)
        )
        (targets,) = build_centering(CenteringSettings(), prototypes).targets([teacher], TAUGHT)
        student = Logits(
            torch.empty(rows, width, **common).requires_grad_(),
            torch.empty(prototypes, width, **common).requires_grad_(),
        )
        weights = torch.empty(rows, device=CUDA)
        ibot_loss(student, targets, weights, crops=64, temperature=STUDENT).backward()
    counted = tiles.step_bytes(
        prototypes, width, taught=rows, learned=rows, views=1, itemsize=2, device=CUDA
    )
    assert 0.8 < sum(counted) / peak.most < 1.2


def test_memory_does_not_grow_with_the_rows_but_for_their_vectors(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_KEPT", 0)
    monkeypatch.setattr(tiles, "CPU_TILE", 2**16)
    monkeypatch.setattr(tiles, "CPU_BLOCK", 2**14)
    width, prototypes = 8, 2048

    def most(rows):
        vectors = drawn(rows, width, dtype=torch.float32).requires_grad_()
        weights = torch.ones(rows)
        directions = drawn(prototypes, width, dtype=torch.float32).requires_grad_()
        centering = build_centering(CenteringSettings(), prototypes)

        def step():
            (targets,) = centering.targets([Logits(vectors.detach(), directions.detach())], TAUGHT)
            logits = Logits(vectors, directions)
            ibot_loss(logits, targets, weights, crops=1, temperature=STUDENT).backward()

        return peak(step)

    few, many = most(256), most(1024)
    whole = 4 * 1024 * prototypes
    assert many - few < 0.05 * whole
    assert many < 0.25 * whole
