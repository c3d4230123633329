"""Says which steps `--profile` names; without torch, so that a wrong one is refused at once."""

from __future__ import annotations

from shared.errors import LvdError


def parse_steps(text: str) -> range:
    """Return the steps that FIRST:LAST names, both included; LvdError where it names none."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise LvdError(
            f"--profile {text}: say FIRST:LAST, two steps as in metrics.jsonl, such as 20:24"
        )
    return range(int(first), int(last) + 1)


def check_steps(steps: range | None, begun: int, total: int) -> None:
    """Raise LvdError where a run that goes on behind `begun` of `total` steps lacks one of them."""
    if steps is not None and not begun <= steps.start < steps.stop <= total:
        raise LvdError(
            f"--profile {steps.start}:{steps.stop - 1}: the run has the steps {begun} to "
            f"{total - 1} before it: name some of these"
        )
