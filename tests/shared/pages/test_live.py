"""The live page: on loopback, under its own names, one path, read only; and it never harms the run."""

import http.client
import socket
import threading
import time

import pytest
from browsers import NO_BROWSER, SERIOUS, find_browser, listen

from shared.errors import LvdError
from shared.pages import live
from shared.pages.live import LivePage, LiveServer, serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(live, "KEPT", 0.0)
    made = LiveServer(0)
    with made.running():
        yield made


def ask(server, path="/", method="GET", host=None):
    """Return status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def test_the_page_shows_what_the_run_says_at_each_request(server):
    assert "A run is starting" in ask(server)[2]
    for stage in ("embed", "<script>x"):
        server.show = lambda stage=stage: LivePage("t", [("stage", stage)], 0.5, [("p", b"jpeg")])
        status, headers, text = ask(server)
        assert status == 200
        assert headers["Cache-Control"] == "no-store"
        assert stage.replace("<", "&lt;").replace(">", "&gt;") in text
        assert 'value="0.5000"' in text
        assert "<script>x" not in text
    assert "default-src 'none'" in text
    assert "connect-src 'self'" in text


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_names_of_loopback_are_answered(server, host):
    assert ask(server, host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1:80", "", "["])
def test_other_names_are_refused(server, host):
    status, _, text = ask(server, host=host)
    assert status == 403
    assert "A run is starting" not in text


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/?a", "/x"])
def test_nothing_else_is_reachable(server, path):
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_nothing_but_get_is_answered(server, method):
    assert ask(server, method=method)[0] == 501


def test_only_loopback_is_bound(server):
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_page_that_cannot_be_made_is_an_answer_and_no_failure(server, capfd):
    server.show = lambda: 1 / 0
    assert ask(server)[0] == 500
    server.show = lambda: LivePage("again")
    assert "again" in ask(server)[2]
    assert capfd.readouterr() == ("", "")


def test_a_silent_reader_keeps_nobody_waiting_and_does_not_hold_up_the_end(capfd):
    made = LiveServer(0)
    with made.running(), socket.create_connection(("127.0.0.1", made.port)) as silent:
        silent.sendall(b"GET / HT")
        assert ask(made)[0] == 200
        began = time.monotonic()
    assert time.monotonic() - began < live.PATIENCE / 2
    assert capfd.readouterr().err == ""


def test_many_readers_cost_one_page_a_second():
    made, asked = LiveServer(0), []
    made.show = lambda: asked.append(1) or LivePage("t")
    with made.running():
        made._until = 0.0
        readers = [threading.Thread(target=ask, args=(made,)) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout=60)
    assert 1 <= len(asked) < 8


def test_a_port_that_is_taken_is_one_line_at_once_and_is_free_after_the_run(capfd):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LvdError, match=f"--serve {port}: .*name another port") as refused:
            LiveServer(port)
        assert "\n" not in str(refused.value)
    for _ in range(2):
        with serving(port) as made:
            assert ask(made)[0] == 200
    assert f"http://127.0.0.1:{port}/" in capfd.readouterr().err
    with serving(None) as none:
        assert none is None


def test_a_browser_follows_the_run_and_is_told_of_its_end(monkeypatch):
    if (found := find_browser()) is None:
        pytest.skip(NO_BROWSER)
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    monkeypatch.setattr(live, "KEPT", 0.0)
    made = LiveServer(0)
    made.show = lambda: LivePage("Curating", [("stage", "embed"), ("left", "3 s")], 0.5)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme="dark")
        page.set_default_timeout(30_000)
        with made.running():
            said, _ = listen(page)
            page.goto(f"http://127.0.0.1:{made.port}/")
            violations = Axe().run(page).response["violations"]
            made.show = lambda: LivePage("Curating", [("stage", "dedup")])
            page.get_by_text("dedup").wait_for()
            assert [text for text in said if "favicon" not in text and "404" not in text] == []
        page.get_by_text("The run has ended").wait_for()
        assert page.get_by_text("dedup").is_visible()
        browser.close()
    assert [each["id"] for each in violations if each["impact"] in SERIOUS] == []
