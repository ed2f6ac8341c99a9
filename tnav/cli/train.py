"""``tnav train``: a network from a recipe, on one process or, by torchrun, on many."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnav.errors import ConfigError

if TYPE_CHECKING:
    from tnav.learn.train import Look, TrainResult

_LINE_EVERY_S = 30.0  # where there is no terminal to draw a bar on
_STOPPED = 3  # exit status of a run that was asked to stop and can be resumed
# Parts of the loss that a person reads
_SHOWN = (("accuracy", "descriptors right"), ("fine_px", "template error, px"))


def train(
    preset: Annotated[
        str | None, typer.Option(help="recipe by its name in datasets/training")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="recipe as a YAML file")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="in place of the recipe's")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: out/train-NAME")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="go on from the checkpoint, or start over")
    ] = True,
) -> None:
    """Train a network for matching: log, TensorBoard events, figures, checkpoint, weights.

    The same command resumes a run that was stopped or killed. Many processes: torchrun train.py.
    """
    if (preset is None) == (recipe is None):
        raise ConfigError("train: expected one of --preset NAME and --recipe FILE")
    from tnav.evaluate.scenario import resolve_device
    from tnav.learn.distributed import joined
    from tnav.learn.recipe import load_training
    from tnav.learn.train import train as run

    if recipe is not None and recipe.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{recipe}: expected a YAML file; a name goes with --preset")
    wanted = load_training(str(recipe) if recipe is not None else str(preset))
    wanted = wanted if steps is None else wanted.with_steps(steps)
    folder = out or Path("out") / f"train-{wanted.name}"
    begin_s = time.monotonic()
    with joined(resolve_device(device)) as (group, where), _asked_to_stop() as stop:
        with _Watch(group.leads) as watch:
            result = run(
                wanted, folder, where, fresh=not resume, group=group, show=watch.show, stop=stop
            )
        if not group.leads:
            return
    for line in _summary(wanted.name, folder, result, time.monotonic() - begin_s):
        print(line)
    if result.step < result.steps:
        raise SystemExit(_STOPPED)


def _summary(name: str, folder: Path, result: "TrainResult", seconds: float) -> list[str]:
    """What the run came to: the validation of the untrained network against the last one."""
    parts = [
        f"{title} {result.first[key]:.3g} -> {result.last[key]:.3g}"
        for key, title in _SHOWN
        if key in result.first and key in result.last
    ]
    learnt = f"{name}: {result.step} steps; validation: {', '.join(parts)}; {seconds / 60:.1f} min"
    bad = [f"{result.bad_steps} steps left out: not finite"] if result.bad_steps else []
    if result.step < result.steps:
        return [learnt, *bad, f"stopped at step {result.step} of {result.steps}: run it again"]
    return [learnt, *bad, f"weights: {result.weights}; log: {folder / 'log.jsonl'}"]


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt or SIGTERM has come; a second interrupt ends at once."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, leads: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._leads, self._bar_shown = leads, leads and console.is_interactive
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("first pairs", total=None)
        self._said_s, self._begin_s, self._begin_step = 0.0, time.monotonic(), -1

    def __enter__(self) -> "_Watch":
        if self._bar_shown:
            self._progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar_shown:
            self._progress.stop()

    def show(self, look: "Look") -> None:
        """The latest figures."""
        text = _line(look)
        self._progress.update(self._task, description=text, completed=look.step, total=look.steps)
        now_s = time.monotonic()
        if self._begin_step < 0:
            self._begin_s, self._begin_step = now_s, look.step
        due = now_s - self._said_s > _LINE_EVERY_S or look.step == look.steps
        if self._leads and not self._bar_shown and due:
            self._said_s = now_s
            done = look.step - self._begin_step
            left_s = (now_s - self._begin_s) * (look.steps - look.step) / max(done, 1)
            left = f", {left_s / 60:.0f} min left" if done else ""
            print(f"step {look.step} of {look.steps}: {text}{left}", file=sys.stderr, flush=True)


def _line(look: "Look") -> str:
    parts = [f"loss {look.loss:.3f}"]
    if math.isfinite(look.fine_px):
        parts.append(f"{look.fine_px:.2f} px")
    known = {key: look.validation[key] for key, _ in _SHOWN if key in look.validation}
    if known:
        values = ", ".join(f"{key} {value:.3g}" for key, value in known.items())
        parts.append(f"validation {values}")
    return "; ".join([*parts, f"{look.pairs_per_s:.1f} pairs/s"])
