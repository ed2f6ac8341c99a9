"""The gallery as files: a JPEG for every sheet, and ``index.html`` with all of them inlined."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tnav.evaluate.gallery_studio import Sheet
from tnav.files import written_aside
from tnav.images import encode_jpeg
from tnav.report.page import write_page

_JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Plate:
    """A sheet as the page shows it."""

    sheet: Sheet
    source: str  # data URI
    width_px: int
    height_px: int


def write_gallery(folder: Path, sheets: Sequence[Sheet]) -> list[Path]:
    """Write every sheet as ``NAME.jpg`` and the page that shows them; returns the paths.

    Raises:
        RunFileError: the page cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, plates = [], []
    for sheet in sheets:
        jpeg = encode_jpeg(sheet.picture, _JPEG_QUALITY)
        path = folder / f"{sheet.name}.jpg"
        with written_aside(path) as aside:
            aside.write_bytes(jpeg)
        paths.append(path)
        source = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
        height_px, width_px = sheet.picture.shape[:2]
        plates.append(Plate(sheet, source, width_px, height_px))
    return [*paths, write_page(folder / "index.html", "gallery.html.j2", plates=plates)]
