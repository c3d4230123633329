"""Keys: unique, valid text, and the same whatever else happens around an image."""

from hypothesis import given
from hypothesis import strategies as st

from shared.keys import bucket, numbered, shown, stem, within_part

names = st.text("ab.#2/\udcff", min_size=1, max_size=6)


def test_keys_are_stems_and_repeated_ones_full_names_then_numbers():
    members = ["a/x.jpg", "y.jpg", "y.png", "z.jpg", "z.jpg", "v1.0/w.seg.png", "bare"]
    assert within_part(members) == [
        "a/x",
        "y.jpg",
        "y.png",
        "z.jpg",
        "z.jpg#2",
        "v1.0/w",
        "bare",
    ]


def test_a_name_that_begins_with_a_dot_is_its_own_stem():
    assert stem("a/.jpg") == "a/.jpg"


def test_bytes_that_are_not_text_are_spelt_out():
    assert shown(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == "caf\\xe9.jpg"
    assert shown("caf\u00e9.jpg") == "caf\u00e9.jpg"
    assert shown("\ud800") == "\\ud800"


@given(st.lists(names))
def test_keys_are_unique_and_conserved(members):
    for keys in (within_part(members), numbered(members)):
        assert len(keys) == len(members)
        assert len(set(keys)) == len(keys)


@given(st.lists(names), names)
def test_a_member_with_a_stem_of_its_own_leaves_the_other_keys_alone(members, extra):
    if stem(extra) not in map(stem, members):
        assert within_part([*members, extra])[:-1] == within_part(members)


@given(st.text(st.sampled_from("aé\\\ud800\udcc3\udca9\udcff")) | st.text())
def test_shown_names_are_valid_text_and_stay(name):
    shown(name).encode()
    assert shown(shown(name)) == shown(name)


def test_buckets_are_even_and_fixed():
    counts = [0] * 8
    for number in range(4000):
        counts[bucket(f"{number}.jpg", 8)] += 1
    assert min(counts) > 400
    assert [bucket(name, 32) for name in ("a.jpg", "b/c.png")] == [9, 14]
