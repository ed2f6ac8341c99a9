"""The loss on pairs whose correspondence is a known shift."""

import pytest
import torch
from torch import Tensor, nn

from tnav.learn import loss as module
from tnav.learn.augment import SYMMETRIES, symmetric
from tnav.learn.loss import draw_cells, pair_loss
from tnav.learn.pairs import PairBatch
from tnav.match.network import DenseFeatures, FeatureNet, NetworkRecipe

SIDE = 192
SMALL = NetworkRecipe(widths=(8, 8, 12, 16), blocks=(1, 1, 1, 1), pyramid=16, half=8, fine=4)


def shifted_pair(shift: tuple[int, int], seed: int = 0) -> PairBatch:
    """Noise, and the same noise moved by (u, v) pixels; what wraps around is not known."""
    generator = torch.Generator().manual_seed(seed)
    view = torch.rand(1, 1, SIDE, SIDE, generator=generator)
    u, v = shift
    centre = torch.arange(SIDE) + 0.5
    uv = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)
    uv = uv + torch.tensor([float(u), float(v)])
    known = ((uv >= 0) & (uv < SIDE)).all(-1)
    return PairBatch(view, view.roll((v, u), (2, 3)), uv[None].contiguous(), known[None])


class Told(nn.Module):
    """Features that are the noise itself: as distinctive and as precise as can be."""

    def __init__(self, log_sigma: float = -2.0) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(log_sigma))

    def forward(self, image: Tensor) -> DenseFeatures:
        b, _, h, w = image.shape
        half = nn.functional.pixel_unshuffle(image, 2)
        quarter = nn.functional.pixel_unshuffle(image, 4) - 0.5
        return DenseFeatures(
            fine=half,
            log_sigma=self.log_sigma.expand(b, 1, h // 2, w // 2),
            descriptor=nn.functional.normalize(quarter, dim=1),
            keypoint=torch.zeros(b, 1, h // 4, w // 4),
        )


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shift", [(0, 0), (8, -12), (-20, 4)])
def test_perfect_features_find_all_places(shift: tuple[int, int]) -> None:
    parts = pair_loss(Told(), shifted_pair(shift), generator()).parts
    assert parts["accuracy"] == 1.0
    assert parts["within_3px"] == 1.0
    assert parts["fine_px"] < 0.1
    assert parts["info_nce"] < 0.1


def test_a_wrong_truth_is_noticed() -> None:
    """The same images, called true 16 px from where they are."""
    right = shifted_pair((8, 8))
    wrong = PairBatch(right.view, right.image, right.uv_px + 16.0, right.known)
    parts = pair_loss(Told(), wrong, generator()).parts
    assert parts["accuracy"] < 0.05
    assert parts["fine_px"] > 10.0


def test_honest_sigma_has_the_least_loss() -> None:
    """-ln p of an error of a known size is least where sigma states that size."""
    batch = shifted_pair((8, -12))
    batch = PairBatch(batch.view, batch.image, batch.uv_px + 0.5, batch.known)  # sqrt(0.5) px off
    costs = {s: float(pair_loss(Told(s), batch, generator()).parts["sigma"]) for s in
             (-1.6, -0.9, -0.69, -0.5, 0.2)}  # fmt: skip
    assert min(costs, key=costs.__getitem__) == -0.69  # e^2 / 2 = s^2: s = 0.5
    square = pair_loss(Told(-0.693), batch, generator()).parts["normalised_square"]
    assert 0.8 < float(square) < 1.2


def test_every_weight_is_trained() -> None:
    torch.manual_seed(0)
    net = FeatureNet(SMALL)
    pair_loss(net, shifted_pair((4, 4)), generator()).total.backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
        assert weight.grad.isfinite().all(), name


def test_nothing_known_costs_nothing_and_stays_finite() -> None:
    pair = shifted_pair((0, 0))
    hidden = PairBatch(pair.view, pair.image, pair.uv_px, torch.zeros_like(pair.known))
    report = pair_loss(Told(), hidden, generator())
    assert report.total == 0.0


def test_the_same_places_by_seed() -> None:
    pair = shifted_pair((4, 4))
    a, b = (pair_loss(Told(), pair, generator(5)).total for _ in range(2))
    assert torch.equal(a, b)


def test_cells_are_drawn_where_the_truth_is_known_and_once() -> None:
    known = torch.zeros(2, 32, 48, dtype=torch.bool)
    known[0, 8:24, 8:40] = True
    cell, there = draw_cells(known, 4, 1, 40, generator())
    assert there.sum(1).tolist() == [32, 0]  # 4 x 8 cells of 4 px
    chosen = cell[0][there[0]]
    assert len({tuple(c) for c in chosen.tolist()}) == 32
    assert ((chosen >= torch.tensor([2, 2])) & (chosen < torch.tensor([6, 10]))).all()


def test_shares_of_a_place_between_cells() -> None:
    at = torch.tensor([[[2.25, 3.5], [0.0, 6.0]]])
    shares = module._shares(at, 7)
    torch.testing.assert_close(shares.sum((-2, -1)), torch.ones(1, 2))
    span = torch.arange(7.0)
    torch.testing.assert_close((shares.sum(-1) * span).sum(-1), at[..., 0])
    torch.testing.assert_close((shares.sum(-2) * span).sum(-1), at[..., 1])


@pytest.mark.parametrize("number", range(SYMMETRIES))
def test_symmetries_keep_the_correspondence(number: int) -> None:
    turned = symmetric(shifted_pair((12, -8)), number)
    place = turned.uv_px[turned.known].long()
    assert torch.equal(
        turned.image[0, 0, place[:, 1], place[:, 0]], turned.view[0, 0][turned.known[0]]
    )


def test_symmetries_are_eight_different_ones() -> None:
    pair = shifted_pair((12, -8))
    views = {tuple(symmetric(pair, n).view.flatten().tolist()) for n in range(SYMMETRIES)}
    assert len(views) == SYMMETRIES
    assert torch.equal(symmetric(pair, 0).view, pair.view)
