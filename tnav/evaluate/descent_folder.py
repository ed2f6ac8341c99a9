"""A folder of closed-loop descents: what ``tnav bench filter`` leaves, read and checked.

``NAME-SEED.npz`` are arrays of one descent each (``flight_score.arrays_of``), and
``records/NAME-SEED.json``, with an npz of its own, is the same descent's whole history
(``descent_archive``). Descents of one name were flown alike and are scored together. A folder of
histories alone can be read too, as can one history.
"""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tnav.errors import RunFileError
from tnav.evaluate.descent_archive import find_descents, read_descent
from tnav.evaluate.descent_record import DescentRecord
from tnav.evaluate.flight_log import FlightLog
from tnav.evaluate.flight_score import Arrays, arrays_of, join

RECORDS = "records"  # folder of the histories
_BLIND = "no-altimeter"  # a name of descents without altimeter ends so
_ARRAYS = re.compile(r"(.+?)-(-?\d+)\.npz")
_CONTACT_S = 1e-6  # arrays and history of one descent tell the same time of touchdown


@dataclass(frozen=True, slots=True)
class DescentGroup:
    """Descents of one name."""

    name: str  # of their files
    seeds: tuple[int, ...]  # in the order of the arrays' rows; of the records where there are none
    flown: Arrays | None  # one row a descent; None: histories only
    records: tuple[DescentRecord, ...]  # by seed; some or all may be missing beside arrays

    @property
    def title(self) -> str:
        """As the rows of a table say it."""
        plain = self.name.removesuffix(f"-{_BLIND}")
        return plain if plain == self.name else f"{plain}, {_BLIND.replace('-', ' ')}"

    @property
    def blind(self) -> bool:
        """Flown without altimeter."""
        return self.name.endswith(_BLIND)


def holds_descents(path: Path) -> bool:
    """Whether a path is a history's JSON, or a folder of descents by the names of its files."""
    if not path.is_dir():
        return path.suffix == ".json"
    return bool(_array_files(path)) or bool(_record_files(path))


def read_groups(path: Path) -> list[DescentGroup]:
    """Descents of a folder, or the one history that a path names; sorted by name.

    Raises:
        RunFileError: there is none, or the first file that is damaged or belongs to other descents.
    """
    arrays = _array_files(path) if path.is_dir() else {}
    found = _record_files(path) if path.is_dir() else [path]
    if not arrays and not found:
        raise RunFileError(
            f"{path}: no NAME-SEED.npz and no {RECORDS}/NAME-SEED.json in this folder; expected "
            "descents of 'tnav bench filter'"
        )
    records = {(record.name, record.seed): (p, record) for p, record in _read(found)}
    names = sorted({name for name, _ in (arrays or records)})
    return [_group(name, arrays, records) for name in names]


def read_arrays(path: Path) -> Arrays:
    """Arrays of one descent.

    Raises:
        RunFileError: the file is damaged, or not one descent's arrays as this tnav writes them.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "identity"}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunFileError(f"{path}: damaged ({error}); fly it again") from error
    expected = _expected()
    if odd := sorted(expected.keys() ^ arrays.keys()):
        what = "unknown" if odd[0] in arrays else "missing"
        raise RunFileError(
            f"{path}: {odd[0]}: {what} array; expected those of one descent of this tnav"
        )
    for name, like in expected.items():
        if (arrays[name].dtype, arrays[name].shape) != (like.dtype, like.shape):
            raise RunFileError(
                f"{path}: {name}: found {arrays[name].dtype} {arrays[name].shape}, expected "
                f"{like.dtype} {like.shape}"
            )
    return arrays


def _group(
    name: str,
    arrays: dict[tuple[str, int], Path],
    records: dict[tuple[str, int], tuple[Path, DescentRecord]],
) -> DescentGroup:
    seeds = sorted(seed for each, seed in (arrays or records) if each == name)
    parts = [read_arrays(arrays[name, seed]) for seed in seeds] if arrays else []
    kept = [(seed, *records[name, seed]) for seed in seeds if (name, seed) in records]
    for path, record in ((path, record) for _, path, record in kept):
        first_path, first = kept[0][1:]
        if (record.recipe, record.fidelity) != (first.recipe, first.fidelity):
            raise RunFileError(
                f"{path}: recipe: not that of {first_path.name}; expected descents of one name to "
                "be flown alike"
            )
    for seed, path, record in kept if parts else ():
        _same_descent(path, record, parts[seeds.index(seed)])
    flown = join(parts) if parts else None
    return DescentGroup(name, tuple(seeds), flown, tuple(record for _, _, record in kept))


def _same_descent(path: Path, record: DescentRecord, arrays: Arrays) -> None:
    ours = np.nan if record.touchdown is None else record.touchdown.t_s
    theirs = float(arrays["contact_t_s"][0])
    if not np.isclose(ours, theirs, rtol=0, atol=_CONTACT_S, equal_nan=True):
        raise RunFileError(
            f"{path}: touchdown.t_s: found {ours:g}, expected {theirs:g} of the arrays "
            f"{record.name}-{record.seed}.npz: not the same descent; delete both and fly it again"
        )


def _array_files(folder: Path) -> dict[tuple[str, int], Path]:
    """By name and seed. An npz with a JSON beside it is of a history."""
    found = {}
    for path in folder.iterdir():
        named = _ARRAYS.fullmatch(path.name)
        if named and not path.with_suffix(".json").exists():
            found[named[1], int(named[2])] = path
    return found


def _record_files(folder: Path) -> list[Path]:
    """In the folder itself, else in its folder of histories."""
    for place in (folder, folder / RECORDS):
        try:
            if place.is_dir():
                return find_descents(place)
        except RunFileError:  # none there
            continue
    return []


def _read(paths: list[Path]) -> list[tuple[Path, DescentRecord]]:
    return [(path, read_descent(path)) for path in paths]


def _expected() -> Arrays:
    """The arrays of one descent, in type and shape."""
    log = FlightLog(1, torch.device("cpu"), None)
    log.propellant_kg = torch.zeros(1, dtype=torch.float64)
    return arrays_of(log)
