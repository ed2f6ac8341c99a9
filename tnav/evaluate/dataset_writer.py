"""Writes a dataset: shard by shard, so that it can be stopped, resumed and shared out at any point.

Every frame is a function of recipe and number alone. A rerun keeps what is whole and renders the
rest, and the folder ends with the same bytes however often it was stopped.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from tnav.errors import ConfigError, RunFileError
from tnav.evaluate.dataset import RenderRecipe
from tnav.evaluate.dataset_finish import finish
from tnav.evaluate.dataset_folder import (
    Record,
    Shard,
    belongs,
    check_writable,
    claim,
    damage,
    inputs_of,
    locked,
    read_dataset,
)
from tnav.evaluate.dataset_frames import Studio
from tnav.evaluate.dataset_ground import Ground
from tnav.evaluate.dataset_plan import Plan, plan_of

_WRITERS = 2  # threads that encode and write while the next frames are rendered
_NAMED = 3  # damaged files named in one line
Show = Callable[[str, int, int], None]  # what is under way, frames done, frames in all


@dataclass(frozen=True, slots=True)
class Part:
    """Which shards a process takes: every ``of``-th from number ``index`` (from 1) on."""

    index: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """``K/N``. Raises ConfigError for anything else."""
        first, slash, second = text.partition("/")
        if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first), int(second))
        raise ConfigError(f"--shard {text}: expected K/N with 1 <= K <= N, such as 1/4")


@dataclass(frozen=True, slots=True)
class Written:
    """What a call did."""

    frames: int  # there now, of those asked for
    rendered: int  # by this call
    planned: int  # of the whole dataset
    finished: bool  # index, README and COLMAP model are written


def write_dataset(
    recipe: RenderRecipe,
    out: Path,
    device: torch.device,
    *,
    part: Part | None = None,
    limit: int | None = None,
    show: Show = lambda text, done, total: None,
) -> Written:
    """Render what is missing of a dataset.

    Args:
        recipe: resolved.
        out: its folder; made when absent.
        device: where to render.
        part: leave the other shards and the index to other processes; all when None.
        limit: the first frames only, for a look.
        show: called as it goes.

    Raises:
        ConfigError: the recipe cannot be rendered, the folder belongs to another one, or another
            process is at work on it.
        TileError: the DEM is missing, damaged, or does not cover the ground.
    """
    check_writable(out)
    inputs = inputs_of(recipe, device.type)
    if belongs(out, recipe, inputs):
        done = _already(out, limit)
        if done is not None:
            return done
    show("terrain: DEM, curvature, synthetic relief", 0, 1)
    ground = Ground(recipe, device)
    plan = plan_of(recipe, ground)
    studio = Studio(recipe, plan, ground)
    claim(out, recipe, inputs)
    wanted = len(plan) if limit is None else min(limit, len(plan))
    mine = part or Part()
    shards = [s for k, s in enumerate(_shards(recipe, out, plan)) if k % mine.of == mine.index - 1]
    numbers = [[k for k in shard.numbers if k < wanted] for shard in shards]
    counter = _Counter(show, sum(map(len, numbers)))
    records: dict[int, Record] = {}
    for shard, asked in zip(shards, numbers, strict=True):
        if asked:
            records |= _filled(shard, asked, studio, counter)
    if part is None:
        show("index, preview, COLMAP model", counter.total, counter.total)
        with locked(out):
            finish(out, studio, [records[k] for k in range(wanted)], len(plan))
    return Written(len(records), counter.rendered, len(plan), part is None)


def verify_dataset(recipe: RenderRecipe, out: Path) -> int:
    """Hash every file of a finished dataset again.

    Returns:
        Frames that were checked.

    Raises:
        ConfigError: the folder belongs to another recipe.
        RunFileError: not finished, or files are missing or changed; one line names them.
    """
    dataset = read_dataset(out)
    belongs(out, recipe, inputs_of(recipe, str(dataset["device"])))
    found = damage(out)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise RunFileError(
            f"{out}: {len(found)} damaged: {', '.join(found[:_NAMED])}{more}; render again to mend"
        )
    return _count(dataset, "frames")


class _Counter:
    """Frames done, shown as they come."""

    def __init__(self, show: Show, total: int) -> None:
        self.show, self.total = show, total
        self.done = self.rendered = 0

    def add(self, frames: int, *, rendered: bool) -> None:
        self.done += frames
        self.rendered += frames if rendered else 0
        self.show("frames", self.done, self.total)


def _already(out: Path, limit: int | None) -> Written | None:
    """What there is, where nothing is left to do."""
    try:
        dataset = read_dataset(out)
    except RunFileError:
        return None
    frames, planned = _count(dataset, "frames"), _count(dataset, "planned")
    if frames < (planned if limit is None else min(limit, planned)) or damage(out):
        return None
    return Written(frames, 0, planned, True)


def _count(dataset: Record, name: str) -> int:
    value = dataset.get(name)
    if not isinstance(value, int):
        raise RunFileError(f"dataset.json: {name} is {value!r}, expected a number")
    return value


def _shards(recipe: RenderRecipe, out: Path, plan: Plan) -> list[Shard]:
    size, suffix = recipe.frames_per_shard, f".{recipe.image_format}"
    starts = range(0, len(plan), size)
    return [
        Shard(out, k, range(start, min(start + size, len(plan))), suffix)
        for k, start in enumerate(starts)
    ]


def _filled(
    shard: Shard, numbers: list[int], studio: Studio, counter: _Counter
) -> dict[int, Record]:
    """Records of a shard's frames, after rendering those that are missing."""
    shard.prepare()
    with locked(shard.folder), ThreadPoolExecutor(_WRITERS) as pool:
        records = {k: record for k, record in shard.whole().items() if k in set(numbers)}
        counter.add(len(records), rendered=False)
        missing = [k for k in numbers if k not in records]
        under_way: list[Future[Record]] = []
        compression = studio.recipe.truth.compression
        for start in range(0, len(missing), studio.batch):
            rendered = list(studio.frames(missing[start : start + studio.batch]))
            _collect(under_way, records, counter)
            under_way = [pool.submit(shard.put, frame, compression) for frame in rendered]
        _collect(under_way, records, counter)
        if len(records) == len(shard.numbers):
            shard.close(records)
    return records


def _collect(
    under_way: list[Future[Record]], records: dict[int, Record], counter: _Counter
) -> None:
    for future in under_way:
        record = future.result()
        number = record["id"]
        assert isinstance(number, int)
        records[number] = record
        counter.add(1, rendered=True)
