"""Figures of closed-loop descents: honest draws pass, dishonest ones fail, bounds are derived."""

import math

import numpy as np
import pytest
from scipy.stats import beta, chi2

from tnav.evaluate.flight_log import EDGES_M
from tnav.evaluate.flight_score import (
    Mean,
    coverage_rows,
    height_rows,
    join,
    means_of,
    overall_rows,
    rows_of_means,
    touchdown_rows,
)

BANDS = len(EDGES_M)


def honest(n: int, seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Arrays of descents whose errors are as large as is stated, times ``scale``."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(np.diag([9.0] * 3 + [0.04] * 3 + [1e-8] * 3) * (1 + 0.0))
    error = scale * rng.standard_normal((n, BANDS, 9)) @ root.T
    nis = {
        "star_tracker": rng.chisquare(3, (n, BANDS)),
        "vision": rng.chisquare(6, (n, BANDS)),
        "altimeter": rng.chisquare(1, (n, BANDS)),
        "ground": np.full((n, BANDS), np.nan),
    }
    flown = {
        "error": error,
        "covariance": np.broadcast_to(root @ root.T, (n, BANDS, 9, 9)).copy(),
        "agl_m": np.tile(np.array(EDGES_M), (n, 1)),
        "agl_error_m": np.tile(np.array(EDGES_M), (n, 1)) * 1e-3 * rng.choice([-1, 1], (n, BANDS)),
        "agl_sigma_m": np.ones((n, BANDS)),
        "contact_t_s": np.full(n, 600.0),
        "contact_down_m_s": np.full(n, 1.5),
        "contact_horizontal_m_s": np.full(n, 0.1),
        "contact_miss_m": np.arange(n, dtype=float),
        "contact_agl_error_m": np.full(n, -0.2),
        "contact_agl_sigma_m": np.full(n, 0.2),
        "contact_position_error_L": np.tile([3.0, 4.0 - 1e-9, 100.0], (n, 1)),
        "contact_velocity_error_L": np.tile([0.03, 0.0, 0.04], (n, 1)),
        "propellant_kg": np.full(n, 30.0),
        "exposures": np.full(n, 20.0),
        "fixes": np.full(n, 19.0),
    }
    for name, values in nis.items():
        flown[f"nis_{name}"] = values
        flown[f"rejected_{name}"] = np.zeros(n)
        flown[f"sum_{name}"] = np.nansum(values, axis=0)[None]
        flown[f"count_{name}"] = np.isfinite(values).sum(0)[None].astype(float)
    return flown


def test_honest_errors_are_within_the_bounds_of_the_whole_table() -> None:
    failed = 0
    for seed in range(40):
        rows = rows_of_means(honest(100, seed), "x", "cpu")
        failed += any(row.passed is False for row in rows)
    # Bonferroni: a table fails at most once in 20; of 40 tables 2 are expected, over 8 is 1e-4.
    assert failed <= 8


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_sigmas_a_quarter_off_are_told(scale: float) -> None:
    rows = rows_of_means(honest(500, 3, scale), "x", "cpu")
    nees = [row for row in rows if "NEES" in row.name]
    assert len(nees) == 3 * BANDS
    assert all(row.passed is False for row in nees)
    assert all(row.passed for row in rows if "NIS" in row.name)
    (own,) = [row for row in rows if "own 95 %" in row.name]
    assert isinstance(own.value, int)
    assert own.value <= 3 * BANDS


def test_bounds_are_those_of_chi_square() -> None:
    mean = Mean("x", 1.0, 50, 3)
    low, high = mean.bounds(0.95)
    assert low == pytest.approx(chi2.ppf(0.025, 150) / 150)
    assert high == pytest.approx(chi2.ppf(0.975, 150) / 150)
    assert Mean("x", high - 1e-6, 50, 3).inside(0.95)
    assert not Mean("x", high + 1e-6, 50, 3).inside(0.95)


def test_a_few_descents_say_nothing_of_a_mean() -> None:
    assert means_of(honest(9, 0)) == []
    names = [mean.name for mean in means_of(honest(10, 0))]
    assert len(names) == 6 * BANDS  # three of NEES, three sensors that spoke
    assert not any("ground" in name for name in names)


def test_coverage_of_normal_errors() -> None:
    rows = coverage_rows(honest(400, 1), "x", "cpu")
    for row, share in zip(rows, [68.27, 95.45, 99.73] * 3, strict=True):
        # n is 400 descents, 9 bands, 3 components: one sigma of a share is under 0.5 %.
        assert row.value == pytest.approx(share, abs=2.0)


def test_touchdown_just_under_and_over_each_limit() -> None:
    flown = honest(20, 0)
    assert all(row.passed is not False for row in touchdown_rows(flown, "x", "cpu"))
    for name, over in (
        ("contact_down_m_s", 2.001),
        ("contact_horizontal_m_s", 1.001),
        ("contact_agl_error_m", -1.001),
    ):
        worse = {**flown, name: flown[name].copy()}
        worse[name][7] = over
        assert sum(r.passed is False for r in touchdown_rows(worse, "x", "cpu")) == 1, name
    worse = {**flown, "contact_position_error_L": flown["contact_position_error_L"].copy()}
    worse["contact_position_error_L"][3, 1] = 4.001
    assert sum(r.passed is False for r in touchdown_rows(worse, "x", "cpu")) == 1
    assert all(r.passed is not False for r in touchdown_rows(worse, "x", "cpu", blind=True))


def test_a_descent_that_never_lands_fails_every_limit_at_contact() -> None:
    flown = honest(20, 0)
    flown["contact_down_m_s"][4] = math.nan
    rows = {row.name: row for row in touchdown_rows(flown, "x", "cpu")}
    assert rows["x: touched down"].value == 19
    assert rows["x: touched down"].passed is False
    assert rows["x: vertical speed at contact, 99.73 %"].passed is False
    assert rows["x: vertical speed at contact, 99.73 %"].value is None


def test_the_share_under_a_limit_has_its_exact_bound() -> None:
    (row,) = [r for r in touchdown_rows(honest(20, 0), "x", "cpu") if "vertical speed" in r.name]
    least = 100 * beta.ppf(0.05, 20, 1)
    assert row.limit == f"< 2 (20 of 20, over {least:.2f} % at 95 %)"


def test_a_descent_without_a_number_is_no_descent_left_out() -> None:
    flown = honest(20, 0)
    flown["error"][3, 5, 2] = math.nan
    (row,) = [r for r in touchdown_rows(flown, "x", "cpu") if "every band" in r.name]
    assert (row.value, row.passed) == (19, False)


def test_height_error_as_a_share() -> None:
    rows = [r for r in height_rows(honest(20, 0), "x", 0.3, "cpu") if r.name.endswith("rms")]
    assert [row.value for row in rows] == [0.1] * len(rows)
    assert [row.passed for row in rows] == [None, True, True, True, True]  # 7 km is told only
    rows = [r for r in height_rows(honest(20, 0), "x", 0.0999, "cpu") if r.name.endswith("rms")]
    assert [row.passed for row in rows] == [None, False, False, False, False]


def test_sums_of_several_batches_join() -> None:
    one, two = honest(30, 0), honest(50, 1)
    rows = {row.name: row for row in overall_rows(join([one, two]), "x", "cpu")}
    row = rows["x: NIS vision, all under 15000 m"]
    both = np.concatenate([one["nis_vision"], two["nis_vision"]])
    assert row.n == both.size
    assert row.value == pytest.approx(both.mean() / 6, abs=1e-4)
