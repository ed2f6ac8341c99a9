"""`tnav fly`: closed-loop descents from orbit to touchdown, kept as records."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tnav.evaluate.descent_record import DescentRecord

_FAILED_LIMIT = 1


def fly(
    descent: Annotated[str, typer.Argument(help="name in datasets/descents, or a YAML file")],
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("out/fly"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[int, typer.Option(min=-(10**6), max=10**6, help="number of the draw")] = 0,
    fidelity: Annotated[
        Literal["model", "image"],
        typer.Option(help="fixes drawn from the error model, or every image rendered and solved"),
    ] = "image",
) -> None:
    """Fly a descent on its own navigation, from orbit to touchdown; exit 1 where it does not land.

    Writes NAME-FIDELITY-SEED.json and .npz, for `tnav eval` and `tnav view`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tnav.evaluate.descent_archive import write_descent
    from tnav.evaluate.descent_plan import load_descent
    from tnav.evaluate.flight_runs import fly_image, fly_model, image_world, record_of, site_of
    from tnav.evaluate.scenario import resolve_device

    recipe, where = load_descent(descent), resolve_device(device)
    out.mkdir(parents=True, exist_ok=True)  # before the flight, not after it
    columns = (TextColumn("{task.description:<42}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("terrain: DEM, curvature, synthetic relief", total=1.0)

        def show(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        if fidelity == "image":
            flight = fly_image(recipe, image_world(recipe, seed, where), show)
        else:
            flight = fly_model(recipe, site_of(recipe, where), 1, seed, show, keep=0)
        record = record_of(flight, fidelity, f"{recipe.name}-{fidelity}", seed)
        path = write_descent(record, out)
    for line in _summary(record):
        print(line)
    print(f"record: {path}")
    if record.touchdown is None or record.touchdown.outcome != "landed":
        raise SystemExit(_FAILED_LIMIT)


def _summary(record: "DescentRecord") -> list[str]:
    end = record.touchdown
    if end is None:
        return [f"still in the air after {float(record.series.t_s[-1]):.0f} s"]
    return [
        f"{end.outcome} at {end.t_s:.1f} s: {end.speed_down_m_s:.2f} m/s down, "
        f"{end.speed_horizontal_m_s:.2f} m/s across, {end.miss_m:.1f} m from the target, "
        f"{end.propellant_kg:.1f} kg left",
        f"navigation at contact: height over ground {end.agl_error_m:+.2f} m, horizontal "
        f"{end.horizontal_error_m:.2f} m, velocity {end.velocity_error_m_s:.3f} m/s",
    ]
