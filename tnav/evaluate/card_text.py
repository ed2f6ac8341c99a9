"""What a model's card says: its words, and its tables from the files beside it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tnav.learn.recipe import TrainRecipe
from tnav.match.weights import ModelContract, parameter_count

SOLVED = "solved"
_COLUMNS = (SOLVED, "matches within 3 px", "median error")  # of a case and a method


class Figure(BaseModel):
    """One row of a table, as `Row` has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    value: float | int | str | None
    unit: str
    limit: str | None
    passed: bool | None
    n: int
    device: str


class Metrics(BaseModel):
    """The whole of ``metrics.json``: what was measured, of which weights, with what."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_name: Literal["tnav-metrics/1"] = "tnav-metrics/1"
    model: str
    weights_sha256: str
    command: str  # measures the same again
    terrain: str  # what the images show
    seed: int
    pairs: int = Field(ge=1)  # a case
    device: str
    versions: dict[str, str]
    rows: tuple[Figure, ...] = Field(min_length=1)


def words(name: str) -> str:
    """A card without its figures."""
    return f"""# {name}

Features of the Moon's ground that stay themselves when the Sun moves. tnav correlates them between
a view rendered from the map and a camera image, coarse to fine around the predicted place.

```python
from tnav.match.weights import load_model

model = load_model("{name}", "cpu")  # the hash and every tensor are checked
features = model.network(image)  # float32, b 1 h w, linear brightness, sides multiples of 16
```

| file | what |
|---|---|
| `model.yaml` | contract: network, weights by hash, the input it was trained for |
| `weights-*.safetensors` | averaged weights of the training run, float32 |
| `recipe.yaml`, `log.jsonl` | the training recipe as resolved, its log (thinned) |
| `metrics.json` | every figure of the table below, as measured |

`tnav model verify {name}` checks this folder, `tnav model export {name} --out FILE.onnx` writes it
for other runtimes.

## What it says of an image

| output | stride | what |
|---|---|---|
| `fine` | 2 | template features, compared by normalised cross-correlation |
| `log_sigma` | 2 | logarithm of the 1-sigma error, px, that a template centred there will have |
| `descriptor` | 4 | unit vectors for a search without a prior |
| `keypoint` | 4 | logit that a place is found again |

## Input

<!-- contract: written from model.yaml -->
<!-- end of contract -->

The network still answers outside of these bands. tnav then warns once and records it in the result.

## Training

Pairs are rendered as training goes: a view from a map that is coarser, shifted, wrong in height and
without albedo, at a pose that is off, under a Sun that is off; and a detector's image of the ground
at the true pose under the true Sun. Every pixel's true counterpart is known from the geometry.
Descriptors learn by a dual-softmax InfoNCE, templates by the correlator that navigation uses, the
uncertainty by the likelihood of the error that is left (`tnav/learn/loss.py`).

<!-- training: written from model.yaml, recipe.yaml and log.jsonl -->
<!-- end of training -->

## Data

All of it is SYNTHETIC below a few kilometres: craters, roughness, boulders and albedo are made by
seed within published statistics, over heights of LOLA (LDEM_16, 44 to 70 N, 60 W to 60 E, public
domain; `datasets/README.md`). Regions of training, validation and test share no ground
(`datasets/splits.yaml`).

## Measured

Test regions only, none of which training or the choice of weights has seen.

<!-- metrics: written from metrics.json -->
<!-- end of metrics -->

## Limits

- The ground is SYNTHETIC, and so is every image: **no real photograph was measured**.
- Training and test ground come from one generator over one DEM, so the table does not say how the
  network does over ground of another kind: poles, the far side, steep or boulder-strewn terrain
  beyond what the generator makes.
- Brightness is of the reflectance laws that the renderer knows; opposition surge, dust and optics
  beyond the recipe's are new to the network.
- **No time on a GPU was measured**; times in the table are of CPU cores.
- The size of a match's covariance is fitted after training (`calibration` in the weights,
  `tnav/match/search.py`), on rendered pairs like those above.
"""


def contract_table(contract: ModelContract) -> str:
    """The input that a model was trained for."""
    bands = contract.input
    rows = [
        ("ground sample distance", bands.ground_sample_distance_m, "m a pixel"),
        ("height above ground", bands.agl_m, "m"),
        ("tilt of the optical axis from the vertical", bands.tilt_deg, "deg"),
        ("Sun elevation", bands.sun_elevation_deg, "deg"),
        (
            "Sun azimuth of the view, off the true one by",
            bands.sun_azimuth_difference_deg,
            "deg",
        ),
        ("map posts over ground sample distance", bands.map_coarser, "times"),
    ]
    lines = [f"| {name} | {low:g} to {high:g} {unit} |" for name, (low, high), unit in rows]
    lines.append(f"| shorter side of the image | {bands.image_min_px} px and more |")
    return "\n".join(["| input | trained for |", "|---|---|", *lines])


def training_table(
    contract: ModelContract, recipe: TrainRecipe, validation: Sequence[Mapping[str, Any]]
) -> str:
    """How the weights came about.

    Args:
        contract: of the model.
        recipe: of its training.
        validation: rows of the training log, the first one of the untrained network.
    """
    trained, pairs = contract.trained, recipe.pairs
    rows = [
        ("parameters", f"{parameter_count(contract.network):,}"),
        ("weights", f"`{contract.weights}`, sha256 `{contract.sha256}`"),
        ("recipe", f"`recipe.yaml` ({recipe.name}), digest `{contract.recipe_digest}`"),
        ("steps", f"{trained.steps:,} of {recipe.steps:,}"),
        (
            "rendered pairs",
            f"{trained.pairs:,} of {pairs.width_px} x {pairs.height_px} px, each used "
            f"{recipe.uses} times, mirrored and turned",
        ),
        ("ended", trained.date or "not stated"),
    ]
    if validation:
        first, last = validation[0], validation[-1]
        rows += [
            (f"validation: {name}", f"{_number(first.get(name))} before, {_number(value)} after")
            for name, value in last.items()
            if name not in ("kind", "step")
        ]
    return "\n".join(["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def metrics_table(metrics: Metrics | None, name: str) -> str:
    """Every figure of ``metrics.json``: those of cases a row a method, then the others."""
    if metrics is None:
        return f"Not measured yet: `tnav eval models/{name}` measures and writes this table."
    versions = ", ".join(f"{package} {number}" for package, number in metrics.versions.items())
    by_method: dict[tuple[str, str], dict[str, Figure]] = {}
    others = []
    for row in metrics.rows:
        *of, figure = row.name.rsplit(": ", 2)
        if len(of) == 2 and figure in _COLUMNS:
            by_method.setdefault((of[0], of[1]), {})[figure] = row
        else:
            others.append(row)
    lines = [
        f"`{metrics.command}` wrote all {len(metrics.rows)} figures: up to {metrics.pairs} pairs "
        f"a case, seed {metrics.seed}, device {metrics.device}, {versions}.",
        f"{metrics.terrain} In brackets: the 95 % interval of a share of pairs.",
        "",
        f"| case | method | {' | '.join(_COLUMNS)} | pairs |",
        f"|---|---|{'---|' * len(_COLUMNS)}---|",
    ]
    for (case, method), figures in by_method.items():
        cells = [_cell(figures.get(column)) for column in _COLUMNS]
        n = figures[SOLVED].n if SOLVED in figures else ""
        lines.append(f"| {case} | {method} | {' | '.join(cells)} | {n} |")
    lines += ["", "| figure | measured | n |", "|---|---|---|"]
    lines += [f"| {row.name} | {_cell(row)} | {row.n} |" for row in others]
    return "\n".join(lines)


def _cell(row: Figure | None) -> str:
    """A figure with its unit, and with its limit where it has one."""
    if row is None:
        return ""
    text = f"{_number(row.value)} {row.unit}".strip()
    if row.limit is None:
        return text
    return f"{text}; must be {row.limit}: {'yes' if row.passed else '**no**'}"


def _number(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
