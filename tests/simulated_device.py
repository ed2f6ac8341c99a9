"""A pretend accelerator, so that a machine without a GPU can still catch device faults.

`install()` registers the torch device "simgpu". Its tensors answer `device == simgpu:0` and hold
their numbers in an ordinary CPU tensor (`.raw`), on which every operation really runs, so results
can be compared bit for bit with the CPU. Two things behave as on CUDA: an operation that mixes a
simgpu tensor with a CPU tensor of one or more dimensions raises, and every operation that would
make the host wait for the device is counted (`count_syncs`).

What it cannot show: speed, memory limits, races, and CUDA's own rounding.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "simgpu"

aten = torch.ops.aten
_counted: Counter[str] = Counter()

# Operations whose result, or whose result's shape, the host has to read back. The linalg ones end
# in a check of their error codes on the host, as torch's documentation says of each; the `_ex`
# twins of solve, inv and cholesky do not.
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "allclose",
    "bincount",
    "multinomial",
    "_linalg_check_errors",
    "_linalg_svd",
    "_linalg_eigh",
    "_linalg_eigvals",
    "linalg_eig",
    "linalg_pinv",
    "linalg_matrix_rank",
    "linalg_ldl_factor_ex",
    "linalg_lu_factor_ex",
}
_COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
# torch conjugates and negates lazily, by a flag on the view. An operation on the `.raw` of a
# flagged view runs below the layer that honours the flag, and would silently use the unflagged
# numbers: do it at once instead.
_AT_ONCE = {
    aten._conj.default: aten.conj_physical.default,
    aten._neg_view.default: aten.neg.default,
}


class SimTensor(torch.Tensor):
    """A tensor that claims to live on simgpu:0 and keeps its data in the CPU tensor `raw`."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "SimTensor":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(DEVICE, 0),
        )
        wrapper.raw = raw
        return wrapper

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"simgpu({self.raw!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        func = _AT_ONCE.get(func, func)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = any(isinstance(tensor, SimTensor) for tensor in tensors)
        # CUDA, too, lets a zero-dimensional CPU tensor stand in for a number.
        strangers = [t for t in tensors if not isinstance(t, SimTensor) and t.dim() > 0]
        _refuse_mixtures(func, args, on_device, strangers)
        _refuse_host_generator(func, kwargs)
        _count_waits(func, args, kwargs, strangers)

        to_host = func is aten.copy_.default and not isinstance(args[0], SimTensor)
        if kwargs.get("device") is not None:
            to_host = torch.device(kwargs["device"]).type == "cpu"
            if to_host and func is aten._to_copy.default:
                _counted["copy to host"] += 1
            kwargs["device"] = torch.device("cpu")
        elif to_host:
            _counted["copy to host"] += 1

        out = func(*_to_raw(args), **_to_raw(kwargs))
        if to_host:
            return out
        out = tree_map_only(torch.Tensor, _wrap, out)
        if not on_device:
            return out
        return return_and_correct_aliasing(func, args, kwargs, out)


def _wrap(tensor: torch.Tensor) -> SimTensor:
    return tensor if isinstance(tensor, SimTensor) else SimTensor(tensor)


def _to_raw(tree: Any) -> Any:
    return tree_map_only(SimTensor, lambda tensor: tensor.raw, tree)


def _refuse_mixtures(
    func: Any, args: tuple[Any, ...], on_device: bool, strangers: list[torch.Tensor]
) -> None:
    """Raises RuntimeError where CUDA would: host operands (host *indices* are only counted)."""
    if func in _COPIES or not on_device:
        return
    operands = strangers
    if func in _INDEXING and isinstance(args[0], SimTensor):
        values = args[2:3]
        operands = [v for v in values if not isinstance(v, SimTensor) and v.dim() > 0]
    if operands:
        shapes = [tuple(tensor.shape) for tensor in operands]
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found {DEVICE}:0 and cpu "
            f"{shapes}"
        )


def _refuse_host_generator(func: Any, kwargs: dict[str, Any]) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != DEVICE:
        raise RuntimeError(
            f"{func}: expected a {DEVICE!r} generator but found {generator.device.type!r} "
            "(draw on the generator's device, then move the numbers)"
        )


def _count_waits(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], strangers: list[torch.Tensor]
) -> None:
    name = func.overloadpacket.__name__
    if name in _WAITING:
        _counted[name] += 1
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        _counted[name] += 1
    if func in _INDEXING and isinstance(args[0], SimTensor):
        if strangers:
            _counted["index from host"] += 1
        if any(index is not None and index.dtype == torch.bool for index in args[1]):
            _counted["boolean-mask index"] += 1


class _Backend:
    """The few answers that torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Accepts torch.manual_seed; the numbers come from the CPU's generator."""

    def synchronize(self, device: object = None) -> None:
        _counted["synchronize"] += 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _factory_kernel(op: Any) -> Callable[..., SimTensor]:
    """A kernel that makes op's new tensor on the CPU and wraps it."""

    def kernel(*args: Any, **kwargs: Any) -> SimTensor:
        _refuse_host_generator(op, kwargs)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return SimTensor(op(*args, **kwargs))

    return kernel


def _makes_a_tensor_from_nothing(full_name: str, op: Any) -> bool:
    schema = op._schema
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        full_name, "CompositeImplicitAutograd"
    )
    return (
        not composite
        and any(argument.name == "device" for argument in schema.arguments)
        and not any("Tensor" in str(argument.type) for argument in schema.arguments)
        and len(schema.returns) == 1
        and "Tensor" in str(schema.returns[0].type)
    )


def _to_copy(
    self: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """`.to()` of a CPU tensor: an upload when the target is simgpu."""
    if device is not None and torch.device(device).type == DEVICE:
        _counted[_UPLOAD] += 1
        return SimTensor(aten._to_copy(self, dtype=dtype, memory_format=memory_format))
    return aten._to_copy(self, dtype=dtype, device=device, memory_format=memory_format)


def _copy_from(
    source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    _to_raw(target).copy_(_to_raw(source))
    return target


_UPLOAD = "copy from host"
_libraries: list[
    torch.library.Library
] = []  # a kernel is unregistered when its library is collected


def install() -> None:
    """Registers the device once a process; later calls do nothing."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Backend())
    library = torch.library.Library("aten", "IMPL")
    for full_name in torch._C._dispatch_get_all_op_names():
        if not full_name.startswith("aten::"):
            continue
        short_name = full_name.removeprefix("aten::")
        name, _, overload = short_name.partition(".")
        try:
            op = getattr(getattr(aten, name), overload or "default")
        except (AttributeError, RuntimeError):  # names that torch keeps from Python
            continue
        if _makes_a_tensor_from_nothing(full_name, op):
            with contextlib.suppress(RuntimeError):  # torch's own Python backend has it already
                library.impl(short_name, _factory_kernel(op), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    with contextlib.suppress(RuntimeError):
        library.impl("_to_copy", _to_copy, "PrivateUse1")
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend([library, autocast])
    _let_warp_in()


def _let_warp_in() -> None:
    """Shows the ray caster the CPU memory behind a SimTensor: its kernels run on Warp's CPU."""
    from tnav.terrain import raycast

    raycast.memory_of = lambda t: t.raw if isinstance(t, SimTensor) else t


@contextlib.contextmanager
def count_syncs(*, uploads: bool = False) -> Iterator[Counter[str]]:
    """Yields a counter that is filled when the block ends: what made the host wait, and how often.

    Args:
        uploads: also count copies from ordinary host memory. CUDA waits for these too, but a stage
            may upload its few constants, so the tests of stages leave them out.
    """
    _counted.clear()
    seen: Counter[str] = Counter()
    yield seen
    seen.update({name: n for name, n in _counted.items() if uploads or name != _UPLOAD})
