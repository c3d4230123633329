"""Shards are filled in order up to both limits, as one image after the other would be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.export.bounds import ShardBounds, cut


def filled(sizes, most_images, most_bytes):
    """Return the bounds, image by image."""
    edges, held = [0], 0
    for place, size in enumerate(sizes):
        images = place - edges[-1]
        if images and (images == most_images or held + size > most_bytes):
            edges.append(place)
            held = 0
        held += size
    return edges + ([len(sizes)] if sizes else [])


@given(
    sizes=st.lists(st.integers(0, 50), max_size=60),
    most_images=st.integers(1, 12),
    most_bytes=st.integers(1, 120),
)
def test_a_shard_ends_where_one_more_image_would_be_too_many_or_too_much(
    sizes, most_images, most_bytes
):
    made = cut(len(sizes), most_images, np.array(sizes, np.int64), most_bytes)
    assert made.tolist() == filled(sizes, most_images, most_bytes)
    plain = cut(len(sizes), most_images)
    assert plain.tolist() == filled(sizes, most_images, np.inf)


def test_an_image_has_the_key_of_its_place_in_its_shard(tmp_path):
    np.save(tmp_path / "bounds.npy", np.array([0, 3, 4, 9]))
    bounds = ShardBounds(tmp_path / "bounds.npy")
    assert len(bounds) == 3
    assert bounds.places(2) == slice(4, 9)
    shards, keys = bounds.outputs(np.array([8, -1, 0, 3, 2]))
    assert shards.to_pylist() == ["00002", None, "00000", "00001", "00000"]
    assert keys.to_pylist() == ["000020004", None, "000000000", "000010000", "000000002"]
