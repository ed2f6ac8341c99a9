import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from tnav.terrain.synthetic import Relief, craters, hashing, population, profile

MARE = Relief()
FROZEN_BITS = [4828454658175928431, 1700771970876181336, 6890581238629120527]
FROZEN_UNIFORM = 0.37353915743047755


def test_hashed_numbers_are_the_same_on_every_machine():
    bits = hashing.hash_keys(7, 3, np.array([-1, 0, 5]))
    assert bits.tolist() == FROZEN_BITS
    assert hashing.uniform(7, 3, 5)[0] == pytest.approx(FROZEN_UNIFORM, abs=1e-16)


def test_hashed_numbers_are_uniform_and_independent_of_their_neighbours():
    row, column = np.meshgrid(np.arange(-200, 200), np.arange(-200, 200), indexing="ij")
    u = hashing.uniform(1, row, column)
    counts, _ = np.histogram(u, 64, (0, 1))
    chi2 = ((counts - u.size / 64) ** 2 / (u.size / 64)).sum()
    assert 63 - 4 * math.sqrt(126) < chi2 < 63 + 4 * math.sqrt(126)
    for shifted in (u[1:] * u[:-1], u[:, 1:] * u[:, :-1], u * hashing.uniform(2, row, column)):
        # Product of two uniforms: mean 1/4, variance 7/144.
        assert abs(shifted.mean() - 0.25) < 4 * math.sqrt(7 / 144 / shifted.size)


def test_near_normal_has_unit_variance_and_thin_tails():
    z = hashing.near_normal(3, np.arange(400)[:, None], np.arange(400)[None, :])
    n = z.size
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
    assert float(abs(z).max()) <= math.sqrt(12.0)  # four uniforms end at 2 / sqrt(1/3)


@pytest.mark.parametrize("mean", [0.02, 3.0, 240.0])
def test_poisson_counts_have_their_mean_and_variance(mean):
    counts = hashing.poisson(mean, hashing.uniform(5, np.arange(20000)))
    assert abs(counts.mean() - mean) < 4 * math.sqrt(mean / 20000)
    spread = math.sqrt((mean + 2 * mean**2) / 20000)  # of a Poisson sample's variance
    assert abs(counts.var() - mean) < 4 * spread
    assert not hashing.poisson(0.0, np.array([0.5, 0.999])).any()


def test_production_is_that_of_neukum_2001():
    """8.38e-4 craters over 1 km per km^2 and Gyr; the sum of the coefficients gives 10 km."""
    at = population.production_per_m2(np.array([1e3, 1e4])) * 1e6
    assert at[0] == pytest.approx(8.38e-4, rel=2e-3)
    assert math.log10(at[1]) == pytest.approx(
        -3.0768
        - 3.557528
        + 0.781027
        + 1.021521
        - 0.156012
        - 0.444058
        + 0.019977
        + 0.08685
        - 0.005874
        - 0.006809
        + 8.25e-4
        + 5.54e-5
    )


def test_production_goes_on_smoothly_below_ten_metres():
    diameter_m = np.array([9.999, 10.001])
    assert np.diff(np.log(population.production_density(diameter_m)))[0] == pytest.approx(
        0, abs=2e-3
    )
    below = population.production_per_m2(np.array([1.0, 2.0, 4.0]))
    assert below[0] / below[1] == pytest.approx(below[1] / below[2])


def test_density_is_the_derivative_of_the_count():
    diameter_m = np.geomspace(3.0, 3e4, 50)
    step = 1e-4 * diameter_m
    numeric = -(
        population.production_per_m2(diameter_m + step)
        - population.production_per_m2(diameter_m - step)
    ) / (2 * step)
    assert numeric == pytest.approx(population.production_density(diameter_m), rel=1e-5)


def test_flux_age_follows_the_chronology():
    assert population.flux_age(1.0) == pytest.approx(1.0, rel=1e-3)
    printed = 5.44e-14 * (math.exp(6.93 * 3.5) - 1) + 8.38e-4 * 3.5  # N(1 km) per km^2
    assert population.flux_age(3.5) * 8.38e-4 == pytest.approx(printed, rel=1e-6)


def test_counts_turn_from_production_onto_equilibrium():
    small, large = np.array([2.0, 8.0, 32.0]), np.array([512.0, 1024.0, 4096.0])
    trask = 10**-1.1 / small**2
    assert population.visible_per_m2(small, MARE) == pytest.approx(trask, rel=1e-2)
    made = population.production_per_m2(large) * population.flux_age(3.5)
    assert population.visible_per_m2(large, MARE) == pytest.approx(made, rel=1e-3)
    turn = population.visible_per_m2(np.geomspace(100, 400, 9), MARE)
    assert np.all(turn < population.equilibrium_per_m2(np.geomspace(100, 400, 9), MARE))


def test_an_older_surface_shows_more_large_craters_and_as_many_small():
    young, old = Relief(age_gyr=1.0), Relief(age_gyr=3.8)
    few, many = (population.visible_per_m2(np.array([4.0, 2000.0]), r) for r in (young, old))
    assert many[0] == pytest.approx(few[0], rel=5e-3)
    assert many[1] / few[1] == pytest.approx(population.flux_age(3.8), rel=2e-3)


def test_kilometre_craters_wear_as_fassett_and_thomson_measured():
    """After 3 Gyr a crater of 1 km keeps 52 % of its depth (their abstract)."""
    x = population.wear_per_gyr(np.array([1000.0]), MARE) * population.flux_age(3.0)
    assert profile.depth_share(x)[0] == pytest.approx(0.52, abs=0.02)


@given(diameter_m=st.floats(1.0, 8000.0))
def test_no_crater_wears_beyond_the_visible_state(diameter_m):
    d = np.array([diameter_m])
    oldest = np.minimum(population.visible_life(d, MARE), population.flux_age(MARE.age_gyr))
    x = float((population.wear_per_gyr(d, MARE) * oldest)[0])
    assert 0 < x <= MARE.visible_state * (1 + 1e-12)
    if diameter_m < 400:  # these do reach it
        assert x == pytest.approx(MARE.visible_state)


def _counted(diameter_m, seed, recipe=MARE):
    half_m = 100 * diameter_m
    return craters.craters_near(
        (-half_m, -half_m, half_m, half_m),
        recipe,
        diameter_min_m=diameter_m,
        diameter_max_m=8 * diameter_m,
        seed=seed,
        reach_radii=0.0,
    )


@pytest.mark.parametrize("diameter_m", [2.0, 3.0, 50.0, 150.0, 700.0])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_drawn_craters_follow_the_expected_count(diameter_m, share):
    """Within 4 sigma; a cluster's members come together, which widens a count's variance."""
    recipe = Relief(secondary_share=share)
    edges = np.array([diameter_m, 1.5 * diameter_m, 3 * diameter_m])
    over = population.visible_per_m2(np.append(edges, 8 * diameter_m), recipe)
    found = _counted(diameter_m, 11, recipe).diameter_m
    for edge, expected in zip(edges, (over[:3] - over[3]) * (200 * diameter_m) ** 2, strict=True):
        sigma = math.sqrt(expected * (1 + share * craters.CLUSTER_MEAN))
        assert abs(int((found >= edge).sum()) - expected) < 4 * sigma


def test_counts_of_many_boxes_scatter_as_stated():
    recipe = Relief(secondary_share=0.3)
    counts = [len(_counted(4.0, seed, recipe)) for seed in range(60)]
    ratio = np.var(counts, ddof=1) / np.mean(counts)
    # chi-square with 59 degrees of freedom over 59, 99.9 % both ways, about 1 + 0.3 x 10
    assert 0.5 * 4.0 < ratio < 1.7 * 4.0


def test_ages_are_uniform_up_to_a_craters_life():
    found = _counted(20.0, 3, Relief(secondary_share=0.0))
    share = found.age_gyr / population.visible_life(found.diameter_m, MARE)
    share = share[found.diameter_m < 80]
    sorted_share = np.sort(share)
    n = len(share)
    distance = np.abs(sorted_share - (np.arange(n) + 0.5) / n).max() + 0.5 / n
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, 0.1 %


def test_depths_are_those_of_fresh_craters_and_shallow_with_age():
    found = _counted(500.0, 3, Relief(secondary_share=0.0))
    fresh = found.depth_m / found.diameter_m
    assert 0.196 * 0.85 <= fresh.min() <= fresh.max() <= 0.196 * 1.15
    small = _counted(20.0, 3, Relief(secondary_share=0.0))
    now = small.depth_m * profile.depth_share(small.state) / small.diameter_m
    order = np.argsort(small.state)
    quarters = [float(np.median(q)) for q in np.array_split(now[order], 4)]
    assert quarters == sorted(quarters, reverse=True)
    assert 0.02 < quarters[3] < 0.035 < 0.08 < quarters[0] < 0.13
    assert now.max() < 0.13 * 1.4


@settings(max_examples=30, deadline=None)
@given(
    east=st.floats(-5e4, 5e4),
    north=st.floats(-5e4, 5e4),
    seed=st.integers(0, 2**62),
)
def test_a_crater_is_in_every_box_that_holds_it(east, north, seed):
    small = (east, north, east + 90.0, north + 120.0)
    large = (east - 333.0, north - 77.0, east + 400.0, north + 210.0)
    of = [
        craters.craters_near(box, MARE, diameter_min_m=9.0, diameter_max_m=50.0, seed=seed)
        for box in (small, large)
    ]
    ids = [set((c.east_m + 1j * c.north_m).tolist()) for c in of]
    assert ids[0] <= ids[1]


def test_a_range_of_diameters_holds_what_its_parts_hold():
    box = (-300.0, 0.0, 300.0, 500.0)
    parts = [
        craters.craters_near(box, MARE, diameter_min_m=a, diameter_max_m=b, seed=4)
        for a, b in ((3.0, 5.5), (5.5, 40.0), (3.0, 40.0))
    ]
    whole = sorted(np.concatenate([parts[0].east_m, parts[1].east_m]))
    assert whole == sorted(parts[2].east_m)
    none = craters.craters_near(box, MARE, diameter_min_m=9.0, diameter_max_m=9.0, seed=4)
    assert len(none) == 0


def test_secondaries_lie_closer_together_than_primaries():
    found = _counted(10.0, 5)
    kinds = [found.where(found.primary), found.where(~found.primary)]
    gap = []  # to the nearest of the same kind, where they lay at random: about 1
    for kind in kinds:
        place = np.stack([kind.east_m, kind.north_m], -1)
        nearest, _ = cKDTree(place).query(place, 2)
        at_random = math.sqrt(math.log(2) / math.pi * 2000.0**2 / len(kind))
        gap.append(float(np.median(nearest[:, 1])) / at_random)
    assert gap[0] == pytest.approx(1.0, abs=0.07)
    assert gap[1] < 0.6
    assert len(kinds[1]) / len(found) == pytest.approx(0.3, abs=0.08)
    assert float((kinds[1].depth_m / kinds[1].diameter_m).max()) < 0.127
