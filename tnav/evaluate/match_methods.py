"""The matchers that `tnav bench match` compares, behind one call."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from tnav.errors import ConfigError
from tnav.images import display_grey, sift_matches
from tnav.match.baselines import (
    WEIGHT_FILES,
    Correspondences,
    load_finder,
    missing_weights,
    sparse_matches,
)
from tnav.match.channels import Channel
from tnav.match.matcher import MatcherConfig, match
from tnav.match.network import FeatureNet
from tnav.match.weights import DEFAULT_MODEL, default_model, models_dir
from tnav.records import Frame, Matches

TNAV, PLAIN = "tnav", "tnav without weights"
NAMES = (TNAV, PLAIN, "cfog", "ncc", "sift", *WEIGHT_FILES)
QUICK = (TNAV, PLAIN, "cfog", "sift")

# 1 sigma along each axis of a sparse match: about the scatter about its median of those that are
# right, so that the solver's gates fit. Sub-pixel detectors, and those that stop at whole pixels.
_SUBPIXEL_SIGMA_PX, _PIXEL_SIGMA_PX = 0.5, 1.0
_SUBPIXEL = ("sift", "aliked+lightglue")

Match = Callable[[Frame, Float32[Tensor, "1 1 h w"], float], Matches]


@dataclass(frozen=True, slots=True)
class Method:
    """A matcher: from a view, an image and the search radius (px) to matches."""

    name: str
    match: Match
    identity: str  # of its settings and weights: results of different ones are never mixed


def weights_folder() -> Path | None:
    """Where a user keeps the published weights of the baselines: ``TNAV_BASELINE_WEIGHTS``."""
    named = os.environ.get("TNAV_BASELINE_WEIGHTS")
    return Path(named) if named else None


def methods_at_hand(
    names: Sequence[str] | None, device: torch.device, say: Callable[[str], None]
) -> list[Method]:
    """Methods by name; those that lack their weights are said and left out.

    Args:
        names: of ``NAMES``; ``None``: all of them.
        device: where learned baselines run.
        say: takes the line on each that is left out.

    Raises:
        ConfigError: an unknown name, or weights that are damaged.
    """
    unknown = [name for name in names or () if name not in NAMES]
    if unknown:
        raise ConfigError(f"method '{unknown[0]}': not known; expected of {', '.join(NAMES)}")
    found = []
    for name in NAMES if names is None else tuple(dict.fromkeys(names)):
        line = missing_weights(name, weights_folder()) if name in WEIGHT_FILES else None
        if line is None:
            found.append(_method(name, device, say))
        else:
            say(f"{line}; left out")
    return found


def _method(name: str, device: torch.device, say: Callable[[str], None]) -> Method:
    settings = repr(MatcherConfig())
    match name:
        case "tnav":
            model = default_model(device)
            if model is None:
                say(f"{name}: no model at {models_dir() / DEFAULT_MODEL}; measured without weights")
                return Method(name, _dense, settings)
            identity = f"{settings} {model.contract.sha256}"
            return Method(name, partial(_dense, network=model.network), identity)
        case "tnav without weights":
            return Method(name, _dense, settings)
        case "cfog":
            return Method(name, partial(_dense, channel=Channel.CFOG), settings)
        case "ncc":
            return Method(name, partial(_dense, channel=Channel.INTENSITY), settings)
        case "sift":
            return Method(name, _sift, "")
    folder = weights_folder()
    assert folder is not None  # the caller has looked for the weights
    finder = load_finder(name, folder, device)
    sigma_px = _SUBPIXEL_SIGMA_PX if name in _SUBPIXEL else _PIXEL_SIGMA_PX
    files = b"".join((folder / file).read_bytes() for file in WEIGHT_FILES[name])
    return Method(name, partial(_learned, finder, sigma_px), hashlib.sha256(files).hexdigest())


def _dense(
    view: Frame,
    image: Tensor,
    radius_px: float,
    *,
    network: FeatureNet | None = None,
    channel: Channel | None = None,
) -> Matches:
    """Our matcher, with its own choice of channels or with one for everything."""
    return match(
        view, image, search_radius_px=radius_px, network=network, fine_channel=channel,
        coarse_channel=channel,
    )  # fmt: skip


def _sift(view: Frame, image: Tensor, radius_px: float) -> Matches:
    shown = torch.where(view.hit, view.image[:, 0], 0.0)
    found = sift_matches(display_grey(shown[0]), display_grey(image[0, 0]))
    return sparse_matches(
        view, Correspondences(*found), sigma_px=_SUBPIXEL_SIGMA_PX, search_radius_px=radius_px
    )


def _learned(
    finder: Callable[[Tensor, Tensor], Correspondences],
    sigma_px: float,
    view: Frame,
    image: Tensor,
    radius_px: float,
) -> Matches:
    shown = torch.where(view.hit[:, None], view.image, 0.0)
    found = finder(shown, image)
    return sparse_matches(view, found, sigma_px=sigma_px, search_radius_px=radius_px)
