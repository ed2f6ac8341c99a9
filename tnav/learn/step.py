"""One step of training: AdamW, clipped gradients, averaged weights, and nothing at all for a NaN.

Everything random comes from a seed and the number of the step.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tnav.learn.distributed import Group
from tnav.learn.loss import pair_loss
from tnav.learn.pairs import PairBatch
from tnav.learn.recipe import TrainRecipe
from tnav.match.network import FeatureNet

_ADAM_BETAS = (0.9, 0.99)  # a shorter memory of squares than the usual 0.999: runs are short


@dataclass(slots=True)
class TrainState:
    """All that changes while a network is trained."""

    net: nn.Module
    average: nn.Module  # exponential average of net's weights and running statistics
    optimiser: torch.optim.AdamW
    step: int = 0  # steps that are done
    bad_steps: int = 0  # of them, left out for want of a finite gradient
    bad_in_a_row: int = 0


def build_state(recipe: TrainRecipe, device: torch.device) -> TrainState:
    """Untrained network, its average and its optimiser: the same on every device and process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seeds.weights)
        net = FeatureNet(recipe.network)
    net.to(device)
    if recipe.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(net).eval().requires_grad_(False)
    # Offsets and the scales of the normalisation are not pulled towards zero.
    kernels = [w for w in net.parameters() if w.ndim > 1]
    others = [w for w in net.parameters() if w.ndim <= 1]
    decay = recipe.optimiser.weight_decay
    optimiser = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.optimiser.learning_rate,
        betas=_ADAM_BETAS,
        fused=True,
    )
    _make_moments(optimiser)
    if recipe.compile:
        net.compile()
    return TrainState(net.train(), average, optimiser)


def train_step(
    state: TrainState, batch: PairBatch, recipe: TrainRecipe, group: Group
) -> dict[str, Tensor]:
    """One step, without waiting for the device.

    A loss or a gradient that is not finite changes nothing: neither weights nor moments nor the
    running statistics of the normalisation.

    Args:
        state: advanced by one step.
        batch: this process's pairs.
        recipe: of the run.
        group: whose gradients are averaged.

    Returns:
        Scalars by name: ``ok`` (1 or 0), ``gradient`` (norm before clipping) and the loss's parts.
    """
    options, optimiser = recipe.optimiser, state.optimiser
    for settings in optimiser.param_groups:
        settings["lr"] = options.learning_rate_at(state.step, recipe.steps)
    weights = list(state.net.parameters())
    running = [b for b in state.net.buffers() if b.is_floating_point()]
    before = [b.clone() for b in running]
    generator = seeded(recipe.seeds.loss, state.step, group.rank)
    with _precision(recipe, batch.view.device):
        report = pair_loss(state.net, batch, generator)
    report.total.backward()
    total = report.total.detach().clone()
    group.average_([*(w.grad for w in weights if w.grad is not None), *running, total])
    norm = nn.utils.clip_grad_norm_(weights, options.clip_norm)
    ok = total.isfinite() & norm.isfinite()
    # The fused step leaves everything as it is where this is 1, as after an overflow of float16.
    optimiser.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimiser.step()
    optimiser.zero_grad()
    for current, previous in zip(running, before, strict=True):
        current.copy_(torch.where(ok, current, previous))
    _average_(state, 1 - options.average_decay_at(state.step))
    state.step += 1
    return {"ok": ok.float(), "gradient": norm.detach(), **report.parts}


def validate(recipe: TrainRecipe, net: nn.Module, pairs: list[PairBatch]) -> dict[str, float]:
    """Mean of the loss's parts over fixed pairs, always at the same places.

    Args:
        recipe: of the run.
        net: in evaluation mode.
        pairs: of the validation regions.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    with torch.no_grad():
        for k, batch in enumerate(pairs):
            parts = pair_loss(net, batch, seeded(recipe.seeds.validation, k)).parts
            for name, part in parts.items():
                if math.isfinite(value := float(part)):
                    found.setdefault(name, []).append((value, len(batch)))
    return {
        name: sum(value * count for value, count in rows) / sum(count for _, count in rows)
        for name, rows in found.items()
    }


def seeded(*entropy: int) -> torch.Generator:
    """A generator on the CPU for a seed, a step and a rank: mixed, so that no two are alike."""
    mixed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(mixed >> 1)


def _make_moments(optimiser: torch.optim.AdamW) -> None:
    """The moments that AdamW makes at its first step, made now: a checkpoint fills them in place.

    They take the weights' layout in memory: the fused step walks all of them side by side.
    """
    for group in optimiser.param_groups:
        for weight in group["params"]:
            optimiser.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
            }


def _average_(state: TrainState, share: float) -> None:
    """Move the averaged network by a share towards the trained one, statistics included."""
    mine, its = state.average.state_dict().values(), state.net.state_dict().values()
    both = list(zip(mine, its, strict=True))
    floating = [pair for pair in both if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], share)
    for average, now in both:
        if not average.is_floating_point():
            average.copy_(now)


def _precision(recipe: TrainRecipe, device: torch.device) -> AbstractContextManager[object]:
    """Where convolutions work in bfloat16."""
    half = recipe.precision == "bfloat16" or (recipe.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
