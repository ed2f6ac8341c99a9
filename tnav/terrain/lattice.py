"""The lattice of posts that a level is cut from.

Every level of a site has an infinite lattice of posts with one of them at the origin of L: post
(row, col) lies ``row * post_m`` north and ``col * post_m`` east. Postings double from level to
level, so that post (row, col) of a level is post (2 row, 2 col) of the next finer one. What is made
of seeds (relief, albedo) is a function of the lattice, never of the window that was asked for.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of posts of one lattice."""

    post_m: float
    row0: int  # southernmost row
    col0: int  # westernmost column
    rows: int
    cols: int

    @property
    def south_m(self) -> float:
        """North coordinate of the first row."""
        return self.row0 * self.post_m

    @property
    def west_m(self) -> float:
        """East coordinate of the first column."""
        return self.col0 * self.post_m

    def grown(self, posts: int) -> "Window":
        """The window with so many more posts on every side."""
        return Window(
            self.post_m,
            self.row0 - posts,
            self.col0 - posts,
            self.rows + 2 * posts,
            self.cols + 2 * posts,
        )

    def axes_m(self) -> tuple[Float64[Tensor, " cols"], Float64[Tensor, " rows"]]:
        """East coordinates of the columns and north coordinates of the rows."""
        east = torch.arange(self.col0, self.col0 + self.cols, dtype=torch.float64) * self.post_m
        north = torch.arange(self.row0, self.row0 + self.rows, dtype=torch.float64) * self.post_m
        return east, north
