"""Commands on DEMs: `tnav dem`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tnav.errors import TileError, TnavError

dem_app = typer.Typer(
    help="Digital elevation models: fetch, import, check, cut and show them.",
    no_args_is_help=True,
)

Names = Annotated[
    str, typer.Argument(help="manifest entry or raster; several with commas are a mosaic")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a tile of that name")]


@dem_app.command(name="import")
def dem_import(
    sources: Annotated[list[Path], typer.Argument(help="PDS label or image, JP2, GeoTIFF, VRT")],
    name: Annotated[str | None, typer.Option(help="of the tile; default: of the file")] = None,
    to: Annotated[
        Path | None, typer.Option(help="folder of tile and manifest; default: TNAV_TILES")
    ] = None,
    product: Annotated[str | None, typer.Option(help="what it is")] = None,
    citation: Annotated[str, typer.Option(help="how to cite it")] = "unknown",
    licence: Annotated[str, typer.Option(help="what may be done with it")] = "unknown",
    crs: Annotated[
        str | None, typer.Option(help="of a file that names none: IAU_2015:30100")
    ] = None,
    units: Annotated[str | None, typer.Option(help="m or km, where the file does not say")] = None,
    scale: Annotated[
        float | None, typer.Option(help="metres (or km) a count, where the file does not say")
    ] = None,
    nodata: Annotated[float | None, typer.Option(help="a value that means missing")] = None,
    radius: Annotated[
        bool | None,
        typer.Option("--radius/--heights", help="distances from the centre, or heights"),
    ] = None,
    datum_radius: Annotated[
        float, typer.Option(help="m; sphere that the file's heights count from")
    ] = 1737.4e3,
    resolution: Annotated[
        float | None, typer.Option(help="m; shortest features in it; default: two posts")
    ] = None,
    precision: Annotated[
        float, typer.Option(min=0, help="m; largest error of stored float heights; 0: none")
    ] = 0.01,
    overwrite: Overwrite = False,
) -> None:
    """Check rasters of heights and keep them as tiles."""
    from tnav.dem.importing import Claims, import_dem

    if name is not None and len(sources) > 1:
        raise TileError(f"--name {name}: {len(sources)} sources, expected one; import them singly")
    if units not in (None, "m", "km"):
        raise TileError(f"--units {units}: expected m or km")
    claims = Claims(
        product=product,
        citation=citation,
        licence=licence,
        crs=crs,
        units=units,
        scale=scale,
        nodata=nodata,
        radius=radius,
        datum_radius_m=datum_radius,
        effective_resolution_m=resolution,
        precision_m=precision,
    )
    for source in sources:
        with _progress(source.name) as show:
            done = import_dem(source, claims, show, name=name, folder=to, overwrite=overwrite)
        _print_imported(done.name, done.path, done.lines)
    if to is not None:
        print(f"set TNAV_TILES={to} to use them by name")


@dem_app.command(name="fetch")
def dem_fetch(
    name: Annotated[str | None, typer.Argument(help="product; none: list them")] = None,
    overwrite: Overwrite = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the downloaded files too")] = False,
) -> None:
    """Download a public product and import it."""
    from tnav.dem.products import fetch, load_catalogue

    if name is None:
        catalogue = load_catalogue()
        for key, product in catalogue.products.items():
            west, south, east, north = product.bounds_deg
            size = f"{product.bytes / 1e6:.0f} MB" if product.bytes else "size unknown"
            print(f"{key}: {size}, posting {product.posting_m:g} m")
            print(f"  latitude {south:g} to {north:g}, longitude {west:g} to {east:g} deg")
        print("cite:")
        for key, collection in catalogue.collections.items():
            print(f"  {key}: {collection.citation}")
        return
    with _progress(name) as show:
        done = fetch(name, show, overwrite=overwrite, keep=keep)
    _print_imported(done.name, done.path, done.lines)


@dem_app.command(name="info")
def dem_info(
    name: Annotated[
        str | None,
        typer.Argument(help="manifest entry or raster, several with commas; default: all"),
    ] = None,
) -> None:
    """What a DEM is: product, CRS, posting, bounds, heights, holes; offsets between several."""
    from tnav.dem.inspect import describe, describe_offsets
    from tnav.dem.mosaic import Mosaic, open_dem
    from tnav.dem.tiles import load_manifest, open_tile

    for each in _split(name) if name else sorted(load_manifest().tiles):
        for line in describe(open_tile(each)):
            print(line)
    if name and "," in name:
        dem = open_dem(_split(name))
        if isinstance(dem, Mosaic):
            for line in describe_offsets(dem):
                print(line)


@dem_app.command(name="verify")
def dem_verify(
    names: Annotated[list[str] | None, typer.Argument(help="entries; default: all")] = None,
) -> None:
    """Check tiles byte by byte, the shipped and your own; exit status 2 where one fails."""
    from tnav.dem.inspect import verify
    from tnav.dem.tiles import load_manifest

    wrong = []
    for name in names or sorted(load_manifest().tiles):
        try:
            verify(name)
            print(f"{name}: ok")
        except TnavError as error:
            wrong.append(str(error))
    if wrong:
        raise TileError("\n".join(wrong))


@dem_app.command(name="cut")
def dem_cut(
    name: Names,
    out: Annotated[Path, typer.Argument(help="GeoTIFF to write")],
    west: Annotated[float, typer.Option(help="deg")],
    south: Annotated[float, typer.Option(help="deg")],
    east: Annotated[float, typer.Option(help="deg; may be below west, over the antimeridian")],
    north: Annotated[float, typer.Option(help="deg")],
    align: Annotated[
        bool, typer.Option("--align", help="take a mosaic's vertical offsets out, and say them")
    ] = False,
) -> None:
    """Write a window of a DEM, or of a mosaic, as a file of its own; holes stay holes."""
    from tnav.dem.cut import cut
    from tnav.dem.mosaic import Mosaic, aligned, measure_offsets, open_dem

    dem = open_dem(_split(name))
    if align:
        if not isinstance(dem, Mosaic):
            raise TileError("--align: one tile has no offset; name several with commas")
        offsets = measure_offsets(dem)
        dem = aligned(dem, offsets)
        for offset in offsets:
            print(
                f"{offset.name}: {-offset.median_m:+.2f} m added, to agree with {offset.reference}"
            )
    with _progress(out.name) as show:
        layout = cut(dem, (west, south, east, north), out, show)
    print(f"{out}: {layout.width} x {layout.height} posts")


@dem_app.command(name="show")
def dem_show(
    name: Names,
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("out/dem.png"),
    sun_azimuth: Annotated[float, typer.Option(help="deg, clockwise from north")] = 315.0,
    sun_elevation: Annotated[float, typer.Option(help="deg above the horizon")] = 35.0,
    exaggeration: Annotated[
        float | None, typer.Option(min=0.1, help="of heights; default: so that slopes show")
    ] = None,
    width: Annotated[int, typer.Option(help="of the picture, pixels")] = 1600,
) -> None:
    """Draw a hillshade; holes are red."""
    from tnav.dem.hillshade import Sun, show
    from tnav.dem.mosaic import open_dem

    sun = Sun(sun_azimuth, sun_elevation, exaggeration)
    columns, rows = show(open_dem(_split(name)), out, width, sun)
    print(f"{out}: {columns} x {rows} pixels")


def _split(names: str) -> list[str]:
    """Names with commas between them; a file whose own name has one stays whole."""
    return [names] if Path(names).exists() else [part for part in names.split(",") if part]


def _print_imported(name: str, path: Path, lines: tuple[str, ...]) -> None:
    print(f"{name}: {path}")
    for line in lines:
        print(f"  {line}")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error while there is someone to see it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<56}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda text, share: bar.update(task, description=f"{title}: {text}", completed=share)
