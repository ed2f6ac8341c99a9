"""`tnav view`: descent records as a recording for the Rerun viewer."""

from pathlib import Path
from typing import Annotated

import typer


def view(
    path: Annotated[Path, typer.Argument(help="folder of descents, or NAME-SEED.json of one")],
    out: Annotated[Path, typer.Option(help=".rrd file to write")] = Path("out/view.rrd"),
) -> None:
    """Write descents as an .rrd for the Rerun viewer; needs the extra viz, opens nothing."""
    from tnav.evaluate.descent_archive import find_descents, read_descent
    from tnav.report.rerun_export import write_rerun

    found = find_descents(path)
    count = write_rerun(out, (read_descent(p) for p in found))
    print(f"{out}: descents: {count}; {out.stat().st_size / 1e6:.1f} MB; open it by: rerun {out}")
