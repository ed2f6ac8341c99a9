"""The Stanford diagram: where looks are counted, which are not, what is handed on."""

import math

import pytest
import torch

from tnav.evaluate.stanford import BINS, HIGH, LOW, PER_DECADE, Diagram, Tally
from tnav.monitor.integrity import Stanford

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def counted(error_m: float, protection_m: float, limit_m: float, use: bool = True) -> torch.Tensor:
    tally = Tally(torch.device("cpu"))
    tally.look(tensor(error_m), tensor(protection_m), tensor(limit_m), torch.tensor([use]))
    return tally.counts.nonzero()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_look_is_counted_at_its_shares_of_the_limit(sign: float) -> None:
    """An error of 1.05e-3 and a level of 0.21 of the limit."""
    place = counted(sign * 0.105, 21.0, 100.0)
    expected = [math.floor((math.log10(x) - LOW) * PER_DECADE) for x in (1.05e-3, 0.21)]
    assert place.tolist() == [expected]


def test_what_lies_beyond_is_counted_at_the_edge() -> None:
    assert counted(0.0, 1e9, 1.0).tolist() == [[0, BINS - 1]]
    assert counted(10.0 ** (HIGH + 3), 1e-9, 1.0).tolist() == [[BINS - 1, 0]]


def test_what_is_not_in_use_is_not_counted() -> None:
    assert counted(1.0, 1.0, 10.0, use=False).tolist() == []
    for error_m, protection_m, limit_m in (
        (math.nan, 1.0, 10.0), (1.0, math.inf, 10.0), (1.0, 1.0, -1.0), (1.0, 1.0, math.nan),
    ):  # fmt: skip
        assert counted(error_m, protection_m, limit_m).tolist() == []


def test_batches_add_up() -> None:
    one, diagram = Tally(torch.device("cpu")), Diagram()
    limit_m = tensor(100.0, 100.0, 100.0)
    one.look(tensor(1.0, 1.0, 50.0), tensor(20.0, 20.0, 60.0), limit_m, limit_m > 0)
    looks = torch.tensor([[2.0, 0.0, 0.0, 1.0], [1.0, 3.0, 0.0, 0.0]], dtype=F64)
    diagram.add([(looks, one), (looks, one)])
    assert diagram.counts.sum() == 6
    rows = {row.name: (row.value, row.n) for row in diagram.rows("cpu")}
    assert rows["Stanford: nominal"] == (6, 14)
    assert rows["Stanford: misleading"] == (6, 14)
    chart = diagram.chart()
    assert chart["classes"]["unavailable"] == 2
    assert len(chart["power"]) == len(chart["counts"]) == BINS
    level, error = (math.floor((math.log10(x) - LOW) * PER_DECADE) for x in (0.2, 0.01))
    assert chart["counts"][level][error] == 4  # a row is of one protection level
    assert [which.name.lower() for which in Stanford] == list(chart["classes"])
