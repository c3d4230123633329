"""Turns a model folder into an ONNX graph, and holds that against torch before anyone relies on it."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from shared.errors import LvdError
from train.model.model_folder import WEIGHTS

GRAPH = "model.onnx"
OUTPUTS = ("cls", "patches")
TOLERANCE = 1e-4
"""By how much an output may differ from torch's, as a share of the largest value of that output."""
COMPARED = (1, 3)
"""Batch sizes at which it is compared."""


class Tokens(nn.Module):
    """What the graph computes."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def forward(
        self, images: Float[Tensor, "n 3 s s"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n p d"]]:
        """Return CLS and patch tokens after the final norm, behind CLS and registers."""
        tokens = self.vit.forward_features(images)
        return tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :]


def require_onnx() -> None:
    """Raise LvdError unless what the extra `onnx` brings is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LvdError(
            f"--format onnx needs {error.name or 'onnx'}: install the extra, as in "
            "`uv pip install -c constraints.txt -e '.[onnx]'`"
        ) from error


def write_onnx(folder: Path) -> float:
    """Replace the weights of a model folder by `model.onnx`; return how far it is from torch.

    The graph takes `images`, float32 [n, 3, size, size] for any n, normalised as config.json says,
    and gives `cls` [n, d] and `patches` [n, p, d], row by row. What is returned is the largest
    difference on seeded random images, as a share of the largest output; LvdError where it is
    beyond `TOLERANCE`.
    """
    vit = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert isinstance(vit, VisionTransformer)  # as all that is trained here
    model = Tokens(vit).eval().requires_grad_(False)
    height, width = vit.patch_embed.img_size
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, height, width),),
        dynamo=True,
        input_names=["images"],
        output_names=OUTPUTS,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None  # with dynamo
    program.save(str(folder / GRAPH))
    size = height, width
    difference = max(_difference(model, folder / GRAPH, size, batch) for batch in COMPARED)
    if not difference <= TOLERANCE:
        raise LvdError(
            f"the ONNX graph differs from torch by {difference:.1e} of the largest output, more "
            f"than {TOLERANCE:.0e}: nothing was written; install the versions of constraints.txt"
        )
    (folder / WEIGHTS).unlink()
    return difference


@torch.inference_mode()
def _difference(model: Tokens, graph: Path, size: tuple[int, int], batch: int) -> float:
    import onnxruntime

    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = session.run(OUTPUTS, {"images": images.numpy()})
    return max(
        ((torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max()).item()
        for theirs, ours in zip(found, model(images), strict=True)
    )
