"""Public products by name: where they are, how to cite them, and how they become tiles."""

from pathlib import Path
from urllib.parse import urlsplit

import yaml
from filelock import FileLock
from pydantic import Field

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.dem.cog import Progress
from tnav.dem.download import Patience, download
from tnav.dem.importing import Claims, Imported, import_dem, require_free
from tnav.dem.manifest import user_dir
from tnav.errors import TileError
from tnav.files import written_aside


class RemoteFile(Recipe):
    """One file of a product."""

    url: str = Field(pattern="^https?://")
    bytes: int | None = Field(default=None, gt=0)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class Product(Recipe):
    """A product that can be fetched; the first file is the raster, others are its label."""

    collection: str
    bounds_deg: tuple[float, float, float, float]  # west, south, east, north
    posting_m: float = Field(gt=0)
    files: tuple[RemoteFile, ...] = Field(min_length=1)

    @property
    def bytes(self) -> int | None:
        """Size of all files, or None where one is unknown."""
        sizes = [file.bytes for file in self.files if not file.url.lower().endswith(".lbl")]
        return None if None in sizes else sum(size for size in sizes if size)


class Collection(Recipe):
    """What products of one make share."""

    product: str
    citation: str
    licence: str
    effective_resolution_m: float | None = Field(default=None, gt=0)


class Catalogue(Recipe):
    """All products that `tnav dem fetch` knows."""

    collections: dict[str, Collection]
    products: dict[str, Product]


class Checksums(Recipe):
    """Hashes of files that nobody has stated: those of the first download."""

    sha256: dict[str, str]


def load_catalogue() -> Catalogue:
    """The catalogue in the datasets folder.

    Raises:
        ConfigError: it cannot be read, or does not fit.
        TileError: a product of an unknown collection.
    """
    path = datasets_dir() / "products.yaml"
    catalogue = load_recipe(path, Catalogue)
    for name, product in catalogue.products.items():
        if product.collection not in catalogue.collections:
            raise TileError(f"{path}: {name}: unknown collection '{product.collection}'")
    return catalogue


def fetch(
    name: str,
    progress: Progress,
    *,
    overwrite: bool = False,
    keep: bool = False,
    patience: Patience | None = None,
) -> Imported:
    """Download a product and import it into the user's manifest.

    Args:
        name: in the catalogue; also of the tile.
        progress: called with what is done and the share of it.
        overwrite: replace a tile of that name.
        keep: leave the downloaded files where they are.
        patience: with breaks.

    Raises:
        TileError: unknown, not reachable, damaged, or not what it should be.
    """
    catalogue = load_catalogue()
    if name not in catalogue.products:
        known = ", ".join(sorted(catalogue.products))
        raise TileError(f"{name}: no such product; 'tnav dem fetch' lists them: {known}")
    product = catalogue.products[name]
    collection = catalogue.collections[product.collection]
    require_free(user_dir(), name, overwrite)
    folder = user_dir() / "downloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    lines, places, digest = [], [], None
    for file in reversed(product.files):  # the label first: it is small
        path, digest, line = _fetch_file(file, folder, progress, patience)
        places.append(path)
        lines += [line] if line else []
    claims = Claims(
        product=f"{collection.product}, {Path(urlsplit(product.files[0].url).path).name}",
        citation=collection.citation,
        licence=collection.licence,
        effective_resolution_m=collection.effective_resolution_m,
        source=product.files[0].url,
        source_sha256=digest,
    )
    done = import_dem(places[-1], claims, progress, name=name, overwrite=overwrite)
    if not keep:
        for path in places:
            path.unlink()
        folder.rmdir()
    return Imported(done.name, done.path, (*lines, *done.lines))


def _fetch_file(
    file: RemoteFile, folder: Path, progress: Progress, patience: Patience | None
) -> tuple[Path, str, str | None]:
    """Where a file is now, its hash, and what to tell of it."""
    place = folder / Path(urlsplit(file.url).path).name
    recorded = file.sha256 or _checksums().get(file.url)
    found = download(
        file.url,
        place,
        sha256=recorded,
        size=file.bytes,
        progress=lambda text, share: progress(f"{place.name}: {text}", share),
        patience=patience,
    )
    if recorded:
        return place, found, None
    _record(file.url, found)
    return (
        place,
        found,
        f"{place.name}: sha256 {found}, taken on trust at this first download and recorded in "
        f"{_checksum_path()}",
    )


def _checksum_path() -> Path:
    return user_dir() / "checksums.yaml"


def _checksums() -> dict[str, str]:
    path = _checksum_path()
    return load_recipe(path, Checksums).sha256 if path.exists() else {}


def _record(url: str, sha256: str) -> None:
    path = _checksum_path()
    with FileLock(path.with_name(".checksums.lock")), written_aside(path) as aside:
        dump = {"sha256": {**_checksums(), url: sha256}}
        aside.write_text(yaml.safe_dump(dump, sort_keys=True), encoding="utf-8")
