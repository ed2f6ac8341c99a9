"""Closed-loop descents from their recipe: thousands in `model` fidelity, one by one in `image`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tnav.errors import ConfigError, RunFileError
from tnav.evaluate.descent_plan import Descent, scenario_of, told_of
from tnav.evaluate.descent_record import (
    DescentRecord,
    DescentSeries,
    Fidelity,
    InnovationSeries,
    Outcome,
    Touchdown,
)
from tnav.evaluate.fix_model import FixModel, load_fix_model
from tnav.evaluate.flight import Flight, Monitoring, Progress
from tnav.evaluate.flight_ground import ImageGround, ModelGround
from tnav.evaluate.flight_log import FlightLog, Sample
from tnav.evaluate.flight_score import ACROSS_MAX_M_S, DOWN_MAX_M_S, Arrays, arrays_of, join
from tnav.evaluate.flight_start import footprint_per_m
from tnav.evaluate.scenario import Scenario
from tnav.evaluate.world import World, build_world
from tnav.files import written_aside
from tnav.geometry.sun import sun_at
from tnav.match.weights import default_model
from tnav.records import Sensor
from tnav.simulate.faults import Fault
from tnav.terrain.cache import content_hash, default_cache
from tnav.terrain.heightfield import Terrain
from tnav.terrain.site import build_truth, degrade

# Of the code that makes a descent what it is: raised by whoever changes the filter's workings.
_REVISION = 4
_BATCH = 500  # descents that are flown at once: more cost memory and no less time each


@dataclass(frozen=True, slots=True)
class Site:
    """Ground and map that all model descents share, on their device."""

    scenario: Scenario
    terrain_map: Terrain


def site_of(descent: Descent, device: torch.device) -> Site:
    """Terrain of a descent's scenario."""
    scenario = scenario_of(descent)
    ground = build_truth(scenario.site, scenario.seeds.terrain, cache=default_cache())
    return Site(scenario, degrade(ground, scenario.map, scenario.seeds.map).to(device))


def fly_model(
    descent: Descent,
    site: Site,
    batch: int,
    seed: int,
    progress: Progress,
    model: FixModel | None = None,
    keep: int | None = None,
    faults: Sequence[Fault] = (),
    monitor: Monitoring = Monitoring.OFF,
) -> Flight:
    """A batch of descents in `model` fidelity; returns the flight, with its log.

    Args:
        progress: told what goes on.

    The others are those of `model_flight`.
    """
    flight = model_flight(descent, site, batch, seed, model, keep, faults, monitor)
    flight.fly(progress)
    return flight


def model_flight(
    descent: Descent,
    site: Site,
    batch: int,
    seed: int,
    model: FixModel | None = None,
    keep: int | None = None,
    faults: Sequence[Fault] = (),
    monitor: Monitoring = Monitoring.OFF,
) -> Flight:
    """A batch of descents in `model` fidelity at its start.

    Args:
        descent: the recipe.
        site: ground and map.
        batch: number of descents.
        seed: number of the draw of everything but the ground.
        model: of fixes; None: the one among the datasets.
        keep: number of the descent whose whole history is logged, if one.
        faults: what fails.
        monitor: whether verdicts are given, and acted on.

    Raises:
        ConfigError: tight vision, for which there are no matches here.
    """
    if descent.tight_vision:
        raise ConfigError(
            f"{descent.name}: tight_vision: true, which takes matches of rendered images; expected "
            "false in model fidelity"
        )
    scenario = site.scenario.with_seed(seed)
    sun = sun_at(scenario.site.frame, scenario.epoch_utc)
    ground = ModelGround(
        scenario,
        site.terrain_map,
        model or load_fix_model(),
        batch,
        footprint_per_m(scenario),
        told_of(descent, scenario).relief_sigma_m,
        sun.elevation_deg,
    )
    return Flight(descent, scenario, ground, site.terrain_map, batch, keep, faults, monitor)


def fly_models(descent: Descent, site: Site, count: int, seed: int, progress: Progress) -> Arrays:
    """As many descents in `model` fidelity as are asked for, batch by batch."""
    parts, number = [], 0
    while count > 0:
        batch = min(count, _BATCH)
        parts.append(arrays_of(fly_model(descent, site, batch, seed + number, progress).log))
        count, number = count - batch, number + 1
    return join(parts)


def fly_image(
    descent: Descent, world: World, progress: Progress, faults: Sequence[Fault] = ()
) -> Flight:
    """One descent in `image` fidelity, its whole history logged."""
    ground = ImageGround(world, math.radians(descent.star_tracker.sigma_deg))
    map_cpu = world.terrain_map.to("cpu")  # one descent's filter is faster beside the device
    flight = Flight(descent, world.scenario, ground, map_cpu, 1, keep=0, faults=faults)
    flight.fly(progress)
    return flight


def image_world(descent: Descent, seed: int, device: torch.device) -> World:
    """Truth and map of one image descent: ground and map of its own.

    Over one ground all descents would share what its scene does to the matcher, and their errors
    would not be independent.
    """
    scenario = scenario_of(descent)
    return build_world(scenario.with_seed(seed), device)


def identity_of(descent: Descent, seed: int) -> str:
    """Hash of what an image descent depends on, for files that are resumed from."""
    scenario, model = scenario_of(descent), default_model(torch.device("cpu"))
    return content_hash(
        {
            "revision": _REVISION,
            "filter": asdict(told_of(descent, scenario)),
            "descent": descent.model_dump(mode="json"),
            "scenario": scenario.model_dump(mode="json"),
            "model": model.contract.sha256 if model else None,
            "seed": seed,
        }
    )


def kept_arrays(path: Path, identity: str) -> Arrays | None:
    """Arrays of a descent that an earlier run left, if it was of the same set-up.

    Raises:
        RunFileError: the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                return None
            return {name: file[name] for name in file.files if name != "identity"}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise RunFileError(f"{path}: not a descent's arrays ({error}); delete it") from error


def keep_arrays(path: Path, identity: str, arrays: Arrays) -> None:
    """Writes a descent's arrays aside, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, identity=np.array(identity), **arrays)  # type: ignore[arg-type]


def without(descent: Descent, *, altimeter: bool = True, vision: bool = True) -> Descent:
    """The descent without a sensor."""
    return descent.model_copy(update={"with_altimeter": altimeter, "with_vision": vision})


def record_of(flight: Flight, fidelity: Fidelity, name: str, seed: int) -> DescentRecord:
    """The whole history of the descent that was kept."""
    log, descent = flight.log, flight.descent
    frame = flight.frame
    return DescentRecord(
        name=name,
        fidelity=fidelity,
        policy=descent.gate.value,
        seed=seed,
        latitude_deg=frame.latitude_deg,
        longitude_deg=frame.longitude_deg,
        series=_series(log.samples),
        innovations=tuple(_innovations(log, sensor) for sensor in log.degrees),
        touchdown=_touchdown(log),
        recipe=descent.model_dump(mode="json"),
    )


def _series(samples: list[Sample]) -> DescentSeries:
    def joined(of: Callable[[Sample], Tensor]) -> Tensor:
        return torch.cat([of(sample) for sample in samples])

    return DescentSeries(
        t_s=torch.tensor([sample.t_s for sample in samples], dtype=torch.float64),
        position_L=joined(lambda s: s.lander.position_L),
        velocity_L=joined(lambda s: s.lander.velocity_L),
        R_L_B=joined(lambda s: s.lander.R_L_B),
        agl_m=joined(lambda s: s.agl_m),
        propellant_kg=joined(lambda s: s.lander.propellant_kg),
        thrust_n=joined(lambda s: s.lander.thrust_n),
        phase=joined(lambda s: s.phase),
        position_nav_L=joined(lambda s: s.state.position_L),
        velocity_nav_L=joined(lambda s: s.state.velocity_L),
        R_nav_L_B=joined(lambda s: s.state.R_L_B),
        agl_nav_m=joined(lambda s: s.agl_nav_m),
        sigma=joined(lambda s: s.sigma),
    )


def _innovations(log: FlightLog, sensor: Sensor) -> InnovationSeries:
    own = [i for i in log.innovations if i.sensor is sensor]
    return InnovationSeries(
        sensor=sensor,
        t_s=torch.tensor([i.t_s for i in own], dtype=torch.float64),
        value=torch.cat([i.value for i in own]),
        covariance=torch.cat([i.covariance for i in own]),
        nis=torch.cat([i.nis for i in own]),
        present=torch.cat([i.present for i in own]),
        fused=torch.cat([i.fused for i in own]),
    )


def _touchdown(log: FlightLog) -> Touchdown | None:
    lane, contact = log.keep, log.contact
    if lane is None or bool(contact.t_s[lane].isnan()):
        return None
    down, across = float(contact.down_m_s[lane]), float(contact.horizontal_m_s[lane])
    propellant_kg = float(log.propellant_kg[lane])
    soft = down <= DOWN_MAX_M_S and across <= ACROSS_MAX_M_S
    empty: Outcome = "ran_dry" if propellant_kg <= 0 else "crashed"
    return Touchdown(
        t_s=float(contact.t_s[lane]),
        speed_down_m_s=down,
        speed_horizontal_m_s=across,
        miss_m=float(contact.miss_m[lane]),
        propellant_kg=propellant_kg,
        outcome="landed" if soft else empty,
        agl_error_m=float(contact.agl_error_m[lane]),
        horizontal_error_m=float(contact.position_error_L[lane, :2].norm()),
        velocity_error_m_s=float(contact.velocity_error_L[lane].norm()),
    )
