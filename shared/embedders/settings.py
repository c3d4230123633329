"""The settings of embedders, checked without torch: within a blink."""

from __future__ import annotations

from typing import Annotated, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared import bundled, bundled_copies
from shared.errors import nearest

LOCAL = "local-dir:"
HUB = "hf-hub:"
RESOURCE = "resource:"
BUILT_IN = "builtin:"

BUNDLED = {package.NAME: package.FOLDER for package in (bundled, bundled_copies)}
"""The folders of the models that come with the project; `builtin:NAME` is what settings call them."""
DESCRIPTOR = "descriptor"
DEFAULTS = {"dedup": bundled_copies.NAME, "retrieve": bundled.NAME}
"""What finds copies, and what judges meaning, where nobody names an embedder."""

Kind = Literal["timm", "open_clip", "onnx", "descriptor"]

REDUCED_DECODING_FACTOR = 2.0
"""Reduced decoding keeps the shorter side at this many times what the model's transform resizes to.

Measured on crawl-small, the model's input made so small (80 px) that most JPEGs are reduced: 5.0%
of the decisions change at 1.0, 2.5% at 1.5 and 1.4% at 2.0 (median cosine 0.998). At the usual
224 px a factor of 2 leaves JPEGs with a shorter side below 1,024 px as they are.
"""

Threshold = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | Literal["auto"]


class Thresholds(BaseModel):
    """The cosines that belong to an embedder; `auto` is found by calibration."""

    model_config = ConfigDict(extra="forbid")

    dedup: Threshold = "auto"
    """At or above it, two images are copies."""
    retrieve: Threshold = "auto"
    """At or above it, an image is relevant to the seed image."""


class GraphSettings(BaseModel):
    """How an ONNX graph takes images, and where it gives their vectors."""

    model_config = ConfigDict(extra="forbid")

    input: str | None = None
    """Name of the images' input; needed where the graph has several."""
    output: str | None = None
    """Name of the output [n, d]; needed where the graph has several."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    """float32: (pixels / 255 - mean) / std; uint8: the pixels themselves."""
    channels: Literal["RGB", "BGR"] = "RGB"
    """Their order in the graph's input; `mean` and `std` are always those of R, G, B."""
    resize: Literal["crop", "squash"] = "crop"
    """crop: the shorter side to `image_size`, then the square at the centre; squash: all of the
    image, whatever its aspect, to the square."""
    resize_to: int | None = Field(None, ge=16, le=4096)
    """Side to resize to before the square of `image_size` at the centre; by default that size."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    jpeg: int | None = Field(None, ge=1, le=95)
    """Quality at which the resized image becomes a JPEG and is read again before it is cropped, as
    for networks that were trained on such."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _can_be_computed(self) -> GraphSettings:
        if self.dtype == "uint8" and self.model_fields_set & {"mean", "std"}:
            raise ValueError("a graph of dtype uint8 normalises by itself: remove mean and std")
        if 0 in self.std:
            raise ValueError("a std of 0 divides by zero")
        return self


class EmbedderSettings(BaseModel):
    """One embedder, as declared in `pipelines.yaml`."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    task: Literal["embed", "classify"] = "embed"
    """embed: unit vectors. classify: for filters, the probabilities of the classes that a timm model
    was trained on, or those that an onnx graph gives."""
    model: str = ""
    """A name of the library, `hf-hub:OWNER/NAME`, `local-dir:FOLDER` of safetensors weights, or
    `builtin:NAME` of a bundled model; for onnx a .onnx file, or `resource:PACKAGE/PATH` of one in a
    package."""
    pretrained: bool | str = True
    """true: the hub's weights; false: random ones by `seed`; else a .safetensors file, or for
    open_clip a tag."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository; by default what the cache has, else the newest
    commit."""
    seed: int = 0
    image_size: int | None = Field(None, ge=16, le=4096)
    """Side of the model's input in pixels; by default the model's own, which onnx graphs lack."""
    graph: GraphSettings | None = None
    """Of onnx only."""
    batch_size: int = Field(32, ge=1)
    decode: Literal["reduced", "full"] = "reduced"
    """`reduced` decodes large JPEGs at a smaller scale, never below what the model looks at."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> EmbedderSettings:
        kinds: dict[Kind, set[str]] = {
            "descriptor": {
                *["model", "pretrained", "seed", "image_size", "revision", "graph", "task"]
            },
            "onnx": {"pretrained", "seed", "revision", "precision"},
            "open_clip": {"graph", "task"},
        }
        if given := sorted(self.model_fields_set & kinds.get(self.kind, {"graph"})):
            raise ValueError(f"embedders of kind {self.kind} have no {given[0]!r}: remove it")
        if self.kind == "descriptor":
            return self
        if not self.model or self.model in (LOCAL, HUB, RESOURCE):
            raise ValueError(f"embedders of kind {self.kind} need 'model', the name of one")
        if self.kind == "onnx":
            if not self.model.endswith(".onnx") or self.model.startswith((LOCAL, HUB)):
                raise ValueError(f"'model' must be a .onnx file or {RESOURCE}PACKAGE/FILE.onnx")
            if self.image_size is None:
                raise ValueError("embedders of kind onnx need 'image_size', in pixels")
            if self.graph and (self.graph.resize_to or self.image_size) < self.image_size:
                raise ValueError("graph.resize_to is smaller than image_size")
            return self
        if self.model.startswith(BUILT_IN):
            _check_is_bundled(self.model.removeprefix(BUILT_IN), self.kind)
        if isinstance(self.pretrained, str) and self.model.startswith((LOCAL, HUB, BUILT_IN)):
            raise ValueError(f"{self.model} brings its own weights: remove 'pretrained'")
        if self.kind == "open_clip" and self.pretrained is True:
            if not self.model.startswith((LOCAL, HUB)):
                raise ValueError("'pretrained' must name open_clip's tag, such as openai")
        elif self.kind == "timm" and isinstance(self.pretrained, str):
            _check_is_safetensors(self.pretrained)
        if self.revision and not from_hub(self):
            raise ValueError(f"{self.model} is not of the hub: remove 'revision'")
        if self.revision and "@" in self.model:
            raise ValueError(f"{self.model} names its revision: remove 'revision'")
        return self


def bundled_settings(name: str = bundled.NAME) -> EmbedderSettings:
    """Return the settings of a bundled model, as good as an entry in `pipelines.yaml`."""
    return EmbedderSettings(kind="timm", model=f"{BUILT_IN}{name}")


def from_hub(settings: EmbedderSettings) -> bool:
    """Tell models whose config or weights come from the hub."""
    if settings.kind not in ("timm", "open_clip") or in_folder(settings):
        return False
    given = settings.pretrained is False or is_weights_file(settings.pretrained)
    return settings.model.startswith(HUB) or not given


def in_folder(settings: EmbedderSettings) -> bool:
    """Tell models of a folder, bundled ones among them, from those that libraries know."""
    return settings.kind != "descriptor" and settings.model.startswith((LOCAL, BUILT_IN))


def is_weights_file(pretrained: bool | str) -> TypeGuard[str]:
    """Tell a path of weights from a tag and from a switch."""
    return isinstance(pretrained, str) and pretrained.endswith(".safetensors")


def _check_is_bundled(name: str, kind: Kind) -> None:
    if name not in BUNDLED or kind != "timm":
        known = " and ".join(f"{BUILT_IN}{each}" for each in BUNDLED)
        raise ValueError(f"the built-in models are {known}, of kind timm{nearest(name, BUNDLED)}")


def _check_is_safetensors(path: str) -> None:
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"'pretrained' must be true, false or a .safetensors file (pickled weights are never "
            f"read), not {path!r}"
        )
