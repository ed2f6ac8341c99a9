import itertools
import math

import pytest
import torch
import yaml

from tnav.config import datasets_dir, load_recipe
from tnav.errors import ConfigError
from tnav.evaluate.scenario import load_scenario
from tnav.geometry.moon import RADIUS_M
from tnav.learn.regions import Modelled, Region, Splits, distance_m, load_splits

TILE_LATITUDE_DEG, TILE_LONGITUDE_DEG = (44.0, 70.0), (-60.0, 60.0)


def two(tmp_path, apart_deg: float, split: str = "test", **changes: object) -> Splits:
    """Two regions on one meridian."""
    first = {
        "name": "a",
        "split": "train",
        "kind": "mare",
        "latitude_deg": 50.0,
        "longitude_deg": 0.0,
        "seed": 1,
    }
    second = {**first, "name": "b", "split": split, "latitude_deg": 50.0 + apart_deg, "seed": 2}
    path = tmp_path / "splits.yaml"
    given = {"half_side_m": 10e3, "margin_m": 1e3, "regions": [first, {**second, **changes}]}
    path.write_text(yaml.safe_dump(given))
    return load_splits(path)


def test_what_is_shipped_has_enough_of_everything():
    splits = load_splits()
    count = {split: len(splits.of(split)) for split in ("train", "validation", "test")}
    assert count == {"train": 14, "validation": 4, "test": 6}
    for split, least in (("train", 5), ("validation", 2), ("test", 3)):
        kinds = [region.kind for region in splits.of(split)]
        assert min(kinds.count("mare"), kinds.count("highland")) >= least
    assert len({region.seed for region in splits.regions}) == len(splits.regions)


def test_highlands_are_older_and_rougher_than_maria():
    splits = load_splits()
    mare, highland = (
        [r.relief for r in splits.regions if r.kind == kind] for kind in ("mare", "highland")
    )
    assert min(r.age_gyr for r in highland) > max(r.age_gyr for r in mare)
    rough = [r.rms_deviation_17m_m for r in highland]
    assert min(rough) > max(r.rms_deviation_17m_m for r in mare)


def test_no_corner_of_any_ground_lies_in_another_split():
    """By the corners themselves, not by the distance of centres that the file is checked by."""
    splits = load_splits()
    side = torch.linspace(-1, 1, 9, dtype=torch.float64) * splits.half_side_m
    y, x = torch.meshgrid(side, side, indexing="ij")
    z = (RADIUS_M**2 - x**2 - y**2).sqrt() - RADIUS_M
    ground_L = torch.stack([x, y, z], -1).view(-1, 3)
    for a, b in itertools.permutations(splits.regions, 2):
        if a.split == b.split:
            continue
        frame_a, frame_b = a.site(Modelled()).frame, b.site(Modelled()).frame
        here = frame_b.local(*frame_a.geodetic(ground_L))
        outside = here[:, :2].abs().amax(1) > splits.half_side_m
        assert bool(outside.all()), f"{a.name} reaches into {b.name}"


def test_every_ground_lies_on_the_tile():
    splits = load_splits()
    reach = splits.half_side_m + 2000.0  # what posts at the border depend on
    corner = torch.tensor(
        [[x, y, -reach * reach / RADIUS_M] for x in (-reach, 0.0, reach) for y in (-reach, reach)],
        dtype=torch.float64,
    )
    for region in splits.regions:
        latitude, longitude, _ = region.site(Modelled()).frame.geodetic(corner)
        for values, (low, high) in (
            (latitude, TILE_LATITUDE_DEG),
            (longitude, TILE_LONGITUDE_DEG),
        ):
            assert low < float(values.min()), region.name
            assert float(values.max()) < high, region.name


def test_the_demo_lands_on_test_ground():
    site = load_scenario("resilience").site
    region = load_splits().named("resilience")
    assert region.split == "test"
    assert (region.latitude_deg, region.longitude_deg) == (site.latitude_deg, site.longitude_deg)


def test_regions_may_come_as_near_as_margin_and_half_diagonals(tmp_path):
    least_deg = math.degrees((2 * math.sqrt(2) * 10e3 + 1e3) / RADIUS_M)
    assert len(two(tmp_path, least_deg * 1.0001).regions) == 2
    with pytest.raises(ConfigError, match=r"a \(train\) and b \(test\) are 29\.3 km apart"):
        two(tmp_path, least_deg * 0.9999)
    assert len(two(tmp_path, least_deg * 0.1, split="train").regions) == 2


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        two(tmp_path, 0.1, name="a", seed=1)
    told = str(caught.value)
    assert "splits.yaml" in told
    for part in ("name a is given to a and a", "seed 1 is given to", "km apart"):
        assert part in told


def test_an_unknown_key_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'kind'"):
        two(tmp_path, 5.0, kid="mare")


def test_distance_is_that_of_the_sphere():
    def region(latitude_deg: float, longitude_deg: float) -> Region:
        return Region(
            name="x",
            split="train",
            kind="mare",
            latitude_deg=latitude_deg,
            longitude_deg=longitude_deg,
            seed=0,
        )

    quarter_m = math.pi / 2 * RADIUS_M
    assert distance_m(region(0.0, 10.0), region(90.0, 50.0)) == pytest.approx(quarter_m)
    assert distance_m(region(0.0, -170.0), region(0.0, 100.0)) == pytest.approx(quarter_m)
    assert distance_m(region(-90.0, 0.0), region(90.0, 0.0)) == pytest.approx(2 * quarter_m)
    # cosine rule, on a case where it is well conditioned
    a, b = region(50.0, -20.0), region(60.0, 30.0)
    lat, lon = [math.radians(v) for v in (50.0, 60.0)], math.radians(50.0)
    cosine = math.sin(lat[0]) * math.sin(lat[1])
    cosine += math.cos(lat[0]) * math.cos(lat[1]) * math.cos(lon)
    assert distance_m(a, b) == pytest.approx(RADIUS_M * math.acos(cosine), rel=1e-12)


def test_ground_wider_than_the_splits_allow_is_refused():
    splits = load_splits()
    splits.check(Modelled())
    splits.check(Modelled(finest_post_m=4.0, levels=4, cells=3072))
    splits.check(Modelled(finest_post_m=splits.half_side_m / 512, levels=1, cells=1024))
    with pytest.raises(ConfigError, match=r"expected at most 50\.0"):
        splits.check(Modelled(finest_post_m=1.001 * splits.half_side_m / 512, levels=1, cells=1024))


def test_a_region_or_a_split_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="no region 'tycho'; expected one of imbrium-north"):
        load_splits().named("tycho")
    only = load_recipe(datasets_dir() / "splits.yaml", Splits)
    train = Splits(half_side_m=1.0, margin_m=0.0, regions=only.of("train"))
    with pytest.raises(ConfigError, match="no region of split 'test'"):
        train.of("test")
