"""Sums of innovations in a row: closed forms, bands, who is absent, an accelerator."""

import math

import pytest
import simulated_device
import torch
from torch import Tensor

from tnav.evaluate.whiteness import EDGES_M, WINDOW, Whiteness, whiteness_rows
from tnav.monitor.watch import RangeLook
from tnav.records import Innovation, RangePrediction, Sensor

F64 = torch.float64


def look(z: Tensor, expected_m: float = 500.0, present: Tensor | None = None) -> RangeLook:
    batch = len(z)
    there = torch.ones(batch, dtype=torch.bool) if present is None else present
    one = torch.ones(batch, dtype=F64)
    own = Innovation(
        0.0,
        Sensor.ALTIMETER,
        2.0 * z[:, None],
        (4.0 * one)[:, None, None],
        z.square(),
        there,
        there,
    )
    alone = RangePrediction(0.0, expected_m * one, one, 0 * one, one > 0)
    return RangeLook(0.0, expected_m + z, there, there, one > 0, alone, own)


def listened(zs: Tensor, **what) -> Whiteness:
    """Of innovations, b by epochs."""
    log = Whiteness(len(zs), torch.device("cpu"))
    for z in zs.T:
        log.look(look(z, **what))
    return log


def test_white_ones_have_the_variance_one_and_alike_ones_that_of_their_window() -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(200, 10 * WINDOW, generator=generator, dtype=F64)
    overall, worst = whiteness_rows([listened(z)], 1.3, "cpu")
    assert overall.n == worst.n == 2000
    assert overall.value == pytest.approx(1.0, abs=4 * math.sqrt(2 / 2000))
    assert worst.passed
    assert worst.name.endswith("300 to 600 m")
    alike = z[:, :1].expand(-1, 10 * WINDOW)
    _, worst = whiteness_rows([listened(alike)], 1.3, "cpu")
    assert worst.value == pytest.approx(WINDOW * float(z[:, 0].square().mean()), rel=1e-3)
    assert not worst.passed


def test_the_limit_is_the_square_of_the_overbound() -> None:
    """Sums of one size: variance 1.69 by 1.3."""
    for size, met in ((1.2999, True), (1.3001, False)):
        z = torch.full((100, WINDOW), size / math.sqrt(WINDOW), dtype=F64)
        assert whiteness_rows([listened(z)], 1.3, "cpu")[1].passed is met


def test_absent_innovations_are_passed_over() -> None:
    log = Whiteness(2, torch.device("cpu"))
    one = torch.ones(2, dtype=F64)
    for k in range(2 * WINDOW):
        log.look(look(one, present=torch.tensor([True, k % 2 == 0])))
    assert log.sums.sum() == 3
    assert float(log.squares.sum()) == pytest.approx(3 * WINDOW)


@pytest.mark.parametrize(("expected_m", "counted"), [(2.9, 0), (3.1, 1), (2999.0, 1), (3001.0, 0)])
def test_bands_end_where_ranges_do(expected_m: float, counted: int) -> None:
    assert (EDGES_M[0], EDGES_M[-1]) == (3.0, 3000.0)
    log = listened(torch.ones(1, WINDOW, dtype=F64), expected_m=expected_m)
    assert int(log.sums.sum()) == counted


def test_few_sums_are_no_worst_band() -> None:
    rows = whiteness_rows([listened(torch.ones(99, WINDOW, dtype=F64))], 1.3, "cpu")
    assert len(rows) == 1
    assert whiteness_rows([Whiteness(1, torch.device("cpu"))], 1.3, "cpu")[0].value is None


def test_no_waiting_on_an_accelerator() -> None:
    simulated_device.install()
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    there = Whiteness(4, torch.device(simulated_device.DEVICE))
    own = look(z[:, 0])
    moved = RangeLook(
        *(
            getattr(own, name).to(simulated_device.DEVICE)
            if isinstance(getattr(own, name), Tensor)
            else getattr(own, name)
            for name in ("t_s", "range_m", "valid", "fused", "aloft")
        ),
        RangePrediction(
            0.0,
            *(
                getattr(own.alone, name).to(simulated_device.DEVICE)
                for name in ("range_m", "sigma_m", "incidence_rad", "defined")
            ),
        ),
        Innovation(
            0.0,
            Sensor.ALTIMETER,
            *(
                getattr(own.own, name).to(simulated_device.DEVICE)
                for name in ("value", "covariance", "nis", "present", "fused")
            ),
        ),
    )
    with simulated_device.count_syncs() as waits:
        there.look(moved)
    assert not waits
    torch.testing.assert_close(there.total.cpu(), z[:, 0])
