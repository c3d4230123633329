"""Checkpoints that are whole or not there, readable by any number of processes.

`checkpoints/step-0000100/` holds the tensors as torch.distributed.checkpoint shards them, and a
`manifest.json` written last. They are safetensors files: the library's own format has a pickle for
its metadata, which runs whatever stands in it on being loaded. A folder that only one's own run
has written is still all that is to be loaded; `OUT/model` is what is given to others.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from shared.errors import LvdError
from shared.progress import warn
from shared.storage.files import digest_file, read_json, reraise_disk_full, sync, write_json
from train.distributed.ranks import Ranks, any_rank, max_over_ranks
from train.persistence.marks import MANIFEST

PARTIAL, DOOMED = ".partial", "."
"""Suffix of a checkpoint that is being written, prefix of one that is being removed."""
STEP = re.compile(r"step-(\d+)(\.partial)?")
FILE_BYTES = 2**28
"""About how much a process writes into one file: a file is built in memory first."""

State = dict[str, Any]
"""Nested dicts of tensors and JSON values, whose keys are texts without a slash."""


def training_state(student: nn.Module, teacher: nn.Module, optimiser: torch.optim.AdamW) -> State:
    """Return weights and moments of a run: the live tensors, into which `load` puts the saved ones.

    They go by the parameters' names, so that shards and parameter groups may be others when they
    are loaded. What the groups hold besides follows from recipe and step, and is not in it. The
    optimiser must have its state already, as `train.optimisation.groups.make_optimiser` gives it.
    """
    return {
        "student": dict(student.state_dict()),
        "teacher": dict(teacher.state_dict()),
        "optimiser": {
            name: dict(optimiser.state[parameter])
            for name, parameter in student.named_parameters()
            if parameter in optimiser.state
        },
    }


def save(folder: Path, step: int, state: State, keep: int, ranks: Ranks) -> Path:
    """Write `folder/step-XXXXXXX`, remove all but the newest `keep`, and return its path.

    Every process calls it, with a `state` of the same names, and `folder` is one that all machines
    share. It is written under another name and renamed: a killed run leaves nothing that could be
    taken for a checkpoint. Raises LvdError, on every process, when it cannot be written.
    """
    path = folder / f"step-{step:07d}"
    partial = path.with_name(path.name + PARTIAL)
    tensors, values = _split(state)

    def begin() -> None:
        for leftover in (*folder.glob(f"step-*{PARTIAL}"), *folder.glob(f"{DOOMED}step-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish() -> None:
        manifest = {
            "step": step,
            "values": values,
            "tensors": {name: _described(tensor) for name, tensor in tensors.items()},
            "files": files,
        }
        if missing := [name for name in files if not (partial / name).exists()]:
            raise LvdError(
                f"{missing[0]}, which another machine wrote below {folder}, is not there: give an "
                "--out that all machines share"
            )
        write_json(partial / MANIFEST, manifest)
        _commit(partial, path)
        _prune(folder, path, keep)

    with _reword_error(folder):
        _first_does(begin, ranks)
        writer = dcp.HuggingFaceStorageWriter(
            str(partial), _numbers_of_files(tensors, ranks.world), save_distributed=True
        )
        with _one_process_is_enough():
            dcp.save(tensors, storage_writer=writer, no_dist=ranks.world == 1)
        files = _files(partial, ranks)
        _first_does(finish, ranks)
    return path


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None; the same on every process.

    What is torn is passed over with a warning. The first process alone reads and checks.
    """
    step = -1
    if not dist.is_initialized() or dist.get_rank() == 0:
        step = _newest_step(folder)
    step = int(max_over_ranks(torch.tensor(step)))
    return None if step < 0 else folder / f"step-{step:07d}"


def load(path: Path, state: State) -> State:
    """Put the tensors of a checkpoint into those of `state`; return it with the saved JSON values.

    Any number of processes may load what another number has saved, each with its own shards.
    `path` must be a checkpoint of one's own run. Raises LvdError where names or shapes differ.
    """
    manifest = read_json(path / MANIFEST)
    tensors, _ = _split(state)
    saved, ours = manifest["tensors"], {name: _described(t) for name, t in tensors.items()}
    for name in sorted(saved.keys() | ours.keys()):
        if saved.get(name) != ours.get(name):
            raise LvdError(
                f"checkpoint {path} was made with other settings: it holds {_shape(saved, name)} "
                f"where this run has {_shape(ours, name)}; give another --out, or --resume never"
            )
    read_tensors(path, tensors, together=dist.is_initialized())
    return _with_values(state, manifest["values"])


def read_tensors(path: Path, tensors: dict[str, Tensor], *, together: bool) -> None:
    """Fill `tensors`, named as in the manifest of the checkpoint `path`, all of it or some.

    Processes read `together` what is sharded over them; else each reads for itself.
    """
    reader = dcp.HuggingFaceStorageReader(str(path))
    with _one_process_is_enough():
        dcp.load(tensors, storage_reader=reader, no_dist=not together)


def _split(state: State, prefix: str = "") -> tuple[dict[str, Tensor], State]:
    """Return the tensors by their path in `state`, and `state` without them."""
    tensors: dict[str, Tensor] = {}
    values: State = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(value, dict):
            inner, values[key] = _split(value, f"{prefix}{key}/")
            tensors |= inner
        else:
            values[key] = value
    return tensors, values


def _with_values(state: State, values: State) -> State:
    kept = {
        key: _with_values(value, values.get(key, {})) if isinstance(value, dict) else value
        for key, value in state.items()
        if isinstance(value, Tensor | dict)
    }
    return {**values, **kept}


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _shape(described: dict[str, dict[str, Any]], name: str) -> str:
    return f"{name} {described[name]['shape']}" if name in described else f"no {name}"


def _numbers_of_files(tensors: dict[str, Tensor], world: int) -> dict[str, int]:
    numbers, before = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + before // (FILE_BYTES * world)
        before += tensor.nbytes
    return numbers


def _files(folder: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Return size and hash of all files, each read by the process that has just written it."""
    mine = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in sorted(folder.glob(f"shard-{ranks.rank + 1:05d}-*"))
    }
    if ranks.world == 1:
        return mine
    of_all: list[dict[str, Any]] = [{}] * ranks.world
    dist.all_gather_object(of_all, mine)
    return {name: known for files in of_all for name, known in files.items()}


def _newest_step(folder: Path) -> int:
    """Return the step of the newest whole checkpoint, or -1; warn once of those passed over."""
    torn, step = [], -1
    for path in _newest_first(folder):
        problem = "it was not finished" if path.suffix == PARTIAL else problem_of(path)
        if not problem:
            step = step_of(path)
            break
        torn.append(f"{path.name} ({problem})")
    if torn:
        instead = f"going on from step {step}" if step >= 0 else "there is no whole one"
        warn(f"torn checkpoint passed over in {folder}: {', '.join(torn)}; {instead}")
    return step


def _newest_first(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if STEP.fullmatch(p.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step behind which a checkpoint was saved."""
    name = STEP.fullmatch(path.name)
    assert name is not None, path
    return int(name[1])


def problem_of(path: Path, *, hashes: bool = True) -> str:
    """Return what is wrong with a checkpoint, or an empty string."""
    try:
        files = read_json(path / MANIFEST)["files"]
    except (OSError, ValueError, KeyError):
        return f"no readable {MANIFEST}"
    for name, known in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != known["bytes"]:
            return f"{name} has {file.stat().st_size} of {known['bytes']} bytes"
        if hashes and digest_file(file) != known["sha256"]:
            return f"{name} is damaged"
    return ""


def _commit(partial: Path, path: Path) -> None:
    if path.exists():
        _remove(path)
    partial.rename(path)
    sync(path.parent)


def _prune(folder: Path, written: Path, keep: int) -> None:
    """Remove what is torn, and all whole ones but `written` and the newest others."""
    others = [path for path in _newest_first(folder) if path != written]
    whole = [path for path in others if not problem_of(path, hashes=False)]
    for path in others:
        if path not in whole[: keep - 1]:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint, under a name by which it is taken for none should that be cut short."""
    doomed = path.with_name(DOOMED + path.name)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _first_does(work: Callable[[], None], ranks: Ranks) -> None:
    """Run `work` in the first process; all wait for it, and all raise if it fails."""
    failure: Exception | None = None
    if ranks.first:
        try:
            work()
        except (OSError, LvdError) as error:
            failure = error
    if any_rank(failure is not None):
        raise failure or LvdError("no checkpoint was written: the first process says why")


@contextmanager
def _reword_error(folder: Path) -> Iterator[None]:
    """Turn a failed write into one line; torch gathers those of all processes into its own type."""
    try:
        with reraise_disk_full(folder):
            try:
                yield
            except CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from None
    except OSError as error:
        reason = error.strerror or error
        raise LvdError(f"no checkpoint can be written below {folder}: {reason}") from error


@contextmanager
def _one_process_is_enough() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
