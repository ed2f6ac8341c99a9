"""Views of a scenario's truth as files: image, geometry, and one line of JSON each."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tnav.errors import ConfigError
from tnav.evaluate.world import R_B_C, World, true_view
from tnav.files import written_aside
from tnav.geometry.pose import Pose, quaternion_from_matrix
from tnav.images import write_png16
from tnav.render.detector import Detector, expose


def write_views(world: World, times_s: Sequence[float], folder: Path) -> Iterator[Path]:
    """Render the true camera at given times.

    Writes ``NNN.png`` (16 bit, detector output), ``NNN.npz`` (range_m, xyz_L, hit, lit at pixel
    centres) and, last, ``frames.jsonl``.

    Raises:
        ConfigError: a time outside the flight.
    """
    trajectory, end_s = world.trajectory, float(world.trajectory.t_s[-1])
    for t_s in times_s:
        if not 0 <= t_s <= end_s:
            raise ConfigError(f"--at {t_s}: outside the flight, expected 0 to {end_s:.2f} s")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, t_s in enumerate(times_s):
        k = trajectory.index_at(t_s)
        pose = Pose((trajectory.R_L_B[k] @ R_B_C)[None], trajectory.position_L[k : k + 1]).to(
            world.device
        )
        frame = true_view(world, pose)
        image = expose(frame.image, Detector(), world.scenario.seeds.camera * 4096 + index)
        path = folder / f"{index:03d}.png"
        write_png16(path, image[0, 0])
        with written_aside(path.with_suffix(".npz")) as aside, aside.open("wb") as stream:
            np.savez_compressed(
                stream,
                allow_pickle=False,
                range_m=frame.range_m[0].cpu().numpy(),
                xyz_L=frame.xyz_L[0].cpu().numpy(),
                hit=frame.hit[0].cpu().numpy(),
                lit=frame.lit[0].cpu().numpy(),
            )
        lines.append(json.dumps(_line(world, path.name, k, pose), allow_nan=False))
        yield path
    with written_aside(folder / "frames.jsonl") as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    yield folder / "frames.jsonl"


def _line(world: World, name: str, k: int, pose: Pose) -> dict[str, object]:
    camera = world.camera
    return {
        "image": name,
        "t_s": float(world.trajectory.t_s[k]),
        "position_L": pose.position_L[0].tolist(),
        "q_L_C_wxyz": quaternion_from_matrix(pose.R_L_C)[0].tolist(),
        "site": [world.scenario.site.latitude_deg, world.scenario.site.longitude_deg],
        "camera": [camera.width_px, camera.height_px, camera.focal_px, camera.cx_px, camera.cy_px],
        "sun_L": world.sun.sun_L.tolist(),
        "relief": "SYNTHETIC below the DEM's resolution",
        "seeds": world.scenario.seeds.model_dump(),
    }
