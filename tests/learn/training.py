"""What the tests of training share: recipes and pairs that cost next to nothing."""

import torch

from tnav.learn.pairs import PairBatch
from tnav.learn.recipe import TrainRecipe

SIDE_PX = 96
SHIFT_PX = 4
SMALL = {
    "name": "small",
    "steps": 12,
    "batch": 1,
    "workers": 0,
    "network": {
        "widths": [8, 8, 8, 8],
        "blocks": [1, 1, 1, 1],
        "pyramid": 8,
        "half": 8,
        "fine": 4,
        "descriptor": 8,
    },
    "pairs": {
        "width_px": SIDE_PX,
        "height_px": SIDE_PX,
        "regions": ["imbrium-north", "frigoris-west"],
        "ground": {"finest_post_m": 8.0, "levels": 4, "cells": 128},
        "place_m": 500.0,
        "place_agl": 0.0,
        "agl_m": [3000, 5000],
        "tilt_deg": [0, 5],
        "coarser": [2.0],
        "samples": [1],
        "maps": 1,
    },
    "validation": {"pairs": 2, "every_steps": 4},
    "log_steps": 2,
    "epoch_steps": 6,
    "checkpoint_steps": 4,
    "bad_steps_max": 3,
}


def small(**changes: object) -> TrainRecipe:
    """A recipe of a dozen steps."""
    return TrainRecipe.model_validate({**SMALL, **changes})


def shifted(index: int, batch: int = 1) -> PairBatch:
    """Smooth noise, and the same a few pixels to the left: a pair without any rendering."""
    generator = torch.Generator().manual_seed(index)
    wide = torch.rand(batch, 1, SIDE_PX, SIDE_PX + SHIFT_PX, generator=generator)
    wide = torch.nn.functional.avg_pool2d(wide, 3, 1, 1) + 0.1
    centre = torch.arange(SIDE_PX) + 0.5
    v, u = torch.meshgrid(centre, centre, indexing="ij")
    uv_px = torch.stack([u - SHIFT_PX, v], -1).expand(batch, -1, -1, -1).contiguous()
    return PairBatch(
        view=wide[..., :SIDE_PX].contiguous(),
        image=wide[..., SHIFT_PX:].contiguous(),
        uv_px=uv_px,
        known=(uv_px[..., 0] > 0),
    )


def endless(recipe, split, seed, first_index=0, batch=1, workers=0, rank=0, world=1):
    """In place of ``batches``: shifted noise, by the same indices."""
    step = first_index // (batch * world)
    while True:
        first = (step * world + rank) * batch + (10**6 if split == "validation" else 0)
        yield shifted(first, batch)
        step += 1
