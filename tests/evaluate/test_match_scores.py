"""Scores of matched pairs: closed forms, exact intervals, files, and the table that tells them."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tnav.errors import RunFileError
from tnav.evaluate.bench_match import AGAIN
from tnav.evaluate.match_cases import (
    CASES,
    MatchCase,
    named_cases,
)
from tnav.evaluate.match_scores import (
    PairScore,
    append_score,
    binomial_interval,
    grid_of,
    match_errors_px,
    pose_grid_error_px,
    read_scores,
)
from tnav.evaluate.match_table import case_rows, first_rows, wrong_rows
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp

CPU = torch.device("cpu")
TRUE_SUN = CASES[0]
DOWN = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def case_of(slug: str) -> MatchCase:
    return named_cases([slug])[0]


def test_grid_error_in_closed_form() -> None:
    camera = Camera.from_field_of_view(100, 100, 90.0)  # focal length 50 px
    xy = torch.tensor([[-300.0, 200.0], [100.0, 50.0], [400.0, -450.0]], dtype=torch.float64)
    point_L = torch.cat([xy, torch.zeros(3, 1, dtype=torch.float64)], -1)
    true = Pose(DOWN[None], torch.tensor([[0.0, 0.0, 1000.0]], dtype=torch.float64))
    uv = camera.project((point_L - true.position_L) @ true.R_L_C[0])
    east = Pose(true.R_L_C, true.position_L + torch.tensor([[60.0, 0.0, 0.0]]).double())
    assert pose_grid_error_px(true, camera, point_L, uv) == 0.0
    assert pose_grid_error_px(east, camera, point_L, uv) == pytest.approx(60 * 50 / 1000)
    turn = so3_exp(torch.tensor([[0.0, 0.0, 0.1]], dtype=torch.float64))
    rolled = Pose(turn @ true.R_L_C, true.position_L)
    arm_px = float((xy.square().sum(-1).mean()).sqrt()) * 50 / 1000
    expected = 2 * math.sin(0.05) * arm_px
    assert pose_grid_error_px(rolled, camera, point_L, uv) == pytest.approx(expected)
    behind = Pose(true.R_L_C, torch.tensor([[0.0, 0.0, -10.0]], dtype=torch.float64))
    assert pose_grid_error_px(behind, camera, point_L, uv) == 9999.0
    assert pose_grid_error_px(true, camera, point_L[:0], uv[:0]) == 9999.0


def test_match_errors_are_those_of_valid_matches() -> None:
    uv = torch.tensor([[3.0, 4.0], [1.0, 0.0], [9.0, 9.0], [torch.nan, 0.0]], dtype=torch.float64)
    valid = torch.tensor([True, True, False, True])
    assert match_errors_px(uv, torch.zeros(4, 2).double(), valid) == (1.0, 5.0, 9999.0)


def test_grid_is_regular_and_on_the_ground() -> None:
    hit = torch.ones(64, 96, dtype=torch.bool)
    hit[:, 48:] = False
    rows, columns = grid_of(hit, 4).nonzero().unbind(-1)
    assert sorted(set(rows.tolist())) == [8, 24, 40, 56]
    assert sorted(set(columns.tolist())) == [12, 36]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),  # 1 - 0.025^(1/10)
        (27, 27, 0.8723, 1.0),  # 0.025^(1/27)
        (8, 10, 0.4439, 0.9748),  # Clopper and Pearson's tables
        (0, 1000, 0.0, 0.003682),
    ],
)
def test_exact_intervals(k: int, n: int, low: float, high: float) -> None:
    assert binomial_interval(k, n) == (
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )


def made(**changes: object) -> PairScore:
    score = PairScore("true-sun", 0, "tnav", "k", "mare", "ok", 0.1, (0.1, 0.2), 0.5)
    return dataclasses.replace(score, **changes)  # type: ignore[arg-type]


def test_shares_limits_and_who_is_first() -> None:
    ours = [made(index=k, error_px=(0.2,) * 10) for k in range(4)]
    theirs = [made(index=k, method="cfog", error_px=(0.1,) * 9 + (5.0,)) for k in range(4)]
    theirs[3] = dataclasses.replace(theirs[3], grid_px=3.0)
    rows = {row.name: row for row in case_rows(TRUE_SUN, [*ours, *theirs], "cpu")}
    solved = rows["true Sun, map 1-4 x coarser: tnav: solved"]
    assert (solved.value, solved.limit, solved.passed, solved.n) == (100.0, ">= 100", True, 4)
    assert solved.unit == "% (39.8 to 100.0)"
    assert rows["true Sun, map 1-4 x coarser, mare: tnav: solved"].value == 100.0
    within = rows["true Sun, map 1-4 x coarser: cfog: matches within 3 px"]
    assert (within.value, within.limit, within.passed, within.n) == (90.0, None, None, 40)
    assert rows["true Sun, map 1-4 x coarser: cfog: solved"].value == 75.0
    none = [dataclasses.replace(s, error_px=()) for s in ours]
    empty = {row.name: row for row in case_rows(TRUE_SUN, none, "cpu")}
    within = empty["true Sun, map 1-4 x coarser: tnav: matches within 3 px"]
    assert (within.value, within.passed, within.n) == (None, False, 0)
    worse = [dataclasses.replace(s, error_px=(0.25,)) for s in ours]
    late = {row.name: row for row in case_rows(TRUE_SUN, worse, "cpu")}
    assert late["true Sun, map 1-4 x coarser: tnav: median error"].passed is False

    (first,) = first_rows([TRUE_SUN], [*ours, *theirs], "cpu")
    assert first.value == "tnav (median error: cfog 0.100 px, tnav 0.200 px)"
    assert first.n == 4
    late_one = [*ours[:3], dataclasses.replace(ours[3], error_px=(9.0,))]
    (first,) = first_rows([TRUE_SUN], [*late_one, *theirs[:3]], "cpu")
    assert first.n == 3  # what not all have seen is no part of the contest
    assert "within" not in str(first.value)
    assert first_rows([TRUE_SUN], [*ours[:2], *theirs[2:]], "cpu") == []
    again = [dataclasses.replace(s, method=AGAIN, error_px=(0.01,)) for s in ours]
    (first,) = first_rows([TRUE_SUN], [*ours, *again, *theirs], "cpu")
    assert "again" not in str(first.value)

    wrong = {row.name: row for row in wrong_rows([*ours, *theirs], "cpu")}
    assert wrong["wrong poses called good: tnav"].passed is True
    assert wrong["wrong poses called good: cfog"].value == 1
    ours[0] = dataclasses.replace(ours[0], grid_px=3.0)
    assert wrong_rows(ours, "cpu")[0].passed is False


def test_refusals_where_there_is_nothing_to_find() -> None:
    blank = case_of("blank")
    refused = made(case="blank", status="no_consensus", grid_px=None, error_px=())
    (row,) = case_rows(blank, [refused, refused], "cpu")
    assert (row.value, row.passed) == (100.0, True)
    accepted = dataclasses.replace(refused, status="ok")
    (row,) = case_rows(blank, [refused, accepted], "cpu")
    assert (row.value, row.passed) == (50.0, False)


def test_scores_survive_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "x" / "row.jsonl"
    scores = [made(index=k, grid_px=None if k else 0.25) for k in range(3)]
    for score in scores:
        append_score(path, score)
    assert read_scores(path) == scores
    text = path.read_text()
    path.write_text(text[:-20])
    assert read_scores(path) == scores[:2]
    append_score(path, scores[2])
    assert path.read_text() == text
    path.write_text(text + '{"case": "true-sun"}\n')
    with pytest.raises(RunFileError, match=r"row\.jsonl:4: not a score of this version"):
        read_scores(path)
    assert read_scores(tmp_path / "none.jsonl") == []
