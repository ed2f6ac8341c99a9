"""The training of a network, from a recipe to its weights, with exact resume.

Between two looks at the run (``log_steps``) nothing waits for the device; log, validation, figures
and checkpoints all happen at such a look. A run that was killed goes on from its checkpoint and
ends on the same bits, because step and seeds say all that is random.
"""

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from tnav.errors import ConfigError, RunFileError
from tnav.files import written_aside
from tnav.learn.augment import SYMMETRIES, symmetric
from tnav.learn.checkpoint import (
    CHECKPOINT_FILE,
    WEIGHTS_FILE,
    digest_of,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from tnav.learn.distributed import Group, TrainingError
from tnav.learn.journal import EVENTS, FIGURES, LOG_FILE, Journal, draw_pairs, read_rows
from tnav.learn.pairs import PairBatch, batches
from tnav.learn.recipe import TrainRecipe
from tnav.learn.step import TrainState, build_state, seeded, train_step, validate

RECIPE_FILE = "recipe.yaml"
_LOCK_FILE = ".lock"
_FIGURE_PAIRS = 6
_VALIDATION_BATCH = 4


@dataclass(frozen=True, slots=True)
class Look:
    """What a run has come to, for whoever watches."""

    step: int
    steps: int
    loss: float
    fine_px: float
    validation: dict[str, float]  # the latest
    pairs_per_s: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended."""

    step: int
    steps: int
    bad_steps: int
    first: dict[str, float]  # validation of the untrained network; on the leading process
    last: dict[str, float]
    weights: Path
    digest: str  # sha256 of the trained network's weights, before averaging


@dataclass(slots=True)
class _Run:
    """What the loop holds in its hands."""

    recipe: TrainRecipe
    out: Path
    device: torch.device
    group: Group
    state: TrainState
    show: Callable[[Look], None]
    validation_pairs: list[PairBatch] = field(default_factory=list)  # of the leading process
    journal: Journal | None = None  # likewise
    validation: dict[str, float] = field(default_factory=dict)  # the latest
    saved_s: float = 0.0  # clock of the latest checkpoint


def train(
    recipe: TrainRecipe,
    out: Path,
    device: torch.device,
    *,
    fresh: bool = False,
    group: Group | None = None,
    show: Callable[[Look], None] = lambda look: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a network, or take its training up where the run folder's checkpoint left it.

    Args:
        recipe: of the run.
        out: folder of the run; recipe, log, events, figures, checkpoint and weights go there.
        device: of this process.
        fresh: start over, whatever the folder holds of an earlier run.
        group: the processes that train together; this one alone where absent.
        show: called at every look.
        stop: asked at every look; the run then ends early with a checkpoint.

    Raises:
        ConfigError: the folder is another recipe's, or another process trains in it.
        RunFileError: its files are damaged.
        TrainingError: gradients are not finite again and again; processes differ.
    """
    group = group or Group()
    run = _Run(recipe, out, device, group, build_state(recipe, device), show)
    with ExitStack() as stack:
        if group.leads:
            stack.enter_context(_alone_in(out))
            if not fresh and not (out / CHECKPOINT_FILE).exists():
                _refuse_finished(out)
                fresh = True
            if fresh:
                _forget(out)
        group.wait()  # the others see what the leading process left
        kept_bytes, path = 0, out / CHECKPOINT_FILE
        if path.exists():
            kept_bytes = load_checkpoint(path, run.state, recipe, group.world)
        # A process that sees another folder, or none, would train on from other weights.
        group.assert_same(digest_of(run.state.net), run.state.step, device)
        if group.leads:
            run.journal = stack.enter_context(closing(Journal(out, kept_bytes, run.state.step)))
            _open(run)
        _loop(run, stop)
        return _finish(run)


def _open(run: _Run) -> None:
    """Say what is run, draw the validation's pairs, try the untrained network on them."""
    recipe, state = run.recipe, run.state
    assert run.journal is not None
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    with written_aside(run.out / RECIPE_FILE) as aside:
        aside.write_text(text, encoding="utf-8")
    about = {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest(),
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "world": run.group.world,
        "parameters": sum(w.numel() for w in state.net.parameters()),
    }
    run.journal.row("start", state.step, about)
    if state.step < recipe.steps:
        run.validation_pairs = _validation_pairs(recipe, run.device)
    seen = read_rows(run.out, "validation")
    if seen:
        run.validation = _parts_of(seen[-1])
    else:
        _validate(run)


def _loop(run: _Run, stop: Callable[[], bool]) -> None:
    recipe, state = run.recipe, run.state
    run.saved_s = time.monotonic()
    with closing(_stream(run)) as stream:
        while state.step < recipe.steps:
            start_s, first = time.perf_counter(), state.step
            count = min(recipe.log_steps - first % recipe.log_steps, recipe.steps - first)
            parts = [train_step(state, next(stream), recipe, run.group) for _ in range(count)]
            means = _means(run, parts, first)
            seconds = time.perf_counter() - start_s
            _look(run, means, count, seconds)
            if _save_if_due(run, stop()):
                return


def _look(run: _Run, means: dict[str, float], count: int, seconds: float) -> None:
    """Log the last steps; validate and draw when their turn has come."""
    recipe, state = run.recipe, run.state
    pairs_per_s = count * recipe.batch * run.group.world / seconds
    if run.journal is not None:
        rate = recipe.optimiser.learning_rate_at(state.step - 1, recipe.steps)
        more = {"learning_rate": rate, "bad_steps": float(state.bad_steps)}
        run.journal.row("train", state.step, means | more)
        run.journal.row("time", state.step, {"seconds": seconds, "pairs_per_s": pairs_per_s})
        last = state.step == recipe.steps
        if last or state.step % recipe.validation.every_steps == 0:
            _validate(run)
        if last or state.step % recipe.epoch_steps == 0:
            epoch = math.ceil(state.step / recipe.epoch_steps)
            picture = draw_pairs(state.average, run.validation_pairs, _FIGURE_PAIRS)
            run.journal.figure(epoch, state.step, picture)
    loss, fine_px = (means.get(name, math.nan) for name in ("total", "fine_px"))
    run.show(Look(state.step, recipe.steps, loss, fine_px, run.validation, pairs_per_s))


def _validate(run: _Run) -> None:
    assert run.journal is not None
    run.validation = validate(run.recipe, run.state.average, run.validation_pairs)
    run.journal.row("validation", run.state.step, run.validation)


def _save_if_due(run: _Run, stop: bool) -> bool:
    """Checkpoint by steps, by time, at the end or when asked to stop; returns whether to stop."""
    recipe, state = run.recipe, run.state
    late = time.monotonic() - run.saved_s > 60 * recipe.checkpoint_minutes
    stop, late = run.group.any((stop, late), run.device)
    at_end = state.step == recipe.steps
    if not (stop or late or at_end or state.step % recipe.checkpoint_steps == 0):
        return stop
    digest = digest_of(state.net)
    run.group.assert_same(digest, state.step, run.device)
    if run.journal is not None:
        run.journal.row("checkpoint", state.step, {"digest": digest, "world": run.group.world})
        length_bytes = run.journal.length_bytes()
        path = run.out / CHECKPOINT_FILE
        save_checkpoint(path, state, recipe, run.group.world, length_bytes)
    run.saved_s = time.monotonic()
    return stop


def _finish(run: _Run) -> TrainResult:
    recipe, state, weights = run.recipe, run.state, run.out / WEIGHTS_FILE
    first: dict[str, float] = {}
    if run.journal is not None:
        first = _parts_of(read_rows(run.out, "validation")[0])
        if state.step == recipe.steps:
            save_weights(weights, state, recipe)
    run.group.wait()
    digest = digest_of(state.net)
    return TrainResult(
        state.step, recipe.steps, state.bad_steps, first, run.validation, weights, digest
    )


def _means(run: _Run, parts: list[dict[str, Tensor]], first_step: int) -> dict[str, float]:
    """Means over the good steps since the last look; here the host waits for the device.

    Raises:
        TrainingError: too many bad steps in a row.
    """
    names = sorted(parts[0])
    values = torch.stack([torch.stack([p[name].float() for name in names]) for p in parts])
    rows = values.double().cpu().numpy()
    ok = rows[:, names.index("ok")] > 0
    for k, good in enumerate(ok):
        _count_bad(run, first_step + k, bool(good))
    usable = ok[:, None] & np.isfinite(rows)
    sums = np.stack([np.where(usable, rows, 0.0).sum(0), usable.sum(0)])
    sums = run.group.total(torch.from_numpy(sums).to(run.device)).cpu().numpy()
    return {n: float(s / c) for n, s, c in zip(names, *sums, strict=True) if c and n != "ok"}


def _count_bad(run: _Run, step: int, good: bool) -> None:
    state, recipe = run.state, run.recipe
    if good:
        state.bad_in_a_row = 0
        return
    state.bad_steps += 1
    state.bad_in_a_row += 1
    if state.bad_in_a_row > recipe.bad_steps_max:
        first, pairs = step + 1 - state.bad_in_a_row, recipe.batch * run.group.world
        low, high = (k // recipe.uses * pairs for k in (first, step))
        raise TrainingError(
            f"step {first}: loss or gradient not finite, and so in {state.bad_in_a_row} steps in "
            f"a row, expected at most {recipe.bad_steps_max}: look at pairs {low} to "
            f"{high + pairs - 1} of seed {recipe.seeds.pairs}, or lower the learning rate"
        )


def _parts_of(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("kind", "step")}


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """No second training writes into the folder."""
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"{out}: another process trains here; wait for it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_finished(out: Path) -> None:
    """Weights without a checkpoint are somebody's result: they are not started over by chance."""
    if (out / WEIGHTS_FILE).exists():
        raise RunFileError(
            f"{out}: holds {WEIGHTS_FILE} and no checkpoint to resume; start over with --fresh, "
            "or choose another --out"
        )


def _forget(out: Path) -> None:
    """Take away what an earlier run left; nothing else that lies in the folder."""
    for name in (CHECKPOINT_FILE, WEIGHTS_FILE, LOG_FILE, RECIPE_FILE):
        (out / name).unlink(missing_ok=True)
    for name in (FIGURES, EVENTS):
        shutil.rmtree(out / name, ignore_errors=True)


def _stream(run: _Run) -> Generator[PairBatch, None, None]:
    """This process's batches from the state's step on; each is used several times, turned."""
    recipe, group = run.recipe, run.group
    drawn, again = divmod(run.state.step, recipe.uses)
    found = batches(
        recipe.pairs_of("train"),
        "train",
        recipe.seeds.pairs,
        first_index=drawn * recipe.batch * group.world,
        batch=recipe.batch,
        workers=recipe.workers,
        rank=group.rank,
        world=group.world,
    )
    for batch in found:
        here = batch.to(run.device)
        turn = int(torch.randint(SYMMETRIES, (), generator=seeded(recipe.seeds.pairs, drawn)))
        for use in range(again, recipe.uses):
            # Steps of 3 through the eight symmetries: neighbours differ in more than one mirror.
            yield symmetric(here, (turn + 3 * use) % SYMMETRIES)
        drawn, again = drawn + 1, 0


def _validation_pairs(recipe: TrainRecipe, device: torch.device) -> list[PairBatch]:
    """The fixed pairs."""
    count, seed = recipe.validation.pairs, recipe.seeds.validation
    size = math.gcd(count, _VALIDATION_BATCH)
    found = batches(
        recipe.pairs_of("validation"), "validation", seed, batch=size, workers=recipe.workers
    )
    return [next(found).to(device) for _ in range(count // size)]
