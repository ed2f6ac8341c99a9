"""Pairs to train on, rendered as they are asked for: a map view, an image, and where all of it is.

Pairs have an index; step, rank and place in the batch give it, so that a run that is resumed, on
any number of workers, sees the pairs that it would have seen.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float32
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tnav.errors import ConfigError
from tnav.learn.cases import LAWS, Law, SceneRecipe
from tnav.learn.draws import Magnitude, PositiveInterval
from tnav.learn.regions import Split
from tnav.learn.scenes import Scene, SceneMaker

_FAR_PX = 1e5  # coordinates are held within, and what has none lies there: finite, never an image's
_PREFETCH = 2  # batches that each worker has under way
_FOCAL_PX = 1236.0774  # of 1024 px over 45 deg


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs with their true correspondence, all on one device."""

    view: Float32[Tensor, "b 1 h w"]  # of the map, at the predicted pose, under the view's Sun
    image: Float32[Tensor, "b 1 h w"]  # detector output at the true pose, under the true Sun
    uv_px: Float32[Tensor, "b h w 2"]  # where the ground at each view pixel's centre truly lies
    known: Bool[Tensor, "b h w"]  # uv_px means something, and the ground is seen there

    def __len__(self) -> int:
        return self.view.shape[0]

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same pairs on another device."""
        return PairBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


class PairRecipe(SceneRecipe):
    """Scenes of small images: crops at the pixel scale of a 1024 px camera of 45 deg."""

    width_px: int = Field(default=256, ge=16, le=8192, multiple_of=16)
    height_px: int = Field(default=256, ge=16, le=8192, multiple_of=16)
    focal_px: float | None = Field(default=_FOCAL_PX, gt=0)
    agl_m: PositiveInterval = (500.0, 15000.0)
    # 64 px of such a camera are 5.2 % of the height
    horizontal_agl: Magnitude | None = (0.0005, 0.05)
    height_percent: Magnitude = (0.0, 3.0)
    attitude_deg: Magnitude = (0.0, 0.3)
    roll_error_deg: Magnitude = (0.0, 5.0)
    scale_percent: Magnitude = (0.0, 8.0)
    sun_azimuth_error_deg: Magnitude = (0.0, 180.0)
    sun_elevation_error_deg: Magnitude = (0.0, 3.0)
    view_elevation_least_deg: float = Field(default=2.0, gt=0, lt=90)
    coarser: tuple[float, ...] = Field(default=(1.0, 2.0, 3.0, 4.0, 6.0, 8.0), min_length=1)
    reflectance: tuple[Law, ...] = Field(default=LAWS, min_length=1)
    view_reflectance: tuple[Law, ...] = Field(default=LAWS, min_length=1)
    samples: tuple[Literal[1, 4, 9, 16], ...] = Field(default=(1,), min_length=1)
    posts_per_pixel: float = Field(default=1.4, gt=0)


class PairDataset(Dataset[PairBatch]):
    """Pairs by index, each a batch of one. It is sent to workers as numbers, without its ground."""

    def __init__(
        self,
        recipe: SceneRecipe,
        split: Split,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._arguments = (recipe, split, seed, device)
        self._maker: SceneMaker | None = SceneMaker(recipe, split, seed, device)

    def __getstate__(self) -> tuple[SceneRecipe, Split, int, torch.device | str]:
        return self._arguments

    def __setstate__(self, state: tuple[SceneRecipe, Split, int, torch.device | str]) -> None:
        self._arguments, self._maker = state, None

    @property
    def maker(self) -> SceneMaker:
        """What makes the scenes of the pairs."""
        if self._maker is None:
            self._maker = SceneMaker(*self._arguments)
        return self._maker

    def __getitem__(self, index: int) -> PairBatch:
        return pair_of(self.maker.scene(index))


def pair_of(scene: Scene) -> PairBatch:
    """A scene with the true place of every pixel of its view."""
    view = scene.map_view
    height, width = view.hit.shape[1:]
    uv_px, seen = scene.true_uv_px(view.xyz_L.reshape(-1, 3))
    uv_px = uv_px.nan_to_num(_FAR_PX, _FAR_PX, -_FAR_PX).clamp(-_FAR_PX, _FAR_PX)
    return PairBatch(
        view=view.image,
        image=scene.image,
        uv_px=uv_px.float().view(1, height, width, 2),
        known=seen.view(1, height, width) & view.hit,
    )


def collate(pairs: Sequence[PairBatch]) -> PairBatch:
    """One batch out of several, in their order."""
    return PairBatch(*(torch.cat([getattr(p, f.name) for p in pairs]) for f in fields(PairBatch)))


class IndexBatches(Sampler[list[int]]):
    """Indices of a rank's batches, without end: place k of step s is (s world + rank) batch + k."""

    def __init__(self, first_step: int, batch: int, rank: int, world: int) -> None:
        """Check the numbers.

        Raises:
            ConfigError: an empty batch, a step below 0, or a rank that is not of this world.
        """
        if batch < 1 or first_step < 0 or not 0 <= rank < world:
            raise ConfigError(
                f"pairs: batch {batch}, first step {first_step}, rank {rank} of {world}; expected "
                "a batch of 1 or more, a step of 0 or more and a rank below the number of ranks"
            )
        self._numbers = (first_step, batch, rank, world)

    def __iter__(self) -> Iterator[list[int]]:
        step, batch, rank, world = self._numbers
        while True:
            first = (step * world + rank) * batch
            yield list(range(first, first + batch))
            step += 1


def batches(
    recipe: SceneRecipe,
    split: Split,
    seed: int,
    first_index: int = 0,
    batch: int = 8,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[PairBatch]:
    """Batches without end, on the CPU.

    Args:
        recipe: of the pairs.
        split: where their ground lies.
        seed: of all their draws.
        first_index: index of the first pair of all ranks together: steps done times world times
            batch, so that a resumed run goes on where it stopped.
        batch: pairs of one rank's batch.
        workers: processes that render; 0 renders here. The pairs do not depend on it.
        rank: of this process.
        world: how many processes share the pairs.

    Raises:
        ConfigError: a first index that is not the start of a step, or numbers that do not fit.
    """
    if batch < 1 or world < 1 or first_index % (batch * world):
        raise ConfigError(
            f"pairs: first index {first_index}, expected a multiple of batch x ranks = "
            f"{batch} x {world}"
        )
    indices = IndexBatches(first_index // (batch * world), batch, rank, world)
    dataset = PairDataset(recipe, split, seed)
    loader = DataLoader(
        dataset,
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
    # An interrupt is the trainer's: it still wants its batches, to end at a checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
