"""`tnav events`: landings that failed over their altimetry, replayed."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from tnav.evaluate.events import Event
    from tnav.evaluate.events_fly import EventResult

events_app = typer.Typer(
    help="Landings that failed over their altimetry, replayed.", no_args_is_help=True
)

_FAILED_LIMIT = 1
_PIPED_WIDTH = 160


@events_app.command(name="list")
def list_events() -> None:
    """Names, dates, and what a right monitor says of each."""
    from tnav.evaluate.events import load_events

    table = _table("tnav events", ("name", "date", "expected verdict", "what"))
    for event in load_events():
        verdict = " or ".join(event.expected)
        table.add_row(event.name, event.date.isoformat(), verdict, event.what)
    _print(table)


@events_app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(help="in datasets/events, or YAML files; default: all")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="results as JSON on standard output")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="folder for events.html and NAME.json")] = None,
    descents: Annotated[int, typer.Option(min=1, max=1000, help="draws of each flight")] = 4,
    seed: Annotated[int, typer.Option(min=-(10**6), max=10**6, help="number of the draw")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Fly events as they failed, with tnav, and with tnav but without the fault (model fidelity).

    Exit status 1 where a verdict is not the expected one, the twin without the fault alarms, or a
    lander that must be saved reaches the ground at 3 m/s or more.
    """
    from tnav.evaluate.events import load_event, load_events
    from tnav.evaluate.events_score import as_dict, cells, judge
    from tnav.evaluate.scenario import resolve_device

    where = resolve_device(device)
    events = [load_event(name) for name in names] if names else load_events()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # before the flights, not after them
    results = _flown(events, where, descents, seed, out)
    if out is not None:
        from tnav.report.events import write_events_page

        print(f"page: {write_events_page(out, results)}", file=sys.stderr)
    if as_json:
        print(json.dumps([as_dict(result) for result in results], allow_nan=False, indent=1))
    else:
        rows = [cells(result) for result in results]
        table = _table(f"tnav events run, {descents} descents each", tuple(rows[0]))
        for row in rows:
            table.add_row(*row.values())
        _print(table)
    if not all(judge(result).passed for result in results):
        raise SystemExit(_FAILED_LIMIT)


def _flown(
    events: "list[Event]", device: "torch.device", descents: int, seed: int, out: Path | None
) -> "list[EventResult]":
    """Results of all events; each is written as soon as it is there."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tnav.evaluate.events_fly import Shared, run_event
    from tnav.evaluate.events_score import as_dict
    from tnav.files import written_aside

    results, shared = [], Shared()
    columns = (TextColumn("{task.description:<64}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=float(len(events)))
        for number, event in enumerate(events):

            def show(text: str, share: float, done: int = number) -> None:
                bar.update(task, description=text, completed=done + share)

            result = run_event(event, device, descents, seed, show, shared)
            results.append(result)
            if out is not None:
                with written_aside(out / f"{event.name}.json") as aside:
                    aside.write_text(json.dumps(as_dict(result), allow_nan=False, indent=1) + "\n")
    return results


def _table(title: str, columns: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
