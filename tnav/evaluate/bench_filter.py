"""The filter in closed loop, measured: consistency, touchdowns, gates, and what a descent costs.

Nominal descents in `model` fidelity by the hundred, in `image` fidelity one by one; the latter are
kept in a folder and resumed, because each takes minutes.
"""

import resource
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from tnav.evaluate.descent_archive import write_descent
from tnav.evaluate.descent_plan import Descent, load_descent
from tnav.evaluate.descent_score import AGL_PERCENT_MAX, BLIND_DOWN_MAX_M_S
from tnav.evaluate.flight_runs import (
    Site,
    fly_image,
    fly_model,
    fly_models,
    identity_of,
    image_world,
    keep_arrays,
    kept_arrays,
    record_of,
    site_of,
    without,
)
from tnav.evaluate.flight_score import (
    ACROSS_MAX_M_S,
    Arrays,
    arrays_of,
    coverage_rows,
    height_rows,
    join,
    overall_rows,
    rows_of_means,
    touchdown_rows,
)
from tnav.evaluate.limits import Row
from tnav.navigate.state import GatePolicy
from tnav.simulate.faults import Onset, StepTerrainFault

Say = Callable[[str], None]

DESCENT = "resilience"
_MODEL, _MODEL_QUICK = 500, 100
_IMAGE, _IMAGE_QUICK = 20, 0
_THROUGHPUT, _THROUGHPUT_QUICK = (10, 100, 1000), (10, 100)
_THROUGHPUT_LIMIT_S = 300.0
_GATED = 20
_RIM_M = 500.0
_RIM = StepTerrainFault(
    kind="step_terrain", begins=Onset(below_agl_m=2500.0), size_m=_RIM_M, crossed_in_s=0.1
)
_SEED = 1  # the first draw; zero is for looking at
_MIB = 1024.0


def measure_filter(
    device: torch.device,
    *,
    quick: bool,
    say: Say,
    out: Path | None = None,
    model_descents: int | None = None,
    image_descents: int | None = None,
) -> list[Row]:
    """The table of the filter.

    Args:
        device: of terrain, images and the filter of batches.
        quick: five minutes at most.
        say: told what goes on.
        out: folder of image descents; those that are in it are not flown again.
        model_descents: in `model` fidelity, instead of 500.
        image_descents: in `image` fidelity, instead of 20.
    """
    descent = load_descent(DESCENT)
    say("terrain")
    site = site_of(descent, device)
    count = model_descents or (_MODEL_QUICK if quick else _MODEL)
    rows = _nominal(descent, site, count, device, say)
    rows += _blind(descent, site, count, device, say)
    if not quick:
        rows += _gates(descent, site, _GATED, device, say)
    images = image_descents if image_descents is not None else _IMAGE_QUICK if quick else _IMAGE
    if images:
        folder = out or Path("out/filter")
        rows += _images(descent, images, folder, device, say)
    sizes = _THROUGHPUT_QUICK if quick else _THROUGHPUT
    return rows + measure_throughput(descent, site, sizes, device, say)


def _nominal(descent: Descent, site: Site, count: int, device: torch.device, say: Say) -> list[Row]:
    flown = fly_models(descent, site, count, _SEED, _teller(say, f"{count} model descents"))
    return _rows(flown, "model", str(device))


def _rows(flown: Arrays, title: str, device: str) -> list[Row]:
    return [
        *rows_of_means(flown, title, device),
        *overall_rows(flown, title, device),
        *coverage_rows(flown, title, device),
        *touchdown_rows(flown, title, device),
    ]


def _blind(descent: Descent, site: Site, count: int, device: torch.device, say: Say) -> list[Row]:
    blind = without(descent, altimeter=False)
    tell = _teller(say, f"{count} model descents without altimeter")
    flown = fly_models(blind, site, count, _SEED, tell)
    title = "model, no altimeter"
    return [
        *height_rows(flown, title, AGL_PERCENT_MAX, str(device)),
        *touchdown_rows(flown, title, str(device), blind=True, down_max_m_s=BLIND_DOWN_MAX_M_S),
    ]


def _gates(descent: Descent, site: Site, count: int, device: torch.device, say: Say) -> list[Row]:
    """What each gate makes of a healthy altimeter over a rim that the map does not have.

    Without vision, as Hakuto-R M1 flew: the lander believes its map or its altimeter.
    """
    rows = []
    for policy in GatePolicy:
        gated = without(descent, vision=False).model_copy(update={"gate": policy})
        tell = _teller(say, f"gate {policy.value}, {count} descents over a rim")
        flight = fly_model(gated, site, count, _SEED, tell, faults=(_RIM,))
        contact = flight.log.contact
        soft = (contact.down_m_s < BLIND_DOWN_MAX_M_S) & flight.log.landed
        soft = soft & (contact.horizontal_m_s < ACROSS_MAX_M_S)
        landed = int(soft.sum())
        must = policy is GatePolicy.TERRAIN_AWARE
        title = f"rim of {_RIM_M:.0f} m not on the map, no vision, gate {policy.value}"
        limit = f"= {count}" if must else None
        passed = landed == count if must else None
        name = f"{title}: contact under {BLIND_DOWN_MAX_M_S:g} m/s"
        rows.append(Row(name, landed, "descents", limit, passed, count, str(device)))
        down = contact.down_m_s[flight.log.landed]
        fastest = round(float(down.max()), 1) if len(down) else None
        name = f"{title}: fastest contact"
        rows.append(Row(name, fastest, "m/s", None, None, count, str(device)))
        ran_dry = int((flight.log.propellant_kg <= 0).sum())
        name = f"{title}: ran dry"
        rows.append(Row(name, ran_dry, "descents", None, None, count, str(device)))
    return rows


def _images(
    descent: Descent, count: int, folder: Path, device: torch.device, say: Say
) -> list[Row]:
    rows: list[Row] = []
    for title, flown_as in (
        ("image", descent),
        ("image, no altimeter", without(descent, altimeter=False)),
    ):
        blind = flown_as is not descent
        parts = [
            fly_or_keep(
                flown_as, seed, folder, device, say, title.replace(", ", "-").replace(" ", "-")
            )
            for seed in range(count // 4 if blind else count)
        ]
        if not parts:
            continue
        flown = join(parts)
        if blind:
            rows += height_rows(flown, title, AGL_PERCENT_MAX, str(device))
            rows += touchdown_rows(
                flown, title, str(device), blind=True, down_max_m_s=BLIND_DOWN_MAX_M_S
            )
        else:
            rows += _rows(flown, title, str(device))
            rows += height_rows(flown, title, AGL_PERCENT_MAX, str(device))
    return rows


def fly_or_keep(
    descent: Descent, seed: int, folder: Path, device: torch.device, say: Say, name: str
) -> Arrays:
    """One image descent from the folder, or flown into it with its record."""
    path, identity = folder / f"{name}-{seed}.npz", identity_of(descent, seed)
    kept = kept_arrays(path, identity)
    if kept is not None:
        return kept
    tell = _teller(say, f"{name} descent, seed {seed}")
    flight = fly_image(descent, image_world(descent, seed, device), tell)
    write_descent(record_of(flight, "image", name, seed), folder / "records")
    arrays = arrays_of(flight.log)
    keep_arrays(path, identity, arrays)
    return arrays


def measure_throughput(
    descent: Descent, site: Site, sizes: tuple[int, ...], device: torch.device, say: Say
) -> list[Row]:
    """Wall clock of batches of several sizes, and the process's largest memory."""
    rows, each_ms = [], []
    for batch in sizes:
        tell = _teller(say, f"throughput, {batch} descents")
        began = time.perf_counter()
        flight = fly_model(descent, site, batch, _SEED, tell)
        seconds = time.perf_counter() - began
        # Descents end at touchdown: told for 600 s of flight, as limits are.
        whole = seconds * 600.0 / flight.state.t_s
        limited = batch == _THROUGHPUT[-1]
        rows.append(
            Row(
                f"{batch} descents of 600 s at {1 / descent.step_s:g} Hz", round(whole, 1), "s",
                f"< {_THROUGHPUT_LIMIT_S:g}" if limited else None,
                whole < _THROUGHPUT_LIMIT_S if limited else None, 1, str(device),
            )
        )  # fmt: skip
        each_ms.append(1e3 * whole / batch)
        rows.append(
            Row(f"{batch} descents, each", round(each_ms[-1], 1), "ms", None, None, 1, str(device))
        )
    falls = all(after < before for before, after in pairwise(each_ms))
    rows.append(
        Row(
            "cost of a descent falls with their number", "yes" if falls else "no", "", "= yes",
            falls, len(sizes), str(device),
        )
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    rows.append(Row("largest memory of the process", round(peak), "MiB", None, None, 1, "cpu"))
    return rows


def _teller(say: Say, title: str) -> Callable[[str, float], None]:
    """Says what goes on every minute of flight."""
    told = [-1]

    def tell(text: str, share: float) -> None:
        step = int(share * 15)
        if step > told[0]:
            told[0] = step
            say(f"{title}: {text}")

    return tell
