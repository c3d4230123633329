"""A wider network is held against the narrower one, which timm runs."""

from __future__ import annotations

import pytest
import torch

from shared.errors import LvdError
from train.export.widening import widened
from train.model.backbone import Backbone, build_backbone
from train.model.settings import ModelSettings

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}
PLAIN = ModelSettings(name="vit_tiny_patch16_224", patch_size=8, options=SMALL)
SCALED = ModelSettings(
    name="vit_small_patch14_reg4_dinov2", patch_size=8, options=SMALL, layer_scale=0.5
)


def drawn(settings: ModelSettings, *, masked: bool = False) -> Backbone:
    """A backbone none of whose parameters is special."""
    generator = torch.Generator().manual_seed(0)
    backbone = build_backbone(settings, image_size=32, masked=masked)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3, generator=generator)
    return backbone.double().eval()


def wider(settings: ModelSettings, width: int) -> ModelSettings:
    return settings.model_copy(update={"options": {**settings.options, "embed_dim": width}})


@pytest.mark.parametrize("settings", [PLAIN, SCALED], ids=["plain", "registers and LayerScale"])
def test_a_wider_network_gives_the_same_and_zeros(settings: ModelSettings) -> None:
    narrow = drawn(settings, masked=True)
    state = {name: value.double() for name, value in widened(narrow.state_dict(), 40, 2).items()}
    wide = build_backbone(wider(settings, 40), image_size=32, masked=True).double().eval()
    wide.load_state_dict(state)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    masks = torch.zeros(3, 16, dtype=torch.bool)
    masks[:, 3:7] = True
    with torch.inference_mode():
        for ours, theirs in zip(wide(images, masks), narrow(images, masks), strict=True):
            torch.testing.assert_close(ours[..., :24], theirs, atol=1e-5, rtol=1e-5)
            # The final norm of a network has a bias, and none on the new axes.
            assert not ours[..., 24:].any()


def test_what_cannot_be_widened_is_named() -> None:
    settings = PLAIN.model_copy(update={"options": {**SMALL, "qk_norm": True}})
    with pytest.raises(LvdError, match="q_norm"):
        widened(drawn(settings).state_dict(), 40, 2)
