"""Sequential statistics against brute force, published run lengths and scipy."""

import math

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2

from tnav.errors import ConfigError
from tnav.monitor.statistics import (
    absence_cusum,
    absence_increments,
    average_run_length,
    chi_square_quantile,
    cusum,
    cusum_threshold,
    likelihood_threshold,
    normalised,
    two_sided_cusum,
    windowed_sum,
)

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-5, 5, allow_subnormal=False), st.booleans()), min_size=1, max_size=40
    )
)
def test_cusum_is_pages_recursion(samples: list[tuple[float, bool]]) -> None:
    increment = torch.tensor([[x for x, _ in samples]], dtype=F64)
    present = torch.tensor([[p for _, p in samples]])
    level, onset = cusum(increment, present)
    expected = 0.0
    for i, (x, there) in enumerate(samples):
        expected = max(0.0, expected + x) if there else expected
        assert float(level[0, i]) == pytest.approx(expected, abs=1e-9)
        j = int(onset[0, i])
        assert 0 <= j <= i + 1
        # The excursion adds up to the level from its onset on.
        since = sum(y for y, p in samples[j : i + 1] if p)
        assert since == pytest.approx(expected, abs=1e-9)


def test_onset_of_a_step_is_where_it_steps() -> None:
    z = torch.full((1, 100), -0.2, dtype=F64)
    z[:, 60:] = 3.0
    level, onset = two_sided_cusum(z, torch.ones(1, 100, dtype=torch.bool), 0.5)
    assert float(level[0, 59]) == 0.0
    assert onset[0, 60:].tolist() == [60] * 40
    assert float(level[0, 63]) == pytest.approx(4 * 2.5)
    low, _ = two_sided_cusum(-z, torch.ones(1, 100, dtype=torch.bool), 0.5)
    assert torch.equal(low, level)


@pytest.mark.parametrize(("sides", "published"), [(1, 930.9), (2, 465.4)])
def test_average_run_length_is_the_published_one(sides: int, published: float) -> None:
    """k = 0.5, h = 5 (Montgomery 2013, table 9.3: ARL0 = 465 two-sided; one-sided twice that)."""
    lanes, n = 600, 9000 // sides
    z = normal(lanes, n, seed=sides)
    present = torch.ones(lanes, n, dtype=torch.bool)
    level = two_sided_cusum(z, present, 0.5)[0] if sides == 2 else cusum(z - 0.5, present)[0]
    over = level >= 5.0
    assert bool(over.any(1).float().mean() > 0.998)  # exp(-9.7): hardly any run is cut short
    length = torch.where(over.any(1), over.int().argmax(1) + 1, n).to(F64)
    # Run lengths are close to exponential: the mean of 600 has a sigma of published / sqrt(600).
    assert abs(float(length.mean()) - published) < 4 * published / math.sqrt(lanes)
    # Siegmund's formula, on which the thresholds rest, within 1 % of the exact value.
    assert average_run_length(0.5, 5.0) / sides == pytest.approx(published, rel=0.01)


def test_delay_to_a_shift() -> None:
    """Mean delay to one sigma at h = 5: 10.4 (same table), and the formula's at h = 14.2: 29."""
    z = normal(4000, 120, seed=9) + 1.0
    level, _ = cusum(z - 0.5, torch.ones(4000, 120, dtype=torch.bool))
    delay = ((level >= 5.0).int().argmax(1) + 1).to(F64)
    assert float(delay.mean()) == pytest.approx(
        10.4, abs=4 * float(delay.std()) / math.sqrt(4000) + 0.05
    )
    assert average_run_length(0.5, 5.0, shift=1.0) == pytest.approx(10.4, rel=0.02)
    assert average_run_length(0.5, 14.2, shift=1.0) == pytest.approx(29, abs=0.5)
    assert average_run_length(0.5, 14.2, shift=2.0) == pytest.approx(10, abs=0.3)
    assert average_run_length(0.5, 5.0, shift=0.5) == pytest.approx(6.166**2)


def test_cusum_threshold_keeps_its_promise() -> None:
    """P(alarm within n) by simulation, at a probability that can be counted."""
    n, probability, lanes = 400, 0.05, 8000
    h = cusum_threshold(0.5, float(n), probability)
    level, _ = two_sided_cusum(
        normal(lanes, n, seed=2), torch.ones(lanes, n, dtype=torch.bool), 0.5
    )
    alarms = float((level >= h).any(1).to(F64).mean())
    sigma = math.sqrt(probability * (1 - probability) / lanes)
    # The first samples cannot alarm yet, so the rate is a little under the exponential's.
    assert 0.75 * probability < alarms < probability + 3 * sigma
    # The reference figure: h = 14.2 one-sided for 1e-3 in 15 min at 10 Hz, so two-sided at 2e-3.
    assert cusum_threshold(0.5, 9000.0, 2e-3) == pytest.approx(14.2, abs=0.1)


def test_absence_threshold_bounds_the_false_alarms() -> None:
    n, probability, lanes = 200, 0.05, 20_000
    h = likelihood_threshold(float(n), probability)
    assert h == pytest.approx(math.log(4000))
    for p0 in (0.99, 0.9, 0.7):
        valid = torch.rand(lanes, n, generator=torch.Generator().manual_seed(1)) < p0
        level, _ = absence_cusum(valid, torch.ones(lanes, n, dtype=torch.bool), p0, 0.1)
        alarms = float((level >= h).any(1).to(F64).mean())
        assert alarms <= probability + 3 * math.sqrt(probability / lanes)
        gone, _ = absence_cusum(
            torch.zeros(1, n, dtype=torch.bool), torch.ones(1, n).bool(), p0, 0.1
        )
        assert bool((gone >= h).any())


def test_absence_counts_only_where_a_range_is_expected() -> None:
    expected = torch.tensor([[False] * 5 + [True] * 5])
    level, onset = absence_cusum(torch.zeros(1, 10, dtype=torch.bool), expected, 0.99, 0.1)
    missed = absence_increments(0.99, 0.1)[1]
    assert missed == pytest.approx(math.log(0.9 / 0.01))
    assert level[0].tolist() == pytest.approx([0] * 5 + [missed * k for k in range(1, 6)])
    assert int(onset[0, -1]) <= 5


def test_chi_square_quantile_against_its_density() -> None:
    """The tail beyond it, integrated."""
    for degrees in (1, 3, 6, 20, 120):
        for tail in (0.5, 1e-2, 1e-4, 1e-7):
            beyond = quad(chi2(degrees).pdf, chi_square_quantile(tail, degrees), math.inf, epsabs=0)
            assert beyond[0] == pytest.approx(tail, rel=1e-6)


def test_windowed_sum_against_brute_force() -> None:
    value = normal(3, 50).square()
    present = torch.rand(3, 50, generator=torch.Generator().manual_seed(3)) < 0.6
    total, full = windowed_sum(torch.where(present, value, torch.nan), present, 7)
    for b in range(3):
        for i in range(50):
            kept = value[b, : i + 1][present[b, : i + 1]]
            assert bool(full[b, i]) == (len(kept) >= 7)
            assert float(total[b, i]) == pytest.approx(float(kept[-7:].sum()), abs=1e-9)


def test_normalised_components_have_unit_variance() -> None:
    root = torch.tensor([[2.0, 0.0], [1.5, 0.4]], dtype=F64)
    value = normal(20_000, 2) @ root.T
    z = normalised(value, (root @ root.T).expand(20_000, 2, 2))
    assert z.var(0).tolist() == pytest.approx([1.0, 1.0], abs=5 * math.sqrt(2 / 20_000))


def test_same_numbers_and_no_waiting_on_an_accelerator() -> None:
    simulated_device.install()
    z, present = (
        normal(4, 200),
        torch.rand(4, 200, generator=torch.Generator().manual_seed(5)) < 0.8,
    )

    def everything(z: torch.Tensor, present: torch.Tensor) -> list[torch.Tensor]:
        return [
            *two_sided_cusum(z, present, 0.5),
            *absence_cusum(present, z > -1, 0.9, 0.1),
            *windowed_sum(z.square(), present, 10),
            normalised(z, torch.diag_embed(z.square() + 1)),
        ]

    expected = everything(z, present)
    on_device = z.to(simulated_device.DEVICE), present.to(simulated_device.DEVICE)
    with simulated_device.count_syncs() as syncs:
        actual = everything(*on_device)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, math.nan])
def test_impossible_probabilities(probability: float) -> None:
    with pytest.raises(ConfigError, match="expected in"):
        cusum_threshold(0.5, 100.0, probability)
    with pytest.raises(ConfigError, match="expected in"):
        likelihood_threshold(100.0, probability)
    with pytest.raises(ConfigError, match="expected in"):
        chi_square_quantile(probability, 3)


def test_an_altimeter_worse_than_a_faulty_one() -> None:
    with pytest.raises(ConfigError, match=r"detection probability 0\.1 against 0\.1"):
        absence_increments(0.1, 0.1)
