"""What a recipe may say of its data: how images are read, cropped and masked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

BLUR_RADIUS = 4
"""Of DINOv2's Gaussian kernel, 9 pixels wide."""

Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(gt=BLUR_RADIUS)]
MixBatches = Literal["mixed", "homogeneous"]


class SourceSettings(BaseModel):
    """A dataset of a mixture, as `--shards` and `--select` name one."""

    model_config = ConfigDict(extra="forbid")

    shards: str | None = None
    """A folder of shards or of images, a tar, a glob, a brace list, an fsspec URL."""
    select: str | None = None
    """A selection list of what `shards` holds, or of what lies where the list says."""
    ratio: float = Field(gt=0)
    """Its part of the images, in proportion to the other ratios: 0.9 and 0.1, or 9 and 1."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> SourceSettings:
        if self.shards is None and self.select is None:
            raise ValueError("it names no images: add shards, or select")
        return self


class DataSettings(BaseModel):
    """How samples are read."""

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(2, ge=0)
    """Processes that read, decode and crop for each training process; 0 does it there and then."""
    window: int = Field(16, ge=1)
    """Shards that are shuffled together, and so are being read at a time."""
    index: str | None = None
    """Folder that keeps what lies where in the shards, which runs over the same data share and which
    may be removed; by default `.index` beside `--out` (`OUT/index` where nothing can be written
    there). All processes read it."""
    prefetch: int = Field(2, ge=1)
    """Micro-batches that each worker is ahead."""
    decode: Literal["reduced", "full"] = "reduced"
    """`reduced` decodes a large JPEG to a half, a quarter or an eighth of its sides where no crop
    is magnified because of it."""
    resident: bool = False
    """Whether the images are decoded once, to 3 bytes a pixel in the device's memory (64 px times
    100,000 are 1.2 GB, in each process), and cropped there. The batches are the same; the workers
    only draw them."""
    mix: dict[str, SourceSettings] = Field(default_factory=dict)
    """In place of `--shards`: several datasets by name, each with its ratio and epochs of its own."""
    mix_batches: MixBatches = "mixed"
    """`mixed`: each batch holds all of `mix` by their ratios. `homogeneous`: each batch, on all
    processes, is of one of them, of each as often as its ratio says."""


class EditSettings(BaseModel):
    """How likely each edit of a global view is, whose first one is edited strongly; for copies."""

    model_config = ConfigDict(extra="forbid")

    turn: Share = 0.3
    """By up to 25 degrees, the corners filled or cut off."""
    frame: Share = 0.3
    """A border or bars of one colour."""
    caption: Share = 0.3
    """Text above or below, on a strip or on the picture."""
    cover: Share = 0.3
    """A shape, text or noise over up to 30 % of the picture."""
    shrink: Share = 0.3
    """Down to a fifth of the sides, and up again."""
    compress: Share = 0.5
    """JPEG of quality 5 to 60."""
    mild: Share = 0.3
    """Multiplies all of these for the second view, which is to be nearly the picture itself."""
    quarter: Share = 0.0
    """A quarter turn, or a half."""
    slant: Share = 0.0
    """Seen from one side, or sheared, by up to 14 % of a side."""
    light: Share = 0.0
    """Vignette, a slope of light, gamma, exposure, levels."""
    detail: Share = 0.0
    """Sharpened, noise, few levels, few colours, blocks."""
    page: Share = 0.0
    """At 40 to 80 % of the sides, on a page of bars, text, boxes and drawn textures."""


class CropSettings(BaseModel):
    """Multi-crop: sizes, areas and the strength of the augmentations; by default DINOv2's."""

    model_config = ConfigDict(extra="forbid")

    global_size: Pixels = 224
    local_size: Pixels = 98
    local_views: int = Field(8, ge=0)
    global_area: tuple[Share, Share] = (0.32, 1.0)
    """Least and largest share of the image's area that a global view shows."""
    local_area: tuple[Share, Share] = (0.05, 0.32)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width of a crop over its height."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: Share = 0.5
    """Probability of a mirrored view, as the other shares below are probabilities."""
    jitter: tuple[
        Annotated[float, Field(ge=0)],
        Annotated[float, Field(ge=0)],
        Annotated[float, Field(ge=0)],
        Annotated[float, Field(ge=0, le=0.5)],
    ] = (0.4, 0.4, 0.2, 0.1)
    """Strength of brightness, contrast, saturation and hue, as in torchvision's ColorJitter."""
    jitter_probability: Share = 0.8
    grey: Share = 0.2
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """Of the first global view, the second, and the local ones. These are the papers' numbers; the
    released DINOv2 code blurs with 1 minus its probability, which is (0.0, 0.9, 0.5)."""
    blur_sigma: tuple[Annotated[float, Field(gt=0)], float] = (0.1, 2.0)
    """Least and largest standard deviation of the blur, in pixels of the view."""
    solarise: Share = 0.2
    """Of the second global view only."""
    edits: EditSettings | None = None
    """What else is done to the global views, before colours and sharpness, by the workers."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where colours and sharpness are changed: by the loader's workers, or by the training process
    on its device, a batch at a time. With `data.resident` it is always the latter; without it,
    crops are always made by the workers."""

    @model_validator(mode="after")
    def _ranges_run_upwards(self) -> CropSettings:
        for name in ("global_area", "local_area", "aspect", "blur_sigma"):
            least, largest = getattr(self, name)
            if not 0 < least <= largest:
                raise ValueError(f"{name} is ({least}, {largest}): give 0 < least <= largest")
        return self


class MaskSettings(BaseModel):
    """Which global crops are masked, and how much of them; by default DINOv2's."""

    model_config = ConfigDict(extra="forbid")

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Part of a group's global crops that is masked, at least one crop."""
    ratio: tuple[Share, Share] = (0.1, 0.5)
    """Least and largest part of a masked crop's patches that is masked. The range is cut in as many
    equal strata as a group has masked crops, and each takes the middle of one."""
    min_patches: int = Field(4, ge=1)
    """Least size that is drawn for a block."""
    aspect: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Least height of a block over its width; the largest is 1 over it."""
    exact: bool = True
    """Whether the rim of the blocks grows until the count is met, so that all steps have the same
    shapes. The released DINOv2 code does not: where no block fits, it stops short."""

    @model_validator(mode="after")
    def _range_runs_upwards(self) -> MaskSettings:
        least, largest = self.ratio
        if least > largest or largest == 0:
            raise ValueError(f"ratio is ({least}, {largest}): give least <= largest, above 0")
        return self
