import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tnav.errors import ConfigError
from tnav.terrain.cache import HeightCache, content_hash, default_folder


def heights(number: int, side: int = 32) -> torch.Tensor:
    return torch.full((side, side), float(number)) + torch.arange(side) / 7


def key(number: int) -> str:
    return content_hash({"tile": number})


def files(cache: HeightCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*"))


def test_heights_come_back_bit_for_bit(tmp_path):
    cache = HeightCache(tmp_path)
    assert cache.get(key(1)) is None
    cache.put(key(1), heights(1))
    cache.put(key(2), heights(2))
    again = HeightCache(tmp_path)
    assert torch.equal(again.get(key(1)), heights(1))
    assert torch.equal(again.get(key(2)), heights(2))
    assert again.held_bytes == sum(path.stat().st_size for path in files(again))


def test_a_file_is_an_npy_file(tmp_path):
    """NumPy reads it as it is: the digest behind the array does not disturb it."""
    cache = HeightCache(tmp_path)
    cache.put(key(1), heights(1))
    assert np.array_equal(np.load(files(cache)[0]), heights(1).numpy())


def test_a_view_of_a_larger_grid_is_kept_as_itself(tmp_path):
    cache = HeightCache(tmp_path)
    cache.put(key(1), heights(1, 64)[3:20, ::2])
    assert torch.equal(cache.get(key(1)), heights(1, 64)[3:20, ::2])


@pytest.mark.parametrize("at", [0, 9, 70, 128, 2000, -33, -32, -1])
def test_one_changed_bit_is_noticed_and_mended(tmp_path, at):
    cache = HeightCache(tmp_path)
    cache.put(key(1), heights(1))
    path = files(cache)[0]
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert cache.get(key(1)) is None
    assert not path.exists()
    cache.put(key(1), heights(1))
    assert torch.equal(cache.get(key(1)), heights(1))


@pytest.mark.parametrize("kept", [0, 1, 31, 32, 33, 128, 1000, -1])
def test_a_file_cut_short_is_noticed(tmp_path, kept):
    cache = HeightCache(tmp_path)
    cache.put(key(1), heights(1))
    path = files(cache)[0]
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.get(key(1)) is None


def test_the_hash_is_of_canonical_json():
    plain = json.dumps({"a": 1, "b": [2.5, "x"], "format": 1}, separators=(",", ":"))
    expected = hashlib.sha256(plain.encode()).hexdigest()
    assert content_hash({"b": [2.5, "x"], "a": 1}) == expected
    assert content_hash({"b": [2.5, "y"], "a": 1}) != expected


def test_what_is_unused_longest_goes_first(tmp_path):
    size = len(heights(0).numpy().tobytes()) + 128 + 32
    cache = HeightCache(tmp_path, limit_mb=4 * size / 1e6)
    now = time.time()
    for number in range(4):
        cache.put(key(number), heights(number))
        os.utime(cache.folder / key(number)[:2] / f"{key(number)}.npy", (now, now - 100 + number))
    assert cache.held_bytes == 4 * size  # at its limit, not over
    assert cache.get(key(0)) is not None  # used: now the youngest
    cache.put(key(4), heights(4))
    kept = [number for number in range(5) if cache.get(key(number)) is not None]
    assert kept == [0, 3, 4]  # 3 files are under nine tenths of the limit
    assert cache.held_bytes == 3 * size == sum(path.stat().st_size for path in files(cache))


def test_a_folder_over_the_limit_is_cut_when_it_is_opened(tmp_path):
    cache = HeightCache(tmp_path)
    for number in range(8):
        cache.put(key(number), heights(number))
    size = cache.held_bytes // 8
    small = HeightCache(tmp_path, limit_mb=5 * size / 1e6)
    assert small.held_bytes == 4 * size
    assert len(files(small)) == 4


def test_heights_larger_than_the_limit_are_not_kept(tmp_path):
    cache = HeightCache(tmp_path, limit_mb=1e-3)
    cache.put(key(1), heights(1))
    assert files(cache) == []


def test_files_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    cache = HeightCache(tmp_path)
    folder = cache.folder / "ab"
    folder.mkdir()
    for name, age_s in (("dead.part", 3700.0), ("living.part", 3500.0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    HeightCache(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["living.part"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"terrain cache cannot be written .*TNAV_CACHE"):
        HeightCache(tmp_path / "file")


def test_a_write_that_fails_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    cache = HeightCache(tmp_path)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        cache.put(key(1), heights(1))
    assert list(cache.folder.glob("*/*")) == []


def test_a_limit_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="limit of 0 MB"):
        HeightCache(tmp_path, limit_mb=0.0)


def test_the_folder_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TNAV_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.setenv("TNAV_CACHE", "off")
    assert default_folder() is None
    monkeypatch.setenv("TNAV_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "tnav"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "tnav"


_WRITER = """
import sys, torch
from pathlib import Path
from tnav.terrain.cache import HeightCache, content_hash
cache = HeightCache(Path(sys.argv[1]), limit_mb=0.05)
for turn in range(12):
    for number in range(16):
        key = content_hash({"tile": number})
        found = cache.get(key)
        expected = torch.full((32, 32), float(number))
        if found is None:
            cache.put(key, expected)
        else:
            assert torch.equal(found, expected)
"""


def test_processes_share_a_folder_that_is_too_small_for_them(tmp_path):
    """Files are written, read, evicted and written again under each other's hands."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert list(tmp_path.glob("**/*.part")) == []
    HeightCache(tmp_path, limit_mb=0.05)
    assert sum(path.stat().st_size for path in tmp_path.glob("**/*.npy")) <= 50_000
