"""Patches of one image looked for in another, at any resolution and with any features.

A *cell* is a sample of the features: ``cell_px`` pixels of the full image wide. Cells are (row,
column), displacements (u, v).
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from tnav.errors import ConfigError
from tnav.match.channels import Channel, features
from tnav.match.correlate import Peaks, correlate, find_peaks, patch_means
from tnav.match.network import MULTIPLE_PX, STRIDE, FeatureNet
from tnav.records import Frame

_LEAST_PX4 = 1e-12  # determinant of a covariance; keeps a logarithm finite


@dataclass(frozen=True, slots=True)
class Dense:
    """Features of a view and of an image at one resolution."""

    view: Float32[Tensor, "b c h w"]
    image: Float32[Tensor, "b c h w"]
    # ln of the 1-sigma error of a match, px of the full image, by the network
    view_log_sigma: Float32[Tensor, "b 1 h w"] | None = None
    image_log_sigma: Float32[Tensor, "b 1 h w"] | None = None


class Images:
    """A view and an image of one size, and their features as they are asked for."""

    def __init__(
        self,
        view: Float32[Tensor, "b 1 h w"],
        image: Float32[Tensor, "b 1 h w"],
        network: FeatureNet | None,
    ) -> None:
        """Nothing is computed yet."""
        self.view, self.image, self._network = view, image, network
        self._kept: dict[tuple[Channel, int], Dense] = {}

    @property
    def coarse_channel(self) -> Channel:
        """What a wrong Sun, albedo or map disturbs least, of what there is."""
        return Channel.CFOG if self._network is None else Channel.LEARNED

    def at(self, channel: Channel, cell_px: int) -> Dense:
        """Features at a resolution; those of a network start at ``STRIDE`` px a cell."""
        key = (channel, cell_px)
        if key not in self._kept:
            learned = channel is Channel.LEARNED
            self._kept[key] = self._learned(cell_px) if learned else self._made(channel, cell_px)
        return self._kept[key]

    def _made(self, channel: Channel, cell_px: int) -> Dense:
        view, image = (_shrunk(x, cell_px) for x in (self.view, self.image))
        return Dense(features(view, channel), features(image, channel))

    def _learned(self, cell_px: int) -> Dense:
        if self._network is None:
            raise ConfigError("channel 'learned': needs the weights of a network; give one")
        both = _shrunk(torch.cat([self.view, self.image]), cell_px // STRIDE)
        fine, log_sigma = on_any_size(self._network.templates, both)
        # The network speaks of pixels of what it was given.
        log_sigma = log_sigma + math.log(cell_px // STRIDE)
        b = len(self.view)
        return Dense(fine[:b], fine[b:], log_sigma[:b], log_sigma[b:])

    def calibrated(
        self, covariance_px2: Float32[Tensor, "b n 2 2"], stated_px2: Float32[Tensor, "b n"]
    ) -> Float32[Tensor, "b n 2 2"]:
        """Covariance with the shape of a peak's curvature and a calibrated size.

        The size, the variance of an axis in the geometric mean, is
        ``exp(a) curvature^b stated^c`` with the network's ``calibration`` (a, b, c).
        """
        assert self._network is not None
        a, b, c = self._network.calibration.unbind()
        uu, vv = covariance_px2[..., 0, 0], covariance_px2[..., 1, 1]
        size = (uu * vv - covariance_px2[..., 0, 1].square()).clamp_min(_LEAST_PX4).sqrt()
        wanted = (a + b * size.log() + c * stated_px2.log()).exp()
        return covariance_px2 * (wanted / size)[..., None, None]


def on_any_size(
    extract: Callable[[Tensor], tuple[Tensor, ...]], image: Float32[Tensor, "b 1 h w"]
) -> tuple[Tensor, ...]:
    """Maps that a network makes of images of any size, float32.

    Edges are repeated up to the network's multiple, and cropped again. Where the device has them in
    hardware, convolutions run in bfloat16: features are compared over patches of hundreds of them.

    Args:
        extract: a ``FeatureNet``, or its ``templates``.
        image: linear brightness.
    """
    h, w = image.shape[-2:]
    padded = pad(image, (0, -w % MULTIPLE_PX, 0, -h % MULTIPLE_PX), mode="replicate")
    padded = padded.contiguous(memory_format=torch.channels_last)
    kind = image.device.type
    parts = padded.split(1) if _one_by_one(kind) else (padded,)
    with torch.autocast(kind, torch.bfloat16) if _has_bfloat16(kind) else nullcontext():
        found = [torch.cat(maps) for maps in zip(*(extract(x) for x in parts), strict=True)]
    strides = (padded.shape[-1] // x.shape[-1] for x in found)
    return tuple(
        x.float()[..., : h // stride, : w // stride].contiguous()
        for x, stride in zip(found, strides, strict=True)
    )


def _one_by_one(kind: str) -> bool:
    """Whether a kind of device is faster with one image at a time.

    A CPU is: larger arrays go back to the system after every layer, and a fifth of the time is
    spent on fresh pages of memory.
    """
    return kind == "cpu"


@cache
def _has_bfloat16(kind: str) -> bool:
    """Whether a kind of device multiplies bfloat16 faster than float32."""
    if kind != "cpu":
        return kind == "cuda"
    # Releases of torch that cannot tell work in float32.
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def look(
    dense: Dense,
    cell: Int64[Tensor, "b n 2"],
    window: Int64[Tensor, "b n 2"],
    *,
    patch_cells: int,
    radius_cells: int,
) -> Peaks:
    """Where patches of the view, centred on cells, are found about cells of the image."""
    surface = correlate(
        dense.view, dense.image, cell, window, patch_px=patch_cells, radius_px=radius_cells
    )
    return find_peaks(surface, patch_px=patch_cells)


def look_back(
    dense: Dense,
    cell: Int64[Tensor, "b n 2"],
    window: Int64[Tensor, "b n 2"],
    there: Peaks,
    *,
    patch_cells: int,
    radius_cells: int,
) -> tuple[Float32[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """How far from its start a patch comes back, cells, and whether the way back has a peak."""
    surface = correlate(
        dense.image, dense.view, window + there.cell, cell,
        patch_px=patch_cells, radius_px=radius_cells,
    )  # fmt: skip
    back = find_peaks(surface, patch_px=patch_cells)
    # The patch at the found cell lies ``offset - cell`` short of the peak; so does its way back.
    round_trip = there.offset_px - there.cell.flip(-1) + back.offset_px
    return round_trip.norm(dim=-1), back.resolved


def ground_of(
    map_view: Frame, cell: Int64[Tensor, "b n 2"], cell_px: int
) -> tuple[Float64[Tensor, "b n 2"], Float64[Tensor, "b n 3"], Bool[Tensor, "b n"]]:
    """Centres (u, v) of cells of one or two pixels, the map's points there, and which are on it.

    The centre of a pixel has a point of its own; that of two by two pixels is their common corner,
    and its point their mean.
    """
    w = map_view.hit.shape[-1]
    first = cell * cell_px
    point_L = map_view.xyz_L.new_zeros(*cell.shape[:2], 3)
    hit = torch.ones(cell.shape[:2], dtype=torch.bool, device=cell.device)
    for row in range(cell_px):
        for column in range(cell_px):
            flat = (first[..., 0] + row) * w + first[..., 1] + column
            on = map_view.hit.flatten(1).gather(1, flat)
            at = map_view.xyz_L.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, 3))
            point_L, hit = point_L + torch.where(on[..., None], at, 0.0), hit & on
    uv_px = (cell.flip(-1).double() + 0.5) * cell_px
    return uv_px, torch.where(hit[..., None], point_L / cell_px**2, 0.0), hit


def stated_variance_px2(
    dense: Dense,
    cell: Int64[Tensor, "b n 2"],
    place: Float32[Tensor, "b n 2"],
    patch_cells: int,
) -> Float32[Tensor, "b n"]:
    """Variance of matches by the network: mean of both images', each geometric over the patch.

    It is the same mean as in training.

    Args:
        dense: learned features.
        cell: of the view, (row, column).
        place: in the image, (u, v) in cells from its corner.
        patch_cells: odd side of the patch.
    """
    assert dense.view_log_sigma is not None
    assert dense.image_log_sigma is not None
    told = patch_means(dense.view_log_sigma, cell, patch_cells)
    seen = patch_means(dense.image_log_sigma, place.floor().long().flip(-1), patch_cells)
    return 0.5 * ((2 * told).exp() + (2 * seen).exp())


def _shrunk(x: Tensor, factor: int) -> Tensor:
    return avg_pool2d(x, factor) if factor > 1 else x
