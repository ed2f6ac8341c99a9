"""The command line: parse, call, print. Heavy imports stay inside the commands."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tnav.cli.dem import dem_app
from tnav.cli.events import events_app
from tnav.cli.fly import fly
from tnav.cli.gallery import gallery
from tnav.cli.model import model_app
from tnav.cli.render import render
from tnav.cli.train import train
from tnav.cli.view import view
from tnav.errors import ConfigError, RunFileError, TnavError

if TYPE_CHECKING:
    from tnav.evaluate.limits import Row
    from tnav.evaluate.runlog import RunDocument

app = typer.Typer(
    name="tnav",
    help="Terrain-relative navigation for lunar landing: render, match, solve, fuse, monitor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(dem_app, name="dem")
app.add_typer(events_app, name="events")
app.add_typer(model_app, name="model")
app.command()(fly)
app.command()(gallery)
app.command()(render)
app.command()(train)
app.command()(view)

_SEEDS = 10**6
_BENCHES = (
    "demo, render, match, covariance, pose, fix, fix-model, filter, monitor, relief, corridor"
)
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Seed = Annotated[
    int, typer.Option(min=-_SEEDS, max=_SEEDS, help="number of the draw: shifts every seed")
]
Out = Annotated[Path, typer.Option(help="folder to write")]
AsJson = Annotated[bool, typer.Option("--json", help="rows as JSON on standard output")]
RunFolder = Annotated[
    Path, typer.Argument(help="folder that 'tnav run' or 'tnav bench filter' wrote")
]

_FAILED_LIMIT = 1
_BAD_INPUT = 2


def main(argv: list[str] | None = None) -> None:
    """Entry point: one clear line and exit status 2 for anything that a user can mend."""
    try:
        app(args=argv, prog_name="tnav")
    except TnavError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(_BAD_INPUT) from None
    except OSError as error:  # a folder that cannot be written, a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(_BAD_INPUT) from None


@app.command()
def demo(
    out: Out = Path("out/demo"),
    device: Device = "auto",
    seed: Seed = 0,
    healthy: Annotated[bool, typer.Option(help="the twin with a healthy altimeter")] = False,
) -> None:
    """Fly the RESILIENCE-like descent, flag its altimeter, and write a report."""
    document = _run("resilience", out, device, seed, healthy)
    _write_report(out)
    print(f"report: {out / 'report.html'}")
    if document.summary.verdict != document.summary.expected_verdict:
        raise SystemExit(_FAILED_LIMIT)


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="name in datasets/scenarios, or a YAML file")],
    out: Out = Path("out/run"),
    device: Device = "auto",
    seed: Seed = 0,
    healthy: Annotated[bool, typer.Option(help="the twin with a healthy altimeter")] = False,
) -> None:
    """Fly a scenario and write run.npz, run.json and its frames."""
    _run(scenario, out, device, seed, healthy)


@app.command(name="eval")
def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(help="of 'tnav run', of descents or NAME-SEED.json of one, or models/NAME"),
    ],
    as_json: AsJson = False,
    page: Annotated[
        Path | None, typer.Option(help="of descents: HTML file to write, for FOLDER/descents.html")
    ] = None,
    device: Annotated[str, typer.Option(help="of a model: auto, cpu or cuda")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="of a model: minutes, few pairs")] = False,
    pairs: Annotated[int | None, typer.Option(min=1, help="of a model: a case")] = None,
    other_pairs: Annotated[
        int | None, typer.Option(min=1, help="of a model: a case, for the other methods")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="of a model: folder that keeps the scores of pairs")
    ] = None,
) -> None:
    """Score a run, or descents of 'bench filter' with a page, or measure a model into its card.

    Exit status 1 where a limit is missed.
    """
    kind = _kind(folder)
    if kind != "model" and (quick or any(o is not None for o in (pairs, other_pairs, scores))):
        raise ConfigError(
            f"{folder}: --quick, --pairs, --other-pairs and --scores go with a model's folder"
        )
    if kind is None:
        raise RunFileError(
            f"{folder / 'run.npz'}: missing, and no NAME-SEED.npz of a descent there; expected a "
            "folder of 'tnav run' or 'tnav bench filter', or a model's"
        )
    if page is not None and kind != "descents":
        raise ConfigError(f"{folder}: --page goes with a folder of descents")
    if kind == "model":
        rows = _measured(folder, device, quick, pairs, other_pairs, scores)
    elif kind == "descents":
        rows = _scored_descents(folder, page, as_json)
    else:
        from tnav.evaluate.limits import rows_of
        from tnav.evaluate.metrics import score_folder

        rows = rows_of(score_folder(folder))
    _print_rows("eval", rows, as_json)


@app.command()
def report(folder: RunFolder) -> None:
    """Write report.html of a run, or descents.html of descents: one file, offline."""
    if _kind(folder) == "descents":
        _scored_descents(folder, None, as_json=False)
        return
    _write_report(folder)
    print(f"report: {folder / 'report.html'}")


@app.command()
def infer(
    image: Annotated[Path, typer.Argument(help="PNG or TIFF that the camera delivered")],
    sidecar: Annotated[
        Path | None, typer.Option(help="prediction and scenario; default: IMAGE with .json")
    ] = None,
    device: Device = "auto",
    overlay: Annotated[Path | None, typer.Option(help="write a PNG with the matches drawn")] = None,
) -> None:
    """Where was this image taken, how high, how sure? Prints JSON; exit status 1 without a fix."""
    from tnav.evaluate.infer import describe, draw
    from tnav.evaluate.infer import infer as solve
    from tnav.evaluate.scenario import resolve_device

    found = solve(image, sidecar or image.parent / f"{image.stem}.json", resolve_device(device))
    if overlay is not None:
        draw(found, image, overlay)
    result = describe(found)
    print(json.dumps(result, allow_nan=False, indent=1))
    if result["status"] != "ok":
        raise SystemExit(_FAILED_LIMIT)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=_BENCHES)],
    as_json: AsJson = False,
    device: Device = "auto",
    seeds: Annotated[int, typer.Option(min=1, help="draws (demo)")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for a page (relief, monitor), scores (match), trials or descents"
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="five minutes at most (match, filter, monitor, fix-model)"),
    ] = False,
    pairs: Annotated[int | None, typer.Option(min=1, help="of each row (match)")] = None,
    other_pairs: Annotated[
        int | None, typer.Option(min=1, help="of each row, for all methods but tnav (match)")
    ] = None,
    descents: Annotated[
        int | None,
        typer.Option(min=1, help="in model fidelity (filter), of each kind of fault (monitor)"),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="one of several (match)")] = None,
    row: Annotated[list[str] | None, typer.Option(help="one of several (match)")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="of fault, one of all (monitor)")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=10**6, help="number of the draw (monitor)")
    ] = None,
) -> None:
    """Measure and print a table; exit status 1 where a limit is missed."""
    from tnav.evaluate.bench import RELIEF_SEED, measure
    from tnav.evaluate.relief_statistics import measure_relief
    from tnav.evaluate.scenario import resolve_device

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    if name != "monitor" and (kind or seed is not None):
        raise ConfigError(f"bench {name}: {'--kind' if kind else '--seed'} is of 'monitor'")
    if name == "match":
        from tnav.evaluate.bench_match import measure_match

        rows = measure_match(
            resolve_device(device), quick=quick, pairs=pairs, methods=method, say=say, rows=row,
            out=out, other_pairs=other_pairs,
        )  # fmt: skip
    elif pairs is not None or other_pairs is not None or method or row:
        raise ConfigError(f"bench {name}: --pairs, --other-pairs, --method, --row are of 'match'")
    elif name == "filter":
        from tnav.evaluate.bench_filter import measure_filter

        rows = measure_filter(
            resolve_device(device), quick=quick, say=say, out=out, model_descents=descents
        )
    elif name == "monitor":
        from tnav.evaluate.bench_monitor import SEED, measure_monitor

        rows, charts, diagram = measure_monitor(
            resolve_device(device), quick=quick, say=say, count=descents, kinds=kind or (),
            seed=SEED if seed is None else seed,
        )  # fmt: skip
        if out is not None:
            from tnav.report.monitor import write_monitor_page

            say(f"page: {write_monitor_page(out, rows, charts, diagram)}")
    elif name == "fix-model":
        from tnav.evaluate.fix_check import measure_fix_model

        rows = measure_fix_model(resolve_device(device), say, quick, out)
    elif quick:
        raise ConfigError(
            f"bench {name}: --quick goes with 'match', 'filter', 'monitor' and 'fix-model'"
        )
    elif out is None:
        rows = measure(name, resolve_device(device), seeds, say)
    elif name == "relief":
        from tnav.report.relief import write_relief_page

        rows, charts = measure_relief(RELIEF_SEED, say)
        say(f"page: {write_relief_page(out, rows, charts)}")
    else:
        raise ConfigError(
            f"bench {name}: --out goes with 'match', 'filter', 'fix-model', 'monitor' and 'relief'"
        )
    _print_rows(f"bench {name}", rows, as_json)


def _run(scenario: str, out: Path, device: str, seed: int, healthy: bool) -> "RunDocument":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tnav.evaluate.archive import save
    from tnav.evaluate.metrics import frame_line, score_folder, summary_lines
    from tnav.evaluate.run import run as fly_prescribed
    from tnav.evaluate.runlog import write_document
    from tnav.evaluate.scenario import load_scenario, resolve_device
    from tnav.evaluate.world import build_world

    recipe = load_scenario(scenario).with_seed(seed)
    recipe = recipe.healthy() if healthy else recipe
    where = resolve_device(device)
    console = Console(stderr=True)
    with console.status("terrain: DEM, curvature, synthetic relief"):
        world = build_world(recipe, where)
    out.mkdir(parents=True, exist_ok=True)  # before the flight, not after it
    columns = (TextColumn("{task.description:<42}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=1.0)

        def show(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        log = fly_prescribed(
            world,
            show,
            lambda frame: console.print(frame_line(frame), highlight=False, soft_wrap=True),
        )
        show("writing", 1.0)
        save(log, out, seed)
        document = score_folder(out)
        write_document(out / "run.json", document)
    for line in summary_lines(document):
        print(line)
    return document


def _kind(path: Path) -> str | None:
    """What a path holds: model, run, descents or nothing that is known.

    Raises:
        ConfigError: more than one of them.
    """
    from tnav.evaluate.descent_folder import holds_descents

    model = (path / "model.yaml").is_file()
    run = any((path / name).is_file() for name in ("run.npz", "run.json"))
    signs = {"model": "model.yaml", "run": "run.npz", "descents": "NAME-SEED.npz of descents"}
    there = {"model": model, "run": run, "descents": holds_descents(path)}
    found = [kind for kind, is_there in there.items() if is_there]
    if len(found) > 1:
        kinds = " and ".join(f"'{signs[kind]}'" for kind in found)
        raise ConfigError(f"{path}: found {kinds}; expected a folder of one kind")
    return found[0] if found else None


def _scored_descents(path: Path, page: Path | None, as_json: bool) -> "list[Row]":
    """Rows of descents; the page is written, and said beside what a script reads."""
    from tnav.evaluate.descent_folder import read_groups
    from tnav.evaluate.descent_score import score_descents
    from tnav.report.descents import write_descents_page

    groups = read_groups(path)
    default = path / "descents.html" if path.is_dir() else path.with_suffix(".html")
    written = write_descents_page(page or default, groups)
    print(f"page: {written}", file=sys.stderr if as_json else sys.stdout)
    return score_descents(groups)


def _measured(
    folder: Path,
    device: str,
    quick: bool,
    pairs: int | None,
    other_pairs: int | None,
    scores: Path | None,
) -> "list[Row]":
    from tnav.evaluate.model_card import score_model
    from tnav.evaluate.scenario import resolve_device

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    where = resolve_device(device)
    return score_model(
        folder, where, quick=quick, pairs=pairs, scores=scores, say=say, other_pairs=other_pairs
    )


def _write_report(folder: Path) -> None:
    from tnav.report.html import write_report

    write_report(folder)


def _print_rows(title: str, rows: "list[Row]", as_json: bool) -> None:
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], allow_nan=False, indent=1))
    else:
        _print_table(title, rows)
    if any(row.passed is False for row in rows):
        raise SystemExit(_FAILED_LIMIT)


def _print_table(title: str, rows: "list[Row]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"tnav {title}", title_justify="left")
    for column in ("name", "value", "unit", "limit", "passed", "n", "device"):
        table.add_column(column, overflow="fold")
    words: dict[Any, str] = {True: "yes", False: "NO", None: ""}
    for row in rows:
        value = "" if row.value is None else str(row.value)
        cells = (row.name, value, row.unit, row.limit or "", words[row.passed])
        table.add_row(*cells, str(row.n), row.device)
    Console(width=132 if not sys.stdout.isatty() else None).print(table)
