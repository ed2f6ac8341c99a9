"""Whether matches miss by as much as they say, and the calibration that makes a network's do so.

The calibration is fitted on regions that training did not see, and judged on others again.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.limits import Row
from tnav.evaluate.match_cases import CaseScenes, named_cases
from tnav.evaluate.match_scores import SOLVED_PX
from tnav.learn.scenes import Scene
from tnav.match.channels import Channel
from tnav.match.matcher import MatcherConfig, match
from tnav.match.network import FeatureNet
from tnav.match.weights import default_model
from tnav.records import Matches

Say = Callable[[str], None]
_SLUGS = ("true-sun", "coarse-map", "sun-30", "sun-60", "sun-90", "sun-135", "sun-180", "low-sun")
_TOLERANCE = 0.1  # of the mean normalised square over all matches
_ANY_SIGMA = MatcherConfig(max_sigma_px=1e3)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Right matches of learned features, before their covariance has a size."""

    square_px2: NDArray[np.float64]  # e^T S^-1 e of an error e, S the covariance over its size
    curvature_px2: NDArray[np.float64]  # size by the peak's curvature
    stated_px2: NDArray[np.float64]  # size by the network


def fit_calibration(
    network: FeatureNet, device: torch.device, pairs: int, say: Say
) -> tuple[float, float, float]:
    """(a, b, c) of the size ``exp(a) curvature^b stated^c`` with the highest likelihood.

    For a Gaussian of two dimensions -ln p is ``square / (2 size) + ln size`` and a constant, which
    is convex in (a, b, c); at its least the mean of ``square / (2 size)`` is 1.

    Args:
        network: whose matches are fitted; its own calibration does not matter.
        device: where scenes are rendered and matched.
        pairs: of each of the cases, on the validation regions.
        say: takes progress.

    Raises:
        ConfigError: hardly a match is right.
    """
    scenes = CaseScenes(device, quick=False, split="validation")
    parts = []
    for index in range(pairs):
        say(f"pair {index + 1} of {pairs}")
        for case in named_cases(_SLUGS):
            scene = scenes.scene(case, index)
            parts.append(_sample(scene, network, case.search_radius_px))
    q, s, t = (
        np.concatenate([getattr(p, f) for p in parts])
        for f in ("square_px2", "curvature_px2", "stated_px2")
    )
    if len(q) < 100:
        raise ConfigError(f"calibration: {len(q)} right matches, expected 100 or more; train first")
    design = np.stack([np.ones_like(s), np.log(s), np.log(t)], 1)

    def cost(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_size = design @ x
        half = 0.5 * q * np.exp(-log_size)
        return float(np.mean(half + log_size)), design.T @ (1 - half) / len(q)

    a, b, c = minimize(cost, [0.0, 0.5, 0.5], jac=True, method="BFGS").x
    say(f"fitted on {len(q)} matches")
    return float(a), float(b), float(c)


def measure_covariance(device: torch.device, pairs: int, say: Say) -> list[Row]:
    """Mean normalised square of the shipped matcher's right matches over its expectation.

    Args:
        device: where scenes are rendered and matched.
        pairs: of each case, on the test regions.
        say: takes progress.
    """
    model = default_model(device)
    network = None if model is None else model.network
    scenes = CaseScenes(device, quick=False)
    cases = named_cases(_SLUGS)
    squares: dict[str, list[NDArray[np.float64]]] = {case.name: [] for case in cases}
    for index in range(pairs):
        say(f"pair {index + 1} of {pairs}")
        for case in cases:
            scene = scenes.scene(case, index)
            found = match(
                scene.map_view, scene.image, search_radius_px=case.search_radius_px,
                network=network,
            )  # fmt: skip
            error_px, covariance_px2 = _right(scene, found)
            squares[case.name].append(_squares(error_px, covariance_px2).numpy() / 2)
    everything = np.concatenate([x for each in squares.values() for x in each])
    low, high = 1 - _TOLERANCE, 1 + _TOLERANCE
    mean = float(everything.mean()) if len(everything) else float("nan")
    limit, good = f"in [{low:g}, {high:g}]", low <= mean <= high
    name, where = "mean normalised square / 2", str(device)
    rows = [Row(f"all: {name}", round(mean, 3), "", limit, good, len(everything), where)]
    for case_name, each in squares.items():
        own = np.concatenate(each)
        value = round(float(own.mean()), 3) if len(own) else None
        rows.append(Row(f"{case_name}: {name}", value, "", None, None, len(own), where))
    return rows


def _sample(scene: Scene, network: FeatureNet, radius_px: float) -> _Sample:
    found = []
    for calibration in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        net = copy.copy(network)  # its buffers are its own, its weights are shared
        net._buffers = dict(network._buffers)
        net.calibration = torch.tensor(calibration, device=network.calibration.device)
        found.append(
            match(
                scene.map_view,
                scene.image,
                search_radius_px=radius_px,
                network=net,
                config=_ANY_SIGMA,
                fine_channel=Channel.LEARNED,
            )  # fmt: skip
        )
    error_px, curvature = _right(scene, found[0])
    _, stated = _right(scene, found[1])
    size, stated_px2 = (torch.linalg.det(c).sqrt() for c in (curvature, stated))
    square_px2 = _squares(error_px, curvature) * size
    return _Sample(square_px2.numpy(), size.numpy(), stated_px2.numpy())


def _right(scene: Scene, found: Matches) -> tuple[Float64[Tensor, "n 2"], Float64[Tensor, "n 2 2"]]:
    """Errors and covariances of valid matches that are right, on the host."""
    true_uv_px, _ = scene.true_uv_px(found.point_L[0])
    error_px = found.uv_px[0] - true_uv_px
    right = found.valid[0] & (error_px.norm(dim=-1) < SOLVED_PX)
    return error_px[right].cpu(), found.covariance_px2[0][right].cpu()


def _squares(
    error_px: Float64[Tensor, "n 2"], covariance_px2: Float64[Tensor, "n 2 2"]
) -> Float64[Tensor, " n"]:
    solved = torch.linalg.solve(covariance_px2, error_px[..., None])
    return (error_px[:, None] @ solved).flatten()
