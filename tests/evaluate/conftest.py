"""What the tests of datasets share."""

import pytest
import torch
from dataset_scenes import PLAIN, RICH, loaded

from tnav.evaluate.dataset_writer import write_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def dataset_cache(tmp_path_factory):
    """Where every test keeps heights, for fixtures that live longer than one."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNAV_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def whole(dataset_cache, tmp_path_factory):
    """A finished dataset, and its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = loaded(folder, PLAIN)
    done = write_dataset(recipe, folder / "out", CPU)
    assert (done.frames, done.rendered, done.planned, done.finished) == (10, 10, 10, True)
    return recipe, folder / "out"


@pytest.fixture(scope="session")
def rich(dataset_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    recipe = loaded(folder, RICH)
    write_dataset(recipe, folder / "out", CPU)
    return recipe, folder / "out"
