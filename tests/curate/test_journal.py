"""Images that kill, hang or bloat the process that decodes them cost a row, not the part."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import colour_request, embed_by_colours, encoded, picture, write_tar
from PIL import Image

from curate.catalogue.part_files import FACTS, VALID
from curate.embedding import decoder as module
from curate.embedding.decoder import MOST_LEFT_BEHIND, PIXEL_BYTES, Decoder, decode_apart
from curate.embedding.journal import Journal
from curate.embedding.request import EmbedSettings
from curate.embedding.threads import is_left_behind
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.pictures.images import Header, ImageError, decode, read_header

MAX_PIXELS = EmbedSettings().max_pixels
GOOD = encoded(picture(0))


def pixels(image):
    return image.size, image.mode, image.tobytes()


def executable(folder, monkeypatch, script):
    """Let the process that decodes a suspect be a shell script."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


LIMITS = {"max_pixels": MAX_PIXELS, "reduce_to": None, "seconds": 60, "memory": 1 << 30}


def test_a_picture_that_is_decoded_apart_is_the_same():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    picture(1, (600, 400)).save(stream, "JPEG", exif=exif.tobytes())
    for data, reduce_to in ((encoded(picture(2), "PNG"), None), (stream.getvalue(), 32)):
        apart = decode_apart(data, **LIMITS | {"reduce_to": reduce_to})
        assert pixels(apart) == pixels(decode(data, reduce_to=reduce_to))


def test_what_is_broken_has_the_same_reason_apart():
    for data in (GOOD[:-300], encoded(picture(2), "PNG")):
        with pytest.raises(ImageError) as here:
            decode(data, max_pixels=48 * 40 - 1)
        with pytest.raises(ImageError) as apart:
            decode_apart(data, **LIMITS | {"max_pixels": 48 * 40 - 1})
        assert str(here.value) == str(apart.value)


def test_a_decoder_that_dies_hangs_or_bloats_apart_is_a_reason(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match="decoding takes over 8 MiB of memory"):
        decode_apart(encoded(picture(2, (4000, 2000)), "PNG"), **LIMITS | {"memory": 8 << 20})
    executable(tmp_path, monkeypatch, "kill -9 $$")
    with pytest.raises(ImageError, match=r"decoding kills the process \(status -9\)"):
        decode_apart(GOOD, **LIMITS)
    executable(tmp_path, monkeypatch, "kill -XCPU $$")
    with pytest.raises(ImageError, match="decoding takes over 60 s"):
        decode_apart(GOOD, **LIMITS)
    executable(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr(module, "MOST_WAIT", 0.1)
    with pytest.raises(ImageError, match=r"decoding does not end within 0\.2 s"):
        decode_apart(GOOD, **LIMITS | {"seconds": 0.1})


def test_a_process_apart_is_stopped_when_its_processor_time_is_over():
    code = "from curate.embedding.decoder import _limit; _limit(seconds=0.1, memory=1 << 30)"
    busy = subprocess.run([sys.executable, "-c", f"{code}\nwhile True: pass"], check=False)
    assert busy.returncode == -signal.SIGXCPU


def test_the_memory_for_a_picture_suffices_for_the_widest():
    size = (4000, 2000)
    for wide in (Image.new("F", size, 0.5), Image.new("LA", size)):
        data = encoded(wide, "PNG" if wide.mode != "F" else "TIFF")
        memory = PIXEL_BYTES * size[0] * size[1]  # without what a decoder may take beside
        assert decode_apart(data, **LIMITS | {"memory": memory}).size == size


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


def test_a_journal_ends_with_its_part_and_an_error_leaves_no_suspect(tmp_path):
    path = tmp_path / "journal"
    with Journal(path) as one, Journal(path) as other:  # two parts of the same bytes
        for journal in (one, other):
            with journal.trying("a"):
                pass
    assert not path.exists()
    with pytest.raises(ConnectionError), Journal(path) as journal, journal.trying("b"):
        raise ConnectionError
    assert not Journal(path).suspects


@pytest.fixture
def release():
    """Let the decoders that a test hangs go when it ends."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def decoder(tmp_path):
    with Journal(tmp_path / "journal") as journal:
        yield Decoder(journal, max_pixels=10_000, seconds=0.1)


def decode_in_thread(decoder, *args):
    with decoder.threads(1) as threads:
        return threads.result(threads.submit(decoder.decode, *args))


def hang(monkeypatch, release, bad):
    """Let the decoder of the worker, and of the process apart, hang on certain images."""

    def decodes(data, **limits):
        if bad(data):
            release.wait(60)
        return decode(data, **limits)

    def apart(data, *, seconds, **_):
        if bad(data):
            raise ImageError(f"decoding takes over {seconds:g} s")
        return picture(999)

    monkeypatch.setattr(module, "decode", decodes)
    monkeypatch.setattr(module, "decode_apart", apart)


def test_a_decoder_that_hangs_costs_its_image_alone(decoder, monkeypatch, release):
    hang(monkeypatch, release, lambda data: data != GOOD)
    header = read_header(GOOD)
    for turn in range(MOST_LEFT_BEHIND + 2):
        expected = decode(GOOD) if turn < MOST_LEFT_BEHIND else picture(999)
        assert pixels(decode_in_thread(decoder, "good", GOOD, header, None)) == pixels(expected)
        with pytest.raises(ImageError, match=r"decoding takes over 0\.1 s"):
            decode_in_thread(decoder, f"bad {turn}", b"bad", header, None)
    left = [t for t in threading.enumerate() if is_left_behind(t)]
    assert len(left) == MOST_LEFT_BEHIND
    release.set()
    for thread in left:
        thread.join(60)
    assert pixels(decode_in_thread(decoder, "good", GOOD, header, None)) == pixels(decode(GOOD))


def test_images_behind_one_that_hangs_are_read_by_another_thread(tmp_path, monkeypatch, release):
    bad = encoded(picture(3))
    hang(monkeypatch, release, lambda data: data == bad)
    files = [GOOD, bad, encoded(picture(4)), bad, encoded(picture(5)), bad]
    write_tar(tmp_path / "00000.tar", {f"{n}.jpg": data for n, data in enumerate(files)})
    [part] = list_parts("crawl", DatasetSettings(path=str(tmp_path / "00000.tar")))
    settings = EmbedSettings(decode_seconds=0.1)
    for threads in (1, 3):
        work = tmp_path / f"work-{threads}"
        request = colour_request(work, threads=threads, settings=settings)
        facts, vectors = request.units(embed_by_colours(part, request))
        problems = pq.read_table(facts / FACTS)["problem"].to_pylist()
        assert problems == ["", hung := "decoding takes over 0.1 s", "", hung, "", hung]
        assert np.load(vectors / VALID).tolist() == [True, False] * 3
    assert sum(map(is_left_behind, threading.enumerate())) == 2  # one of each try


def test_threads_end_where_their_results_are_not_asked_for(decoder, monkeypatch, release):
    hang(monkeypatch, release, lambda data: data == b"bad")
    has_begun = threading.Event()
    with decoder.threads(2) as threads:
        hung = threads.submit(decoder.decode, "bad", b"bad", Header(1, 1, "png"), None)
        waits = threads.submit(lambda: has_begun.set() or hung.exception())
        never = threads.submit(time.sleep, 0)
        has_begun.wait()
    assert isinstance(waits.result(0), ImageError)
    assert not never.done()


def test_a_decoder_that_is_left_behind_keeps_no_process_from_ending(tmp_path):
    code = f"""
        import threading
        from pathlib import Path
        from curate.embedding import decoder as module
        from curate.embedding.journal import Journal
        from shared.pictures.images import Header, ImageError
        module.decode = lambda data, **_: threading.Event().wait()
        module.MOST_WAIT = 60
        with Journal(Path({str(tmp_path / "journal")!r})) as journal:
            decoder = module.Decoder(journal, max_pixels=9, seconds=0.1)
            with decoder.threads(1) as threads:
                call = threads.submit(decoder.decode, "bad", b"text", Header(1, 1, "png"), None)
                try:
                    threads.result(call)
                except ImageError as error:
                    print(error)
            print(threading.active_count())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, timeout=60
    )
    assert done.stdout == b"not an image of a readable format\n2\n"


def test_memory_that_does_not_suffice_here_is_asked_for_apart(decoder, monkeypatch):
    def short(data, **_):
        raise ImageError("MemoryError") from MemoryError()

    monkeypatch.setattr(module, "decode", short)
    assert pixels(decoder.decode("good", GOOD, read_header(GOOD), None)) == pixels(decode(GOOD))


def test_pictures_under_way_have_no_more_pixels_than_one_may_have(decoder, monkeypatch):
    under_way, most = [], []

    def slow(data, **_):
        under_way.append(data)
        most.append(sum(map(int, under_way)))
        time.sleep(0.005)
        under_way.remove(data)
        return picture(int(data))

    monkeypatch.setattr(module, "decode", slow)
    sizes = [9_000, 4_000, 3_000, 20_000, 1_000, 10_000, 3_000] * 4
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(decoder.decode, str(n), b"%d" % min(n, 10_000), Header(n, 1, "png"), None)
            for n in sizes
        ]
        assert [f.result() for f in futures] == [picture(min(n, 10_000)) for n in sizes]
    assert max(most) <= 10_000


def killing(data, **_):
    """Stand in for a decoder that a certain image kills."""
    if data == encoded(picture(3)):
        os.kill(os.getpid(), signal.SIGKILL)
    return picture(1)


def test_a_part_outlives_an_image_that_kills_its_worker(tmp_path, monkeypatch):
    members = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(6)}
    write_tar(tmp_path / "00000.tar", members)
    [part] = list_parts("crawl", DatasetSettings(path=str(tmp_path / "00000.tar")))
    request = colour_request(tmp_path / "work", batch_size=2, threads=1)

    child = os.fork()
    if not child:
        module.decode = killing
        embed_by_colours(part, request)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def apart(data, **_):
        assert data == members["03.jpg"]
        raise ImageError("decoding kills the process")

    monkeypatch.setattr(module, "decode_apart", apart)
    facts, vectors = request.units(embed_by_colours(part, request))
    problems = pq.read_table(facts / FACTS)["problem"].to_pylist()
    assert problems == ["", "", "", "decoding kills the process", "", ""]
    assert np.load(vectors / VALID).tolist() == [True, True, True, False, True, True]
    assert not any((request.work / "decoding").iterdir())
