"""Scores of images that were looked up are kept, and are those of the same descriptors."""

import dataclasses
from pathlib import Path

from tnav.evaluate.bench_lost_in_space import SLUG, _Keeper
from tnav.evaluate.match_scores import PairScore

FOUND = PairScore(SLUG, 0, "tnav", "", "", "ok", 0.25, (), 0.7)


def refuse() -> PairScore:
    raise AssertionError("was measured before")


def test_what_was_looked_up_is_not_looked_up_again(tmp_path: Path) -> None:
    first = _Keeper(tmp_path, "weights a").score("map, seed 1", 3, lambda: FOUND)
    assert (first.group, first.index, first.key, first.grid_px) == (
        "map, seed 1",
        3,
        "weights a",
        0.25,
    )
    assert _Keeper(tmp_path, "weights a").score("map, seed 1", 3, refuse) == first


def test_other_weights_grounds_and_images_are_other_scores(tmp_path: Path) -> None:
    _Keeper(tmp_path, "a").score("map, seed 1", 3, lambda: FOUND)
    for other in (("b", "map, seed 1", 3), ("a", "map, seed 2", 3), ("a", "map, seed 1", 4)):
        identity, group, index = other
        refused = dataclasses.replace(FOUND, status="wrong place", grid_px=None)
        found = _Keeper(tmp_path, identity).score(group, index, lambda score=refused: score)
        assert found.grid_px is None


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    _Keeper(None, "a").score("map", 0, lambda: FOUND)
    assert not list(tmp_path.iterdir())
