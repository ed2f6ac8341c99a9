"""Commands on DEMs: `tnav dem`."""

from typing import Annotated

import typer

dem_app = typer.Typer(help="DEM tiles that travel with tnav.", no_args_is_help=True)


@dem_app.command(name="info")
def dem_info(
    name: Annotated[
        str | None, typer.Argument(help="manifest entry or raster; default: all")
    ] = None,
) -> None:
    """What a DEM is: product, CRS, posting, bounds."""
    from tnav.dem.tiles import load_manifest, open_tile

    for each in [name] if name else sorted(load_manifest().tiles):
        tile = open_tile(each)
        west, south, east, north = tile.bounds
        print(f"{tile.name}: {tile.product}")
        print(f"  file {tile.path}")
        print(f"  crs {tile.crs.to_string()}, height = {tile.scale} * DN + {tile.offset} m")
        print(
            f"  posting {tile.posting_m:.0f} m, features from {tile.effective_resolution_m:.0f} m"
        )
        print(f"  west {west} south {south} east {east} north {north}")


@dem_app.command(name="verify")
def dem_verify() -> None:
    """Check every tile of the manifest: file, hash, CRS, radius."""
    from tnav.dem.tiles import load_manifest, open_tile

    for name in sorted(load_manifest().tiles):
        open_tile(name)
        print(f"{name}: ok")
