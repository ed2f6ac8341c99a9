"""A descent record on disk: ``NAME-SEED.json`` and, with its arrays, ``NAME-SEED.npz``.

The JSON is strict, under a schema, and holds the npz's SHA-256, so that the two cannot be mixed up.
The npz is written first and the JSON last, each aside and then renamed: a JSON that is there has
its arrays. Those are plain numbers, loaded with ``allow_pickle=False``.
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

import tnav
from tnav.errors import RunFileError
from tnav.evaluate.descent_record import (
    FILTER_STATES,
    DescentRecord,
    DescentSeries,
    Fidelity,
    InnovationSeries,
    Outcome,
    Touchdown,
)
from tnav.files import written_aside
from tnav.records import Sensor

SCHEMA: Literal["tnav-descent/2"] = "tnav-descent/2"

Arrays = dict[str, NDArray[Any]]

_EXPECTED = "expected a descent that tnav wrote"
_FILE = re.compile(r"(.+?)-(-?\d+)\.json")  # what of a folder is a descent: name and seed
# One row an epoch of each: element type and the row's shape; k is the sensor's.
_F, _I, _B = np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_)
_SERIES: dict[str, tuple[np.dtype[Any], str]] = {
    "t_s": (_F, ""),
    "position_L": (_F, "3"),
    "velocity_L": (_F, "3"),
    "R_L_B": (_F, "3 3"),
    "agl_m": (_F, ""),
    "propellant_kg": (_F, ""),
    "thrust_n": (_F, ""),
    "phase": (_I, ""),
    "position_nav_L": (_F, "3"),
    "velocity_nav_L": (_F, "3"),
    "R_nav_L_B": (_F, "3 3"),
    "agl_nav_m": (_F, ""),
    "sigma": (_F, str(len(FILTER_STATES))),
}
_MAY_MISS = ("agl_m", "agl_nav_m")  # NaN where there is no ground below
_INNOVATION: dict[str, tuple[np.dtype[Any], str]] = {
    "t_s": (_F, ""),
    "value": (_F, "k"),
    "covariance": (_F, "k k"),
    "nis": (_F, ""),
    "present": (_B, ""),
    "fused": (_B, ""),
}
_WHERE_PRESENT = ("value", "covariance", "nis")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class TouchdownDocument(_Record):
    """`Touchdown` as JSON holds it."""

    t_s: float
    speed_down_m_s: float
    speed_horizontal_m_s: float
    miss_m: float
    propellant_kg: float
    outcome: Outcome
    agl_error_m: float
    horizontal_error_m: float
    velocity_error_m_s: float


class InnovationDocument(_Record):
    """Whose innovations they are, and how many."""

    sensor: Sensor = Field(strict=False)  # by its value
    epochs: int = Field(ge=0)
    degrees_of_freedom: int = Field(ge=1)


class DescentDocument(_Record):
    """The whole of ``NAME-SEED.json``: a `DescentRecord` without its arrays."""

    schema_name: Literal["tnav-descent/2"] = SCHEMA
    version: str  # of the tnav that wrote it
    # a file's name begins with it; no "-" at its end, lest it be taken for the seed's sign
    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9._])?$")
    fidelity: Fidelity
    policy: str
    seed: int
    latitude_deg: float = Field(ge=-90, le=90)
    longitude_deg: float = Field(ge=-180, le=360)
    epochs: int = Field(ge=1)
    filter_states: list[str]
    innovations: list[InnovationDocument]
    touchdown: TouchdownDocument | None
    recipe: dict[str, JsonValue]
    arrays_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the npz


def write_descent(record: DescentRecord, folder: Path) -> Path:
    """Write a record into a folder, made when absent; an earlier one of that name is replaced.

    Args:
        record: on any device.
        folder: where both files go.

    Returns:
        The JSON's path.

    Raises:
        RunFileError: the record is not one that could be read again; nothing is written.
    """
    path = folder / f"{record.name}-{record.seed}.json"
    arrays = _arrays_of(record)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    try:
        document = _document_of(record, hashlib.sha256(content).hexdigest())
        text = json.dumps(document.model_dump(mode="json"), allow_nan=False, indent=1)
    except ValidationError as error:
        raise _refusal(path, error) from error
    except ValueError as error:
        raise RunFileError(f"{path}: recipe: not strict JSON: {error}") from error
    _check(path.with_suffix(".npz"), document, arrays)
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(path.with_suffix(".npz")) as aside:
        aside.write_bytes(content)
    with written_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return path


def read_descent(path: Path) -> DescentRecord:
    """Read a record and check it: schema, hash, shapes, types, finite numbers, order of time.

    Args:
        path: the JSON; its npz lies beside it.

    Raises:
        RunFileError: the first thing that is wrong, with file and field.
    """
    document = _read_document(path)
    arrays = _read_arrays(path.with_suffix(".npz"), document)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    series = {field: tensors[_of_series(field)] for field in _SERIES}
    innovations = tuple(
        InnovationSeries(
            sensor=entry.sensor,
            **{field: tensors[_of_innovation(i, field)] for field in _INNOVATION},
        )
        for i, entry in enumerate(document.innovations)
    )
    end = document.touchdown
    return DescentRecord(
        name=document.name,
        fidelity=document.fidelity,
        policy=document.policy,
        seed=document.seed,
        latitude_deg=document.latitude_deg,
        longitude_deg=document.longitude_deg,
        series=DescentSeries(**series),
        innovations=innovations,
        touchdown=None if end is None else Touchdown(**end.model_dump()),
        recipe=dict(document.recipe),
    )


def find_descents(path: Path) -> list[Path]:
    """The descents of a folder, or the one that a path names; sorted by name and by seed.

    Raises:
        RunFileError: there is none.
    """
    if not path.is_dir():
        return [path]
    names = [name for p in path.iterdir() if (name := _FILE.fullmatch(p.name))]
    if not names:
        raise RunFileError(f"{path}: no NAME-SEED.json in this folder; {_EXPECTED}")
    return [path / name[0] for name in sorted(names, key=lambda name: (name[1], int(name[2])))]


def _of_series(field: str) -> str:
    return f"series_{field}"


def _of_innovation(index: int, field: str) -> str:
    return f"innovation_{index}_{field}"


def _arrays_of(record: DescentRecord) -> Arrays:
    arrays = {_of_series(f): getattr(record.series, f).cpu().numpy() for f in _SERIES}
    for index, of_sensor in enumerate(record.innovations):
        for field in _INNOVATION:
            arrays[_of_innovation(index, field)] = getattr(of_sensor, field).cpu().numpy()
    return arrays


def _document_of(record: DescentRecord, sha256: str) -> DescentDocument:
    end = record.touchdown
    return DescentDocument(
        version=tnav.__version__,
        name=record.name,
        fidelity=record.fidelity,
        policy=record.policy,
        seed=record.seed,
        latitude_deg=record.latitude_deg,
        longitude_deg=record.longitude_deg,
        epochs=record.series.t_s.shape[0],
        filter_states=list(FILTER_STATES),
        innovations=[
            InnovationDocument(
                sensor=i.sensor, epochs=i.value.shape[0], degrees_of_freedom=i.value.shape[1]
            )
            for i in record.innovations
        ],
        touchdown=None if end is None else TouchdownDocument(**asdict(end)),
        recipe=record.recipe,
        arrays_sha256=sha256,
    )


def _read_document(path: Path) -> DescentDocument:
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise RunFileError(f"{path}: {reason}; {_EXPECTED}") from error
    except ValueError as error:
        raise RunFileError(f"{path}: not strict JSON: {error}; {_EXPECTED}") from error
    found = data.get("schema_name") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise RunFileError(f"{path}: schema_name: found {found!r}, expected '{SCHEMA}'")
    try:
        document = DescentDocument.model_validate(data)
    except ValidationError as error:
        raise _refusal(path, error) from error
    if tuple(document.filter_states) != FILTER_STATES:
        raise RunFileError(
            f"{path}: filter_states: not the {len(FILTER_STATES)} states of this tnav, in its "
            f"order; expected them as version {tnav.__version__} writes them"
        )
    return document


def _read_arrays(path: Path, document: DescentDocument) -> Arrays:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise RunFileError(
            f"{path}: {reason}; expected the arrays of the JSON beside it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != document.arrays_sha256:
        raise RunFileError(
            f"{path}: sha256 {found[:8]}, expected {document.arrays_sha256[:8]} of arrays_sha256 "
            "in the JSON beside it: damaged, or of another descent"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunFileError(f"{path}: not an npz of plain arrays ({error})") from error
    _check(path, document, arrays)
    return arrays


def _check(path: Path, document: DescentDocument, arrays: Arrays) -> None:
    """Refuse arrays that are not those of a document, by the first field that is wrong."""
    shapes = {_of_series(f): (kind, document.epochs, row, 0) for f, (kind, row) in _SERIES.items()}
    for i, of_sensor in enumerate(document.innovations):
        for field, (kind, row) in _INNOVATION.items():
            size = of_sensor.degrees_of_freedom
            shapes[_of_innovation(i, field)] = (kind, of_sensor.epochs, row, size)
    if odd := sorted(shapes.keys() ^ arrays.keys()):
        what = "unknown" if odd[0] in arrays else "missing"
        raise RunFileError(f"{path}: {odd[0]}: {what} array")
    for name, (kind, rows, row, size) in shapes.items():
        shape = (rows, *(size if axis == "k" else int(axis) for axis in row.split()))
        array = arrays[name]
        if (array.dtype, array.shape) != (kind, shape):
            raise RunFileError(
                f"{path}: {name}: found {array.dtype} {_by(array.shape)}, "
                f"expected {kind} {_by(shape)}"
            )
    _check_series(path, arrays)
    for i in range(len(document.innovations)):
        _check_innovation(path, arrays, i)


def _check_series(path: Path, arrays: Arrays) -> None:
    for field, (kind, _) in _SERIES.items():
        if kind != _F:
            continue
        name = _of_series(field)
        bad = np.isinf(arrays[name]) if field in _MAY_MISS else ~np.isfinite(arrays[name])
        _refuse_rows(path, name, bad, "finite" if field not in _MAY_MISS else "finite or NaN")
    _refuse_rows(path, _of_series("sigma"), arrays[_of_series("sigma")] < 0, "0 or more")
    _check_order(path, _of_series("t_s"), arrays)


def _check_innovation(path: Path, arrays: Arrays, index: int) -> None:
    t_s, present, fused = (_of_innovation(index, f) for f in ("t_s", "present", "fused"))
    _refuse_rows(path, t_s, ~np.isfinite(arrays[t_s]), "finite")
    _check_order(path, t_s, arrays)
    here = arrays[present]
    for field in _WHERE_PRESENT:
        name = _of_innovation(index, field)
        bad = _rows(~np.isfinite(arrays[name]))
        _refuse_rows(path, name, bad & here, "finite where present")
    _refuse_rows(path, fused, arrays[fused] & ~here, "fused only where present")


def _check_order(path: Path, name: str, arrays: Arrays) -> None:
    behind = np.diff(arrays[name], prepend=-np.inf) <= 0
    _refuse_rows(path, name, behind, "strictly increasing")


def _refuse_rows(path: Path, name: str, bad: NDArray[np.bool_], expected: str) -> None:
    rows = _rows(bad)
    if rows.any():
        raise RunFileError(f"{path}: {name}: row {int(rows.argmax())}: expected {expected}")


def _rows(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of which any element is bad."""
    return np.asarray(bad.any(axis=tuple(range(1, bad.ndim))))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)


def _refusal(path: Path, error: ValidationError) -> RunFileError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return RunFileError(f"{path}: {field}: {first['msg'].lower()}; {_EXPECTED} ({SCHEMA})")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"found {text}, which JSON does not have")


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError(f"found {text}, which is too large")
    return value
