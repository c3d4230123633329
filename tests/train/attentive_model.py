"""Small frozen Vision Transformers, one of whose heads' attention is known by hand."""

import torch
from timm.models.vision_transformer import VisionTransformer

from shared.embedders.evaluation_transform import square
from shared.embedders.settings import EmbedderSettings
from train.frozen.model import FrozenModel, Needs
from train.frozen.towers import patch_and_registers


def frozen(module, size=32, precision="float32", name="tiny"):
    patch, registers = patch_and_registers(module)
    needs = Needs(size, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "token", patch, registers)
    told = EmbedderSettings(kind="timm", model="any", precision=precision, device="cpu")
    return FrozenModel(name, module.eval(), square(size), needs, told, "test")


def seer(sign=(3.0, -3.0), patch=4, size=16, registers=1):
    """A ViT of one block whose heads look at bright and at dark patches, by `sign`."""
    heads, width = len(sign), 2 * len(sign)
    network = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=width, depth=1, num_heads=heads,
        reg_tokens=registers, num_classes=0, norm_layer=torch.nn.Identity,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    block = network.blocks[0]
    with torch.no_grad():
        network.patch_embed.proj.weight[0] = 1 / (3 * patch * patch)  # the mean of a patch
        network.cls_token.fill_(99.0)
        network.reg_token.fill_(99.0)
        for head, strength in enumerate(sign):
            block.attn.qkv.bias[2 * head] = 1.0  # each query is (1, 0)
            block.attn.qkv.weight[width + 2 * head, 0] = strength
    return network
