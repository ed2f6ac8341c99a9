"""What a dataset's reader opens first: index, description, README, contact sheet, COLMAP model."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

import tnav
from tnav.evaluate import colmap
from tnav.evaluate.dataset import TRUTH_CHANNELS, RenderRecipe, file_sha256
from tnav.evaluate.dataset_folder import SCHEMA, Record, line_of
from tnav.evaluate.dataset_frames import Studio, pose_of
from tnav.files import written_aside
from tnav.images import captioned, contact_sheet, display_grey, encode_jpeg, read_image, resize

_PREVIEW_FRAMES = 24
_PREVIEW_COLUMNS = 6
_PREVIEW_WIDTH_PX = 240
_NEIGHBOURS = 4  # poses before and after a pose whose points are looked for in it
_NO_POINTS: Float64[Tensor, "0 3"] = torch.zeros(0, 3, dtype=torch.float64)

UNITS = {
    "range_m": "m, from the camera's centre along the unit ray; NaN where no ground is hit",
    "xyz_L": "m, point of the ground in L; NaN where no ground is hit",
    "normal_L": "unit normal in L, upwards; NaN where no ground is hit",
    "incidence_rad": "rad, between normal and the Sun's centre; NaN where no ground is hit",
    "emission_rad": "rad, between normal and camera; NaN where no ground is hit",
    "phase_rad": "rad, between the Sun's centre and camera; NaN where no ground is hit",
    "sun_fraction": "share of the Sun's light that arrives, 0 to 1; NaN where no ground is hit",
    "lit": "true where the ground faces the Sun and sees at least half of its light",
    "hit": "true where the pixel's centre meets ground",
    "level": "level of the terrain that was hit, an index into the line's level_posts_m (the "
    "distance between its posts); -1 where no ground is hit",
}
FRAMES = {
    "L": "local east-north-up, m; its origin lies on the 1737.4 km sphere at latitude_deg, "
    "longitude_deg",
    "C": "camera: x right, y down, z forward; p_L = R_L_C p_C + position_L, with R_L_C from "
    "q_L_C_wxyz (Hamilton, w first)",
    "pixels": "u right, v down; the centre of (row, col) is (col + 0.5, row + 0.5)",
    "distortion": "OpenCV's models; OpenCV counts pixels from their centres: its cx, cy are ours "
    "less 0.5",
    "image": "16 bit grey, linear: value / 65535 is the detector's output over full scale",
    "truth": "exact at each pixel's centre, at mid-exposure of its row or column",
    "altitude_m": "above the 1737.4 km sphere",
    "agl_m": "above the ground along the local vertical",
    "gsd_centre_m": "footprint of the central pixel on a surface that faces the camera",
}


def finish(out: Path, studio: Studio, records: Sequence[Record], planned: int) -> None:
    """Write all that comes after the frames; ``dataset.json`` last.

    Args:
        out: the dataset's folder.
        studio: what the frames were rendered with.
        records: of the frames that are there, in order.
        planned: frames of the whole dataset.
    """
    for left in out.glob("*.part"):  # by a process that was killed
        left.unlink(missing_ok=True)
    with written_aside(out / "frames.jsonl") as aside:
        aside.write_text("".join(map(line_of, records)), encoding="utf-8")
    _write_colmap(out, studio, records)
    with written_aside(out / "README.md") as aside:
        aside.write_text(readme(studio.recipe, records, planned), encoding="utf-8")
    with written_aside(out / "preview.jpg") as aside:
        aside.write_bytes(_preview(out, records))
    names = ["recipe.yaml", "inputs.json", "poses.csv", "frames.jsonl", "README.md", "preview.jpg"]
    names += [f"colmap/{name}" for name in colmap.FILES]
    names += sorted(p.relative_to(out).as_posix() for p in out.glob("shard-*/frames.jsonl"))
    files = {name: file_sha256(out / name) for name in names if (out / name).is_file()}
    with written_aside(out / "dataset.json") as aside:
        text = json.dumps(_description(out, studio, len(records), planned, files), indent=1)
        aside.write_text(text + "\n", encoding="utf-8")


def observed(
    studio: Studio, poses: int, count: int
) -> tuple[list[Float64[Tensor, "_ 3"]], list[colmap.Observations]]:
    """Sparse points of the ground, and which poses see them.

    Each of the first poses brings up to ``count`` points, which are looked for, occlusion included,
    in the poses shortly before and after it.
    """
    points_L = []
    for index in range(poses):
        where = (*studio.terrain_of(index), studio.camera, pose_of(studio.plan, index))
        points_L.append(colmap.sample_points(*where, count))
    first = torch.tensor([1] + [len(p) for p in points_L]).cumsum(0).tolist()
    seen = []
    for index in range(poses):
        near = range(max(0, index - _NEIGHBOURS), min(poses, index + _NEIGHBOURS + 1))
        ids = [number for k in near for number in range(first[k], first[k + 1])]
        candidates_L = torch.cat([_NO_POINTS, *(points_L[k] for k in near)])
        where = (*studio.terrain_of(index), studio.camera, pose_of(studio.plan, index))
        uv_px, visible = colmap.visible(*where, candidates_L)
        kept = [number for number, good in zip(ids, visible.tolist(), strict=True) if good]
        seen.append(colmap.Observations(tuple(kept), uv_px[visible]))
    return points_L, seen


def readme(recipe: RenderRecipe, records: Sequence[Record], planned: int) -> str:
    """What a stranger needs to use the dataset."""
    channels = "\n".join(f"| `{name}` | {UNITS[name]} |" for name in recipe.truth.channels)
    frames = "\n".join(f"- **{name}**: {text}." for name, text in FRAMES.items())
    suffix = {"png": "PNG", "tiff": "TIFF"}[recipe.image_format]
    part = "" if len(records) == planned else f" (a first look: {planned} are planned)"
    points = (
        "points of the true ground with exact observations"
        if recipe.colmap_points and not _rolling(recipe)
        else "no points"
    )
    rolling = (
        "The shutter rolls, which COLMAP's models do not know: its poses are those at mid-frame.\n"
        if _rolling(recipe)
        else ""
    )
    return f"""# {recipe.name}

{len(records)} rendered views of the Moon{part}, by tnav {tnav.__version__}. Look at `preview.jpg`.

The ground is {_ground_words(recipe)}. Relief below the DEM's resolution is SYNTHETIC
{"and so is the pattern of albedo" if recipe.albedo and recipe.albedo.kind == "field" else ""}.

## Load a frame

```python
import cv2, json
import numpy as np

with open("frames.jsonl") as lines:
    frames = [json.loads(line) for line in lines]
frame = frames[0]
image = cv2.imread(frame["image"], cv2.IMREAD_UNCHANGED) / 65535.0
with np.load(frame["truth"]) as arrays:
    truth = dict(arrays)
print(image.shape, frame["agl_m"], {{name: a.shape for name, a in truth.items()}})
```

## What is where

| file | what |
|---|---|
| `frames.jsonl` | one line a frame: files with SHA-256, pose, camera, Sun, exposure, seeds |
| `shard-*/images/` | 16-bit linear {suffix} |
| `shard-*/truth/` | arrays at every pixel's centre (`.npz`) |
| `recipe.yaml` | what it was made from: `tnav render recipe.yaml --out ELSEWHERE` |
| `dataset.json` | version, DEM, counts, hashes of the files beside it |
| `colmap/` | COLMAP's text model (world is L; {points}), image names from this folder on |

{rolling}
## Truth

| array | unit |
|---|---|
{channels}

Arrays are exact at each pixel's centre, at mid-exposure of its row or column. The image is the mean
over {recipe.samples} samples of each pixel, then the detector. `record_sha256` is the SHA-256 of
the line's JSON without that key.

## Conventions

{frames}

Frames of one `pose_id` show one pose under several Suns.
"""


def _ground_words(recipe: RenderRecipe) -> str:
    ground = recipe.corridor or recipe.site
    assert ground is not None
    dem = ground.dem if isinstance(ground.dem, str) else ", ".join(ground.dem)
    where = f"latitude {ground.latitude_deg:g}, longitude {ground.longitude_deg:g} deg"
    return f"the DEM {dem} around {where}, in posts from {ground.finest_post_m:g} m"


def _rolling(recipe: RenderRecipe) -> bool:
    return recipe.motion is not None and recipe.motion.readout_s > 0


def _write_colmap(out: Path, studio: Studio, records: Sequence[Record]) -> None:
    images = [colmap.Image(str(r["image"]), _pose_id(r)) for r in records]
    poses = max((image.pose for image in images), default=-1) + 1
    points_L: list[Tensor] = []
    seen: list[colmap.Observations] = []
    if studio.recipe.colmap_points and not _rolling(studio.recipe):
        points_L, seen = observed(studio, poses, studio.recipe.colmap_points)
    pose = studio.plan.poses.pose[:poses]
    colmap.write_model(out / "colmap", studio.camera, pose, images, points_L, seen)


def _pose_id(record: Record) -> int:
    number = record["pose_id"]
    assert isinstance(number, int)
    return number


def _preview(out: Path, records: Sequence[Record]) -> bytes:
    count = min(_PREVIEW_FRAMES, len(records))
    chosen = [records[k * len(records) // count] for k in range(count)]
    pictures = []
    for record in chosen:
        image = read_image(out / str(record["image"]), constant_allowed=True)[0, 0]
        picture = resize(display_grey(image), _PREVIEW_WIDTH_PX)
        agl_m = record["agl_m"]
        height = "height unknown" if agl_m is None else f"{agl_m:.0f} m over ground"
        sun = f"Sun {record['sun_azimuth_deg']:.0f}, {record['sun_elevation_deg']:.1f} deg"
        pictures.append(captioned(picture, [f"{record['id']}: {height}", sun]))
    return encode_jpeg(contact_sheet(pictures, min(_PREVIEW_COLUMNS, count)))


def _description(
    out: Path, studio: Studio, frames: int, planned: int, files: dict[str, str]
) -> Record:
    recipe, inputs = studio.recipe, json.loads((out / "inputs.json").read_text(encoding="utf-8"))
    ground = recipe.corridor or recipe.site
    assert ground is not None
    return {
        **inputs,
        "schema": SCHEMA,
        "name": recipe.name,
        "dem": ground.dem,
        "frames": frames,
        "planned": planned,
        "suns_per_pose": studio.plan.suns_per_pose,
        "frames_per_shard": recipe.frames_per_shard,
        "latitude_deg": ground.latitude_deg,
        "longitude_deg": ground.longitude_deg,
        "relief": "SYNTHETIC below the DEM's resolution",
        "conventions": FRAMES,
        "truth": {name: UNITS[name] for name in TRUTH_CHANNELS if name in recipe.truth.channels},
        "files": files,
    }
