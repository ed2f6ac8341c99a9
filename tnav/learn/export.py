"""A trained network leaves training: as a model folder, and as ONNX for other runtimes."""

import copy
import hashlib
import importlib
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from tnav.config import Recipe, load_recipe
from tnav.errors import ConfigError, RunFileError
from tnav.files import written_aside
from tnav.learn.cases import SceneRecipe
from tnav.learn.checkpoint import (
    CHECKPOINT_FILE,
    WEIGHTS_FILE,
    load_checkpoint,
    save_weights,
)
from tnav.learn.journal import LOG_FILE
from tnav.learn.recipe import TrainRecipe
from tnav.learn.step import build_state
from tnav.learn.train import RECIPE_FILE
from tnav.match.network import MULTIPLE_PX, DenseFeatures, FeatureNet
from tnav.match.weights import (
    CONTRACT_FILE,
    METRICS_FILE,
    WEIGHTS_MAX_BYTES,
    InputContract,
    LearnedModel,
    ModelContract,
    Training,
    load_model,
    weights_name,
)

ONNX_OPSET = 20
ONNX_INPUT = "image"
ONNX_OUTPUTS = DenseFeatures._fields
# Largest difference between two runtimes, over the larger of 1 and the output's largest value:
# float32 sums in another order through some 30 layers differ by less than a tenth of this.
ONNX_TOLERANCE = 1e-4
_SIDE_MAX_PX = 16384
_BATCH_MAX = 1024
_TRACED_SHAPE = (2, 1, 6 * MULTIPLE_PX, 8 * MULTIPLE_PX)
_CHECKED_SHAPES = ((1, 1, 4 * MULTIPLE_PX, 7 * MULTIPLE_PX), (3, 1, 10 * MULTIPLE_PX, 128))
_TRAIN_ROWS_KEPT = 400  # of the log, in a model's folder
_KINDS_KEPT = ("start", "validation")  # whole


def pack(
    run_folder: Path,
    name: str,
    models_dir: Path,
    *,
    overwrite: bool = False,
    unfinished: bool = False,
) -> Path:
    """Make a model folder of a training run: averaged weights, contract, recipe, thinned log.

    The folder is written aside and loaded before it takes its name.

    Args:
        run_folder: that ``tnav train`` wrote.
        name: of the model.
        models_dir: where its folder goes.
        overwrite: replace a model of that name.
        unfinished: take a run that has not come to its end as its checkpoint has it.

    Raises:
        ConfigError: the name is taken, weights and recipe do not belong together, or the run is
            not at its end.
        RunFileError: files of the run are missing or damaged.
    """
    folder, part = models_dir / name, models_dir / f".{name}.part"
    if folder.exists() and not overwrite:
        raise ConfigError(f"{folder}: is there already; choose another name, or --overwrite it")
    recipe = load_recipe(run_folder / RECIPE_FILE, TrainRecipe)
    rows = _log_rows(run_folder / LOG_FILE)
    world = next((row["world"] for row in reversed(rows) if row["kind"] == "start"), 1)
    content, steps = _averaged_weights(run_folder, recipe, world, unfinished)
    ended = datetime.fromtimestamp((run_folder / LOG_FILE).stat().st_mtime, UTC)
    trained = Training(
        steps=steps,
        pairs=math.ceil(steps / recipe.uses) * recipe.batch * world,
        date=ended.date().isoformat(),
    )
    contract = _contract(name, recipe, content, trained)
    shutil.rmtree(part, ignore_errors=True)  # of a packing that was interrupted
    part.mkdir(parents=True)
    try:
        (part / contract.weights).write_bytes(content)
        (part / CONTRACT_FILE).write_bytes(_yaml(contract))
        (part / RECIPE_FILE).write_bytes(_yaml(recipe))
        lines = (json.dumps(row, allow_nan=False) for row in _thinned(rows))
        (part / LOG_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        load_model(part, "cpu")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def calibrate(folder: Path, calibration: tuple[float, float, float]) -> None:
    """Give a model another ``calibration`` of its matches' covariance, see `tnav.match.search`.

    It is part of the weights: their hash and name change, and figures measured before are removed.

    Args:
        folder: of the model.
        calibration: a, b, c.

    Raises:
        ConfigError: the model does not load, or a number is not finite.
    """
    from safetensors import safe_open
    from safetensors.torch import save

    if not all(math.isfinite(number) for number in calibration):
        raise ConfigError(f"calibration {calibration}: expected three finite numbers")
    contract = load_model(folder, "cpu").contract
    old = folder / contract.weights
    with safe_open(old, framework="pt") as file:
        about, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    fitted = torch.tensor(calibration)
    if torch.equal(tensors["calibration"], fitted):
        return
    content = save(tensors | {"calibration": fitted}, about)
    sha256 = hashlib.sha256(content).hexdigest()
    changed = contract.model_copy(update={"sha256": sha256, "weights": weights_name(sha256)})
    with written_aside(folder / changed.weights) as aside:
        aside.write_bytes(content)
    with written_aside(folder / CONTRACT_FILE) as aside:
        aside.write_bytes(_yaml(changed))
    old.unlink()
    (folder / METRICS_FILE).unlink(missing_ok=True)


def input_contract(pairs: SceneRecipe) -> InputContract:
    """What a network has seen that was trained on pairs of a recipe."""
    camera = pairs.camera()
    low_m, high_m = (camera.ground_sample_distance_m(agl_m) for agl_m in pairs.agl_m)
    return InputContract(
        ground_sample_distance_m=(_rounded(low_m), _rounded(high_m)),
        agl_m=pairs.agl_m,
        sun_elevation_deg=pairs.sun_elevation_deg,
        sun_azimuth_difference_deg=pairs.sun_azimuth_error_deg,
        map_coarser=(min(pairs.coarser), max(pairs.coarser)),
        tilt_deg=pairs.tilt_deg,
        image_min_px=min(pairs.width_px, pairs.height_px),
    )


def _contract(name: str, recipe: TrainRecipe, content: bytes, trained: Training) -> ModelContract:
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return ModelContract(
            name=name,
            network=recipe.network,
            weights=weights_name(sha256),
            sha256=sha256,
            recipe_digest=recipe.digest(),
            recipe_sha256=hashlib.sha256(_yaml(recipe)).hexdigest(),
            trained=trained,
            input=input_contract(recipe.pairs),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"model {name}: {field}: {first['msg'].lower()}") from error


def _averaged_weights(
    run_folder: Path, recipe: TrainRecipe, world: int, unfinished: bool
) -> tuple[bytes, int]:
    """A run's averaged weights as a file's content, and the steps that made them."""
    path, checkpoint = run_folder / WEIGHTS_FILE, run_folder / CHECKPOINT_FILE
    if path.is_file():
        return _read_weights(path, recipe)
    if not checkpoint.is_file():
        raise RunFileError(f"{path}: missing; expected a folder that 'tnav train' wrote")
    if not unfinished:
        raise ConfigError(
            f"{run_folder}: the run has not come to its end; go on with it by 'tnav train', or "
            "take it as it is with --unfinished"
        )
    state = build_state(recipe, torch.device("cpu"))
    load_checkpoint(checkpoint, state, recipe, world)
    with TemporaryDirectory() as scratch:
        save_weights(Path(scratch) / WEIGHTS_FILE, state, recipe)
        return _read_weights(Path(scratch) / WEIGHTS_FILE, recipe)


def _read_weights(path: Path, recipe: TrainRecipe) -> tuple[bytes, int]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        content = path.read_bytes()
    except SafetensorError as error:
        raise RunFileError(f"{path}: not a safetensors file: {error}") from error
    if about.get("recipe_digest") != recipe.digest():
        raise ConfigError(
            f"{path}: of recipe {about.get('recipe_digest', 'unknown')[:8]}, but {RECIPE_FILE} "
            f"beside it is {recipe.digest()[:8]}; expected weights and recipe of one run"
        )
    if len(content) > WEIGHTS_MAX_BYTES:
        raise ConfigError(
            f"{path}: {len(content) / 1e6:.1f} MB, expected at most "
            f"{WEIGHTS_MAX_BYTES / 1e6:g} MB; train a smaller network"
        )
    steps = about.get("steps", "")
    if not steps.isdecimal() or int(steps) < 1:
        raise ConfigError(f"{path}: trained for '{steps}' steps, expected at least 1")
    return content, int(steps)


def _log_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RunFileError(f"{path}: missing; expected a folder that 'tnav train' wrote") from error
    except ValueError as error:
        raise RunFileError(f"{path}: not JSON a line: {error}") from error


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Starts, validations, and evenly some of the rows of training, the last one always."""
    training = [k for k, row in enumerate(rows) if row["kind"] == "train"]
    every = max(1, math.ceil(len(training) / _TRAIN_ROWS_KEPT))
    kept = set(training[::-1][::every])
    return [row for k, row in enumerate(rows) if k in kept or row["kind"] in _KINDS_KEPT]


def _yaml(recipe: Recipe) -> bytes:
    content = recipe.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, width=100).encode()


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """What was written, and how well onnxruntime agrees with torch."""

    path: Path
    size_bytes: int
    largest_difference: float | None  # over the larger of 1 and the output; None: not installed


def export_onnx(model: LearnedModel, path: Path) -> OnnxExport:
    """Write a network as ONNX, for any batch, height and width.

    Input ``image`` (batch, 1, height, width), float32, linear brightness of any exposure, sides
    multiples of 16; outputs as `DenseFeatures` names them. Name, hash and input contract are in
    the file's metadata. Where onnxruntime is installed, it must agree before the file is kept.

    Args:
        model: to be written.
        path: the file, replaced if there.

    Raises:
        ConfigError: packages of the extra ``tnav[export]`` are missing, or onnxruntime disagrees.
    """
    for package in ("onnx", "onnxscript"):
        _required(package)
    # the file shall run anywhere, whatever device and memory layout this copy works in
    network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    program = _traced(network)
    program.model.metadata_props.update(
        name=model.contract.name,
        weights_sha256=model.contract.sha256,
        input=model.contract.input.model_dump_json(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        program.save(aside)
        difference = _difference(network, aside)
        if difference is not None and not difference <= ONNX_TOLERANCE:
            raise ConfigError(
                f"{path}: onnxruntime differs from torch by {difference:.1e}, expected at most "
                f"{ONNX_TOLERANCE:g}; not written (torch {torch.__version__}, onnxruntime "
                f"{_required('onnxruntime').__version__})"
            )
    return OnnxExport(path, path.stat().st_size, difference)


def _traced(network: FeatureNet) -> Any:
    height, width = (
        MULTIPLE_PX * torch.export.Dim(f"{side}_16", min=3, max=_SIDE_MAX_PX // MULTIPLE_PX)
        for side in ("height", "width")
    )
    batch = torch.export.Dim("batch", min=1, max=_BATCH_MAX)
    with _quiet_exporter():
        return torch.onnx.export(
            network,
            (torch.rand(_TRACED_SHAPE, generator=torch.Generator().manual_seed(0)),),
            input_names=[ONNX_INPUT],
            output_names=list(ONNX_OUTPUTS),
            opset_version=ONNX_OPSET,
            dynamo=True,
            dynamic_shapes={ONNX_INPUT: {0: batch, 2: height, 3: width}},
            verbose=False,
        )


def _difference(network: FeatureNet, path: Path) -> float | None:
    """Largest difference between torch and onnxruntime at sizes not traced; None without it."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, largest = torch.Generator().manual_seed(1), 0.0
    for shape in _CHECKED_SHAPES:
        image = torch.rand(shape, generator=generator)
        with torch.no_grad():
            expected = network(image)
        found = session.run(list(ONNX_OUTPUTS), {ONNX_INPUT: image.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            scale = max(1.0, float(ours.abs().max()))
            largest = max(largest, float((torch.from_numpy(theirs) - ours).abs().max()) / scale)
    return largest


def _required(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{package}: not installed, expected for ONNX; pip install 'tnav[export]'"
        ) from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what the exporter says of itself and of packages that this network does not use."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")  # torchvision's absence
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():  # torch.export calls what it has itself deprecated
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)
