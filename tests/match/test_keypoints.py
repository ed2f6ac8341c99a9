"""Keypoints of known maps, and nearest neighbours against the whole similarity matrix."""

import dataclasses
import math

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_scenes import relief, shade
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tnav.errors import ConfigError
from tnav.match.keypoints import (
    STRIDE_PX,
    Keypoints,
    Nearest,
    describe_gradients,
    mutual_nearest,
    select,
)


def unit(*shape: int, seed: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def paired(n: int, m: int, seed: int, noise: float = 0.4) -> tuple[Tensor, Tensor]:
    """Two batches of descriptors of which the first half of a is in b, with noise."""
    a, b = unit(2, n, 64, seed=seed), unit(2, m, 64, seed=seed + 1)
    b[:, : n // 2] = normalize(a[:, : n // 2] + noise * unit(2, n // 2, 64, seed=seed + 2), dim=-1)
    return a, b


def whole(a: Tensor, b: Tensor, va: Tensor, vb: Tensor, temperature: float) -> dict[str, Tensor]:
    """The same answers from the full matrix in float64, by the definitions."""
    s = torch.einsum("bnd,bmd->bnm", a.double(), b.double())
    s = s.masked_fill(~(va[:, :, None] & vb[:, None]), -math.inf)
    index = s.argmax(-1)
    best = s.gather(-1, index[..., None])[..., 0]
    second = s.scatter(-1, index[..., None], -math.inf).amax(-1)
    p = (s / temperature).softmax(-1) * (s / temperature).softmax(-2)
    backwards = s.argmax(-2).gather(1, index)
    return {
        "index": index,
        "similarity": best,
        "probability": p.gather(-1, index[..., None])[..., 0],
        "ratio": ((1 - best) / (1 - second)).sqrt(),
        "mutual": backwards == torch.arange(a.shape[1]),
    }


@pytest.mark.parametrize("chunk", [3, 16, 512])
@pytest.mark.parametrize("temperature", [0.03, 0.2])
def test_neighbours_are_those_of_the_whole_matrix(chunk: int, temperature: float) -> None:
    a, b = paired(70, 333, seed=1)
    g = torch.Generator().manual_seed(9)
    va, vb = torch.rand(2, 70, generator=g) > 0.2, torch.rand(2, 333, generator=g) > 0.2
    got = mutual_nearest(a, b, va, vb, chunk=chunk, temperature=temperature)
    expected = whole(a, b, va, vb, temperature)
    assert torch.equal(got.valid, va)
    assert torch.equal(got.index[va], expected["index"][va])
    assert torch.equal(got.mutual[va], expected["mutual"][va])
    assert 20 < int(got.mutual.sum()) < int(va.sum())  # both kinds occur
    for name in ("similarity", "probability", "ratio"):
        torch.testing.assert_close(
            getattr(got, name)[va].double(), expected[name][va], atol=3e-5, rtol=2e-4
        )


@given(
    n=st.integers(1, 12), m=st.integers(1, 40), seed=st.integers(0, 10**6), chunk=st.integers(1, 9)
)
@settings(deadline=None, max_examples=40)
def test_chunks_change_nothing_even_where_many_are_equally_near(
    n: int, m: int, seed: int, chunk: int
) -> None:
    """Entries of +- 1/4 in 16 channels: products are exact multiples of 1/8, and most are tied."""
    g = torch.Generator().manual_seed(seed)
    a = (torch.randint(0, 2, (1, n, 16), generator=g) - 0.5) / 2
    b = (torch.randint(0, 2, (1, m, 16), generator=g) - 0.5) / 2
    one, many = mutual_nearest(a, b, chunk=512), mutual_nearest(a, b, chunk=chunk)
    for name in ("index", "similarity", "ratio", "mutual", "valid"):
        assert torch.equal(getattr(one, name), getattr(many, name)), name
    torch.testing.assert_close(one.probability, many.probability, atol=1e-6, rtol=1e-5)
    s = (a @ b.mT)[0]
    first = (s == s.amax(1, keepdim=True)).int().argmax(1)  # the first of equals
    backwards = (s == s.amax(0)).int().argmax(0)
    assert torch.equal(one.index[0], first)
    assert torch.equal(one.mutual[0], backwards[first] == torch.arange(n))


def test_half_precision_ranks_but_does_not_decide() -> None:
    """Two neighbours that half precision cannot tell apart, in both orders."""
    a = normalize(torch.ones(1, 1, 64), dim=-1)
    near, far = a.clone(), a.clone()
    near[..., 0] += 1e-3
    far[..., 0] += 4e-3
    b = torch.cat([normalize(far, dim=-1), normalize(near, dim=-1), -a], 1)
    assert bool((b[0, 0].half() @ a[0, 0].half()) == (b[0, 1].half() @ a[0, 0].half()))
    for order, best in (([0, 1, 2], 1), ([1, 0, 2], 0)):
        got = mutual_nearest(a, b[:, order], ranking=torch.float16)
        assert got.index.item() == best
        assert bool(got.mutual)
    x, y = paired(60, 200, seed=4)
    coarse, fine = mutual_nearest(x, y, ranking=torch.float16), mutual_nearest(x, y)
    sure = fine.ratio < 0.98
    assert torch.equal(coarse.index[sure], fine.index[sure])
    torch.testing.assert_close(coarse.similarity, fine.similarity, atol=2e-3, rtol=0)
    torch.testing.assert_close(coarse.probability, fine.probability, atol=0.03, rtol=0)


class Largest(TorchDispatchMode):
    """Records the most elements that any operation's result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def test_memory_grows_with_n_plus_m_and_not_with_their_product() -> None:
    chunk, largest = 64, {}
    for n, m in ((500, 2000), (1000, 4000)):
        a, b = unit(1, n, 16, seed=1), unit(1, m, 16, seed=2)
        with Largest() as seen:
            mutual_nearest(a, b, chunk=chunk)
        largest[n] = seen.elements
        assert seen.elements <= max(8 * chunk * chunk, m * 24) < n * m / 8
    assert largest[1000] <= 2 * largest[500]


def test_masked_and_missing_neighbours() -> None:
    a, b = unit(1, 5, 64, seed=1), unit(1, 4, 64, seed=2)
    none = torch.zeros(1, 4, dtype=torch.bool)
    got = mutual_nearest(a, b, valid_b=none)
    assert not got.valid.any()
    assert not got.mutual.any()
    assert torch.equal(got.probability, torch.zeros(1, 5))
    single = mutual_nearest(a, b[:, :1])
    assert single.valid.all()
    assert torch.equal(single.ratio, torch.zeros(1, 5))  # there is no second
    assert int(single.mutual.sum()) == 1


@pytest.mark.parametrize(
    ("shapes", "options", "text"),
    [
        (((1, 0, 8), (1, 3, 8)), {}, "at least 1 each"),
        (((1, 3, 8), (1, 3, 8)), {"chunk": 0}, "chunk: 0"),
        (((1, 3, 8), (1, 3, 8)), {"temperature": 0.019}, "temperature: 0.019"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    shapes: tuple[tuple[int, ...], ...], options: dict[str, float], text: str
) -> None:
    a, b = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ConfigError, match=text):
        mutual_nearest(a, b, **options)


def bumps(centres_uv: list[tuple[float, float]], heights: list[float]) -> Tensor:
    """A 24 x 20 map of logits with a paraboloid at each place, given in cells."""
    v, u = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    maps = [
        h - 0.5 * ((u - cu) ** 2 + (v - cv) ** 2)
        for (cu, cv), h in zip(centres_uv, heights, strict=True)
    ]
    return torch.stack(maps).amax(0)[None, None]


def test_peaks_are_found_between_cells_best_first() -> None:
    places = [(5.7, 6.4), (15.2, 12.9), (18.5, 4.5)]
    logit = bumps(places, [2.0, 5.0, 3.0])
    got = select(logit, torch.ones(1, 64, 20, 24) / 8, 6)
    assert got.valid.tolist() == [[True, True, True, False, False, False]]
    expected = torch.tensor([places[1], places[2], places[0]]) * STRIDE_PX
    torch.testing.assert_close(got.uv_px[0, :3], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.descriptor.norm(dim=-1), torch.ones(1, 6))


def test_descriptors_are_sampled_where_the_peak_is() -> None:
    """Components that are linear in u: the sample's ratio tells the place."""
    u = torch.arange(24) + 0.5
    descriptor = torch.stack([u, 24 - u]).reshape(1, 2, 1, 24).expand(1, 2, 20, 24)
    got = select(bumps([(9.3, 8.5)], [1.0]), descriptor, 1)
    share = got.descriptor[0, 0, 0] / got.descriptor[0, 0].sum()
    assert float(share) * 24 == pytest.approx(9.3, abs=1e-4)


def test_margin_mask_suppression_and_count() -> None:
    logit = bumps([(2.5, 9.5), (12.5, 9.5), (16.5, 9.5)], [1.0, 3.0, 2.0])
    descriptor = torch.ones(1, 4, 20, 24) / 2
    centre = torch.zeros(1, 1, 20, 24, dtype=torch.bool)
    centre[..., 16:] = True

    def count(**options: object) -> int:
        return int(select(logit, descriptor, 40, **options).valid.sum())  # type: ignore[arg-type]

    assert count() == 3
    assert count(margin_cells=3) == 2
    assert count(nms_cells=4) == 2
    assert count(usable=centre) == 1
    for wrong in (0, 481):
        with pytest.raises(ConfigError, match="expected 1 to 480"):
            select(logit, descriptor, wrong)
    with pytest.raises(ConfigError, match="0 or more"):
        select(logit, descriptor, 5, nms_cells=-1)


def test_blocks_spread_keypoints() -> None:
    logit = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    logit[..., :16] += 10.0  # the strong ones are all on the left
    descriptor = unit(1, 32, 32, 8, seed=1).permute(0, 3, 1, 2)
    plain = select(logit, descriptor, 30)
    even = select(logit, descriptor, 30, block_cells=8)
    assert bool((plain.uv_px[..., 0] < 64).all())
    blocks = (even.uv_px / (8 * STRIDE_PX)).long()
    assert len({tuple(b) for b in blocks[0].tolist()}) == 16
    assert even.valid.all()


def test_maps_without_numbers_have_no_keypoints() -> None:
    logit = torch.full((1, 1, 16, 16), math.nan)
    assert not select(logit, torch.ones(1, 4, 16, 16) / 2, 9).valid.any()


def test_gradient_descriptors_find_shifted_noisy_ground_at_any_exposure() -> None:
    """The second image is the first moved by whole cells, half as bright and noisy."""
    lit = shade(relief(192, 192, seed=5))[0].float()[None, None]
    noise = 0.01 * torch.randn(lit.shape, generator=torch.Generator().manual_seed(6))
    moved = (0.5 * lit.roll((8, 12), (2, 3)) + noise).clamp_min(0.0)
    first, second = (select(*reversed(describe_gradients(x)), 150) for x in (lit, moved))
    got = mutual_nearest(first.descriptor, second.descriptor, first.valid, second.valid)
    to = second.uv_px.gather(1, got.index[..., None].expand(-1, -1, 2))
    off = (to - first.uv_px - torch.tensor([12.0, 8.0])).norm(dim=-1)
    assert int(got.mutual.sum()) >= 40
    assert float((off[got.mutual] < 3).float().mean()) > 0.8
    descriptor, _ = describe_gradients(lit)
    assert descriptor.shape == (1, 64, 48, 48)
    torch.testing.assert_close(descriptor.norm(dim=1), torch.ones(1, 48, 48))


def test_the_same_on_a_device_without_waiting_for_it(simgpu: str) -> None:
    image = shade(relief(96, 96, seed=7))[0].float()[None, None]
    a, b = paired(40, 90, seed=3)
    va = torch.arange(80).reshape(2, 40) % 3 > 0

    def path(image: Tensor, a: Tensor, b: Tensor, va: Tensor) -> tuple[Keypoints, Nearest]:
        descriptor, keypoint = describe_gradients(image)
        found = select(keypoint, descriptor, 30, block_cells=4)
        return found, mutual_nearest(a, b, va, chunk=16)

    here = path(image, a, b, va)
    moved = [x.to(simgpu) for x in (image, a, b, va)]
    with simulated_device.count_syncs() as syncs:
        there = path(*moved)
    assert not syncs
    for ours, theirs in zip(here, there, strict=True):
        for field in dataclasses.fields(ours):
            assert torch.equal(getattr(theirs, field.name).cpu(), getattr(ours, field.name))
