import pytest


@pytest.fixture(autouse=True)
def own_tiles(tmp_path, monkeypatch):
    """Every test has a folder of user tiles of its own."""
    folder = tmp_path / "own"
    monkeypatch.setenv("TNAV_TILES", str(folder))
    return folder
