"""What an audit is asked for: two datasets, what finds copies, and from which cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.calibration.thresholds import Threshold, known_thresholds
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.filters import luminance
from curate.plan import Dataset, parts_of
from curate.request import Named, read_names
from curate.settings import PipelineSettings
from curate.stage import EngineSettings
from shared.embedders.embedder import resolve, resolve_identity
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError


@dataclass(frozen=True)
class AuditRequest:
    """Two datasets whose parts are found, and the embedder at its revision."""

    datasets: tuple[Dataset, Dataset]
    embedder: Named[EmbedderSettings]
    threshold: Threshold | None
    """None where it is to be measured."""
    embed: EmbedRequest
    engine: EngineSettings


def read_audit(
    config: Path | None,
    names: tuple[str, str],
    embedder: str,
    threshold: float | None,
    work: Path,
    own: Sequence[Path],
) -> AuditRequest:
    """Find the datasets (names of the configuration, or paths) and the embedder of an audit.

    Without a `config` it is `pipelines.yaml`, where there is one. Folders in `own` are no part of the
    datasets. Raises LvdError, in one line, for what is not there.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise LvdError(f"--threshold {threshold}: a cosine lies between -1 and 1")
    known = read_names(config)
    named = [known.dataset("part of an audit", name) for name in names]
    first, second = (
        Dataset("audit", each.name, parts_of(each, work, [work, *own])) for each in named
    )
    found = known.find_embedder(embedder, "--embedder")
    settings = resolve_identity(resolve(found.settings))
    engine = EngineSettings()
    chosen = None if threshold is None else Threshold(threshold, "--threshold")
    chosen = chosen or known_thresholds(PipelineSettings(), {"dedup": settings}).get("dedup")
    looks = () if chosen else (luminance.LOOK.name,)
    request = EmbedRequest(work, EmbedSettings(), (settings,), (), engine.threads, looks)
    return AuditRequest((first, second), Named(found.name, settings), chosen, request, engine)
