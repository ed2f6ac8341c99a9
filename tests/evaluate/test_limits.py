"""Values just under and just over each limit."""

import pytest

from tnav.evaluate.metrics import within_limits
from tnav.evaluate.runlog import FrameRecord


def _frame(**changes):
    values = dict.fromkeys(FrameRecord.model_fields)
    values |= {
        "index": 0, "t_s": 1.0, "image": "a", "map_view": "b", "ground_sample_distance_m": 4.0,
        "true_agl_m": 2000.0, "status": "ok", "renders": 2, "n_matches": 9, "n_inliers": 9,
        "learned": False, "out_of_contract": [],
        "agl_error_m": 0.0, "horizontal_error_m": 0.0, "seconds": 1.0, "matches": [],
    }  # fmt: skip
    return FrameRecord(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"agl_error_m": 9.99}, True),  # 0.5 % of 2000 m is 10 m
        ({"agl_error_m": -9.99}, True),
        ({"agl_error_m": 10.0}, False),
        ({"agl_error_m": -10.01}, False),
        ({"horizontal_error_m": 12.99}, True),  # 2 x 4 m + 5 m
        ({"horizontal_error_m": 13.0}, False),
        ({"agl_error_m": None}, False),
        ({"horizontal_error_m": None}, False),
    ],
)
def test_limits(changes, expected):
    assert within_limits(_frame(**changes)) is expected
