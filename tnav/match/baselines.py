"""Sparse matchers of others, for comparison only: kornia's learned features, and a record for any.

The learned ones need the files that their authors publish, in a folder; nothing is downloaded.
kornia counts pixels from their centres, so half a pixel is added to what it finds, save for LoFTR
(see ``_loftr``).
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor, nn

from tnav.errors import ConfigError
from tnav.records import Frame, Matches

# Published weights of each learned baseline, by the names that their authors gave them.
WEIGHT_FILES: dict[str, tuple[str, ...]] = {
    "disk+lightglue": ("depth-save.pth", "disk_lightglue.pth"),
    "aliked+lightglue": ("aliked-n16.pth", "aliked_lightglue.pth"),
    "xfeat": ("xfeat.pt",),
    "xfeat+lighterglue": ("xfeat.pt", "xfeat-lighterglue.pt"),
    "loftr": ("loftr_outdoor.ckpt",),
}

# Brightness that a photograph shows white, as a quantile, and its gamma: what such networks saw.
_WHITE, _GAMMA = 0.995, 2.2
# Strongest features kept of each image; LightGlue's own default, and XFeat's.
_LIGHTGLUE_POINTS, _XFEAT_POINTS = 2048, 4096


@dataclass(frozen=True, slots=True)
class Correspondences:
    """What a sparse matcher found in one pair of images."""

    uv_map_px: Float64[Tensor, "n 2"]
    uv_px: Float64[Tensor, "n 2"]
    score: Float32[Tensor, " n"]  # the higher, the surer


Finder = Callable[[Float32[Tensor, "1 1 h w"], Float32[Tensor, "1 1 h w"]], Correspondences]


def photograph(image: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b 1 h w"]:
    """A linear image as values in [0, 1] with the tone curve of a photograph."""
    rows = image.flatten(1)
    rank = max(1, round(_WHITE * rows.shape[1]))
    white = rows.kthvalue(rank, dim=1).values.clamp_min(1e-6)
    return (image / white[:, None, None, None]).clamp(0.0, 1.0) ** (1 / _GAMMA)


def sparse_matches(
    map_view: Frame,
    found: Correspondences,
    *,
    sigma_px: float,
    search_radius_px: float,
    slots: int = 512,
) -> Matches:
    """Correspondences as a record of fixed size, with their points of the map.

    Args:
        map_view: one frame, the view that ``uv_map_px`` counts in.
        found: in any number.
        sigma_px: 1 sigma along each axis that every match is given.
        search_radius_px: what moved farther along u or v than the prediction allows is not valid.
        slots: size of the record; the surest are kept.

    Returns:
        Matches, the surest first. ``point_L`` is bilinear between the four pixels around, and a
        match is valid only where all four hit the ground.
    """
    device = map_view.xyz_L.device
    moved = (found.uv_px - found.uv_map_px).abs().amax(-1)
    order = torch.where(moved <= search_radius_px, found.score, -torch.inf).argsort(descending=True)
    order = order[:slots]
    count = len(order)
    uv_map_px = torch.zeros(1, slots, 2, dtype=torch.float64)
    uv_px, score = torch.zeros_like(uv_map_px), torch.zeros(1, slots)
    valid = torch.zeros(1, slots, dtype=torch.bool)
    uv_map_px[0, :count], uv_px[0, :count] = found.uv_map_px[order], found.uv_px[order]
    score[0, :count], valid[0, :count] = found.score[order], moved[order] <= search_radius_px
    point_L, hit = _points(map_view, uv_map_px.to(device))
    covariance_px2 = sigma_px**2 * torch.eye(2, dtype=torch.float64, device=device)
    return Matches(
        uv_map_px=uv_map_px.to(device),
        uv_px=uv_px.to(device),
        covariance_px2=covariance_px2.expand(1, slots, 2, 2).clone(),
        score=score.to(device),
        point_L=point_L,
        valid=valid.to(device) & hit,
        learned=torch.zeros(1, dtype=torch.bool, device=device),
    )


def missing_weights(name: str, folder: Path | None) -> str | None:
    """What a learned baseline lacks, as one line for its user; ``None`` where it lacks nothing."""
    files = WEIGHT_FILES[name]
    if folder is None:
        return (
            f"{name}: no weights; set TNAV_BASELINE_WEIGHTS to a folder with {' and '.join(files)}"
        )
    absent = [folder / file for file in files if not (folder / file).is_file()]
    if not absent:
        return None
    where = " and ".join(str(path) for path in absent)
    return f"{name}: no weights at {where}; put the published file there"


def load_finder(name: str, folder: Path, device: torch.device) -> Finder:
    """A learned baseline with its weights.

    Args:
        name: one of ``WEIGHT_FILES``.
        folder: where the weights lie.
        device: where it runs.

    Raises:
        ConfigError: an unknown name, or weights that are missing, damaged or of something else.
    """
    if name not in WEIGHT_FILES:
        raise ConfigError(f"baseline '{name}': expected one of {', '.join(WEIGHT_FILES)}")
    line = missing_weights(name, folder)
    if line is not None:
        raise ConfigError(line)
    features, *matcher = (folder / file for file in WEIGHT_FILES[name])
    match name:
        case "disk+lightglue":
            return _disk(features, matcher[0], device)
        case "aliked+lightglue":
            return _aliked(features, matcher[0], device)
        case "xfeat" | "xfeat+lighterglue":
            return _xfeat(features, matcher[0] if matcher else None, device)
        case _:
            return _loftr(features, device)


def _disk(features: Path, matcher: Path, device: torch.device) -> Finder:
    from kornia.feature import DISK

    net = _filled(DISK(), features, _part(_state(features), "extractor"), device)
    glue = _lightglue("disk", matcher, device)

    def detect(image: Tensor) -> tuple[Tensor, Tensor]:
        rgb = image.expand(-1, 3, -1, -1)
        found = net(rgb, n=_LIGHTGLUE_POINTS, pad_if_not_divisible=True)[0]
        return found.keypoints, found.descriptors

    return _glued(detect, glue)


def _aliked(features: Path, matcher: Path, device: torch.device) -> Finder:
    from kornia.feature import ALIKED

    net = ALIKED("aliked-n16", max_num_keypoints=_LIGHTGLUE_POINTS, detection_threshold=0.0)
    net = _filled(net, features, _state(features), device)
    glue = _lightglue("aliked", matcher, device)

    def detect(image: Tensor) -> tuple[Tensor, Tensor]:
        found = net(image)[0]
        return found.keypoints, found.descriptors

    return _glued(detect, glue)


def _xfeat(features: Path, matcher: Path | None, device: torch.device) -> Finder:
    from kornia.feature import XFeat

    net = XFeat(top_k=_XFEAT_POINTS if matcher is None else _LIGHTGLUE_POINTS)
    _filled(net.net, features, _state(features), device)
    net = net.to(device).eval()

    def detect(image: Tensor) -> tuple[Tensor, Tensor]:
        found = net.detectAndCompute(image)[0]
        return found["keypoints"].clone(), found["descriptors"].clone()

    if matcher is not None:
        return _glued(detect, _lightglue("xfeat", matcher, device))

    @torch.no_grad()
    def find(view: Tensor, image: Tensor) -> Correspondences:
        (uv_a, a), (uv_b, b) = detect(photograph(view)), detect(photograph(image))
        if min(len(a), len(b)) == 0:
            return _correspondences(uv_a[:0], uv_b[:0], a.new_zeros(0))
        cosine = a @ b.T
        score, nearest = cosine.max(1)
        mutual = cosine.argmax(0)[nearest] == torch.arange(len(a), device=a.device)
        return _correspondences(uv_a[mutual], uv_b[nearest[mutual]], score[mutual])

    return find


def _loftr(weights: Path, device: torch.device) -> Finder:
    """LoFTR puts the centre of pixel (x, y) at (x + 0.5, y + 0.5), as we do (kornia's docs)."""
    from kornia.feature import LoFTR

    state = _part(_state(weights), "state_dict")
    net = _filled(LoFTR(pretrained=None), weights, _without(state, "matcher."), device)

    @torch.no_grad()
    def find(view: Tensor, image: Tensor) -> Correspondences:
        out = net({"image0": photograph(view), "image1": photograph(image)})
        return _correspondences(out["keypoints0"], out["keypoints1"], out["confidence"], centre=0.0)

    return find


def _glued(detect: Callable[[Tensor], tuple[Tensor, Tensor]], glue: nn.Module) -> Finder:
    """Keypoints of both images, matched by LightGlue."""

    @torch.no_grad()
    def find(view: Tensor, image: Tensor) -> Correspondences:
        size = torch.tensor([view.shape[:1:-1]], dtype=torch.float32, device=view.device)
        (uv_a, a), (uv_b, b) = detect(photograph(view)), detect(photograph(image))
        if min(len(a), len(b)) == 0:
            return _correspondences(uv_a[:0], uv_b[:0], a.new_zeros(0))
        first = {"keypoints": uv_a[None], "descriptors": a[None], "image_size": size}
        second = {"keypoints": uv_b[None], "descriptors": b[None], "image_size": size}
        out = glue({"image0": first, "image1": second})
        i, j = out["matches"][0].unbind(-1)
        return _correspondences(uv_a[i], uv_b[j], out["scores"][0])

    return find


def _lightglue(features: str, path: Path, device: torch.device) -> nn.Module:
    """LightGlue of kornia from a file, its older key names put right (as its own loader does)."""
    from kornia.feature import LightGlue

    settings = {k: v for k, v in LightGlue.features[features].items() if k != "weights"}
    net = LightGlue(None, **settings)
    state = _without(_state(path), "matcher.")
    for k in range(net.conf.n_layers):
        for kind in ("self_attn", "cross_attn"):
            state = {
                key.replace(f"{kind}.{k}.", f"transformers.{k}.{kind}."): value
                for key, value in state.items()
            }
    return _filled(net, path, state, device)


def _state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: not weights that can be read safely ({reason}); expected the published file"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path}: holds a {type(state).__name__}, expected named tensors")
    return state


def _part(state: dict[str, Any], key: str) -> dict[str, Any]:
    """What a training checkpoint keeps under a key, or all of it."""
    inner = state.get(key, state)
    return inner if isinstance(inner, dict) else state


def _without(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _filled(net: nn.Module, path: Path, state: dict[str, Any], device: torch.device) -> nn.Module:
    """A network with all that it learned.

    Published files hold some of training's tensors besides, and lack what follows from settings.
    """
    learned = {name for name, _ in net.named_parameters()}
    learned |= {name for name, _ in net.named_buffers() if ".running_" in name}
    try:
        absent = net.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, TypeError, AttributeError) as error:  # other shapes, or no tensors
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: weights of another network ({reason})") from error
    missing = [name for name in absent if name in learned]
    if missing:
        raise ConfigError(
            f"{path}: weights of another network ({len(missing)} are missing, the first of them "
            f"{missing[0]})"
        )
    return net.to(device).eval()


def _correspondences(
    uv_a: Tensor, uv_b: Tensor, score: Tensor, centre: float = 0.5
) -> Correspondences:
    return Correspondences(
        uv_a.double().cpu() + centre, uv_b.double().cpu() + centre, score.float().cpu()
    )


def _points(
    map_view: Frame, uv_px: Float64[Tensor, "1 n 2"]
) -> tuple[Float64[Tensor, "1 n 3"], Bool[Tensor, "1 n"]]:
    """Map points under places of the view; zero, and not hit, where a pixel around has none."""
    height_px, width_px = map_view.hit.shape[1:]
    most = torch.tensor([width_px - 2, height_px - 2], dtype=torch.float64, device=uv_px.device)
    at = uv_px[0] - 0.5
    corner = at.floor().clamp_min(0.0).minimum(most)
    share = (at - corner).clamp(0.0, 1.0)
    column, row = corner.long().unbind(-1)
    flat = torch.stack([row * width_px + column + k for k in (0, 1, width_px, width_px + 1)])
    u, v = share[:, 0], share[:, 1]
    weight = torch.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    hit = map_view.hit[0].flatten()[flat].all(0)
    point_L = (weight[..., None] * map_view.xyz_L[0].flatten(0, 1)[flat]).sum(0)
    return torch.where(hit[:, None], point_L, 0.0)[None], hit[None]
