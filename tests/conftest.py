"""What every test may rely on."""

import pytest
import simulated_device


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and cache of the person who runs the tests are neither read nor written."""
    home = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("TNAV_TILES", str(home / "tiles"))
    monkeypatch.setenv("TNAV_CACHE", str(home / "cache"))


@pytest.fixture
def simgpu() -> str:
    """The name of the simulated accelerator, installed."""
    simulated_device.install()
    return simulated_device.DEVICE
