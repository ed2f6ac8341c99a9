"""What every test may rely on."""

import pytest
import simulated_device


@pytest.fixture
def simgpu() -> str:
    """The name of the simulated accelerator, installed."""
    simulated_device.install()
    return simulated_device.DEVICE
