"""Heights kept on disk under the hash of all that they depend on.

An entry is a ``.npy`` file followed by the SHA-256 of its bytes. Whoever asks for a hash gets the
heights that belong to it or nothing: a file that is cut short or changed is dropped and made again.
Any number of processes may share a folder: a file is written aside under a name of its own and
takes its place in one step.
"""

import contextlib
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from tnav.errors import ConfigError

FORMAT = 1  # of the files: raise it when it changes
DEFAULT_LIMIT_MB = 4096.0
_DIGEST_BYTES = 32
_ABANDONED_S = 3600.0  # a file aside that is older was left by a process that died
_KEPT_SHARE = 0.9  # of the limit after an eviction, so that the next write does not evict again
_RECOUNT_SHARE = 1 / 16  # of the limit, written since the folder was last looked through


def default_folder() -> Path | None:
    """``TNAV_CACHE``, or ``tnav`` in the user's cache folder; None where it says ``off``."""
    named = os.environ.get("TNAV_CACHE", "")
    if named:
        return None if named == "off" else Path(named)
    home = os.environ.get("XDG_CACHE_HOME", "")  # the XDG specification: unset and empty are one
    return (Path(home) if home else Path.home() / ".cache") / "tnav"


def content_hash(content: Mapping[str, object]) -> str:
    """SHA-256 of canonical JSON: equal for equal content, whatever the order of its keys."""
    text = json.dumps(
        {"format": FORMAT, **content}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def default_cache() -> "HeightCache | None":
    """The cache in the default folder; None where the user wants none.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = default_folder()
    return None if folder is None else HeightCache(folder)


class HeightCache:
    """A folder of heights by content hash, of bounded size, the longest unused going first.

    Attributes:
        folder: where the files are.
        limit_bytes: what they may take. Several processes may each exceed it by a sixteenth until
            they look through the folder again.
    """

    __slots__ = ("_held_bytes", "_unseen_bytes", "folder", "limit_bytes")

    def __init__(self, folder: Path, limit_mb: float = DEFAULT_LIMIT_MB) -> None:
        """Make the folder where it is missing, and bring it under the limit.

        Raises:
            ConfigError: the folder cannot be made or written to, or the limit is not positive.
        """
        if not limit_mb > 0:
            raise ConfigError(f"terrain cache: limit of {limit_mb:g} MB, expected more than 0")
        self.folder = folder / "terrain"
        self.limit_bytes = int(limit_mb * 1e6)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        self._unseen_bytes = 0
        self._evict()

    @property
    def held_bytes(self) -> int:
        """Size of the files, as far as this process knows."""
        return self._held_bytes + self._unseen_bytes

    def get(self, key: str) -> Float32[Tensor, "rows cols"] | None:
        """Heights under a hash, or None where they are not there or no longer whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            with contextlib.suppress(OSError):  # another user's: put will say so
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # evicted meanwhile: what was read is whole all the same
            os.utime(path)  # used now: others go first
        return torch.from_numpy(np.load(io.BytesIO(body), allow_pickle=False))

    def put(self, key: str, heights_m: Float32[Tensor, "rows cols"]) -> None:
        """Keep heights under a hash.

        Raises:
            ConfigError: they cannot be written.
        """
        stream = io.BytesIO()
        np.save(stream, heights_m.numpy(), allow_pickle=False)
        body = stream.getvalue()
        data = body + hashlib.sha256(body).digest()
        if len(data) > self.limit_bytes:
            return
        path = self._path(key)
        aside = path.with_name(f"{key}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            aside.write_bytes(data)
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        self._unseen_bytes += len(data)
        crowded = self.held_bytes > self.limit_bytes
        if crowded or self._unseen_bytes > _RECOUNT_SHARE * self.limit_bytes:
            self._evict()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.folder}: the terrain cache cannot be written ({error.strerror}); name another "
            "folder in TNAV_CACHE, or 'off' to do without"
        )

    def _evict(self) -> None:
        """Look through the folder; where it holds too much, remove the longest unused."""
        entries = []
        for path in self.folder.glob("*/*"):
            try:
                found = path.stat()
            except OSError:
                continue  # another process was faster
            if path.suffix == ".part":
                if time.time() - found.st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)
            elif path.suffix == ".npy":
                entries.append((found.st_mtime_ns, str(path), found.st_size))
        self._held_bytes = sum(size for _, _, size in entries)
        self._unseen_bytes = 0
        if self._held_bytes <= self.limit_bytes:
            return
        for _, name, size in sorted(entries):
            Path(name).unlink(missing_ok=True)
            self._held_bytes -= size
            if self._held_bytes <= _KEPT_SHARE * self.limit_bytes:
                return
