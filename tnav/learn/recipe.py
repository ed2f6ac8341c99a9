"""``datasets/training/*.yaml``: everything that a training run depends on, under one digest."""

import hashlib
import json
import math
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from tnav.config import Recipe, find_recipe, load_recipe
from tnav.errors import ConfigError
from tnav.learn.pairs import PairRecipe
from tnav.learn.regions import Split, load_splits
from tnav.match.network import NetworkRecipe

# What may differ when a run is taken up again: none of it changes a weight.
_LEAST_SIDE_PX = 80  # 20 x 20 cells of descriptors hold the 320 places that a loss draws
_FREE_ON_RESUME = frozenset({"workers", "checkpoint_steps", "checkpoint_minutes"})


class SeedRecipe(Recipe):
    """One seed a source of randomness."""

    weights: int = Field(default=1, ge=0)  # of the untrained network
    pairs: int = Field(default=2, ge=0)
    loss: int = Field(default=3, ge=0)  # which correspondences a step looks at
    validation: int = Field(default=4, ge=0)  # pairs and correspondences of every validation


class OptimiserRecipe(Recipe):
    """AdamW (Loshchilov and Hutter 2019) with warm-up, cosine decay and averaged weights."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)  # at its peak
    warmup_share: float = Field(default=0.03, ge=0, lt=1)  # of the steps, rising linearly
    final_share: float = Field(default=0.01, ge=0, le=1)  # of the peak, at the last step
    weight_decay: float = Field(default=0.01, ge=0)  # of convolutions' weights, not of offsets
    clip_norm: float = Field(default=1.0, gt=0)  # of all gradients together
    average_decay: float = Field(default=0.999, ge=0, lt=1)  # of the averaged weights, a step

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step (from 0): a straight rise, then half a cosine."""
        warmup = self.warmup_share * steps
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        share = (step - warmup) / max(steps - 1 - warmup, 1.0)
        fall = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * fall)

    def average_decay_at(self, step: int) -> float:
        """Decay of the averaged weights: short at first, or they would remember the noise."""
        return min(self.average_decay, (1 + step) / (10 + step))


class ValidationRecipe(Recipe):
    """Fixed pairs of the validation regions, seen by the averaged weights."""

    pairs: int = Field(default=64, ge=1)
    every_steps: int = Field(default=500, ge=1)


class TrainRecipe(Recipe):
    """One training run. ``batch`` is the pairs of a step on each process.

    ``pairs`` is of both splits; where it names regions, each split takes those that are its own.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seeds: SeedRecipe = SeedRecipe()
    steps: int = Field(ge=1)
    batch: int = Field(default=2, ge=1)
    uses: int = Field(default=1, ge=1, le=8)  # of each rendered batch, mirrored and turned
    workers: int = Field(default=1, ge=0, le=256)  # processes that render pairs, a rank
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA only
    channels_last: bool = True
    compile: bool = False  # torch.compile: minutes at the start, for long runs on CUDA
    optimiser: OptimiserRecipe = OptimiserRecipe()
    network: NetworkRecipe = NetworkRecipe()
    pairs: PairRecipe = PairRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    log_steps: int = Field(default=20, ge=1)
    epoch_steps: int = Field(default=500, ge=1)  # between two figures of sample matches
    checkpoint_steps: int = Field(default=500, ge=1)
    checkpoint_minutes: float = Field(default=5.0, gt=0)  # or sooner than that many steps
    bad_steps_max: int = Field(default=20, ge=0)  # in a row without a finite gradient

    @model_validator(mode="after")
    def _large_enough(self) -> "TrainRecipe":
        """Places of descriptors and templates are drawn on cells of 4 and 2 px."""
        side_px = min(self.pairs.width_px, self.pairs.height_px)
        if side_px < _LEAST_SIDE_PX:
            raise ValueError(
                f"pairs: images of {side_px} px on their shorter side, expected at least "
                f"{_LEAST_SIDE_PX}"
            )
        return self

    @model_validator(mode="after")
    def _in_step_with_the_log(self) -> "TrainRecipe":
        """Everything that looks at a run does so where the log does: between, nothing waits."""
        for name, every in (
            ("validation.every_steps", self.validation.every_steps),
            ("epoch_steps", self.epoch_steps),
            ("checkpoint_steps", self.checkpoint_steps),
        ):
            if every % self.log_steps:
                raise ValueError(
                    f"{name} {every}: expected a multiple of log_steps, {self.log_steps}"
                )
        return self

    def digest(self) -> str:
        """Sha256 of all that a weight depends on."""
        return hashlib.sha256(_canonical(self._fixed())).hexdigest()

    def pairs_of(self, split: Split) -> PairRecipe:
        """Pairs of one split: of the regions that are named, those that belong to it.

        Raises:
            ConfigError: regions are named, and none is of this split, or one is of no split.
        """
        if not self.pairs.regions:
            return self.pairs
        splits = load_splits()
        own = tuple(name for name in self.pairs.regions if splits.named(name).split == split)
        if not own:
            raise ConfigError(
                f"pairs.regions: {', '.join(self.pairs.regions)}: none is of split '{split}'; "
                "expected one or more of 'train' and of 'validation'"
            )
        return self.pairs.model_copy(update={"regions": own})

    def with_steps(self, steps: int) -> "TrainRecipe":
        """The same run, longer or shorter: its schedule is stretched.

        Raises:
            ConfigError: not a number of steps.
        """
        try:
            return TrainRecipe.model_validate({**self.model_dump(), "steps": steps})
        except ValidationError as error:
            raise ConfigError(f"--steps {steps}: expected at least 1") from error

    def changed_fields(self, before: dict[str, Any]) -> list[str]:
        """Lines naming the fields that differ from an earlier recipe's and that a weight feels.

        Args:
            before: of the earlier recipe, as ``model_dump(mode="json")`` gives it.
        """
        with suppress(ValidationError):  # what is not said there has its default
            before = TrainRecipe.model_validate(before).model_dump(mode="json")
        now, old = _leaves(self.model_dump(mode="json")), _leaves(before)
        lines = []
        for field in sorted(set(now) | set(old)):
            if field.split(".")[0] not in _FREE_ON_RESUME and now.get(field) != old.get(field):
                was, new = (_shown(leaves, field) for leaves in (old, now))
                lines.append(f"{field}: was {was}, is {new}")
        return lines

    def _fixed(self) -> dict[str, Any]:
        dumped = self.model_dump(mode="json")
        return {key: value for key, value in dumped.items() if key not in _FREE_ON_RESUME}


def load_training(name_or_path: str) -> TrainRecipe:
    """A training recipe by its name in the datasets folder, or by path.

    Raises:
        ConfigError: no such recipe, or one that does not fit; file, line and field are named.
    """
    return load_recipe(find_recipe(name_or_path, "training", "training recipe"), TrainRecipe)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _shown(leaves: dict[str, Any], field: str) -> str:
    return json.dumps(leaves[field]) if field in leaves else "not there"
