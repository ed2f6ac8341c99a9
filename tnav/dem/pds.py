"""PDS3 labels: what GDAL leaves unread of them, and where it reads them too coarsely.

A label is a list of ``KEY = value <unit>`` lines in nested objects (PDS Standards Reference 3.8,
chapter 12). GDAL opens the label, not the image; it takes the posting from MAP_SCALE, which several
LOLA labels round to four digits, although MAP_RESOLUTION in posts a degree is exact.
"""

import re
from pathlib import Path

from affine import Affine

from tnav.dem.rasters import DEGREE_M

_LABEL_BYTES = 1 << 16
_ROUNDED = 2e-3  # a MAP_SCALE closer than this to the exact posting is its rounding
_LINE = re.compile(r"^\s*(\^?[\w:]+)\s*=\s*(.+?)\s*$")
_VALUE = re.compile(r"^(.*?)\s*(?:<([^>]*)>)?$")


class Label(dict[str, tuple[str, str]]):
    """Values and units by key, keys of an object with its name before them: ``IMAGE.LINES``."""

    def number(self, key: str) -> float | None:
        """A value as a number, or None."""
        try:
            return float(self[key][0])
        except (KeyError, ValueError):
            return None

    def text(self, key: str) -> str:
        """A value without its quotes, in capitals; empty where it is missing."""
        return self.get(key, ("", ""))[0].upper()


def find_label(path: Path) -> Path | None:
    """The label of an image: itself, one attached to it, or a file of the same stem beside it."""
    if path.suffix.lower() == ".lbl":
        return path
    stems = {path.stem.lower(), f"{path.stem}_{path.suffix[1:]}".lower()}
    beside = sorted(path.parent.glob("*.[lL][bB][lL]"))
    exact = [p for p in beside if p.stem.lower() in stems]
    if exact:  # LDEM_64_JP2.LBL is of the JP2, LDEM_64.LBL of the IMG: the longer name knows more
        return max(exact, key=lambda p: len(p.stem))
    try:
        with path.open("rb") as stream:
            return path if stream.read(14) == b"PDS_VERSION_ID" else None
    except OSError:
        return None


def read_label(path: Path) -> Label:
    """The keys of a label; what is no ``KEY = value`` is passed over."""
    with path.open("rb") as stream:
        text = stream.read(_LABEL_BYTES).decode("latin-1")
    label = Label()
    objects: list[str] = []
    for line in text.splitlines():
        if line.strip() == "END":
            break
        match = _LINE.match(line.split("/*")[0])
        if not match:
            continue
        key, rest = match[1].upper(), match[2]
        if key == "OBJECT":
            objects.append(rest.upper())
        elif key == "END_OBJECT":
            objects = objects[:-1]
        else:
            value = _VALUE.match(rest)
            assert value is not None
            name = f"{objects[-1]}.{key}" if objects else key
            label[name] = (value[1].strip().strip("\"'").strip(), (value[2] or "").strip().upper())
    return label


def image_of(label_path: Path, label: Label) -> Path | None:
    """The file that a label points to, whatever the case of its name, or None."""
    named = re.split(r"[\"',()\s]+", label.get("^IMAGE", ("", ""))[0])
    wanted = {part.lower() for part in named if part}
    return next((p for p in label_path.parent.iterdir() if p.name.lower() in wanted), None)


def exact_transform(label: Label, transform: Affine) -> Affine | None:
    """The transform of a cylindrical product from its posts a degree, where GDAL's is rounded.

    Args:
        label: of the product.
        transform: as GDAL has it, from MAP_SCALE.

    Returns:
        The exact transform, or None where there is nothing to mend: another projection, or a
        product made in whole metres.
    """
    key = "IMAGE_MAP_PROJECTION."
    per_degree = label.number(key + "MAP_RESOLUTION")
    line = label.number(key + "LINE_PROJECTION_OFFSET")
    sample = label.number(key + "SAMPLE_PROJECTION_OFFSET")
    kind = label.text(key + "MAP_PROJECTION_TYPE").replace("_", " ")
    cylindrical = kind in {"SIMPLE CYLINDRICAL", "EQUIRECTANGULAR", "CYLINDRICAL"}
    if per_degree is None or line is None or sample is None or not cylindrical:
        return None
    posts = float(round(per_degree))
    if posts < 1 or abs(per_degree - posts) > 1e-6 * posts or label.number(key + "CENTER_LATITUDE"):
        return None
    step_m = DEGREE_M / posts
    rounded = abs(transform.a - step_m) < _ROUNDED * step_m
    if transform.a == step_m or not (rounded or transform.a == 1.0):
        return None  # 1.0: no MAP_SCALE at all
    return Affine(step_m, 0.0, -(sample + 0.5) * step_m, 0.0, -step_m, (line + 0.5) * step_m)
