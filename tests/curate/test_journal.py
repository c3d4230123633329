"""Images that kill the process that decodes them cost a row, not the part."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
from pictures import colour_request, embed_by_colours, encoded, picture, write_tar

from curate.catalogue.part_files import FACTS, VALID
from curate.embedding import embed
from curate.embedding.embed import EmbedSettings
from curate.embedding.journal import Journal, crash_of
from shared.datasets import DatasetSettings, list_parts

MAX_PIXELS = EmbedSettings().max_pixels
GOOD = encoded(picture(0))


def executable(folder, monkeypatch, script):
    """Let the process that decodes a suspect be a shell script."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_suspect_that_decodes_or_is_merely_broken_has_no_crash():
    assert crash_of(GOOD, MAX_PIXELS, None) == ""
    assert crash_of(GOOD[:-300], MAX_PIXELS, 32) == ""
    assert crash_of(b"", MAX_PIXELS, None) == ""


def test_a_suspect_that_kills_or_hangs_its_process_says_so(tmp_path, monkeypatch):
    executable(tmp_path, monkeypatch, "kill -9 $$")
    assert crash_of(GOOD, MAX_PIXELS, None) == "decoding kills the process (status -9)"
    executable(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr("curate.embedding.journal.SECONDS", 0.2)
    assert crash_of(GOOD, MAX_PIXELS, None) == "decoding takes over 0.2 s"


def test_the_journal_of_a_killed_process_names_what_was_under_way(tmp_path):
    path = tmp_path / "journal"
    code = f"""
        import os
        from pathlib import Path
        from curate.embedding.journal import Journal
        with Journal(Path({str(path)!r})) as journal:
            with journal.trying("done"):
                pass
            with journal.trying("a\\nb é"):
                os.kill(os.getpid(), 9)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert died.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert journal.is_suspect("a\nb é")
        assert not journal.is_suspect("done")
    assert not path.exists()


def killing(data, **_):
    """Stand in for a decoder that a certain image kills."""
    if data == encoded(picture(3)):
        os.kill(os.getpid(), signal.SIGKILL)
    return picture(1)


def test_a_journal_ends_with_its_part_and_outlives_an_error(tmp_path):
    path = tmp_path / "journal"
    with Journal(path) as one, Journal(path) as other:  # two parts of the same bytes
        for journal in (one, other):
            with journal.trying("a"):
                pass
    assert not path.exists()
    try:
        with Journal(path) as journal, journal.trying("b"):
            raise ConnectionError
    except ConnectionError:
        assert not Journal(path).is_suspect("b")


def test_a_part_outlives_an_image_that_kills_its_worker(tmp_path, monkeypatch):
    members = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(6)}
    write_tar(tmp_path / "00000.tar", members)
    [part] = list_parts("crawl", DatasetSettings(path=str(tmp_path / "00000.tar")))
    request = colour_request(tmp_path / "work", batch_size=2, threads=1)

    child = os.fork()
    if not child:
        embed.decode = killing
        embed_by_colours(part, request)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    looked_at = []

    def crashes(data, *_):
        looked_at.append(data)
        return "decoding kills the process" if data == members["03.jpg"] else ""

    monkeypatch.setattr(embed, "crash_of", crashes)
    facts, vectors = request.units(embed_by_colours(part, request))
    problems = pq.read_table(facts / FACTS)["problem"].to_pylist()
    assert problems == ["", "", "", "decoding kills the process", "", ""]
    assert np.load(vectors / VALID).tolist() == [True, True, True, False, True, True]
    assert looked_at == [members["03.jpg"]]
    assert not any((request.work / "decoding").iterdir())
