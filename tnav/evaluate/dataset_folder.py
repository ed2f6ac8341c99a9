"""A dataset's folder: which recipe it belongs to, frames as files, what is whole and what is not.

::

    recipe.yaml inputs.json [poses.csv]        what the dataset is made from
    shard-00000/images/000000.png              16 bit, linear
    shard-00000/truth/000000.npz
    shard-00000/frames.jsonl                   one line a frame; while it grows: records/000000.json
    frames.jsonl dataset.json README.md preview.jpg colmap/        once all shards are there

A file is written aside and takes its name when it is whole; a frame's record is written after its
files and holds their hashes. So a frame without a record is not there.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import yaml

import tnav
from tnav.errors import ConfigError, RunFileError
from tnav.evaluate.dataset import (
    FilePoses,
    RasterAlbedo,
    RenderRecipe,
    file_sha256,
)
from tnav.evaluate.dataset_frames import Arrays, RenderedFrame
from tnav.evaluate.dataset_ground import dem_fingerprint
from tnav.files import written_aside
from tnav.images import encode_grey16

SCHEMA = 1
_COPIED_POSES = "poses.csv"
_IMMATERIAL = ("corridor.cache", "corridor.cache_limit_mb", "corridor.memory_budget_mb")
_BEFORE_RECIPE = {"inputs.json", _COPIED_POSES}
_SHOWN = 3  # differences or damages named in one line
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # some network file systems
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
Record = dict[str, object]


def inputs_of(recipe: RenderRecipe, device: str) -> dict[str, str | int]:
    """What a dataset depends on beside its recipe: equal inputs give equal bytes."""
    inputs: dict[str, str | int] = {"schema": SCHEMA, "tnav": tnav.__version__, "device": device}
    inputs["dem_fingerprint"] = dem_fingerprint(recipe)
    if isinstance(recipe.poses, FilePoses):
        inputs["poses_sha256"] = file_sha256(recipe.poses.path)
    if isinstance(recipe.albedo, RasterAlbedo):
        inputs["albedo_sha256"] = file_sha256(recipe.albedo.path)
    return inputs


def canonical(recipe: RenderRecipe) -> dict[str, object]:
    """The recipe as the folder keeps it: with every default, its file of poses beside it."""
    if isinstance(recipe.poses, FilePoses):
        poses = recipe.poses.model_copy(update={"path": Path(_COPIED_POSES)})
        recipe = recipe.model_copy(update={"poses": poses})
    return recipe.model_dump(mode="json")


def belongs(out: Path, recipe: RenderRecipe, inputs: Mapping[str, object]) -> bool:
    """Whether a folder holds (part of) this very dataset; False where it is empty or absent.

    Raises:
        ConfigError: it holds something else; the keys that differ are named.
    """
    if not out.exists():
        return False
    kept = out / "recipe.yaml"
    if not kept.exists():
        foreign = {p.name for p in out.iterdir() if p.suffix != ".part"} - _BEFORE_RECIPE
        if foreign:
            raise ConfigError(
                f"{out}: not empty ({min(foreign)}) and no dataset of tnav; give another folder"
            )
        return False
    try:
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        inputs_before = json.loads((out / "inputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{out}: recipe.yaml or inputs.json is damaged ({error})") from error
    differing = _differences(before, canonical(recipe)) + _differences(inputs_before, dict(inputs))
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise ConfigError(
            f"{out}: holds another dataset: {'; '.join(differing[:_SHOWN])}{more}; give another "
            "folder, or the recipe that it was made from"
        )
    return True


def check_writable(out: Path) -> None:
    """Raises ConfigError where a folder cannot be made or written to, before any work is done."""
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{out}: cannot be written (Not a directory: {nearest})")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{out}: cannot be written (Permission denied: {nearest})")


def claim(out: Path, recipe: RenderRecipe, inputs: Mapping[str, object]) -> None:
    """Make the folder and put down what it is for; the recipe last."""
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe.poses, FilePoses):
        _put(out / _COPIED_POSES, recipe.poses.path.read_bytes())
    _put(out / "inputs.json", (json.dumps(inputs, indent=1) + "\n").encode())
    text = yaml.safe_dump(canonical(recipe), sort_keys=False, allow_unicode=True)
    _put(out / "recipe.yaml", text.encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the lock goes with the process, however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(f"{folder}: another process is at work on it; wait for it") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(handle)
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


class Shard:
    """Some consecutive frames of a dataset, in a folder of their own."""

    def __init__(self, out: Path, index: int, numbers: range, suffix: str) -> None:
        """Nothing is read or written yet.

        Args:
            out: the dataset's folder.
            index: of the shard.
            numbers: of its frames.
            suffix: of its images.
        """
        self.out, self.numbers, self._suffix = out, numbers, suffix
        self.folder = out / f"shard-{index:05d}"

    def prepare(self) -> None:
        """Make its folders."""
        for name in ("images", "truth"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def whole(self) -> dict[int, Record]:
        """Records of the frames whose files are there with the hashes that were recorded."""
        lines = _lines(self.folder / "frames.jsonl")
        for path in sorted((self.folder / "records").glob("*.json")):
            lines += _lines(path)
        records = (opened(line) for line in lines)
        found = {r["id"]: r for r in records if r is not None and not damage_of(self.out, r)}
        return {k: found[k] for k in self.numbers if k in found}

    def put(self, frame: RenderedFrame, compression: str) -> Record:
        """Write a frame's files, then its record."""
        stem = f"{frame.number:06d}"
        image = self.folder / "images" / f"{stem}{self._suffix}"
        truth = self.folder / "truth" / f"{stem}.npz"
        record: Record = {"id": frame.number}
        for name, path, data in (
            ("image", image, encode_grey16(frame.image, self._suffix)),
            ("truth", truth, encode_npz(frame.truth, compression)),
        ):
            with written_aside(path) as aside:
                aside.write_bytes(data)
            record[name] = path.relative_to(self.out).as_posix()
            record[f"{name}_sha256"] = hashlib.sha256(data).hexdigest()
        record = sealed({**record, **frame.facts})
        records = self.folder / "records"
        records.mkdir(exist_ok=True)
        with written_aside(records / f"{stem}.json") as aside:
            aside.write_text(line_of(record), encoding="utf-8")
        return record

    def close(self, records: Mapping[int, Record]) -> None:
        """Gather the records of a full shard in one file."""
        text = "".join(line_of(records[k]) for k in self.numbers)
        path = self.folder / "frames.jsonl"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            with written_aside(path) as aside:
                aside.write_text(text, encoding="utf-8")
        shutil.rmtree(self.folder / "records", ignore_errors=True)


def line_of(record: Record) -> str:
    """A record as one line of strict JSON."""
    return json.dumps(record, allow_nan=False) + "\n"


def sealed(record: Record) -> Record:
    """A record with the hash of its own line, without which it does not count."""
    clean = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
    return {**clean, "record_sha256": _seal(clean)}


def opened(line: str) -> Record | None:
    """The record of a line, or None where it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return record if record.get("record_sha256") == _seal(rest) else None


def damage_of(out: Path, record: Record) -> list[str]:
    """Files of a frame that are missing or changed."""
    found = []
    for name in ("image", "truth"):
        path = out / str(record[name])
        if not path.is_file():
            found.append(f"{record[name]} (missing)")
        elif file_sha256(path) != record[f"{name}_sha256"]:
            found.append(f"{record[name]} (changed)")
    return found


def damage(out: Path) -> list[str]:
    """All that is missing or changed in a finished dataset.

    Raises:
        RunFileError: there is no finished dataset.
    """
    dataset = read_dataset(out)
    files = dataset["files"]
    assert isinstance(files, dict)
    found = []
    for name, digest in files.items():
        path = out / name
        if not path.is_file():
            found.append(f"{name} (missing)")
        elif file_sha256(path) != digest:
            found.append(f"{name} (changed)")
    for record in map(opened, _lines(out / "frames.jsonl")):
        if record is not None:  # else the index is changed, which is told already
            found += damage_of(out, record)
    return found


def read_dataset(out: Path) -> Record:
    """``dataset.json``. Raises RunFileError where the dataset is not finished, or it is damaged."""
    path = out / "dataset.json"
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFileError(f"{path}: missing; expected a finished dataset") from error
    except (OSError, ValueError) as error:
        raise RunFileError(f"{path}: damaged ({error}); render again") from error
    if not isinstance(dataset, dict) or dataset.get("schema") != SCHEMA:
        raise RunFileError(f"{path}: not of schema {SCHEMA}; render again with this version")
    return dataset


def encode_npz(arrays: Arrays, compression: str) -> bytes:
    """Arrays as ``numpy.load`` reads them; equal arrays give equal bytes (no clock, no umask)."""
    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compression == "deflate" else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
            entry.compress_type, entry.create_system = method, _UNIX
            body = io.BytesIO()
            np.save(body, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(entry, body.getvalue(), compresslevel=1)
    return stream.getvalue()


def _seal(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, allow_nan=False).encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []


def _put(path: Path, data: bytes) -> None:
    """Write aside under a name of this process's own: several may claim one folder at once."""
    if path.is_file() and path.read_bytes() == data:
        return
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_bytes(data)
    aside.replace(path)


def _differences(before: object, now: object, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        return [
            text
            for name in names
            for text in _differences(
                before.get(name), now.get(name), f"{key}.{name}" if key else str(name)
            )
        ]
    if before == now or key in _IMMATERIAL:
        return []
    return [f"{key} was {json.dumps(before)}, is now {json.dumps(now)}"]
