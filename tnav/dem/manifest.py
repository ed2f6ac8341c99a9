"""What is known of each DEM: the manifest that travels with tnav, and the user's own.

The user's tiles live in ``TNAV_TILES``, or in ``tnav/dem`` below ``XDG_DATA_HOME``
(``~/.local/share``): the tiles, their ``manifest.yaml`` and the downloads that they came from.
"""

import hashlib
import os
from pathlib import Path

import yaml
from filelock import FileLock
from pydantic import Field

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.errors import TileError
from tnav.files import written_aside

_HASH_BYTES = 1 << 26  # larger files are hashed by `tnav dem verify`, not at every opening
_USER_HEADER = "# Written by 'tnav dem import'. Heights are `scale * DN + offset` metres.\n"


class TileEntry(Recipe):
    """What a manifest says of one tile."""

    file: Path  # relative to the manifest
    product: str
    citation: str
    licence: str
    crs: str
    datum_radius_m: float
    units: str
    scale: float = Field(gt=0)
    offset: float
    posting_deg: float | None = Field(default=None, gt=0)  # of a raster in latitude and longitude
    effective_resolution_m: float = Field(gt=0)  # shorter features are not in the data
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    height_range_m: tuple[float, float] | None = None
    hole_share: float | None = Field(default=None, ge=0, le=1)
    source: str | None = None  # file or address that it was made from
    source_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class Manifest(Recipe):
    """Tiles by name."""

    tiles: dict[str, TileEntry]


def user_dir() -> Path:
    """Folder of the user's tiles."""
    if os.environ.get("TNAV_TILES"):
        return Path(os.environ["TNAV_TILES"]).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "tnav" / "dem"


def load_manifest() -> Manifest:
    """All tiles, the shipped and the user's; their files are absolute or below the working folder.

    Raises:
        ConfigError: a manifest that cannot be read or does not fit.
        TileError: a user's tile that takes a shipped tile's name.
    """
    shipped = load_entries(datasets_dir())
    own = load_entries(user_dir()) if (user_dir() / "manifest.yaml").exists() else {}
    twice = sorted(shipped.keys() & own.keys())
    if twice:
        raise TileError(
            f"{user_dir() / 'manifest.yaml'}: '{twice[0]}' is the name of a tile that travels with "
            "tnav; rename or remove the entry"
        )
    return Manifest(tiles={**shipped, **own})


def load_entries(folder: Path) -> dict[str, TileEntry]:
    """Entries of one folder's manifest.

    Raises:
        ConfigError: a manifest that cannot be read or does not fit.
    """
    tiles = load_recipe(folder / "manifest.yaml", Manifest).tiles
    return {
        name: entry.model_copy(update={"file": folder / entry.file})
        for name, entry in tiles.items()
    }


def add_entry(folder: Path, name: str, entry: TileEntry) -> None:
    """Write an entry into the manifest of a folder, whoever else is writing to it.

    Args:
        folder: of the manifest.
        name: new, or one to replace.
        entry: with its file relative to the folder.
    """
    path = folder / "manifest.yaml"
    with FileLock(folder / ".manifest.lock"):
        _write_entry(path, name, entry)


def _write_entry(path: Path, name: str, entry: TileEntry) -> None:
    tiles = dict(load_recipe(path, Manifest).tiles) if path.exists() else {}
    tiles[name] = entry
    dump = Manifest(tiles=tiles).model_dump(mode="json", exclude_none=True)
    with written_aside(path) as aside:
        text = yaml.safe_dump(dump, sort_keys=False, allow_unicode=True, width=96)
        aside.write_text(_USER_HEADER + text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hash(path: Path, sha256: str, name: str, *, always: bool) -> bool:
    """Compare a file with its entry; a large one only where ``always`` is set.

    Returns:
        Whether its bytes were compared.

    Raises:
        TileError: the file is missing or has other bytes.
    """
    try:
        if not always and path.stat().st_size > _HASH_BYTES:
            return False
        found = sha256_of(path)
    except OSError as error:
        raise TileError(f"{path}: missing file of tile '{name}'; restore it") from error
    if found != sha256:
        raise TileError(
            f"{path}: sha256 {found[:12]}..., but manifest.yaml says {sha256[:12]}... for "
            f"'{name}'; the file was changed or damaged: restore it"
        )
    return True
