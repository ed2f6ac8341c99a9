"""Public products by name: where they are, how to cite them, and how they become tiles."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from filelock import FileLock
from pydantic import Field

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.dem.cog import Progress
from tnav.dem.download import WEB_PAGE, Patience, download, held, lock_of
from tnav.dem.importing import Claims, Imported, import_dem, require_free
from tnav.dem.manifest import user_dir
from tnav.dem.pds import read_label
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


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A file that has arrived."""

    url: str
    path: Path
    sha256: str
    trusted: bool  # nobody has stated its hash: this one is the first


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
    path = _catalogue_path()
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
    with held(user_dir() / f".{name}.fetch.lock", progress):
        require_free(user_dir(), name, overwrite)  # whom this one waited for may have made it
        folder.mkdir(parents=True, exist_ok=True)
        files = [  # the label first: it is small
            _fetch_file(file, folder, progress, patience) for file in reversed(product.files)
        ]
        done = _import_fetched(name, product, collection, files, progress, overwrite)
        lines = [_record(file) for file in files if file.trusted]
        if not keep:
            _clear(files, folder)
    return Imported(done.name, done.path, (*lines, *done.lines))


def _import_fetched(
    name: str,
    product: Product,
    collection: Collection,
    files: list[_Fetched],
    progress: Progress,
    overwrite: bool,
) -> Imported:
    raster = files[-1]
    claims = Claims(
        product=f"{collection.product}, {Path(urlsplit(product.files[0].url).path).name}",
        citation=collection.citation,
        licence=collection.licence,
        effective_resolution_m=collection.effective_resolution_m,
        source=product.files[0].url,
        source_sha256=raster.sha256,
    )
    try:
        return import_dem(raster.path, claims, progress, name=name, overwrite=overwrite)
    except TileError as error:
        raise TileError(
            f"{error} (what was downloaded stays in {raster.path.parent}: remove it there to fetch "
            "it anew)"
        ) from error


def _clear(files: list[_Fetched], folder: Path) -> None:
    """Remove what was downloaded; the product's own lock keeps others away meanwhile."""
    for file in files:
        file.path.unlink()
        lock_of(file.path).unlink(missing_ok=True)
    folder.rmdir()


def _fetch_file(
    file: RemoteFile, folder: Path, progress: Progress, patience: Patience | None
) -> _Fetched:
    place = folder / Path(urlsplit(file.url).path).name
    recorded = _checksums().get(file.url)
    found = download(
        file.url,
        place,
        sha256=file.sha256 or recorded,
        size=file.bytes,
        progress=lambda text, share: progress(f"{place.name}: {text}", share),
        patience=patience,
        stated_in=_catalogue_path() if file.sha256 else _checksum_path(),
    )
    if file.sha256 or recorded:
        return _Fetched(file.url, place, found, trusted=False)
    try:
        _check_content(file.url, place)
    except TileError:
        place.unlink()  # else the next run would find it there
        raise
    return _Fetched(file.url, place, found, trusted=True)


def _check_content(url: str, path: Path) -> None:
    """Refuse what is plainly not a product's file, where no hash tells."""
    with path.open("rb") as stream:
        head = stream.read(1024).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise TileError(f"{url}: {WEB_PAGE}")
    if path.suffix.lower() == ".lbl" and "PDS_VERSION_ID" not in read_label(path):
        raise TileError(f"{url}: what came is no PDS3 label (it has no PDS_VERSION_ID)")


def _catalogue_path() -> Path:
    return datasets_dir() / "products.yaml"


def _checksum_path() -> Path:
    return user_dir() / "checksums.yaml"


def _checksums() -> dict[str, str]:
    path = _checksum_path()
    return load_recipe(path, Checksums).sha256 if path.exists() else {}


def _record(file: _Fetched) -> str:
    """Keep the hash of a file that proved to be what it should be, and say so."""
    path = _checksum_path()
    with FileLock(path.with_name(".checksums.lock")), written_aside(path) as aside:
        dump = {"sha256": {**_checksums(), file.url: file.sha256}}
        aside.write_text(yaml.safe_dump(dump, sort_keys=True), encoding="utf-8")
    return (
        f"{file.path.name}: sha256 {file.sha256}, taken on trust at this first download and "
        f"recorded in {path}"
    )
