"""``tnav render``: views as a dataset that a stranger can use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnav.errors import ConfigError

if TYPE_CHECKING:
    from tnav.evaluate.dataset import RenderRecipe

_SEEDS = 10**6


def render(
    recipe: Annotated[
        str,
        typer.Argument(help="name in datasets/renders, or a YAML file; with --at: a scenario"),
    ],
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("out/render"),
    at: Annotated[
        list[float] | None, typer.Option(help="time of a scenario's view, s; may be repeated")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[
        int, typer.Option(min=-_SEEDS, max=_SEEDS, help="number of the draw: shifts every seed")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="the first frames only, for a look")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="K/N: every N-th shard; a last call without it merges")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="hash what is there, render nothing")] = (
        False
    ),
) -> None:
    """Render a recipe, or a scenario at given times: images, truth, index, COLMAP model.

    A rerun resumes: what is whole stays, the rest is rendered.
    """
    from tnav.evaluate.dataset_writer import Part, verify_dataset, write_dataset
    from tnav.evaluate.scenario import resolve_device

    wanted = _recipe(recipe, at).with_seed(seed)
    if verify:
        print(f"{out}: {verify_dataset(wanted, out)} frames ok")
        return
    if shard is not None and limit is not None:
        raise ConfigError("--limit with --shard: expected one of them")
    part = Part.parse(shard) if shard is not None else None
    where = resolve_device(device)
    with _Bar() as bar:
        done = write_dataset(wanted, out, where, part=part, limit=limit, show=bar.show)
    print(f"{out}: {done.frames} of {done.planned} frames, {done.rendered} rendered now")
    if done.finished:
        print(f"see {out / 'preview.jpg'} and {out / 'README.md'}")
    else:
        print("other shards may be missing: a last call without --shard merges")


def _recipe(name: str, at: list[float] | None) -> "RenderRecipe":
    from tnav.evaluate.dataset import flight_recipe, load_render_recipe
    from tnav.evaluate.scenario import load_scenario

    if not at:
        return load_render_recipe(name)
    for t_s in at:
        if not t_s >= 0:
            raise ConfigError(f"--at {t_s}: expected a time within the flight, from 0 s on")
    return flight_recipe(load_scenario(name), tuple(at))


class _Bar:
    """Progress on standard error: frames a second, and the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._shown = console.is_interactive  # elsewhere it would leave a blank line only
        self._progress = Progress(
            TextColumn("{task.description:<42}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("start", total=None, rate="")

    def __enter__(self) -> "_Bar":
        if self._shown:
            self._progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._shown:
            self._progress.stop()

    def show(self, text: str, done: int, total: int) -> None:
        """What is under way."""
        speed = self._progress.tasks[0].speed
        rate = f"{speed:.2f} frames/s" if speed and text == "frames" else ""
        self._progress.update(self._task, description=text, completed=done, total=total, rate=rate)
