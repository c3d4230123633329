"""The student that a recipe describes, before it has learnt anything."""

from __future__ import annotations

from train.model.deferred import DeferredInit
from train.model.network import Network, build_network
from train.recipe import Recipe


def new_network(
    recipe: Recipe, device: str = "cpu", deferred: DeferredInit | None = None
) -> Network:
    """Return the student of a recipe with fresh weights; the same ones on every process.

    With `deferred`, which then knows them, as `build_network`.
    """
    crops = recipe.crops
    network = build_network(
        recipe.model,
        recipe.heads,
        recipe.projector,
        masked=recipe.masks is not None,
        ibot=recipe.objectives.ibot > 0,
        infonce=recipe.objectives.infonce > 0,
        sizes=[crops.global_size, *([crops.local_size] if crops.local_views else [])],
        seed=recipe.seed,
        device=device,
        deferred=deferred,
    )
    unused = recipe.objectives.dino == 0 and recipe.heads is not None and not recipe.heads.shared
    if unused and network.dino_head is not None:
        network.dino_head.requires_grad_(False)  # DDP wants a gradient of all that asks for one
    return network
