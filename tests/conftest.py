"""What every test may rely on."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # modules shared by tests: simulated_device and its like


@pytest.fixture
def simgpu() -> Iterator[str]:
    """The name of the simulated accelerator, installed."""
    import simulated_device

    simulated_device.install()
    yield simulated_device.DEVICE
