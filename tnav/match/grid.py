"""Where patches lie: a regular grid of pixels, and which of its patches are worth matching."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tnav.match.channels import compress
from tnav.records import Frame


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of pixels at which patches are centred."""

    rows: range
    columns: range
    spacing: int  # the same along both axes

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return len(self.rows), len(self.columns)

    def cells(self, b: int, device: torch.device) -> Int64[Tensor, "b n 2"]:
        """Pixels (row, column) of ``b`` images, row by row."""
        row, column = (
            torch.arange(r.start, r.stop, r.step, device=device) for r in (self.rows, self.columns)
        )
        cell = torch.stack(torch.meshgrid(row, column, indexing="ij"), -1)
        return cell.reshape(1, -1, 2).expand(b, -1, -1)


def centred_grid(size: tuple[int, int], margin: int, spacing: int) -> Grid:
    """A grid in the middle of an image of so many rows and columns, off its edges by a margin."""
    lines = []
    for length in size:
        room = length - 1 - 2 * margin
        lines.append(range(margin + room % spacing // 2, length - margin, spacing))
    return Grid(lines[0], lines[1], spacing)


def spacing_for(size: tuple[int, int], per_side: int, least_px: float) -> int:
    """Pixels between patches for so many along the longer side, and at least ``least_px``."""
    return math.ceil(max(least_px, max(size) / per_side))


def usable_patches(
    map_view: Frame,
    view: Float32[Tensor, "b 1 h w"],
    grid: Grid,
    patch_px: int,
    *,
    min_lit_fraction: float,
    min_contrast: float,
) -> Bool[Tensor, "b n"]:
    """Patches of a view that are wholly on the ground, lit enough and textured.

    Args:
        map_view: its geometry.
        view: its radiance, 0 off the ground.
        grid: of the patches.
        patch_px: their odd side.
        min_lit_fraction: share of lit pixels.
        min_contrast: rms of log brightness.
    """
    log_view = compress(view)
    maps = torch.cat(
        [map_view.hit[:, None].float(), map_view.lit[:, None].float(), log_view, log_view.square()],
        1,
    )
    first_row, first_column = grid.rows[0] - patch_px // 2, grid.columns[0] - patch_px // 2
    # The grid is regular: pooling with its spacing as stride visits exactly its patches.
    maps = maps[..., first_row : grid.rows[-1] + patch_px // 2 + 1, :]
    maps = maps[..., first_column : grid.columns[-1] + patch_px // 2 + 1]
    hit, lit, mean, square = avg_pool2d(maps, patch_px, stride=grid.spacing).flatten(2).unbind(1)
    contrast = (square - mean.square()).clamp_min(0.0).sqrt()
    whole = hit > 1 - 0.5 / patch_px**2
    return whole & (lit >= min_lit_fraction) & (contrast >= min_contrast)
