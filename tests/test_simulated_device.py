"""The simulated accelerator itself: same numbers, no mixtures, and every wait counted."""

import math
from collections.abc import Callable

import kornia
import pytest
import simulated_device
import torch
import torch.nn.functional as F
from simulated_device import DEVICE, count_syncs
from torch import Tensor

simulated_device.install()


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 1, 16, 16, generator=generator, dtype=torch.float64)


def _positive_definite() -> Tensor:
    a = _images()[:, 0, :4, :4]
    return a @ a.mT + torch.eye(4, dtype=torch.float64, device=a.device)


def _phase_correlation(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x)
    cross = spectrum * torch.fft.rfft2(x.roll(3, -1)).conj()
    return torch.fft.fftshift(torch.fft.irfft2(cross, s=x.shape[-2:]))


def _box(x: Tensor) -> Tensor:
    return F.conv2d(x, torch.full((1, 1, 3, 3), 1 / 9, dtype=x.dtype, device=x.device), padding=1)


def _masked_write(x: Tensor) -> Tensor:
    y = x.clone()
    y[..., 0] = 1.0
    y[..., 1] = y[..., 0]
    return torch.where(y > 0.5, y, 0.0).masked_fill(y > 0.9, math.nan)


IMAGE_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "phase correlation": _phase_correlation,
    "imaginary part of a conjugate": lambda x: torch.fft.fft2(x).conj().imag,
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "windows": lambda x: x.unfold(-1, 4, 2).sum(-1),
    "conv2d": _box,
    "gaussian blur": lambda x: kornia.filters.gaussian_blur2d(x, (5, 5), (1.0, 1.0)),
    "spatial gradient": kornia.filters.spatial_gradient,
    "grid sample": lambda x: F.grid_sample(
        x, torch.full((2, 3, 3, 2), 0.1, dtype=x.dtype, device=x.device), align_corners=False
    ),
    "max pool": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "top k": lambda x: x.flatten(1).topk(5).values,
    "gather": lambda x: x.flatten(1).gather(1, x.flatten(1).argsort(1)),
    "median": lambda x: x.flatten(1).median(1).values,
    "quantile": lambda x: torch.quantile(x.flatten(1), 0.3, dim=1),
    "masked write": _masked_write,
    "integer index": lambda x: x[:, 0, torch.arange(3, device=x.device), 1],
    "scatter": lambda x: torch.zeros(16, dtype=x.dtype, device=x.device).scatter_add(
        0, torch.arange(16, device=x.device) % 5, x[0, 0, 0]
    ),
    "gradient": lambda x: torch.func.grad(lambda y: y.square().sum())(x),
}
MATRIX_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cholesky_ex": lambda a: torch.cholesky_solve(a[..., :1], torch.linalg.cholesky_ex(a).L),
    "solve_ex": lambda a: torch.linalg.solve_ex(a, a[..., :1]).result,
    "inv_ex": lambda a: torch.linalg.inv_ex(a).inverse,
    "triangular": lambda a: torch.linalg.solve_triangular(a.tril(), a, upper=False),
    "einsum": lambda a: torch.einsum("bij,bjk->bik", a, a),
    "cross": lambda a: torch.linalg.cross(a[:, :3], a[:, 1:], dim=1),
}


def _compare(operation: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with count_syncs() as syncs:
        out = operation(x.to(DEVICE))
    assert out.device == torch.device(DEVICE, 0)
    torch.testing.assert_close(out.cpu(), operation(x), rtol=0, atol=0, equal_nan=True)
    assert not syncs, syncs


@pytest.mark.parametrize("name", IMAGE_OPERATIONS)
def test_image_operations_give_the_cpus_numbers_and_never_wait(name: str) -> None:
    _compare(IMAGE_OPERATIONS[name], _images())


@pytest.mark.parametrize("name", MATRIX_OPERATIONS)
def test_matrix_operations_give_the_cpus_numbers_and_never_wait(name: str) -> None:
    _compare(MATRIX_OPERATIONS[name], _positive_definite())


def test_lazy_conjugates_survive_the_way_to_the_device_and_back() -> None:
    z = torch.fft.fft(_images()[0, 0])
    assert torch.equal(z.conj().to(DEVICE).cpu(), z.conj().resolve_conj())
    assert torch.equal(z.to(DEVICE).conj().cpu(), z.conj().resolve_conj())


def test_training_step_never_waits() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).to(DEVICE)
    optimiser = torch.optim.AdamW(net.parameters())
    x = torch.rand(2, 1, 8, 8).to(DEVICE)
    before = net[0].weight.detach().cpu().clone()
    with count_syncs() as syncs:
        net(x).square().sum().backward()
        optimiser.step()
    assert not syncs
    assert not torch.equal(net[0].weight.detach().cpu(), before)


@pytest.mark.parametrize(
    "mixture",
    [
        lambda x: x + torch.arange(4.0),
        lambda x: x @ torch.eye(4),
        lambda x: torch.cat([x, torch.zeros(1, 4)]),
        lambda x: x.index_put((torch.arange(4, device=DEVICE),), torch.zeros(4)),
    ],
)
def test_host_operands_are_refused(mixture: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mixture(torch.ones(4, 4, device=DEVICE))


def test_host_generators_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, generator=generator, device=DEVICE)
    with pytest.raises(RuntimeError, match="generator"):
        torch.ones(3, device=DEVICE).normal_(generator=generator)


def test_host_scalars_may_stand_in_for_numbers() -> None:
    with count_syncs() as syncs:
        out = torch.ones(3, device=DEVICE) * torch.tensor(2.0)
    assert torch.equal(out.cpu(), torch.full((3,), 2.0))
    assert not syncs


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.cpu(), "copy to host"),
        (lambda x: torch.zeros(4, 4).copy_(x), "copy to host"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0.5], "boolean-mask index"),
        (lambda x: x[torch.tensor([0, 1])], "index from host"),
        (torch.unique, "_unique2"),
        (lambda x: torch.allclose(x, x), "allclose"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device=DEVICE), dim=0),
         "repeat_interleave"),
        (lambda x: torch.multinomial(x + 1, 1), "multinomial"),
        (lambda x: torch.linalg.solve(x, x), "_linalg_check_errors"),
        (torch.linalg.inv, "_linalg_check_errors"),
        (torch.linalg.cholesky, "_linalg_check_errors"),
        (torch.linalg.svd, "_linalg_svd"),
        (torch.linalg.eigh, "_linalg_eigh"),
        (torch.linalg.pinv, "linalg_pinv"),
    ],
)  # fmt: skip
def test_waits_are_counted_once(wait: Callable[[Tensor], object], name: str) -> None:
    x = torch.eye(4).to(DEVICE)
    with count_syncs() as syncs:
        wait(x)
    assert syncs[name] == 1, syncs


def test_repeat_interleave_with_a_known_size_does_not_wait() -> None:
    repeats = torch.ones(4, dtype=torch.int64, device=DEVICE)
    with count_syncs() as syncs:
        torch.ones(4, device=DEVICE).repeat_interleave(repeats, output_size=4)
    assert not syncs


def test_uploads_are_counted_on_request() -> None:
    with count_syncs() as syncs:
        torch.ones(3).to(DEVICE)
    assert not syncs
    with count_syncs(uploads=True) as syncs:
        torch.ones(3).to(DEVICE)
        torch.tensor([1.0, 2.0], device=DEVICE)
        torch.ones(3, device=DEVICE)
    assert syncs == {"copy from host": 2}
