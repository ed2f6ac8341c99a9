"""Do fixes miss by as much as they say? Normalised errors over many maps and attitudes.

NEES is e^T P^-1 e: its mean over independent fixes is its degrees of freedom when P is honest
(Bar-Shalom 2001, 5.4.2). Each trial draws its own map error, map shift, attitude error, detector
noise and prior error; the ground and the Sun stay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.stats import chi2
from torch import Tensor

from tnav.evaluate.limits import Row
from tnav.evaluate.localise import Localisation, Prediction, localise
from tnav.evaluate.world import World, agl_over, navigation_of, true_view
from tnav.geometry.pose import Pose, so3_exp, so3_log
from tnav.records import FixStatus
from tnav.render.detector import expose
from tnav.terrain.site import degrade

_PRIOR_SIGMA = 0.005  # of the height, per axis


@dataclass(frozen=True, slots=True)
class Trial:
    """One fix against its truth."""

    solved: bool
    nees: float  # 6 degrees of freedom
    agl_nees: float  # 1
    agl_error_m: float
    horizontal_error_m: float


def measure_calibration(
    world: World,
    poses: dict[str, Pose],
    maps: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Mean normalised errors at several true poses, over ``maps`` draws of the map each.

    Args:
        world: ground, Sun and camera; its own map is not used.
        poses: one true pose (batch of one) under each name.
        maps: draws.
        say: told of progress.
    """
    views = {name: true_view(world, pose).image for name, pose in poses.items()}
    trials: dict[str, list[Trial]] = {name: [] for name in poses}
    ground = world.truth.to("cpu")
    for draw in range(maps):
        say(f"map {draw + 1} of {maps}")
        seed = world.scenario.seeds.map + 17 * draw
        nav = navigation_of(
            world.scenario, degrade(ground, world.scenario.map, seed).to(world.device)
        )
        for number, (name, pose) in enumerate(poses.items()):
            generator = torch.Generator().manual_seed(1000 * draw + number)
            image = expose(
                views[name], world.scenario.detector, 1000 * draw + number, camera=world.camera
            )
            found = localise(image, drawn_prediction(world, pose, generator), nav)
            trials[name].append(_trial(world, pose, found))
    everything = [t for each in trials.values() for t in each]
    rows = [row for name in poses for row in _rows(name, trials[name], world)]
    return rows + _rows("all", everything, world)


def drawn_prediction(world: World, pose: Pose, generator: torch.Generator) -> Prediction:
    """A prediction with the error of a filter and of the scenario's star tracker.

    Args:
        world: whose scenario states the star tracker, and whose truth gives the height.
        pose: the true one, a batch of one.
        generator: of the error, on the CPU.
    """
    sigma_rad = math.radians(world.scenario.star_tracker.sigma_deg)
    prior_sigma_m = _PRIOR_SIGMA * agl_over(world.truth, pose.position_L)
    draw = torch.randn(2, 1, 3, generator=generator, dtype=torch.float64).to(world.device)
    return Prediction(
        t_s=0.0,
        pose=Pose(
            so3_exp(sigma_rad * draw[0]) @ pose.R_L_C, pose.position_L + prior_sigma_m * draw[1]
        ),
        position_covariance=prior_sigma_m**2 * torch.eye(3, dtype=torch.float64),
        attitude_sigma_rad=sigma_rad,
    )


def _trial(world: World, pose: Pose, found: Localisation) -> Trial:
    fix, altitude = found.fix, found.altitude
    if fix.status is not FixStatus.OK or altitude is None or fix.covariance is None:
        return Trial(False, math.nan, math.nan, math.nan, math.nan)
    error = fix_error(pose, found)
    covariance = world.scenario.map.error_model().absolute(fix.covariance)
    agl_error_m = float(altitude.agl_m[0]) - agl_over(world.truth, pose.position_L)
    return Trial(
        solved=True,
        nees=float(error @ torch.linalg.solve(covariance, error)),
        agl_nees=(agl_error_m / float(altitude.agl_sigma_m[0])) ** 2,
        agl_error_m=agl_error_m,
        horizontal_error_m=float(error[:2].norm()),
    )


def fix_error(pose: Pose, found: Localisation) -> Float64[Tensor, "6"]:
    """Estimate minus truth (dp_L, dtheta_L) of one fix, m and rad, on the CPU."""
    position_L = found.solution.pose.position_L - pose.position_L
    turn = so3_log(found.solution.pose.R_L_C @ pose.R_L_C.mT)
    return torch.cat([position_L, turn], -1)[0].cpu()


def _rows(name: str, trials: list[Trial], world: World) -> list[Row]:
    good, device = [t for t in trials if t.solved], str(world.device)
    n = len(good)
    if n == 0:
        return [Row(f"{name}: solved", 0, "fixes", "all", False, len(trials), device)]

    def row(what: str, value: float, unit: str) -> Row:
        return Row(f"{name}: {what}", round(value, 3), unit, None, None, n, device)

    return [
        Row(f"{name}: solved", n, "fixes", "all", n == len(trials), len(trials), device),
        row("agl error, rms", _rms([t.agl_error_m for t in good]), "m"),
        row("horizontal error, rms", _rms([t.horizontal_error_m for t in good]), "m"),
        _honest("mean NEES / 6", name, _mean(good, "nees") / 6, 6, n, device),
        _honest("mean AGL NEES", name, _mean(good, "agl_nees"), 1, n, device),
    ]


def _honest(what: str, name: str, value: float, dof: int, n: int, device: str) -> Row:
    """A mean normalised square against the 99.9 % bounds of an honest one.

    Wide, because a table of many rows meets a 95 % bound too often. Under the lower bound a
    covariance is too large, which costs precision; over the upper one it lies.
    """
    low, high = chi2.ppf([0.0005, 0.9995], dof * n) / (dof * n)
    limit = f"in [{low:.2f}, {high:.2f}]"
    return Row(f"{name}: {what}", round(value, 3), "", limit, bool(low < value < high), n, device)


def _mean(trials: list[Trial], field: str) -> float:
    return float(np.mean([getattr(t, field) for t in trials]))


def _rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
