"""Where, when and towards which part of the Sun a pixel's rays go; and how rays share the memory.

A pixel that covers several posts, an exposure and the Sun's disc are three averages over one set of
rays: each ray takes its own cell of the pixel, its own slice of the exposure and its own points of
the disc, so that their cost does not multiply.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tnav.errors import ConfigError

# Order in time of the cells of a pixel, row by row. From side 3 on these are magic squares: every
# row and column of cells has the same mean time, so that motion does not lean on the pixel's shape.
# (No magic square has side 2.)
_TIME_ORDER = {
    1: (0,),
    4: (0, 3, 2, 1),
    9: (1, 6, 5, 8, 4, 0, 3, 2, 7),
    16: (15, 2, 1, 12, 4, 9, 10, 7, 8, 5, 6, 11, 3, 14, 13, 0),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One ray of every pixel."""

    right_px: float = 0.0  # from the pixel's centre
    down_px: float = 0.0
    time: float = 0.0  # exposures from mid-exposure, in (-1/2, 1/2)
    sun_shift: float = 0.5  # which points of the Sun's disc (`Sunlight.rays_L`)


CENTRE = Sample()


@dataclass(frozen=True, slots=True)
class Block:
    """Poses and rows whose rays are traced together."""

    poses: slice
    rows: slice


def stratified(samples: int, times: int = 1) -> tuple[Sample, ...]:
    """The rays whose mean is a pixel's radiance; the centre alone where one is enough.

    Args:
        samples: cells of a pixel: 1, 4, 9 or 16.
        times: least number of slices of the exposure. Each cell takes one; only where there are
            fewer cells than that do they take several.

    Raises:
        ConfigError: another number of samples.
    """
    if samples not in _TIME_ORDER:
        raise ConfigError(f"samples: {samples}, expected a square (1, 4, 9, 16)")
    side = round(samples**0.5)
    rounds = -(-times // samples)
    count = samples * rounds
    plan = []
    for turn in range(rounds):
        for cell, order in enumerate(_TIME_ORDER[samples]):
            plan.append(
                Sample(
                    right_px=(cell % side + 0.5) / side - 0.5,
                    down_px=(cell // side + 0.5) / side - 0.5,
                    time=(order * rounds + turn + 0.5) / count - 0.5,
                    sun_shift=(cell * rounds + turn + 0.5) / count,
                )
            )
    return tuple(plan)


def blocks(poses: int, rows: int, columns: int, most_rays: int) -> Iterator[Block]:
    """Cut a batch into blocks: several whole frames, or a band of rows of one frame.

    Args:
        poses: in the batch.
        rows: of a frame.
        columns: of a frame.
        most_rays: in a block, unless one row alone has more.
    """
    frames = max(1, most_rays // (rows * columns))
    band = rows if frames > 1 else min(rows, max(1, most_rays // columns))
    for top in range(0, rows, band):  # a band's rays in C are those of all poses: find them once
        for first in range(0, max(1, poses), frames):
            yield Block(slice(first, first + frames), slice(top, min(top + band, rows)))
