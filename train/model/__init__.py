"""The networks: a timm Vision Transformer as backbone, the projection heads, model folders."""
