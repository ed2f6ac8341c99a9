"""The CUDA build without a GPU: Warp compiles ahead of time, and the cubins tell the registers."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import warp as wp

from tnav.terrain import kernels

# five (four) blocks of 128 threads share the 64 k registers of a multiprocessor
MAX_REGISTERS = {"cast_kernel": 96, "occluded_kernel": 128, "normal_kernel": 64}
# attributes of section .nv.info: (function's symbol, value)
REGISTERS, FRAME_BYTES = 0x2F, 0x11


def _sections(cubin: bytes) -> dict[str, tuple[int, int, int]]:
    """Offset, size and sh_info of every section of a 64-bit ELF file, by name."""
    assert cubin[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, entries, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = []
    for i in range(entries):
        at = table + i * entry_size
        (name,) = struct.unpack_from("<I", cubin, at)
        offset, size = struct.unpack_from("<QQ", cubin, at + 0x18)
        (info,) = struct.unpack_from("<I", cubin, at + 0x2C)
        headers.append((name, offset, size, info))
    names = headers[names_index][1]
    found = {}
    for name, offset, size, info in headers:
        text = cubin[names + name : cubin.index(b"\0", names + name)].decode()
        found[text] = (offset, size, info)
    return found


def _pairs(info: bytes) -> Iterator[tuple[int, int, int]]:
    """(attribute, symbol, value) of .nv.info; records of format 4 carry a size and their data."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:
            if size == 8:
                yield attribute, *struct.unpack_from("<II", info, at)
            at += size


def _by_function(cubin: bytes, attribute: int) -> dict[str, int]:
    """An attribute of every kernel, by its mangled name."""
    sections = _sections(cubin)
    offset, size, _ = sections[".nv.info"]
    values = {
        symbol: value
        for kind, symbol, value in _pairs(cubin[offset : offset + size])
        if kind == attribute
    }
    # the low 24 bits of a code section's sh_info are its function's symbol
    return {
        name.removeprefix(".text."): values[info & 0xFFFFFF]
        for name, (_, _, info) in sections.items()
        if name.startswith(".text.")
    }


@pytest.mark.parametrize("arch", [80, 86, 90, 120])
def test_kernels_compile_for_cuda_without_a_gpu(arch: int, tmp_path: Path) -> None:
    wp.config.log_level = wp.LOG_WARNING
    wp.compile_aot_module(kernels, arch=arch, module_dir=tmp_path, use_ptx=False)
    (cubin,) = (path.read_bytes() for path in tmp_path.glob(f"*sm{arch}*.cubin"))
    registers, frames = _by_function(cubin, REGISTERS), _by_function(cubin, FRAME_BYTES)
    for kernel, limit in MAX_REGISTERS.items():
        (name,) = [name for name in registers if name.startswith(kernel)]
        assert 32 < registers[name] <= limit
        assert frames[name] == 0  # nothing spills to memory
