"""Heads bound cosines from above, and what a search among them finds is the same by every product."""

import sys

import numpy as np
import pytest
import torch
from made_collection import clumps, exact_cosines

from curate.neighbours import heads as module
from curate.neighbours.heads import (
    HeadIndex,
    errors,
    heads,
    heads_along,
    product_unit,
    products_with,
    rests,
    turn,
)
from curate.neighbours.search import principal_axes, unit

STORED = clumps(9, 60, 8, 32, 0.5).astype(np.float16)
UNITS = unit(STORED)


def reached(asked, base, least, card=None):
    found = HeadIndex(base, card).reaching(asked, least)
    pairs = [np.stack([some.start + row, other], 1) for some, row, other in found]
    return np.concatenate([np.empty((0, 2), np.int64), *pairs]).tolist()


def products(head):
    width = head.shape[1] - 1
    whole = head[:, :width].astype(np.float64)
    error = errors(head).astype(np.float64)
    both = error[:, None] + error[None] * (1 + error[:, None])
    return whole @ whole.T * module._step(width) ** 2 + both


@pytest.mark.parametrize("count", [0, 1, 7, 32])
def test_the_product_of_two_heads_and_their_errors_is_at_least_the_cosine(count):
    head = heads(UNITS, principal_axes(UNITS[:100], count))
    assert head.shape == (len(UNITS), count + 2)
    assert (products(head) - exact_cosines(UNITS, UNITS)).min() >= -module.SLACK


@pytest.mark.parametrize("count", [0, 7, 32])
def test_heads_along_axes_multiply_to_what_lies_along_them_and_rests_bound_the_rest(count):
    axes = principal_axes(UNITS[:100], count)
    head, flat = heads(UNITS, axes), heads_along(UNITS, axes)
    along = UNITS.astype(np.float64) @ axes
    whole = products_with(flat[:, :-1])(head[:, :-1]).astype(np.float64)
    error, of_flat = (errors(each).astype(np.float64) for each in (head, flat))
    bound = error[:, None] + (1 + error[:, None]) * of_flat + module.SLACK
    assert (np.abs(whole * product_unit(count + 1) - along @ along.T) <= bound).all()
    left_out = np.sqrt(np.maximum(0, 1 - np.square(along).sum(1)))
    assert (rests(head) >= left_out - module.SLACK).all()
    assert (rests(head) <= left_out + 2 * error + module.SLACK).all()


def test_a_vector_along_one_turned_direction_is_cut_off_and_says_so():
    """No coordinate of such a head fits its 8 bits: the error covers the rest."""
    axes = np.eye(200, dtype=np.float32)
    along = turn(201)[:200, 36]
    vectors = unit(np.stack([along, along + 1e-3]))
    head = heads(vectors, axes)
    assert errors(head).min() > 0.3
    assert products(head)[0, 1] >= exact_cosines(vectors, vectors)[0, 1] - module.SLACK
    assert reached(head, head, 0.99) == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("least", [-0.5, 0.3, 0.8, 0.95])
def test_8_bit_and_float32_products_and_those_on_a_card_find_the_same(monkeypatch, least):
    head = heads(UNITS, principal_axes(UNITS, 20))
    every = [sorted(reached(head, head[::2], least))]
    assert module._eight_bit() is not None or not torch.cpu._is_vnni_supported()
    every.append(sorted(reached(head, head[::2], least, torch.device("cpu"))))
    monkeypatch.setattr(module, "PRODUCTS", 700)
    every.append(sorted(reached(head, head[::2], least)))
    monkeypatch.delitem(sys.modules, "torch")
    every.append(sorted(reached(head, head[::2], least)))
    assert all(each == every[0] for each in every)
    exact = exact_cosines(STORED, STORED[::2])
    needed = set(map(tuple, np.argwhere(exact >= least).tolist()))
    assert needed <= set(map(tuple, every[0]))
    if least > 0.5:
        assert len(every[0]) < 1.5 * len(needed)


@pytest.mark.parametrize("width", [1, 2, 127, 252])
def test_turning_keeps_products(width):
    np.testing.assert_allclose(turn(width) @ turn(width).T, np.eye(width), atol=1e-6)


def test_sums_of_the_widest_heads_are_exact_in_float32():
    assert 127**2 * (module.AXES + 1) < 2**24


def test_torch_is_imported_only_for_many_products(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_eight_bit", lambda: asked.append(1))
    module.expect_products(module.MANY - 1)
    assert not asked
    module.expect_products(module.MANY)
    assert asked
