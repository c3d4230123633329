"""Files of the Hugging Face hub: from the cache, else downloaded, else one line that says why not."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from shared.errors import LvdError

PROBE_SECONDS = 5.0


def fetch(repository: str, name: str, *, model: str) -> Path:
    """Return the local path of file `name` of `repository` (`owner/name`, or with `@revision`).

    From the cache, else downloaded: and `huggingface_hub` retries a hub that cannot be reached for
    23 s per file name, so it is asked only once the hub has answered a plain request.
    Raises LvdError, which speaks of `model`, when the file is neither cached nor to be had.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    place = {"repo_id": repository, "filename": name, "revision": revision or None}
    try:
        return Path(huggingface_hub.hf_hub_download(**place, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise LvdError(f"embedder model {model}: {_line(error)}") from None
    if constants.HF_HUB_OFFLINE:
        raise LvdError(_unreachable(model, "HF_HUB_OFFLINE is set and it is not in the cache"))
    problem = _probe(constants.ENDPOINT)
    if problem:
        raise LvdError(_unreachable(model, f"{constants.ENDPOINT} was not reachable ({problem})"))
    try:
        return Path(huggingface_hub.hf_hub_download(**place))
    except LocalEntryNotFoundError as error:  # the connection broke meanwhile
        raise LvdError(_unreachable(model, _line(error))) from None
    except EntryNotFoundError:
        raise LvdError(
            f"embedder model {model}: {repository} on the hub has no {name}, and weights in other "
            "formats are never read; choose a model with safetensors weights"
        ) from None
    except Exception as error:
        raise LvdError(f"embedder model {model} cannot be downloaded: {_line(error)}") from None


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
