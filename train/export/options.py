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
    centre: str | None,
    embedder: str | None,
    half: bool,
) -> None:
    """Raise LvdError, in one line, for options that do not go together."""
    if half and form != "timm":
        raise LvdError(f"--half is for --format timm: leave it away with {form}")
    if form in ("timm", "onnx"):
        if centre is not None and embedder is not None:
            raise LvdError("--embedder centres too: leave --centre away")
    elif any(option is not None for option in (role, size, centre, embedder)):
        raise LvdError(
            f"--format {form} holds both networks as they are: leave --network, --size, "
            "--centre and --embedder away"
        )
