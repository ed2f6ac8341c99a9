"""Matchers for comparison: shifts they must find, and weights that a user may lack."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from kornia.feature import ALIKED, DISK, LightGlue, LoFTR, XFeat
from matching_scenes import fourier_shift, frame, relief, shade
from torch import Tensor

from tnav.errors import ConfigError
from tnav.images import display_grey, opencv_threads, sift_matches
from tnav.match.baselines import (
    WEIGHT_FILES,
    Correspondences,
    load_finder,
    missing_weights,
    photograph,
    sparse_matches,
)

SIDE = 384
CPU = torch.device("cpu")


def shifted(du: float, dv: float, seed: int = 5) -> tuple[Tensor, Tensor]:
    """An image (h, w) and the same moved by (du, dv) px, exactly."""
    image, _ = shade(relief(SIDE, SIDE, seed))
    return image, fourier_shift(image, du, dv).clamp_min(0.0)


def test_sift_finds_a_shift() -> None:
    a, b = shifted(5.0, -12.0)
    uv_a, uv_b, score = sift_matches(display_grey(a), display_grey(b))
    error = (uv_b - uv_a - torch.tensor([5.0, -12.0])).norm(dim=-1)
    assert len(error) > 100
    assert (error < 0.5).double().mean() > 0.97
    assert error.median() < 0.1
    assert score.min() > 0.5
    assert score.max() <= 1 + 1e-5


def test_sift_counts_pixels_from_their_corners() -> None:
    """A blob that is symmetric about a place is found there."""
    v, u = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    places = torch.tensor([[32.5, 40.0], [90.25, 30.0], [64.0, 95.5]])
    image = torch.zeros(128, 128)
    for k, (pu, pv) in enumerate(places.tolist()):
        image += torch.exp(-((u - pu) ** 2 + (v - pv) ** 2) / (2 * (4.0 + k) ** 2))
    shown = (255 * (0.2 + 0.8 * image).clamp(0, 1)).round().byte().numpy()
    uv, _, _ = sift_matches(shown, shown, ratio=2.0)
    near = torch.cdist(places.double(), uv).min(1).values
    assert (near < 0.15).all()


def test_sift_of_nothing_is_nothing() -> None:
    flat = torch.zeros(64, 64, dtype=torch.uint8).numpy()
    uv_a, uv_b, score = sift_matches(flat, flat)
    assert uv_a.shape == uv_b.shape == (0, 2)
    assert score.shape == (0,)


def test_opencv_gets_its_threads_back() -> None:
    import cv2

    before = cv2.getNumThreads()
    with opencv_threads(1):
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before


def found(*rows: tuple[float, float, float, float, float]) -> Correspondences:
    """From (u, v) in the view, (u, v) in the image and score."""
    table = torch.tensor(rows, dtype=torch.float64)
    return Correspondences(table[:, :2], table[:, 2:4], table[:, 4].float())


def test_points_are_bilinear_between_pixels() -> None:
    """The frame's point of (u, v) is (u, v, u v), which is bilinear: exact anywhere."""
    view = frame(torch.rand(40, 60))
    matches = sparse_matches(
        view,
        found((10.5, 20.5, 0, 0, 0.5), (33.3, 7.9, 0, 0, 0.9), (0.5, 39.5, 0, 0, 0.7)),
        sigma_px=0.5, search_radius_px=99.0, slots=8,
    )  # fmt: skip
    assert matches.valid[0].tolist() == [True] * 3 + [False] * 5
    u, v = matches.uv_map_px[0, :3].unbind(-1)
    assert u.tolist() == [33.3, 0.5, 10.5]  # the surest first
    torch.testing.assert_close(matches.point_L[0, :3], torch.stack([u, v, u * v], -1))
    expected = 0.25 * torch.eye(2, dtype=torch.float64).expand(1, 8, 2, 2)
    assert torch.equal(matches.covariance_px2, expected)


def test_what_moved_too_far_or_hits_nothing_is_not_valid() -> None:
    hit = torch.ones(1, 40, 60, dtype=torch.bool)
    hit[0, 20, 30] = False
    view = frame(torch.rand(40, 60), hit=hit)
    matches = sparse_matches(
        view,
        found(
            (10.0, 10.0, 14.99, 10.0, 0.9), (10.0, 10.0, 10.0, 15.01, 0.8),
            (30.4, 20.4, 30.4, 20.4, 0.7), (32.0, 20.4, 32.0, 20.4, 0.6),
        ),
        sigma_px=1.0, search_radius_px=5.0, slots=4,
    )  # fmt: skip
    by_start = {tuple(a): v for a, v in zip(
        matches.uv_px[0].tolist(), matches.valid[0].tolist(), strict=True)}  # fmt: skip
    assert by_start == {
        (14.99, 10.0): True, (10.0, 15.01): False, (30.4, 20.4): False, (32.0, 20.4): True,
    }  # fmt: skip


def test_the_surest_are_kept_and_those_out_of_reach_take_no_slot() -> None:
    view = frame(torch.rand(40, 60))
    rows = [(10.0 + k, 10.0, 10.0 + k, 10.0, 0.1 * k) for k in range(6)]
    far = (10.0, 10.0, 50.0, 10.0, 5.0)
    matches = sparse_matches(view, found(far, *rows), sigma_px=1.0, search_radius_px=9.0, slots=3)
    assert matches.valid.all()
    assert matches.uv_px[0, :, 0].tolist() == [15.0, 14.0, 13.0]


def test_a_photograph_is_exposed_and_bent() -> None:
    image = torch.linspace(0, 4, 1001)[None, None, None]
    shown = photograph(torch.cat([image, 100 * image]))
    assert torch.allclose(shown[0], shown[1])
    assert shown.min() == 0
    assert shown.max() == 1
    assert shown[0, 0, 0, 500].item() == pytest.approx((2 / 3.98) ** (1 / 2.2), rel=2e-3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the published names and key names, with what those hold and lack."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save({"extractor": DISK().state_dict()}, folder / "depth-save.pth")
        aliked = ALIKED("aliked-n16").state_dict()
        aliked.pop("dkd.hw_grid")
        torch.save(aliked, folder / "aliked-n16.pth")
        torch.save(XFeat().net.state_dict(), folder / "xfeat.pt")
        loftr = {f"matcher.{k}": v for k, v in LoFTR(None).state_dict().items()}
        torch.save({"state_dict": loftr}, folder / "loftr_outdoor.ckpt")
        for name, file, prefix in (
            ("disk", "disk_lightglue.pth", ""),
            ("aliked", "aliked_lightglue.pth", ""),
            ("xfeat", "xfeat-lighterglue.pt", "matcher."),
        ):
            settings = {k: v for k, v in LightGlue.features[name].items() if k != "weights"}
            state = LightGlue(None, **settings).state_dict()
            state.pop("confidence_thresholds")
            state["log_assignment.0.r"] = torch.zeros(1)
            old = r"transformers\.(\d+)\.(self_attn|cross_attn)\."
            state = {prefix + re.sub(old, r"\2.\1.", k): v for k, v in state.items()}
            torch.save(state, folder / file)
    return folder


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_learned_baselines_run_with_weights_from_a_folder(name: str, weights: Path) -> None:
    image, _ = shade(relief(128, 128, 1))
    assert missing_weights(name, weights) is None
    result = load_finder(name, weights, CPU)(image[None, None], image[None, None].flip(-1))
    n = len(result.score)
    assert result.uv_map_px.shape == result.uv_px.shape == (n, 2)
    assert ((result.uv_px >= 0) & (result.uv_px <= 128)).all()


def test_keypoints_move_by_half_a_pixel(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kornia's detectors count from pixel centres, LoFTR as we do."""
    place = torch.tensor([[7.0, 9.0], [30.0, 12.0]])
    told = {"keypoints": place, "descriptors": torch.eye(64)[:2], "scores": torch.ones(2)}
    monkeypatch.setattr(XFeat, "detectAndCompute", lambda self, x: [told])
    image = torch.rand(1, 1, 64, 64)
    result = load_finder("xfeat", weights, CPU)(image, image)
    assert torch.equal(result.uv_map_px, place.double() + 0.5)
    assert torch.equal(result.uv_px, place.double() + 0.5)
    out = {"keypoints0": place, "keypoints1": place + 1, "confidence": torch.ones(2)}
    monkeypatch.setattr(LoFTR, "forward", lambda self, data: out)
    result = load_finder("loftr", weights, CPU)(image, image)
    assert torch.equal(result.uv_map_px, place.double())
    assert torch.equal(result.uv_px, place.double() + 1)


def test_xfeat_keeps_mutual_neighbours_only(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = torch.arange(6.0).reshape(3, 2)
    a, b = torch.eye(64)[:3], torch.stack([torch.eye(64)[1], torch.eye(64)[0]])
    told = iter([{"keypoints": uv, "descriptors": a}, {"keypoints": uv[:2] + 20, "descriptors": b}])
    monkeypatch.setattr(XFeat, "detectAndCompute", lambda self, x: [next(told)])
    image = torch.rand(1, 1, 64, 64)
    result = load_finder("xfeat", weights, CPU)(image, image)
    assert torch.equal(result.uv_map_px, uv[:2].double() + 0.5)
    assert torch.equal(result.uv_px, uv[:2].flip(0).double() + 20.5)


def test_absent_weights_are_one_clear_line(tmp_path: Path) -> None:
    line = missing_weights("disk+lightglue", None)
    assert line == (
        "disk+lightglue: no weights; set TNAV_BASELINE_WEIGHTS to a folder with depth-save.pth "
        "and disk_lightglue.pth"
    )
    (tmp_path / "depth-save.pth").touch()
    line = missing_weights("disk+lightglue", tmp_path)
    expected = f"disk+lightglue: no weights at {tmp_path / 'disk_lightglue.pth'}; put the published"
    assert line is not None
    assert line.startswith(expected)
    with pytest.raises(ConfigError, match="no weights at"):
        load_finder("disk+lightglue", tmp_path, CPU)


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "xfeat.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"xfeat\.pt: not weights that can be read safely"):
        load_finder("xfeat", tmp_path, CPU)
    torch.save([1, 2], tmp_path / "xfeat.pt")
    with pytest.raises(ConfigError, match="holds a list, expected named tensors"):
        load_finder("xfeat", tmp_path, CPU)
    (tmp_path / "xfeat.pt").write_bytes((weights / "aliked-n16.pth").read_bytes())
    with pytest.raises(ConfigError, match="weights of another network"):
        load_finder("xfeat", tmp_path, CPU)
    for lost in ("block1.0.layer.0.weight", "block1.0.layer.1.running_var"):
        state = XFeat().net.state_dict()
        state.pop(lost)
        torch.save(state, tmp_path / "xfeat.pt")
        with pytest.raises(ConfigError, match=f"1 are missing, the first of them {lost}"):
            load_finder("xfeat", tmp_path, CPU)
    with pytest.raises(ConfigError, match="baseline 'orb': expected one of disk"):
        load_finder("orb", tmp_path, CPU)


def test_records_have_no_gaps() -> None:
    empty = Correspondences(torch.zeros(0, 2).double(), torch.zeros(0, 2).double(), torch.zeros(0))
    matches = sparse_matches(
        frame(torch.rand(40, 60)), empty, sigma_px=1.0, search_radius_px=9.0, slots=4
    )
    assert not matches.valid.any()
    for field in dataclasses.fields(matches):
        assert getattr(matches, field.name).isfinite().all()
