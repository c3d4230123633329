"""What may be asked of an export; known before torch is."""

from __future__ import annotations

from typing import Literal

from shared.errors import LvdError

Format = Literal["timm", "heads", "onnx", "single"]


def check_options(
    form: Format,
    *,
    role: str | None,
    size: int | None,
    half: bool,
) -> None:
    """Raise LvdError, in one line, for options that do not go together."""
    if half and form != "timm":
        raise LvdError(f"--half is for --format timm: leave it away with {form}")
    if form not in ("timm", "onnx") and (role, size) != (None, None):
        raise LvdError(
            f"--format {form} holds both networks as they are: leave --network and --size away"
        )
