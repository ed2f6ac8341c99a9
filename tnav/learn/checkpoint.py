"""A training run between two steps, in one safetensors file: nothing in it is ever executed.

What is drawn at random is drawn from the seeds and the step's number alone, so that the step is the
state of every generator.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from tnav.errors import ConfigError, RunFileError
from tnav.files import written_aside
from tnav.learn.recipe import TrainRecipe
from tnav.learn.step import TrainState

CHECKPOINT_FILE = "checkpoint.safetensors"
WEIGHTS_FILE = "weights.safetensors"
SCHEMA: Literal["tnav-training/1"] = "tnav-training/1"


class _Header(BaseModel):
    """What is no tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_name: Literal["tnav-training/1"] = SCHEMA
    recipe: dict[str, Any]
    digest: str
    world: int
    step: int
    bad_steps: int
    bad_in_a_row: int
    log_bytes: int


def save_checkpoint(
    path: Path, state: TrainState, recipe: TrainRecipe, world: int, log_bytes: int
) -> None:
    """Write the whole state beside its place, to the disk, then rename.

    Args:
        path: of the file.
        state: between two steps.
        recipe: that it is trained by.
        world: processes that train.
        log_bytes: length of the log up to this step.
    """
    header = _Header(
        recipe=recipe.model_dump(mode="json"),
        digest=recipe.digest(),
        world=world,
        step=state.step,
        bad_steps=state.bad_steps,
        bad_in_a_row=state.bad_in_a_row,
        log_bytes=log_bytes,
    )
    _write(path, _tensors(state), {"header": header.model_dump_json()})


def load_checkpoint(path: Path, state: TrainState, recipe: TrainRecipe, world: int) -> int:
    """Put a state back; returns the length of the log at that step, bytes.

    Args:
        path: of the file.
        state: freshly made by the recipe; its tensors are overwritten in place.
        recipe: of the run that goes on.
        world: processes that train.

    Raises:
        ConfigError: the file is of another recipe, or of another number of processes.
        RunFileError: the file is damaged or of another schema.
    """
    found, header = _read(path)
    changed = recipe.changed_fields(header.recipe)
    if changed:
        raise ConfigError(
            "\n".join(f"{path}: recipe changed: {line}" for line in changed)
            + "\nput it back to resume, or start over with --fresh"
        )
    if header.world != world:
        raise ConfigError(
            f"{path}: trained by {header.world} processes, now {world}: they would draw other "
            "pairs; start as many, or start over with --fresh"
        )
    wanted = _tensors(state)
    if set(found) != set(wanted):
        name = min(set(found) ^ set(wanted))
        raise RunFileError(f"{path}: {name}: not in both file and network; start over (--fresh)")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise RunFileError(f"{path}: {name}: of another shape; start over (--fresh)")
        tensor.copy_(found[name])  # in place: the layout in memory stays the network's
    state.step, state.bad_steps = header.step, header.bad_steps
    state.bad_in_a_row = header.bad_in_a_row
    return header.log_bytes


def save_weights(path: Path, state: TrainState, recipe: TrainRecipe) -> None:
    """Write the averaged network alone, as ``FeatureNet.load_state_dict`` takes it."""
    about = {
        "name": recipe.name,
        "recipe_digest": recipe.digest(),
        "steps": str(state.step),
        "network": recipe.network.model_dump_json(),
    }
    _write(path, dict(state.average.state_dict()), about)


def digest_of(net: nn.Module) -> str:
    """Sha256 of all weights and running statistics, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor of the state by name; the tensors themselves, not copies."""
    tensors = {f"net.{name}": tensor for name, tensor in state.net.state_dict().items()}
    tensors |= {f"average.{name}": t for name, t in state.average.state_dict().items()}
    for name, weight in state.net.named_parameters():
        for part, tensor in state.optimiser.state[weight].items():
            tensors[f"optimiser.{part}.{name}"] = tensor
    return tensors


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(_ordered(save(plain, about)))
        file.flush()
        os.fsync(file.fileno())  # a name that outlives a power cut before its content is worse


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its header's keys in order: the same bytes for the same content.

    The writer puts the metadata in another order each time. The header is JSON after its length in
    8 bytes; what it says of places in the data does not depend on its own length.
    """
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:begin]), sort_keys=True, separators=(",", ":"))
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[begin:]


def _read(path: Path) -> tuple[dict[str, Tensor], _Header]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _Header.model_validate(json.loads(about["header"]))
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error}); start over with --fresh") from error
    except (SafetensorError, KeyError, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise RunFileError(
            f"{path}: not a checkpoint of {SCHEMA} ({first}); start over with --fresh"
        ) from error
