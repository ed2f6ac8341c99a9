"""Training on many processes: ``torchrun`` starts them, this joins them.

Gradients and the running statistics of the normalisation are averaged in one flat tensor a step.
At less than a million parameters there is nothing to gain from overlapping that with the backward
pass, and without a wrapper the network keeps its names, and its loss may call it twice a step.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tnav.errors import ConfigError, DeviceError, TnavError


class TrainingError(TnavError):
    """A training run that cannot go on; the text names the step."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train one network."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Mean over the processes, in place, in one message: the same bits on every process."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """Each flag, true where it is on any process: all go the same way."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.float32, device=device)
        return [bool(vote > 0) for vote in self.total(votes).tolist()]

    def assert_same(self, digest: str, step: int, device: torch.device) -> None:
        """Every process has the weights of this digest.

        Args:
            digest: hexadecimal, of this process's weights.
            step: at which it was taken.
            device: of the weights.

        Raises:
            TrainingError: two processes differ.
        """
        if self.world == 1:
            return
        own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=device)
        all_ranks = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(all_ranks, own)
        other = [rank for rank, theirs in enumerate(all_ranks) if not torch.equal(theirs, own)]
        if other:
            raise TrainingError(
                f"step {step}: weights of rank {other[0]} differ from those of rank {self.rank}; "
                "expected the same on every process: take the run up again from its checkpoint"
            )

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """The group that ``torchrun`` started, and this process's own device; alone without it.

    Args:
        device: cpu or cuda; a process takes the CUDA device of its local rank.

    Raises:
        ConfigError: an environment that is not torchrun's.
        DeviceError: more processes on a machine than it has CUDA devices.
    """
    world, rank, local = (_number(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if world is None or world == 1:
        yield Group(), device
        return
    if rank is None or not 0 <= rank < world:
        raise ConfigError(f"WORLD_SIZE={world} with RANK={rank}: start with torchrun")
    if device.type == "cuda":
        local = rank if local is None else local
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"LOCAL_RANK {local}: {torch.cuda.device_count()} CUDA devices are visible; "
                "expected one a process: lower --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # An optimiser's first step imports this. Imported while a group lives, it keeps the group's
    # threads past `destroy_process_group`; one that lets go of a tensor while the interpreter ends
    # is stopped by it, and aborts the process (seen with torch 2.13 and gloo).
    importlib.import_module("torch._dynamo")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world
    )
    try:
        yield Group(rank, world), device
    finally:
        dist.destroy_process_group()


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text}: expected a whole number, as torchrun sets it") from error
