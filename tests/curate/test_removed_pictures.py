"""What a work folder holds of a removed image besides vectors of parts: small pictures, what was lent."""

import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.part_files import FACTS
from curate.filters import grey
from curate.removal.work import drop, units_with
from shared.storage.commits import building, commit


def make_unit(work, name, table, file):
    """Commit a unit of one table."""
    with building(work / name, work / "scratch") as folder:
        pq.write_table(table, folder / file)
        commit(folder, work / name, {})


def test_the_small_pictures_of_a_part_go_with_an_image_of_it(tmp_path):
    (tmp_path / "scratch").mkdir()
    for part, sha256 in (("one", "a"), ("other", "b")):
        make_unit(tmp_path, f"facts/v1/{part}", pa.table({"sha256": [sha256, "c"]}), FACTS)
        pictures = pa.table({"grey": [bytes(grey.SIDE**2), None]}, schema=grey.LOOK.columns)
        make_unit(tmp_path, f"{grey.LOOK.name}/v1/{part}", pictures, grey.LOOK.file)
    units = units_with(tmp_path, ["a"])
    assert units == [tmp_path / grey.LOOK.name / "v1" / "one"]
    drop(units, tmp_path / "scratch")
    assert not units[0].exists()
    assert (tmp_path / grey.LOOK.name / "v1" / "other" / grey.LOOK.file).exists()
    assert units_with(tmp_path, ["d"]) == []


def test_what_parts_lend_goes_whatever_is_removed(tmp_path):
    (tmp_path / "scratch").mkdir()
    make_unit(tmp_path, "lent-vectors/v1/one", pa.table({"sha256": ["b"]}), FACTS)
    assert units_with(tmp_path, ["a"]) == [tmp_path / "lent-vectors" / "v1" / "one"]
