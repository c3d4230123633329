"""Units and setups for the tests of executors: they write, fail, or kill their process."""

import os
import signal
import time
from pathlib import Path

from shared.errors import LvdError


def write(text: str, *, out: Path) -> dict:
    (out / "text").write_text(text)
    return {"text": text, "pid": os.getpid()}


def write_with(state, text: str, *, out: Path) -> dict:
    prefix = state.call("upper").result()
    holder = state.call("pid").result()
    return {**write(prefix + text, out=out), "state": prefix, "holder": holder}


def written_where(text: str, *, scratch: Path) -> dict:
    return {"text": text, "scratch": str(scratch), "images": 3}


def count(ledger: Path) -> int:
    """Add a line to `ledger`, and return how many it has."""
    with ledger.open("a") as stream:
        stream.write("x\n")
    return len(ledger.read_text().splitlines())


def disconnected_at_first(ledger: Path, times: int, *, out: Path) -> dict:
    if count(ledger) < times:
        raise ConnectionError("reset by peer")
    return write("in the end", out=out)


def disconnected_with(state, ledger: Path, times: int, *, out: Path) -> dict:
    return disconnected_at_first(ledger, times, out=out)


def killed_at_first(ledger: Path, text: str, *, out: Path) -> dict:
    result = write(text, out=out)
    if count(ledger) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def killed_with(state, ledger: Path, text: str, *, out: Path) -> dict:
    return killed_at_first(ledger, state.call("upper").result() + text, out=out)


def always_killed(ledger: Path, *, out: Path) -> dict:
    count(ledger)
    os.kill(os.getpid(), signal.SIGKILL)


def kills_its_holder(state, ledger: Path, text: str, *, out: Path) -> dict:
    """Kill, the first time, the process that holds the state."""
    if count(ledger) == 1:
        state.call("die").result()
    return write_with(state, text, out=out)


def together(folder: Path, *, out: Path) -> dict:
    """Return how many were at work at the same time, this one included."""
    (folder / out.name).touch()
    time.sleep(0.1)
    count = len(list(folder.iterdir()))
    (folder / out.name).unlink()
    return {"together": count}


def last_of(texts: list[Path], text: str, *, out: Path) -> dict:
    return write(f"{text} of {len(texts)}, {texts[-1].name}", out=out)


def last_with(state, texts: list[Path], text: str, *, out: Path) -> dict:
    return last_of(texts, state.call("upper").result() + text, out=out)


def slower_first(text: str, seconds: float, *, out: Path) -> dict:
    time.sleep(seconds)
    return write(text, out=out)


def failing(ledger: Path, *, out: Path) -> dict:
    count(ledger)
    raise KeyError("the third key\nis missing")


def failing_but(name: str, ledger: Path, *, scratch: Path) -> dict:
    return failing(ledger, out=scratch) if name == "bad" else {"text": name}


def refusing(ledger: Path, *, out: Path) -> dict:
    count(ledger)
    raise LvdError("part 7 is gone: put it back")


def lost(ledger: Path, *, scratch: Path) -> dict:
    count(ledger)
    raise FileNotFoundError(2, "No such file or directory", "/nowhere/7.tar")


def shard(*, out: Path) -> dict:
    (out / "00000.tar").write_bytes(b"tar")
    (out / "00000_stats.json").write_text('{"count": 1}')
    return {"count": 1}


class Text(str):
    """What a setup returns."""

    def pid(self) -> int:
        """Return the process that holds it."""
        return os.getpid()

    def die(self) -> None:
        """Kill the process that holds it."""
        os.kill(os.getpid(), signal.SIGKILL)


def set_up(text: str, ledger: Path) -> Text:
    count(ledger)
    return Text(text)


def set_up_badly() -> str:
    raise LvdError("no weights at nowhere: get them")


def missing_state() -> str:
    raise ImportError("no module named weights")


def set_up_slowly(seconds: float) -> Text:
    time.sleep(seconds)
    return Text("slow")


def killed_in_setup() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
