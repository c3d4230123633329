"""Files of the Hugging Face hub: from the cache, else downloaded, else one line that says why not."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shared.errors import LvdError
from shared.progress import warn
from shared.storage.failures import RetryPolicy, cause_of, retrying
from shared.storage.files import digest_file

PROBE_SECONDS = 5.0
TRIES = RetryPolicy(attempts=4, first=0.5, most=4.0)
"""The hub is the user's wait at the terminal: of 4 tries the waits are at most 3.5 s together."""
GIT_HASH = re.compile("[0-9a-f]{40}")


class HubUnreachableError(LvdError):
    """The hub cannot be asked now, and the cache does not have what was wanted."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository as the cache has it, else as the hub says."""

    repository: str
    """`owner/name`."""
    name: str
    commit: str
    """40 hex digits."""
    nbytes: int | None
    """None where the hub does not say."""
    path: Path | None
    """Where the cache has it; None where it would have to be downloaded."""


def find(repository: str, name: str, *, model: str) -> HubFile:
    """Return what is known of file `name` of `repository` (`owner/name`, or with `@revision`).

    The cache is looked at first, then the hub is asked; nothing is downloaded or written. Raises
    LvdError, which speaks of `model`, when neither has it: HubUnreachableError when the hub cannot
    be asked.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    owner_and_name, revision = _split(repository)
    if path := _cached(repository, name, model):
        commit = path.parents[len(Path(name).parents) - 1].name
        return HubFile(owner_and_name, name, commit, path.stat().st_size, path)
    _check_reachable(model)
    with _reworded(repository, name, model):
        url = hf_hub_url(owner_and_name, name, revision=revision)
        about = retrying(TRIES)(get_hf_file_metadata, url)
        if about.commit_hash is None:
            raise LvdError(
                _refusal(model, f"{url} is not answered as the hub answers: correct HF_ENDPOINT")
            )
        return HubFile(owner_and_name, name, about.commit_hash, about.size, None)


def fetch(repository: str, name: str, *, model: str) -> Path:
    """Return the local path of file `name` of `repository` (`owner/name`, or with `@revision`).

    From the cache, else downloaded. What breaks off goes on where it stopped, while this process
    lives. A file that is not of the hash by which the cache knows it is not used: where it was
    there it is fetched again. Raises LvdError, which speaks of `model`, when it is not to be had.
    """
    import huggingface_hub

    found = find(repository, name, model=model)
    if found.path and _is_intact(found.path):
        return found.path
    if found.path:
        warn(f"{found.path} is damaged: it is fetched again")
        # `huggingface_hub` tries a hub that cannot be reached for 23 s: a plain request tells sooner
        _check_reachable(model)
    with _reworded(repository, name, model):
        path = Path(
            retrying(TRIES)(
                huggingface_hub.hf_hub_download,
                found.repository,
                name,
                revision=found.commit,
                force_download=found.path is not None,
            )
        )
        if _is_intact(path):
            _note_revision(found, repository)
            return path
        _remove(path)
        why = f"what the hub sent as {name} of {found.repository} has not the checksum it states"
        raise LvdError(_refusal(model, why))


def commit(repository: str, name: str, *, model: str) -> str:
    """Return the commit of `repository` (`owner/name`, or with `@revision`), 40 hex digits.

    That of the cached file `name`, else what the hub says, which the cache then knows: so what is
    fetched of that commit is found without a hub. Raises what `find` raises.
    """
    _, revision = _split(repository)
    if revision and GIT_HASH.fullmatch(revision):
        return revision
    found = find(repository, name, model=model)
    _note_revision(found, repository)
    return found.commit


def check_cache_or_network(model: str) -> None:
    """Raise HubUnreachableError where the cache holds no model at all and the hub is out of reach."""
    from huggingface_hub import constants

    if not any(Path(constants.HF_HUB_CACHE).glob("models--*")):
        _check_reachable(model)


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


def _note_revision(found: HubFile, repository: str) -> None:
    """Write down in the cache which commit a branch or tag is, as a download by its name would."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    _, revision = _split(repository)
    if found.path or (revision and GIT_HASH.fullmatch(revision)):
        return
    folder = repo_folder_name(repo_id=found.repository, repo_type="model")
    note = Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or "main")
    with suppress(OSError):  # a cache that cannot be written to costs a question to the hub
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(found.commit)


def _is_intact(file: Path) -> bool:
    """Compare a cached file with the hash it is a link to: git's sha1, of large files the sha256.

    Caches without links do not tell: what they hold counts as intact.
    """
    known = file.readlink().name if file.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", known):
        return digest_file(file) == known
    if GIT_HASH.fullmatch(known):
        content = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == known
    return True


def _remove(file: Path) -> None:
    """Take a file out of the cache, and what it links to there."""
    content = file.parent / file.readlink()
    file.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def _check_reachable(model: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set and it is not in the cache"
        raise HubUnreachableError(_refusal(model, why))
    if problem := _probe(constants.ENDPOINT):
        why = f"{constants.ENDPOINT} was not reachable ({problem})"
        raise HubUnreachableError(_refusal(model, why))


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


@contextmanager
def _reworded(repository: str, name: str, model: str) -> Iterator[None]:
    """Turn whatever `huggingface_hub` raises into one line."""
    try:
        yield
    except LvdError:
        raise
    except Exception as error:
        raise _explained(error, repository, name, model) from None


def _explained(error: Exception, repository: str, name: str, model: str) -> LvdError:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub could not say where the file is
    owner_and_name, revision = _split(repository)
    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: f"{owner_and_name} is given to those who accept its terms: accept "
        "them on its page, and set HF_TOKEN to a token of yours",
        errors.RepositoryNotFoundError: f"the hub has no {owner_and_name}, or shows it only to a "
        "token in HF_TOKEN that may read it: correct 'model', or set HF_TOKEN",
        errors.RevisionNotFoundError: f"{owner_and_name} has no revision {revision!r}: correct "
        "'revision'",
        errors.EntryNotFoundError: f"{owner_and_name} on the hub has no {name}, and weights in "
        "other formats are never read: choose a model with safetensors weights",
    }
    if why := next((why for kind, why in reasons.items() if isinstance(error, kind)), None):
        return LvdError(_refusal(model, why))
    cause = cause_of(error)
    if cause is None:
        return LvdError(_refusal(model, _line(error)))
    why = f"{cause.what.replace('the storage', 'the hub')} ({_line(error)})"
    return (HubUnreachableError if cause.kind == "transient" else LvdError)(_refusal(model, why))


def _refusal(model: str, why: str) -> str:
    return (
        f"embedder model {model} cannot be fetched: {why}; set HF_HOME to a cache that holds it, or "
        "name a model that is here: a local folder (`--embedder FOLDER`, of config.json and "
        "model.safetensors), or a bundled one (`--set retrieve.embedder=bundled`, `--set "
        "dedup.embedder=bundled-copies`)"
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
