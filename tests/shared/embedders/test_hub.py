"""Models from a hub, by its protocol: a server on this machine that can fail in every way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import Fault, HubServer, hub_server, use_hub
from model_folders import make_open_clip_folder, make_timm_folder
from PIL import Image

from shared.embedders import hub
from shared.embedders.embedder import (
    find_on_hub,
    identity,
    load,
    resolve_identity,
    settings_for_folder,
)
from shared.embedders.hub import HubUnreachableError, fetch
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage import failures
from shared.storage.failures import kind_of

CHUNK = 1000
"""Bytes that a download writes at once; what is left of a chunk when it breaks off is lost."""
REPOSITORY = "some/thing"
WEIGHTS = "model.safetensors"
THING = EmbedderSettings(
    kind="timm", model=f"hf-hub:{REPOSITORY}", device="cpu", precision="float32"
)
KINDS = {"timm": make_timm_folder, "open_clip": make_open_clip_folder}


@pytest.fixture
def server():
    with hub_server() as server:
        yield server


@pytest.fixture
def cache(server, monkeypatch, tmp_path) -> Path:
    """An empty cache, which is filled from the server; nothing waits before it tries again."""
    use_hub(monkeypatch, server.endpoint, tmp_path / "cache")
    monkeypatch.setattr(failures, "_pause", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two models of one architecture."""
    return [
        make_timm_folder(tmp_path_factory.mktemp(f"model{seed}"), seed=seed) for seed in range(2)
    ]


@pytest.fixture
def files(folders) -> dict[str, bytes]:
    return contents(folders[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def vectors(settings: EmbedderSettings) -> np.ndarray:
    embedder = load(settings, 1)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 80, 70, 3), dtype=np.uint8)
    return embedder.embed([embedder.prepare(Image.fromarray(image)) for image in pixels])


def of_folder(folder: Path) -> EmbedderSettings:
    asked = {"device": "cpu", "precision": "float32"}
    return settings_for_folder(folder).model_copy(update=asked)


def cached_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("blobs/*"))


def refusal(run) -> LvdError:
    """Return the error of a call, which is one line, comes soon and says how to do without a hub."""
    started = time.monotonic()
    with pytest.raises(LvdError) as raised:
        run()
    assert time.monotonic() - started < 20
    said = str(raised.value)
    assert "\n" not in said
    assert THING.model in said
    for way_out in ("HF_HOME", "`--embedder FOLDER`", "`--set retrieve.embedder=bundled`"):
        assert way_out in said
    assert kind_of(raised.value) == "fatal"
    return raised.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_downloaded_once_and_then_needs_no_hub(server, cache, tmp_path, kind):
    (tmp_path / "model").mkdir()
    folder = KINDS[kind](tmp_path / "model")
    published = server.publish(REPOSITORY, contents(folder))
    thing = THING.model_copy(update={"kind": kind})
    pinned = resolve_identity(thing)
    assert pinned.revision == published
    assert identity(thing)["revision"] == published
    assert cached_bytes(cache) == 0
    expected = vectors(of_folder(folder))
    np.testing.assert_array_equal(vectors(pinned), expected)
    weights = max(len(content) for content in contents(folder).values())
    assert server.sent("/cdn/") == weights
    server.close()
    assert resolve_identity(thing) == pinned
    for settings in (thing, pinned):
        np.testing.assert_array_equal(vectors(settings), expected)


def test_looking_a_model_up_downloads_and_writes_nothing(server, cache, files):
    published = server.publish(REPOSITORY, files)
    found = find_on_hub(THING)
    assert (found.repository, found.name, found.commit) == (REPOSITORY, WEIGHTS, published)
    assert (found.nbytes, found.path) == (len(files[WEIGHTS]), None)
    assert not cache.exists()
    assert server.sent("/") == 0
    load(THING, 1)
    there = find_on_hub(THING)
    assert (there.commit, there.nbytes) == (published, len(files[WEIGHTS]))
    assert there.path.read_bytes() == files[WEIGHTS]


def test_another_commit_has_another_identity_and_other_vectors(
    server, cache, folders, monkeypatch, tmp_path
):
    first = server.publish(REPOSITORY, contents(folders[0]))
    before, old = identity(THING), vectors(THING)
    second = server.publish(REPOSITORY, contents(folders[1]))
    assert identity(THING) == before  # what the cache has is what is used
    newer = THING.model_copy(update={"revision": second})
    assert identity(newer) != before
    np.testing.assert_array_equal(vectors(newer), vectors(of_folder(folders[1])))
    assert np.abs(vectors(newer) - old).max() > 0.01
    use_hub(monkeypatch, server.endpoint, tmp_path / "another cache")
    assert identity(THING) == identity(newer)
    np.testing.assert_array_equal(vectors(THING.model_copy(update={"revision": first})), old)


@pytest.mark.parametrize("end", ["close", "stall"])
def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    server, cache, files, end, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    server.publish(REPOSITORY, files)
    half = len(files[WEIGHTS]) // 2
    server.faults.append(Fault(path="/cdn/", times=1, after=half, end=end))
    assert fetch(REPOSITORY, WEIGHTS, model=THING.model).read_bytes() == files[WEIGHTS]
    first, second = server.asked("GET", "/cdn/")
    assert first.range is None
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert half - CHUNK < start <= half == first.sent
    assert second.sent == len(files[WEIGHTS]) - start


def test_a_connection_that_is_reset_costs_another_try(server, cache, files):
    server.publish(REPOSITORY, files)
    server.faults.append(Fault(path="/cdn/", times=1, after=1000, end="reset"))
    assert fetch(REPOSITORY, WEIGHTS, model=THING.model).read_bytes() == files[WEIGHTS]
    assert len(server.asked("GET", "/cdn/")) == 2


FETCH = f"from shared.embedders.hub import fetch; fetch('{REPOSITORY}', '{WEIGHTS}', model='x')"


def test_of_a_process_killed_while_it_downloads_nothing_is_used(server, cache, files):
    server.publish(REPOSITORY, files)
    server.faults.append(Fault(path="/cdn/", times=1, after=1000, end="stall"))
    where = {"HF_ENDPOINT": server.endpoint, "HF_HUB_CACHE": str(cache)}
    child = subprocess.Popen([sys.executable, "-c", FETCH], env=os.environ | where)
    try:
        assert server.stalled.wait(60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert find_on_hub(THING).path is None
    assert fetch(REPOSITORY, WEIGHTS, model=THING.model).read_bytes() == files[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("wrong", ["flipped", "shorter", "longer"])
def test_a_file_of_another_checksum_or_size_is_refused_and_not_kept(
    server, cache, files, name, wrong
):
    right = files[name]
    content = {
        "flipped": right[:-1] + bytes([right[-1] ^ 1]),
        "shorter": right[:-10],
        "longer": right + b"more",
    }
    server.publish(REPOSITORY, files)
    path = "/cdn/" if name == WEIGHTS else name
    server.faults.append(Fault(path=path, content=content[wrong]))
    error = refusal(lambda: fetch(REPOSITORY, name, model=THING.model))
    assert "checksum" in str(error) if wrong == "flipped" else "size" in str(error)
    assert cached_bytes(cache) == 0
    assert not [path for path in cache.rglob("snapshots/*/*")]
    server.faults.clear()
    assert fetch(REPOSITORY, name, model=THING.model).read_bytes() == right


def test_what_is_damaged_in_the_cache_is_fetched_again_and_never_used(server, cache, files, capsys):
    server.publish(REPOSITORY, files)
    expected = vectors(THING)
    path = fetch(REPOSITORY, WEIGHTS, model=THING.model)
    path.write_bytes(files[WEIGHTS][:-1] + b"?")
    np.testing.assert_array_equal(vectors(THING), expected)
    assert "damaged: it is fetched again" in capsys.readouterr().err
    path.write_bytes(files[WEIGHTS][:-1] + b"?")
    server.close()
    assert isinstance(refusal(lambda: load(THING, 1)), HubUnreachableError)


@pytest.mark.parametrize(
    ("fault", "changes", "said"),
    [
        (None, {"revision": "none"}, "some/thing has no revision 'none': correct 'revision'"),
        (None, {"kind": "open_clip"}, "has no open_clip_model.safetensors, and weights in other"),
        (
            {"status": 401, "headers": {"X-Error-Code": "RepoNotFound"}},
            {},
            "the hub has no some/thing, or shows it only to a token in HF_TOKEN",
        ),
        (
            {
                "status": 401,
                "headers": {"X-Error-Message": "Invalid credentials in Authorization header"},
            },
            {},
            "the hub does not accept the credentials",
        ),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, {}, "accept them on its page"),
        ({"status": 403}, {}, "may not be read"),
        ({"status": 404}, {}, "it is not there"),
    ],
)
def test_what_a_hub_refuses_is_refused_at_once(server, cache, files, fault, changes, said):
    server.publish(REPOSITORY, files)
    if fault:
        server.faults.append(Fault("HEAD", "/resolve/", **fault))
    error = refusal(lambda: resolve_identity(THING.model_copy(update=changes)))
    assert said in str(error)
    assert not isinstance(error, HubUnreachableError)
    assert len(server.asked("HEAD", "/resolve/")) == 1


TRANSIENT = {429: "asks for fewer requests", 500: "the hub fails", 503: "asks for fewer requests"}


@pytest.mark.parametrize("status", TRANSIENT)
def test_a_hub_that_fails_for_a_moment_is_asked_again(server, cache, files, status):
    server.publish(REPOSITORY, files)
    server.faults.append(Fault("HEAD", "/resolve/", times=2, status=status))
    assert len(resolve_identity(THING).revision) == 40
    assert len(server.asked("HEAD", "/resolve/")) == 3


@pytest.mark.parametrize("status", TRANSIENT)
def test_a_hub_that_goes_on_failing_is_given_up(server, cache, files, status):
    server.publish(REPOSITORY, files)
    server.faults.append(Fault("HEAD", "/resolve/", status=status))
    error = refusal(lambda: resolve_identity(THING))
    assert isinstance(error, HubUnreachableError)
    assert TRANSIENT[status] in str(error)
    assert len(server.asked("HEAD", "/resolve/")) == hub.TRIES.attempts


def test_a_download_that_the_hub_fails_is_tried_again_and_given_up(server, cache, files):
    server.publish(REPOSITORY, files)
    server.faults.append(Fault(path="/cdn/", times=2, status=500))
    assert fetch(REPOSITORY, WEIGHTS, model=THING.model).read_bytes() == files[WEIGHTS]
    server.publish(REPOSITORY, {WEIGHTS: b"others"})
    server.faults.append(Fault(path="/cdn/", status=500))
    newer = f"{REPOSITORY}@{list(server.commits[REPOSITORY])[-1]}"
    error = refusal(lambda: fetch(newer, WEIGHTS, model=THING.model))
    assert "the hub fails" in str(error)


def test_a_dead_hub_and_a_server_that_is_none_are_one_line(server, cache, files):
    server.publish(REPOSITORY, files)
    server.faults.append(Fault("HEAD", "/resolve/", times=1, status=200))
    assert "correct HF_ENDPOINT" in str(refusal(lambda: resolve_identity(THING)))
    server.close()
    error = refusal(lambda: resolve_identity(THING))
    assert isinstance(error, HubUnreachableError)
    assert f"{server.endpoint} was not reachable" in str(error)


REFUSED_EARLY = """
import sys
from shared.embedders.embedder import resolve_identity
from shared.embedders.settings import EmbedderSettings
from shared.embedders.hub import HubUnreachableError

try:
    resolve_identity(EmbedderSettings(kind="timm", model="vit_small_patch14_dinov2.lvd142m"))
except HubUnreachableError as error:
    print(error)
    assert not {"torch", "timm"} & set(sys.modules)
"""


def test_without_network_and_cache_nothing_slow_is_imported_before_the_line(tmp_path):
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", REFUSED_EARLY],
        env=os.environ | where,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:9 was not reachable" in done.stdout


def test_a_hub_that_says_nothing_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(HubServer, "take_fault", lambda self, *_: self.stall())
    assert isinstance(refusal(lambda: resolve_identity(THING)), HubUnreachableError)
