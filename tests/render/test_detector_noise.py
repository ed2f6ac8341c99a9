"""The camera's random numbers: laws, independence, and that place and key alone decide them."""

import numpy as np
import pytest
import torch
from scipy import stats

from tnav.render import noise
from tnav.render.noise import Stream

CPU = torch.device("cpu")
N = 256
SIGMAS = 4.5  # of some hundred figures here, one in a thousand runs of other seeds would fail


def _uniform(seed, stream=Stream.SHOT, n=N):
    return noise.uniform([seed], stream, n, n, CPU)[0, 0].double()


def _correlation(a, b):
    a, b = (v.flatten() - v.mean() for v in (a, b))
    return float((a * b).mean() / (a.std() * b.std()))


@pytest.mark.parametrize("seed", [0, 1, -5, 2**40])
def test_uniform_numbers_are_uniform(seed):
    u = _uniform(seed).flatten().numpy()
    assert 0 < u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (0, 2), (16, 0), (128, 128)])
def test_neighbours_are_independent(shift):
    u = _uniform(7)
    assert abs(_correlation(u, u.roll(shift, (0, 1)))) < SIGMAS / N


def test_seeds_and_streams_are_independent():
    fields = [_uniform(seed, stream) for seed in (0, 1, 2, 2**20) for stream in (*Stream,)]
    for i, a in enumerate(fields):
        for b in fields[:i]:
            assert abs(_correlation(a, b)) < SIGMAS / N


def test_batch_equals_singles():
    batch = noise.normal([3, 9, 4], Stream.READ, 20, 30, CPU)
    for k, seed in enumerate((3, 9, 4)):
        assert torch.equal(batch[k : k + 1], noise.normal([seed], Stream.READ, 20, 30, CPU))


def test_frozen_values():
    """Seeds mean the same for ever: integers up to the last step, so exactly."""
    u = noise.uniform([42], Stream.SHOT, 2, 2, CPU).flatten().double() * 2**23 - 0.5
    assert u.tolist() == [2777169.0, 2950594.0, 7283139.0, 1561765.0]


def test_normal_numbers_are_normal():
    z = noise.normal([11], Stream.READ, 512, 512, CPU).double().flatten()
    n = z.numel()
    assert abs(float(z.mean())) < SIGMAS / n**0.5
    assert abs(float(z.var()) - 1) < SIGMAS * (2 / n) ** 0.5
    assert abs(float((z**3).mean())) < SIGMAS * (15 / n) ** 0.5
    assert abs(float((z**4).mean()) - 3) < SIGMAS * (96 / n) ** 0.5
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4


def _every_u(steps=2**18):
    return ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).float()


@pytest.mark.parametrize("mean", [0.0, 1e-4, 0.3, 2.5, 9.999])
def test_small_poisson_counts_are_the_quantiles(mean):
    u = _every_u()
    counts = noise.poisson(torch.full_like(u, mean), u).double().numpy()
    wrong = counts != np.maximum(stats.poisson.ppf(u.double().numpy(), mean), 0)
    assert wrong.mean() < 2e-5  # float32 sums shift a step of the distribution by some 1e-7


@pytest.mark.parametrize("mean", [10.0, 17.3, 100.0, 2e4, 5e5])
def test_large_poisson_counts_have_the_law(mean):
    """Total variation distance of the whole law; mean and variance to a part in a thousand."""
    u = _every_u()
    counts = noise.poisson(torch.full_like(u, mean), u).double().numpy()
    values, found = np.unique(counts, return_counts=True)
    mass = stats.poisson.pmf(values, mean)
    distance = 0.5 * (np.abs(found / u.numel() - mass).sum() + 1 - mass.sum())
    grid = 0.5 * len(values) / u.numel()  # each count's share of u is off by a step at most
    assert distance < 1.5e-4 + grid
    assert counts.mean() == pytest.approx(mean, rel=1e-4, abs=1e-3 * mean**0.5)
    assert counts.var() == pytest.approx(mean, rel=2e-3)
    assert (counts == np.floor(counts)).all()
    assert counts.min() >= 0


def test_poisson_draws_pass_a_chi_square_test():
    mean = torch.cat([torch.full((1, 1, 256, 256), m) for m in (0.7, 6.0, 40.0)])
    u = noise.uniform([1, 2, 3], Stream.SHOT, 256, 256, CPU)
    for counts, m in zip(noise.poisson(mean, u).flatten(1).numpy(), (0.7, 6.0, 40.0), strict=True):
        edges = np.arange(stats.poisson.ppf(1e-3, m), stats.poisson.ppf(0.999, m) + 1)
        expected = counts.size * np.diff([0, *stats.poisson.cdf(edges, m), 1])
        found = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
        assert stats.chisquare(found, expected).pvalue > 1e-4
