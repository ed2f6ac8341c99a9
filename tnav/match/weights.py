"""Trained networks as folders: the contract of a model's input, strict loading, and its bounds.

``models/NAME/`` holds ``model.yaml`` (a `ModelContract`) and one safetensors file whose name and
sha256 the contract states. Every tensor must fit the network; nothing is loaded in part.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict, Unpack

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from tnav.config import Recipe, load_recipe
from tnav.errors import ConfigError
from tnav.match.network import FeatureNet, NetworkRecipe

CONTRACT_FILE = "model.yaml"
METRICS_FILE = "metrics.json"
DEFAULT_MODEL = "frigoris-s"
WEIGHTS_MAX_BYTES = 5_000_000  # of a model that is passed on
_BESIDE_PACKAGE = Path(__file__).resolve().parents[2] / "models"
_NAMED_DIGITS = 8  # of the sha256, in the name of the weights' file


class OutOfContractWarning(UserWarning):
    """A network is given what it was not trained for; its results are recorded as such."""


def _ascending(band: tuple[float, float]) -> tuple[float, float]:
    if band[0] > band[1]:
        raise ValueError(f"expected low, high; found {band[0]:g} above {band[1]:g}")
    return band


Band = Annotated[tuple[float, float], AfterValidator(_ascending)]  # low, high; both belong to it


class InputContract(Recipe):
    """What the network was trained for: what lies within was in its training pairs."""

    ground_sample_distance_m: Band  # of the image, m a pixel
    agl_m: Band  # of the camera over the ground below
    sun_elevation_deg: Band  # true, over the site's horizon
    sun_azimuth_difference_deg: Band  # between the rendered view's Sun and the true one
    map_coarser: Band  # posts of the map over the image's ground sample distance
    tilt_deg: Band  # of the optical axis from the vertical
    image_min_px: int = Field(ge=16)  # along the shorter side


class Training(Recipe):
    """How the weights came about."""

    steps: int = Field(ge=1)
    pairs: int = Field(ge=1)  # rendered pairs that training has seen
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")


class ModelContract(Recipe):
    """``model.yaml``: the network, its weights by hash, and the input it is good for."""

    schema_name: Literal["tnav-model/1"] = "tnav-model/1"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    network: NetworkRecipe
    weights: str = Field(pattern=r"^weights-[0-9a-f]{8}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the weights' file
    recipe_digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # of all that a weight depends on
    recipe_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of recipe.yaml beside it
    trained: Training
    input: InputContract

    @model_validator(mode="after")
    def _named_by_hash(self) -> "ModelContract":
        if self.weights != weights_name(self.sha256):
            raise ValueError(
                f"weights {self.weights} and sha256 {self.sha256[:_NAMED_DIGITS]}... disagree; "
                f"expected {weights_name(self.sha256)}"
            )
        return self


@dataclass(frozen=True, slots=True)
class LearnedModel:
    """A network ready to use: no gradients, normalisations folded in, channels last."""

    network: FeatureNet
    contract: ModelContract


def weights_name(sha256: str) -> str:
    """Name of a weights' file, from its hash."""
    return f"weights-{sha256[:_NAMED_DIGITS]}.safetensors"


def models_dir() -> Path:
    """Folder of the models: ``TNAV_MODELS``, or the one beside the package."""
    return Path(os.environ.get("TNAV_MODELS", _BESIDE_PACKAGE))


def model_folder(name_or_folder: str | Path) -> Path:
    """Where a model lies.

    Args:
        name_or_folder: a folder with ``model.yaml``, or the name of one below `models_dir`.

    Raises:
        ConfigError: neither.
    """
    for folder in (Path(name_or_folder), models_dir() / name_or_folder):
        if (folder / CONTRACT_FILE).is_file():
            return folder
    known = sorted(path.parent.name for path in models_dir().glob(f"*/{CONTRACT_FILE}"))
    raise ConfigError(
        f"model '{name_or_folder}': no such model; expected a folder with {CONTRACT_FILE}, or a "
        f"name in {models_dir()} ({', '.join(known) or 'none there'})"
    )


def read_contract(folder: Path) -> ModelContract:
    """Read and check ``model.yaml``; errors name file, line and field."""
    return load_recipe(folder / CONTRACT_FILE, ModelContract)


def load_model(name_or_folder: str | Path, device: torch.device | str) -> LearnedModel:
    """Load a model: all of its weights, checked, or none.

    Args:
        name_or_folder: as `model_folder` takes it.
        device: where the network shall work.

    Raises:
        ConfigError: no such model, a contract that does not fit, weights that are missing,
            damaged, of another hash, or that do not fit the network tensor by tensor.
    """
    folder = model_folder(name_or_folder)
    contract = read_contract(folder)
    path = folder / contract.weights
    tensors = _read_weights(path, contract.sha256)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
        network = FeatureNet(contract.network)
    _check_fit(path, network.state_dict(), tensors)
    network.load_state_dict(tensors, strict=True)
    return LearnedModel(network.folded().to(device), contract)


def parameter_count(recipe: NetworkRecipe) -> int:
    """Trained numbers of a network, as it is trained: with its normalisations."""
    with torch.device("meta"):  # to be counted, not to be filled
        network = FeatureNet(recipe)
    return sum(parameter.numel() for parameter in network.parameters())


def default_model(device: torch.device | str) -> LearnedModel | None:
    """The shipped model, loaded once a device; None where its folder is not there.

    Raises:
        ConfigError: the folder is there and does not fit, see `load_model`.
    """
    folder = models_dir() / DEFAULT_MODEL
    return _loaded(folder, str(device)) if (folder / CONTRACT_FILE).is_file() else None


@lru_cache(maxsize=8)
def _loaded(folder: Path, device: str) -> LearnedModel:
    return load_model(folder, device)


class Conditions(TypedDict):
    """What is known of an image, as `outside` takes it."""

    ground_sample_distance_m: float  # m a pixel
    sun_elevation_deg: float  # true, over the site's horizon
    agl_m: float  # of the camera over the ground below
    tilt_deg: NotRequired[float]  # of the optical axis from the vertical
    map_coarser: NotRequired[float]  # posts of the map over the ground sample distance
    image_side_px: NotRequired[int]  # the shorter one


def outside(contract: ModelContract, **conditions: Unpack[Conditions]) -> tuple[str, ...]:
    """What of an image the network was not trained for, a line each; none where it was.

    Args:
        contract: of the network.
        conditions: of the image, see `Conditions`; what is not given is not judged.
    """
    return tuple(line for _, line in _excesses(contract, conditions))


def warn_once(contract: ModelContract, **conditions: Unpack[Conditions]) -> tuple[str, ...]:
    """As `outside`; a quantity's first time out of its band also is an `OutOfContractWarning`.

    A descent that leaves a band stays out of it: its later frames are recorded, not warned of.
    """
    found = _excesses(contract, conditions)
    for quantity, line in found:
        reason = (contract.sha256, quantity)
        if reason not in _WARNED:
            _WARNED.add(reason)
            warnings.warn(line, OutOfContractWarning, stacklevel=2)
    return tuple(line for _, line in found)


_WARNED: set[tuple[str, str]] = set()  # of this process


def _excesses(contract: ModelContract, given: Conditions) -> list[tuple[str, str]]:
    """Quantity and line of everything that lies outside of its band."""
    bands = contract.input
    checks = (
        (
            "ground sample distance",
            given["ground_sample_distance_m"],
            bands.ground_sample_distance_m,
            "m",
        ),
        ("Sun elevation", given["sun_elevation_deg"], bands.sun_elevation_deg, "deg"),
        ("height above ground", given["agl_m"], bands.agl_m, "m"),
        ("tilt", given.get("tilt_deg"), bands.tilt_deg, "deg"),
        ("map coarser than the image", given.get("map_coarser"), bands.map_coarser, "times"),
        ("shorter side", given.get("image_side_px"), (bands.image_min_px, math.inf), "px"),
    )
    return [
        (
            quantity,
            f"{quantity} {value:.4g} {unit}: {contract.name} was trained for "
            + (f"{low:g} to {high:g} {unit}" if high < math.inf else f"{low:g} {unit} and more"),
        )
        for quantity, value, (low, high), unit in checks
        if value is not None and not low <= value <= high  # NaN is not known to lie within
    ]


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); {CONTRACT_FILE} beside it names it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"{path}: sha256 {found}, expected {sha256} by {CONTRACT_FILE}; "
            "the file is damaged or another, get it again"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file: {error}") from error


def _check_fit(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """One line naming the first tensor that does not fit, in the network's order."""
    for key, tensor in expected.items():
        if key not in found:
            wrong = f"not there, expected {_kind(tensor)}"
        elif _kind(found[key]) != _kind(tensor):
            wrong = f"{_kind(found[key])}, expected {_kind(tensor)}"
        elif not bool(found[key].isfinite().all()):
            wrong = "holds NaN or infinity, expected numbers"
        else:
            continue
        raise ConfigError(f"{path}: {key}: {wrong} by the network of {CONTRACT_FILE}")
    extra = sorted(set(found) - set(expected))
    if extra:
        raise ConfigError(
            f"{path}: {extra[0]}: {_kind(found[extra[0]])}, expected no tensor of that name "
            f"by the network of {CONTRACT_FILE}"
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
