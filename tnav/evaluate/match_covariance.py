"""Whether matches miss by as much as they say, and the calibration that makes a network's do so.

The calibration is fitted on regions that training did not see, and judged on others again.
"""

import copy
import dataclasses
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
_LEAST_MATCHES = 100
_ANY_SIGMA = MatcherConfig(max_sigma_px=1e3)


@dataclass(frozen=True, slots=True)
class Sizes:
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
    fields = (
        np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Sizes)
    )
    sizes = Sizes(*fields)
    say(f"fitted on {len(sizes.square_px2)} matches")
    return most_likely(sizes)


def most_likely(sizes: Sizes) -> tuple[float, float, float]:
    """(a, b, c) with the highest likelihood.

    Raises:
        ConfigError: hardly a match.
    """
    q, s, t = sizes.square_px2, sizes.curvature_px2, sizes.stated_px2
    if len(q) < _LEAST_MATCHES:
        raise ConfigError(
            f"calibration: {len(q)} right matches, expected {_LEAST_MATCHES} or more; train first"
        )
    design = np.stack([np.ones_like(s), np.log(s), np.log(t)], 1)

    def cost(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_size = design @ x
        half = 0.5 * q * np.exp(-log_size)
        return float(np.mean(half + log_size)), design.T @ (1 - half) / len(q)

    a, b, c = minimize(cost, [0.0, 0.5, 0.5], jac=True, method="BFGS").x
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
    found: dict[str, list[NDArray[np.float64]]] = {case.name: [] for case in cases}
    left_out = total = 0
    for index in range(pairs):
        say(f"pair {index + 1} of {pairs}")
        for case in cases:
            scene = scenes.scene(case, index)
            matches = match(
                scene.map_view, scene.image, search_radius_px=case.search_radius_px,
                network=network,
            )  # fmt: skip
            error_px, covariance_px2 = _right(scene, matches)
            found[case.name].append(_squares(error_px, covariance_px2).numpy() / 2)
            total += int(matches.valid.sum())
            left_out += int(matches.valid.sum()) - len(error_px)
    rows = [_mean_row("all", [x for each in found.values() for x in each], device, limited=True)]
    rows += [_mean_row(name, each, device, limited=False) for name, each in found.items()]
    share = round(100 * left_out / max(total, 1), 3)
    name = f"valid matches left out, {SOLVED_PX:g} px off or more"
    return [*rows, Row(name, share, "%", None, None, total, str(device))]


def _mean_row(
    name: str, scenes: list[NDArray[np.float64]], device: torch.device, *, limited: bool
) -> Row:
    """Mean over all matches. Those of one scene err together: the interval is that of scenes."""
    each = [x for x in scenes if len(x)]
    what = f"{name}: mean normalised square / 2"
    if not each:
        return Row(what, None, "", None, None, 0, str(device))
    mean = float(np.concatenate(each).mean())
    rng = np.random.default_rng(0)
    draws = rng.integers(len(each), size=(1000, len(each)))
    means = [np.concatenate([each[k] for k in draw]).mean() for draw in draws]
    low, high = np.quantile(means, [0.025, 0.975])
    unit = f"({low:.2f} to {high:.2f}, bootstrap over {len(each)} scenes)"
    least, most = 1 - _TOLERANCE, 1 + _TOLERANCE
    limit, good = (f"in [{least:g}, {most:g}]", least <= mean <= most) if limited else (None, None)
    n = sum(len(x) for x in each)
    return Row(what, round(mean, 3), unit, limit, good, n, str(device))


def _sample(scene: Scene, network: FeatureNet, radius_px: float) -> Sizes:
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
            )
        )
    error_px, curvature = _right(scene, found[0])
    _, stated = _right(scene, found[1])
    size, stated_px2 = (torch.linalg.det(c).sqrt() for c in (curvature, stated))
    square_px2 = _squares(error_px, curvature) * size
    return Sizes(square_px2.numpy(), size.numpy(), stated_px2.numpy())


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
