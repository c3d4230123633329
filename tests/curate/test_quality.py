"""What the facts alone say of an image: the first rule that applies, with a reason."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.filters.judge import judge
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings

FINE = {"problem": "", "width": 64, "height": 64, "contrast": 40.0, "score:nsfw": 0.1}
SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("contrast", pa.float32()),
        ("score:nsfw", pa.float64()),
    ]
)
NSFW = [FilterSettings(column="nsfw", max=0.5)]


def judged(quality=None, filters=NSFW, valid=True, **facts):
    table = pa.Table.from_pylist([{**FINE, **facts}], SCHEMA)
    has = np.array([valid])
    [code], [reason] = judge(table, table, has, quality or QualitySettings(), filters)
    return ("open" if code == OPEN else DECISIONS[code]), reason


@pytest.mark.parametrize(
    ("facts", "decision", "reason"),
    [
        ({}, "open", ""),
        ({"problem": "truncated", "width": None, "height": None}, "corrupt", "truncated"),
        ({"problem": "truncated", "score:nsfw": 0.9}, "corrupt", "truncated"),
        ({"score:nsfw": 0.9, "width": 1}, "unsafe", "nsfw 0.9 is above 0.5"),
        ({"score:nsfw": None}, "unsafe", "nsfw has no value"),
        ({"score:nsfw": float("nan")}, "unsafe", "nsfw has no value"),
        ({"score:nsfw": 0.5}, "open", ""),
        ({"width": 31}, "low_quality", "shorter side 31 px is below 32"),
        ({"width": 32}, "open", ""),
        ({"width": 0, "height": 0}, "low_quality", "shorter side 0 px is below 32"),
        ({"width": 513}, "low_quality", "aspect ratio 8.0156 is above 8"),
        ({"width": 512}, "open", ""),
        ({"contrast": 1.5}, "low_quality", "near-blank: contrast 1.5 is below 2"),
        ({"contrast": 2.0}, "open", ""),
        ({"valid": False}, "low_quality", "the embedder gave no finite, non-zero vector"),
    ],
)
def test_the_first_rule_that_applies_decides(facts, decision, reason):
    assert judged(**facts) == (decision, reason)


def test_a_filter_has_inclusive_bounds_on_both_sides():
    bounds = [FilterSettings(column="nsfw", min=0.2, max=0.5)]
    said = {score: judged(filters=bounds, **{"score:nsfw": score}) for score in (0.2, 0.5, 0.19)}
    assert said[0.2] == said[0.5] == ("open", "")
    assert said[0.19] == ("unsafe", "nsfw 0.19 is below 0.2")
    with pytest.raises(ValidationError, match="min, max or both"):
        FilterSettings(column="nsfw")


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "problem": st.sampled_from(["", "", "broken"]),
            "width": st.integers(1, 400),
            "height": st.integers(1, 400),
            "contrast": st.floats(0, 100, width=32),
            "valid": st.booleans(),
            "score:nsfw": st.none() | st.floats(0, 1),
        }
    )
)


def judged_together(rows):
    table = pa.Table.from_pylist(rows, SCHEMA)
    valid = np.array([row["valid"] for row in rows], bool)
    return judge(table, table, valid, QualitySettings(), NSFW)


@given(ROWS, st.randoms())
def test_every_decision_has_a_reason_and_depends_on_no_other_row(rows, random):
    codes, reasons = judged_together(rows)
    assert len(codes) == len(reasons) == len(rows)
    assert [reason == "" for reason in reasons] == (codes == OPEN).tolist()
    assert set(codes.tolist()) <= {OPEN, *(CODE[x] for x in ("corrupt", "unsafe", "low_quality"))}
    order = list(range(len(rows)))
    random.shuffle(order)
    again = judged_together([rows[at] for at in order])
    assert np.array_equal(again[0], codes[order])
    assert again[1] == [reasons[at] for at in order]
