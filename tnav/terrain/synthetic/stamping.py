"""Round features added to the heights of a lattice, from a table of their profiles."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32
from numpy.typing import NDArray
from torch import Tensor

from tnav.terrain.lattice import Window
from tnav.terrain.synthetic.profile import ProfileTable, hat_wear

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BOX_POSTS = 40  # features that reach further are drawn one by one
_CHUNK = 1 << 18  # heights worked on at once: bounds memory to some 20 MB


@dataclass(frozen=True, slots=True)
class Features:
    """Round features of the ground, in metres of L."""

    east_m: Floats
    north_m: Floats
    radius_m: Floats
    height_m: Floats  # what the table's heights are multiplied by
    state: Floats  # wear kappa t / R^2

    def __len__(self) -> int:
        return len(self.radius_m)

    def where(self, chosen: NDArray[np.bool_]) -> "Features":
        """Those of a mask."""
        return Features(
            self.east_m[chosen],
            self.north_m[chosen],
            self.radius_m[chosen],
            self.height_m[chosen],
            self.state[chosen],
        )


@dataclass(frozen=True, slots=True)
class _Placed:
    """Features in posts of a window: nearest post, what is left of it, and rows of the table."""

    row: Ints
    column: Ints
    rest_row: Floats
    rest_column: Floats
    nodes_per_post: Floats
    table_row: Ints
    share: Floats
    height_m: Floats


def stamped_heights(
    window: Window, features: Features, table: ProfileTable
) -> Float64[Tensor, "rows cols"]:
    """Heights of features as a level of the window's posts shows them, each added to the others.

    Distances are taken from the lattice post nearest to a feature, so that its heights have the
    same bits in every window.
    """
    margin = 2 * _BOX_POSTS + 2
    rows, cols = window.rows + 2 * margin, window.cols + 2 * margin
    out = torch.zeros(rows, cols, dtype=torch.float64)
    radius = features.radius_m / window.post_m
    reach = np.floor(table.reach_radii * radius + 0.5).astype(np.int64)
    row = np.rint(features.north_m / window.post_m) - window.row0
    column = np.rint(features.east_m / window.post_m) - window.col0
    meets = (row >= -reach) & (row < window.rows + reach)
    meets &= (column >= -reach) & (column < window.cols + reach)
    features, reach = features.where(meets), reach[meets]
    small = reach <= _BOX_POSTS
    for posts in np.unique(reach[small]):
        placed = _place(window, features.where(reach == posts), table)
        _stamp_boxes(out, placed, table, int(posts), margin)
    inner = out[margin:-margin, margin:-margin].contiguous()
    _stamp_large(inner, _place(window, features.where(~small), table), table)
    return inner


def _place(window: Window, features: Features, table: ProfileTable) -> _Placed:
    east, north = features.east_m / window.post_m, features.north_m / window.post_m
    column, row = np.rint(east), np.rint(north)
    state = features.state + hat_wear(window.post_m, features.radius_m)
    table_row, share = table.rows(state)
    return _Placed(
        row.astype(np.int64) - window.row0,
        column.astype(np.int64) - window.col0,
        row - north,
        column - east,
        table.nodes_per_radius * window.post_m / features.radius_m,
        table_row,
        share,
        features.height_m,
    )


def _stamp_boxes(
    out: Float64[Tensor, "r c"], placed: _Placed, table: ProfileTable, reach: int, margin: int
) -> None:
    """Add features of one reach in posts, many at a time, to heights with a margin around them."""
    nodes, width = table.height.shape[1], out.shape[1]
    flat, flat_table = out.view(-1), table.height.view(-1)
    offset = torch.arange(-reach, reach + 1)
    patch = (offset[:, None] * width + offset).flatten()
    chunk = max(1, _CHUNK // len(patch))
    for first in range(0, len(placed.row), chunk):
        part = slice(first, first + chunk)
        scale = torch.from_numpy(placed.nodes_per_post[part])[:, None]
        dn, de = (
            ((offset + torch.from_numpy(rest[part])[:, None]) * scale).float().square()
            for rest in (placed.rest_row, placed.rest_column)
        )
        at = (dn[:, :, None] + de[:, None, :]).sqrt_().view(len(scale), -1)
        at.clamp_(max=nodes - 2)
        node = at.int()
        at -= node
        node += torch.from_numpy(placed.table_row[part] * nodes).int()[:, None]
        share = torch.from_numpy(placed.share[part]).float()[:, None]
        height = torch.lerp(
            _between(flat_table, node, at), _between(flat_table[nodes:], node, at), share
        )
        height *= torch.from_numpy(placed.height_m[part]).float()[:, None]
        centre = (placed.row[part] + margin) * width + placed.column[part] + margin
        index = torch.from_numpy(centre)[:, None] + patch
        flat.index_add_(0, index.flatten(), height.double().flatten())


def _stamp_large(out: Float64[Tensor, "r c"], placed: _Placed, table: ProfileTable) -> None:
    """Add features that span many posts one by one, each in the part of the window it meets."""
    last = table.height.shape[1] - 2
    for k in range(len(placed.row)):
        scale = float(placed.nodes_per_post[k])
        south, dn = _span(int(placed.row[k]), float(placed.rest_row[k]), scale, last, out.shape[0])
        west, de = _span(
            int(placed.column[k]), float(placed.rest_column[k]), scale, last, out.shape[1]
        )
        if len(dn) == 0 or len(de) == 0:
            continue
        row = int(placed.table_row[k])
        line = torch.lerp(table.height[row], table.height[row + 1], float(placed.share[k]))
        line = line * float(placed.height_m[k])
        rows = max(1, _CHUNK // len(de))
        for first in range(0, len(dn), rows):
            at = (dn[first : first + rows, None] + de).sqrt_().clamp_(max=last)
            node = at.int()
            part = out[south + first : south + first + len(at), west : west + len(de)]
            part += _between(line, node, at - node)


def _span(
    centre: int, rest: float, scale: float, last: int, size: int
) -> tuple[int, Float32[Tensor, " n"]]:
    """First post along an axis that a feature reaches, and squared distances in nodes from it."""
    reach = int(last / scale) + 1
    low, high = max(0, centre - reach), min(size, centre + reach + 1)
    posts = torch.arange(low, max(low, high), dtype=torch.float64)
    return low, ((posts - centre + rest) * scale).float().square()


def _between(
    table: Float32[Tensor, " n"], node: Int32[Tensor, "*k"], share: Float32[Tensor, "*k"]
) -> Float32[Tensor, "*k"]:
    """Linear interpolation between a node and the next."""
    low = table[node]
    return low + share * (table[1:][node] - low)
