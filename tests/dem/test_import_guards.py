"""Imports beside one another, and imports that fail over a tile that is there."""

import numpy as np
import pytest
from filelock import FileLock
from rasters_made import cylinder, write_tiff

from tnav.dem import importing
from tnav.dem.importing import Claims, import_dem
from tnav.dem.tiles import open_tile, sample_height_m
from tnav.errors import TileError


def _quiet(text, share):
    pass


def _imported(path):
    return open_tile(import_dem(path, Claims(), _quiet, overwrite=True).name)


def test_a_lock_that_another_holds_outlives_those_who_are_turned_away(tmp_path, own_tiles):
    path = write_tiff(tmp_path / "l.tif", cylinder(80, 80).astype(np.float32))
    own_tiles.mkdir()
    with FileLock(own_tiles / ".l.lock"):
        for _ in range(2):  # the second came in where the first had unlinked the lock
            with pytest.raises(TileError, match="l: is being imported by another process"):
                import_dem(path, Claims(), _quiet)
    assert import_dem(path, Claims(), _quiet).name == "l"


@pytest.mark.parametrize("broken", ["add_entry", "_entry", "write_cog"])
def test_an_overwrite_that_fails_leaves_the_old_tile(tmp_path, own_tiles, monkeypatch, broken):
    path = write_tiff(tmp_path / "o.tif", cylinder(80, 80).astype(np.float32))
    tile = _imported(path)
    before = {p.name: p.read_bytes() for p in own_tiles.iterdir()}
    write_tiff(path, cylinder(80, 80).astype(np.float32) + 900)

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(importing, broken, full)
        with pytest.raises(OSError, match="no space left"):
            _imported(path)
    assert {p.name: p.read_bytes() for p in own_tiles.iterdir()} == before
    at = np.array([60.0]), np.array([-3.0])
    old = sample_height_m(open_tile("o"), *at)
    assert old == sample_height_m(tile, *at)
    assert sample_height_m(_imported(path), *at) == pytest.approx(old + 900, abs=0.05)
    assert {p.name for p in own_tiles.iterdir()} == before.keys()


def test_a_name_taken_while_the_lock_was_waited_for_is_not_overwritten(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "n.tif", cylinder(80, 80).astype(np.float32))
    _imported(path)
    checks = []
    real = importing.require_free

    def seen_too_early(*arguments):
        checks.append(arguments)
        if len(checks) > 1:  # the first look came before the other's entry
            real(*arguments)

    monkeypatch.setattr(importing, "require_free", seen_too_early)
    with pytest.raises(TileError, match="n: already in"):
        import_dem(path, Claims(), _quiet)
