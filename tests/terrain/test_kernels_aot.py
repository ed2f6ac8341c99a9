"""The CUDA build without a GPU: Warp compiles the kernels ahead of time, and the cubins tell their registers."""

import struct
from pathlib import Path

import pytest
import warp as wp

from tnav.terrain import kernels

KERNELS = ("cast_kernel", "occluded_kernel")
MAX_REGISTERS = 128  # two blocks of 256 threads on a multiprocessor of 64 k registers


def _registers(cubin: bytes) -> dict[str, int]:
    """Registers a thread, by function: the top byte of sh_info of an ELF section .text.<function>."""
    assert cubin[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, entries, names_index = struct.unpack_from("<HHH", cubin, 0x3A)

    def header(i: int) -> tuple[int, int, int]:
        at = table + i * entry_size
        (name,) = struct.unpack_from("<I", cubin, at)
        (offset,) = struct.unpack_from("<Q", cubin, at + 0x18)
        (info,) = struct.unpack_from("<I", cubin, at + 0x2C)
        return name, offset, info

    names = header(names_index)[1]
    found = {}
    for i in range(entries):
        name, _, info = header(i)
        text = cubin[names + name : cubin.index(b"\0", names + name)].decode()
        if text.startswith(".text."):
            found[text.removeprefix(".text.")] = info >> 24
    return found


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_for_cuda_without_a_gpu(arch: int, tmp_path: Path) -> None:
    wp.config.log_level = wp.LOG_WARNING
    wp.compile_aot_module(kernels, arch=arch, module_dir=tmp_path, use_ptx=False)
    (cubin,) = tmp_path.glob(f"*sm{arch}*.cubin")
    registers = _registers(cubin.read_bytes())
    for kernel in KERNELS:
        (count,) = [n for name, n in registers.items() if kernel in name and "backward" not in name]
        assert 0 < count <= MAX_REGISTERS, (kernel, count)
