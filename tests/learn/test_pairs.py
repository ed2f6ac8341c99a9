import itertools
import math
import pickle

import pytest
import torch
from learning_scenes import SMALL

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.learn.pairs import (
    IndexBatches,
    PairBatch,
    PairDataset,
    PairRecipe,
    batches,
    collate,
    pair_of,
)

RECIPE = PairRecipe(
    width_px=64, height_px=48, focal_px=309.0, ground=SMALL, regions=("bond",),
    agl_m=(2000.0, 5000.0), maps=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNAV_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield PairDataset(RECIPE, "train", 1)


def same(a: PairBatch, b: PairBatch) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("view", "image", "uv_px", "known")
    )


def test_crops_have_the_scale_of_the_whole_camera():
    whole = Camera.from_field_of_view(1024, 1024, 45.0)
    assert PairRecipe().camera().focal_px == pytest.approx(whole.focal_px, abs=1e-3)
    assert (PairRecipe().width_px, PairRecipe().height_px) == (256, 256)


def test_a_pair_is_its_scene_with_every_pixel_of_the_view(dataset):
    scene = dataset.maker.scene(3)
    pair = dataset[3]
    assert same(pair, pair_of(scene))
    assert pair.view.shape == pair.image.shape == (1, 1, 48, 64)
    assert bool(pair.uv_px.isfinite().all())
    assert pair.uv_px.dtype == torch.float32
    for row, column in ((5, 7), (30, 50)):
        uv_px, seen = scene.true_uv_px(scene.map_view.xyz_L[0, row, column][None])
        torch.testing.assert_close(pair.uv_px[0, row, column], uv_px[0].float())
        assert bool(pair.known[0, row, column]) == bool(seen[0])


def test_known_places_lie_in_the_image(dataset):
    for index in range(8):
        pair = dataset[index]
        uv_px = pair.uv_px[pair.known]
        assert float(pair.known.double().mean()) > 0.25
        assert bool((uv_px >= 0).all())
        assert bool((uv_px < torch.tensor([64.0, 48.0])).all())


def test_a_view_past_the_ground_has_finite_places_that_are_not_known():
    recipe = RECIPE.model_copy(
        update={"tilt_deg": (50.0, 60.0), "least_ground": 0.05, "place_agl": 1.2}
    )
    dataset, missed = PairDataset(recipe, "train", 1), 0
    for index in range(12):
        pair = dataset[index]
        nowhere = ~dataset.maker.scene(index).map_view.hit
        missed += int(nowhere.sum())
        assert bool(pair.uv_px.isfinite().all())
        assert not bool(pair.known[nowhere].any())
    assert missed > 0


def test_collate_keeps_the_order(dataset):
    pairs = [dataset[k] for k in (4, 0, 2)]
    batch = collate(pairs)
    assert len(batch) == 3
    assert batch.uv_px.shape == (3, 48, 64, 2)
    for k, pair in enumerate(pairs):
        assert torch.equal(batch.image[k], pair.image[0])
        assert torch.equal(batch.known[k], pair.known[0])


def test_a_dataset_travels_without_its_ground(dataset):
    dataset[0]
    packed = pickle.dumps(dataset)
    assert len(packed) < 20_000
    assert same(pickle.loads(packed)[1], dataset[1])


def test_a_batch_moves_to_a_device(dataset, simgpu):
    moved = dataset[0].to(simgpu)
    assert {moved.view.device.type, moved.known.device.type} == {simgpu}
    assert same(moved.to("cpu"), dataset[0])


@pytest.mark.parametrize(("batch", "world"), [(1, 1), (3, 2), (4, 5)])
def test_ranks_share_all_indices_and_none_twice(batch, world):
    steps = 7
    seen: list[int] = []
    for rank in range(world):
        drawn = list(itertools.islice(IndexBatches(0, batch, rank, world), steps))
        assert drawn == [
            [(s * world + rank) * batch + k for k in range(batch)] for s in range(steps)
        ]
        resumed = list(itertools.islice(IndexBatches(3, batch, rank, world), steps - 3))
        assert resumed == drawn[3:]
        seen += itertools.chain.from_iterable(drawn)
    assert sorted(seen) == list(range(steps * batch * world))


@pytest.mark.parametrize("numbers", [(0, 0, 0, 1), (-1, 1, 0, 1), (0, 1, 2, 2), (0, 1, -1, 2)])
def test_numbers_of_a_rank_that_do_not_fit_are_told(numbers):
    with pytest.raises(ConfigError, match="a rank below the number of ranks"):
        IndexBatches(*numbers)


def test_a_run_that_is_resumed_sees_the_pairs_that_it_would_have_seen(dataset):
    whole = list(itertools.islice(batches(RECIPE, "train", 1, 0, 2, rank=1, world=2), 4))
    resumed = batches(RECIPE, "train", 1, 8, 2, rank=1, world=2)
    assert same(next(resumed), whole[2])
    assert same(next(resumed), whole[3])
    assert same(whole[2], collate([dataset[10], dataset[11]]))
    with pytest.raises(ConfigError, match="expected a multiple of batch x ranks = 2 x 2"):
        batches(RECIPE, "train", 1, 6, 2, rank=1, world=2)


def test_workers_change_nothing(dataset):
    stream = batches(RECIPE, "train", 1, 4, 2, workers=1)
    assert same(next(stream), collate([dataset[4], dataset[5]]))
    assert same(next(stream), collate([dataset[6], dataset[7]]))
    del stream


def test_errors_of_the_prior_move_a_crop_by_up_to_a_quarter_of_it():
    dataset = PairDataset(RECIPE, "train", 1)
    maker = dataset.maker
    moved = []
    for index in range(60):
        case = maker.case(index)
        moved.append(math.log10(309.0 * case.horizontal_m / case.agl_m))
    assert math.log10(0.15) < min(moved)
    assert max(moved) < math.log10(16)  # a quarter of 64 px, as 64 px are of 256
    assert max(moved) - min(moved) > 1.5
