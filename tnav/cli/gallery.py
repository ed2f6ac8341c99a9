"""`tnav gallery`: pictures of what the terrain and the renderer make."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def gallery(
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("out/gallery"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Render contact sheets (altitudes, Suns, reflectances, truth, camera, DEM) and a page."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tnav.evaluate.gallery import draw_gallery
    from tnav.evaluate.scenario import resolve_device
    from tnav.report.gallery import write_gallery

    where = resolve_device(device)
    out.mkdir(parents=True, exist_ok=True)  # before the rendering, not after it
    columns = (TextColumn("{task.description:<44}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("gallery", total=1.0)

        def show(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        sheets = draw_gallery(where, show)
        show("writing", 1.0)
        paths = write_gallery(out, sheets)
    for path in paths:
        print(path)
