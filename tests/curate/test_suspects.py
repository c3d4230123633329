"""Images that kill the process that decodes them cost a row, not the part."""

import os
import signal
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
from pictures import ColourEmbedder, encoded, picture, write_tar

from curate.embedding import embed
from curate.embedding.embed import FACTS, EmbedSettings, embed_part
from curate.embedding.suspects import Journal, crash_of
from shared.datasets import DatasetSettings, list_parts
from shared.embedders import EmbedderSettings

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
    monkeypatch.setattr("curate.embedding.suspects.SECONDS", 0.2)
    assert crash_of(GOOD, MAX_PIXELS, None) == "decoding takes over 0.2 s"


def test_the_journal_of_a_killed_process_names_what_was_under_way(tmp_path):
    path = tmp_path / "journal"
    code = f"""
        import os
        from pathlib import Path
        from curate.embedding.suspects import Journal
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


def test_a_part_outlives_an_image_that_kills_its_worker(tmp_path, monkeypatch):
    members = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(6)}
    write_tar(tmp_path / "00000.tar", members)
    [part] = list_parts("crawl", DatasetSettings(path=str(tmp_path / "00000.tar")))
    out = tmp_path / "out"
    out.mkdir()
    configured = EmbedderSettings(kind="descriptor", batch_size=2)
    args = (ColourEmbedder(), part, EmbedSettings(), configured, [], 1)

    child = os.fork()
    if not child:
        embed.decode = killing
        embed_part(*args, out=out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def crashes(data, *_):
        return "decoding kills the process" if data == members["03.jpg"] else ""

    monkeypatch.setattr(embed, "crash_of", crashes)
    said = embed_part(*args, out=out)
    problems = pq.read_table(out / FACTS)["problem"].to_pylist()
    assert problems == ["", "", "", "decoding kills the process", "", ""]
    assert (said["images"], said["vectors"]) == (6, 5)
    assert not list(tmp_path.glob("*.decoding"))
