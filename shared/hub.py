"""Files of the Hugging Face hub: from the cache, else downloaded, else one line that says why not."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

from shared.errors import LvdError

PROBE_SECONDS = 5.0


class HubUnreachableError(LvdError):
    """The hub cannot be asked, and the cache does not have what was wanted."""


def fetch(repository: str, name: str, *, model: str) -> Path:
    """Return the local path of file `name` of `repository` (`owner/name`, or with `@revision`).

    From the cache, else downloaded: and `huggingface_hub` retries a hub that cannot be reached for
    23 s per file name, so it is asked only once the hub has answered a plain request.
    Raises LvdError, which speaks of `model`, when the file is neither cached nor to be had.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if cached := _cached(repository, name, model):
        return cached
    _check_reachable(model)
    repository, revision = _split(repository)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:  # the connection broke meanwhile
        raise HubUnreachableError(_unreachable(model, _line(error))) from None
    except EntryNotFoundError:
        raise LvdError(
            f"embedder model {model}: {repository} on the hub has no {name}, and weights in other "
            "formats are never read; choose a model with safetensors weights"
        ) from None
    except Exception as error:
        raise LvdError(f"embedder model {model} cannot be downloaded: {_line(error)}") from None


def commit(repository: str, name: str, *, model: str) -> str:
    """Return the commit of `repository` (`owner/name`, or with `@revision`), 40 hex digits.

    That of the cached file `name`, else what the hub says. Raises LvdError, which speaks of
    `model`, when neither has it: HubUnreachableError when the hub cannot be asked.
    """
    from huggingface_hub import HfApi, constants

    repository_id, revision = _split(repository)
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if cached := _cached(repository, name, model):
        return cached.parents[len(Path(name).parents) - 1].name
    _check_reachable(model)
    try:
        return str(HfApi(constants.ENDPOINT).model_info(repository_id, revision=revision).sha)
    except Exception as error:
        raise LvdError(f"embedder model {model} cannot be found: {_line(error)}") from None


def at_revision(repository: str, revision: str | None) -> str:
    """Return `owner/name@revision`; without a revision the repository as it is."""
    return f"{_split(repository)[0]}@{revision}" if revision else repository


def _split(repository: str) -> tuple[str, str | None]:
    repository, _, revision = repository.partition("@")
    return repository, revision or None


def _cached(repository: str, name: str, model: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = _split(repository)
    try:
        found = huggingface_hub.hf_hub_download(
            repository, name, revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    except ValueError as error:
        raise LvdError(f"embedder model {model}: {_line(error)}") from None
    return Path(found)


def _check_reachable(model: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError(
            _unreachable(model, "HF_HUB_OFFLINE is set and it is not in the cache")
        )
    if problem := _probe(constants.ENDPOINT):
        raise HubUnreachableError(
            _unreachable(model, f"{constants.ENDPOINT} was not reachable ({problem})")
        )


def _probe(endpoint: str) -> str:
    """Return why the hub does not answer at all, or an empty string."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError:  # any answer is an answer
        return ""
    except (OSError, ValueError) as error:
        return _line(getattr(error, "reason", error))


def _unreachable(model: str, why: str) -> str:
    return (
        f"embedder model {model} cannot be loaded: {why}; set HF_HOME to a cache that holds it, "
        "or give `--embedder FOLDER` (config.json and model.safetensors) or `--embedder bundled`"
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
