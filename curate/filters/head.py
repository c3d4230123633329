"""Filters by a linear head on stored vectors: an aesthetic score, or any classifier trained on them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field

from shared.embedders.embedder import load_forward
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage.failures import reword
from shared.storage.remote import open_binary


@dataclass(frozen=True)
class Head:
    """What makes a score of a vector: a linear layer, and with several outputs a softmax."""

    weight: Float64[np.ndarray, "c d"]
    bias: Float64[np.ndarray, " c"]
    wanted: Int64[np.ndarray, " w"]
    """Of several outputs, those whose probabilities are added up."""
    normalises: bool = True
    """Whether vectors are taken at length 1."""

    def score(self, vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Return the output of each vector, or the probability of the wanted ones."""
        taken = vectors.astype(np.float64)
        if self.normalises:
            taken /= np.maximum(np.linalg.norm(taken, axis=1, keepdims=True), 1e-12)
        outputs: Float64[np.ndarray, "n c"] = taken @ self.weight.T + self.bias
        if len(self.weight) == 1:
            return outputs[:, 0]
        odds = np.exp(outputs - outputs.max(1, keepdims=True))
        probability: Float64[np.ndarray, " n"] = odds[:, self.wanted].sum(1) / odds.sum(1)
        return probability

    def save(self, path: Path) -> None:
        """Write it where `load` reads it."""
        np.savez(path, **vars(self))

    @staticmethod
    def load(path: Path) -> Head:
        """Return what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("weight", "bias", "wanted")}
            return Head(**arrays, normalises=bool(file["normalises"]))


class HeadSettings(BaseModel):
    """A linear layer of the user's own, on the vectors of an embedder at length 1."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """A .safetensors or .npz, here or behind an fsspec URL, with the arrays `weight` [d] or [c, d]
    and, if there is one, `bias` [c]. With one output that is the score, else see `classes`."""
    embedder: str = "retrieve"
    """`retrieve` or `dedup`, for the one that the run has, or the name of another one."""
    classes: list[int] | None = Field(None, min_length=1)
    """Of several outputs, from 0, those whose probabilities (softmax) add up to the score."""

    @property
    def model(self) -> str:
        """The embedder that it asks."""
        return self.embedder

    def require(self, embedder: EmbedderSettings) -> None:
        """Raise ValueError for an embedder whose vectors it cannot take."""
        if embedder.task == "classify":
            raise ValueError("classifies, and a head takes vectors: name one without a task")

    def load(self, place: str) -> LoadedHead:
        """Return the layer, checked. LvdError, in one line, where it is none or fits no `classes`."""
        where = f"{place}.head.file: {self.file}"
        with reword(where, "correct its path"), open_binary(self.file) as stream:
            data = stream.read()
        arrays = _read_arrays(data, where, is_npz=self.file.endswith(".npz"))
        weight, bias = _linear_of(arrays, where)
        count = len(weight)
        if count > 1 and self.classes is None:
            raise LvdError(f"{where} has {count} outputs: say which of them count as `classes`")
        if count == 1 and self.classes is not None:
            raise LvdError(f"{where} has one output: drop `classes`")
        if wrong := [each for each in self.classes or [] if not 0 <= each < count]:
            raise LvdError(f"{where} has no output {wrong[0]}: it has 0 to {count - 1}")
        wanted = np.array(self.classes or [0], np.int64)
        digest = hashlib.sha256(data).hexdigest()
        return LoadedHead(where, digest, Head(weight, bias, np.unique(wanted)))


@dataclass(frozen=True)
class LoadedHead:
    """A head as its file holds it; travels to the workers."""

    where: str
    digest: str
    head: Head

    @property
    def about(self) -> list[object]:
        """What decides its scores, JSON-able."""
        return [self.digest, self.head.wanted.tolist()]

    def compile(self, embedder: EmbedderSettings, threads: int) -> Head:
        """Return the head. LvdError where it is for vectors of another length than the embedder's."""
        dim = dim_of(embedder, threads)
        if dim != self.head.weight.shape[1]:
            raise LvdError(
                f"{self.where} is for vectors of {self.head.weight.shape[1]} dimensions, and those "
                f"of embedder {embedder.model or embedder.kind} have {dim}: name the embedder that "
                "it was trained on"
            )
        return self.head


def dim_of(embedder: EmbedderSettings, threads: int) -> int:
    """Return how long an embedder's vectors are, or how many classes it has: it is loaded, on the
    processor."""
    on_processor = embedder.model_copy(update={"device": "cpu"})
    return load_forward(on_processor, threads).dim


def _read_arrays(data: bytes, where: str, *, is_npz: bool) -> dict[str, np.ndarray]:
    try:
        if not is_npz:
            from safetensors.numpy import load

            return dict(load(data))
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # whatever a broken file makes a reader raise
        reason = " ".join(str(error).split())[:150]
        raise LvdError(f"{where} cannot be read as .safetensors or .npz ({reason})") from None


def _linear_of(
    arrays: dict[str, np.ndarray], where: str
) -> tuple[Float64[np.ndarray, "c d"], Float64[np.ndarray, " c"]]:
    by_end = {name.rpartition(".")[2]: array for name, array in arrays.items()}
    if len(by_end) != len(arrays) or not {"weight"} <= by_end.keys() <= {"weight", "bias"}:
        raise LvdError(
            f"{where} is no linear layer: it holds {', '.join(sorted(arrays)) or 'nothing'}, not "
            "one `weight` [c, d] and `bias` [c]"
        )
    weight = np.atleast_2d(np.asarray(by_end["weight"], np.float64))
    bias = np.asarray(by_end.get("bias", np.zeros(len(weight))), np.float64).reshape(-1)
    if weight.ndim != 2 or not weight.size or bias.shape != (len(weight),):
        raise LvdError(
            f"{where} is no linear layer: its weight is {list(by_end['weight'].shape)} and its bias "
            f"{list(bias.shape)}, not [c, d] and [c]"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise LvdError(f"{where} holds values that are not finite")
    return weight, bias
