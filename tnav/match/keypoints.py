"""The sparse path: keypoints of an image, and their mutual nearest neighbours in a large index.

A pair (i, j) of unit descriptors with similarity ``s = a_i . b_j`` has the dual-softmax probability
``exp(2 s / T) / (sum_j exp(s_ij / T) sum_i exp(s_ij / T))`` (Rocco et al. 2018, "Neighbourhood
consensus networks"; Sun et al. 2021, "LoFTR", eq. 2). Both sums and all maxima are running ones
over tiles of the similarity matrix, which therefore never exists as a whole.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d, normalize, pad

from tnav.errors import ConfigError
from tnav.match.channels import compress

# Descriptors (unit length over their channels) and keypoint logits of an image, both at its
# quarter: what a network says, or ``describe_gradients``.
Describe = Callable[
    [Float32[Tensor, "b 1 h w"]], tuple[Float[Tensor, "b d h4 w4"], Float[Tensor, "b 1 h4 w4"]]
]

STRIDE_PX = 4  # of both maps
# A masked descriptor's similarity is lowered by this: far under any other, and exp() of it is 0.
# Its double still fits half precision.
_MASKED = 1000.0
_COLUMN_CHUNKS = 8  # a tile has this many times more columns than rows: 8 MB in float32 at 512
_TENSOR_CORE = 8  # half-precision products want a depth of whole multiples of this
# exp((s - 1) / T) of unit vectors must not underflow before s is -0.7: no best match is worse.
_LEAST_TEMPERATURE = 0.02
_TINY = 1e-30
_GRADIENT_FLOOR = 0.02  # of log brightness a pixel: noise, not ground
# Cells of the half-resolution map whose centres lie 5 and 15 px before and behind a quarter cell's.
_PLACES = (-7, -2, 3, 8)
_FLAT = 1e-6  # curvature of a logit map under which it has no peak


@dataclass(frozen=True, slots=True)
class Keypoints:
    """Places of an image with what they look like, the best first; read only where ``valid``."""

    uv_px: Float32[Tensor, "b n 2"]
    descriptor: Float32[Tensor, "b n d"]  # unit length
    score: Float32[Tensor, "b n"]  # logit at the cell
    valid: Bool[Tensor, "b n"]


@dataclass(frozen=True, slots=True)
class Nearest:
    """Nearest neighbour in b of every row of a; read only where ``valid``."""

    index: Int64[Tensor, "b n"]  # row of b
    similarity: Float32[Tensor, "b n"]
    probability: Float32[Tensor, "b n"]  # dual softmax, in [0, 1]
    ratio: Float32[Tensor, "b n"]  # distance to it over that to the second nearest; 0: no second
    mutual: Bool[Tensor, "b n"]  # nothing in a is nearer to that row of b
    valid: Bool[Tensor, "b n"]


def select(
    keypoint: Float[Tensor, "b 1 h4 w4"],
    descriptor: Float[Tensor, "b d h4 w4"],
    count: int,
    *,
    nms_cells: int = 1,
    margin_cells: int = 2,
    block_cells: int = 0,
    usable: Bool[Tensor, "b 1 h4 w4"] | None = None,
) -> Keypoints:
    """The strongest local maxima of a map of logits, on its device and in fixed shapes.

    Args:
        keypoint: logits; cell (r, c) is centred on pixel ``STRIDE_PX * (c + 0.5)``.
        descriptor: of the same cells, unit length.
        count: how many; where there are fewer maxima the rest is not valid.
        nms_cells: a maximum is the highest of the square that reaches this far around it.
        margin_cells: cells at the border whose surroundings are cut off: none is taken there.
        block_cells: above 0, the best of every square block of this side goes before all others,
            which spreads keypoints evenly.
        usable: cells that may be taken; all where absent.

    Raises:
        ConfigError: ``count`` is not in 1 to the number of cells, or another setting is negative.
    """
    h, w = keypoint.shape[-2:]
    if not 0 < count <= h * w:
        raise ConfigError(f"keypoints: {count} asked for, expected 1 to {h * w} in {h} x {w} cells")
    if min(nms_cells, margin_cells, block_cells) < 0:
        raise ConfigError("keypoints: nms_cells, margin_cells, block_cells: expected 0 or more")
    logit = keypoint.float()
    peak = (logit == _highest_around(logit, nms_cells)) & logit.isfinite()
    peak = peak & _inside(h, w, margin_cells, keypoint.device)
    if usable is not None:
        peak = peak & usable
    rank = torch.where(peak, logit, -math.inf)
    if block_cells > 0:
        rank = rank + torch.where(rank == _highest_of_block(rank, block_cells), 1e4, 0.0)
    top, cell = rank.flatten(1).topk(count, dim=-1)
    uv_px = STRIDE_PX * _subcell(logit, cell)
    size_px = torch.tensor([float(w), float(h)], dtype=torch.float32) * STRIDE_PX
    grid = 2 * uv_px / size_px.to(uv_px.device) - 1  # pixel edges are -1 and 1
    sampled = grid_sample(
        descriptor.float(), grid[:, None], mode="bilinear", padding_mode="border",
        align_corners=False,
    )  # fmt: skip
    return Keypoints(
        uv_px=uv_px,
        descriptor=normalize(sampled.squeeze(2).mT, dim=-1),
        score=logit.flatten(1).gather(1, cell),
        valid=top > -math.inf,
    )


def mutual_nearest(
    a: Float[Tensor, "b n d"],
    b: Float[Tensor, "b m d"],
    valid_a: Bool[Tensor, "b n"] | None = None,
    valid_b: Bool[Tensor, "b m"] | None = None,
    *,
    chunk: int = 512,
    temperature: float = 0.05,
    ranking: torch.dtype | None = None,
) -> Nearest:
    """Nearest neighbours of unit descriptors, both ways, without the n x m similarity matrix.

    Tiles of ``chunk`` x ``8 chunk`` products are ranked in half precision on CUDA and in float32
    elsewhere. The two best of a row, and whoever the column prefers, are then compared again in
    float32. Of equally near ones the first wins.

    Args:
        a: queries.
        b: what they are looked up in; with as many batches as ``a``.
        valid_a: rows of a that take part, all where absent.
        valid_b: the same for b.
        chunk: rows of a tile: memory against the number of launches. It changes no result, but for
            rounding.
        temperature: T of the softmax, at least 0.02.
        ranking: dtype of the products, in place of the above.

    Raises:
        ConfigError: nothing to match, a chunk under 1, or a temperature under 0.02.
    """
    _check(a, b, chunk, temperature)
    valid_a = torch.ones_like(a[..., 0], dtype=torch.bool) if valid_a is None else valid_a
    valid_b = torch.ones_like(b[..., 0], dtype=torch.bool) if valid_b is None else valid_b
    if ranking is None:
        ranking = torch.float16 if a.device.type == "cuda" else torch.float32
    rows, columns = _scan(
        _masked(a, valid_a, ranking, query=True), _masked(b, valid_b, ranking, query=False),
        chunk, temperature,
    )  # fmt: skip

    candidates = torch.stack([rows.first, rows.second], -1)
    exact = torch.stack([_products(a, b, c) for c in candidates.unbind(-1)], -1)
    ranked = torch.stack([rows.best, rows.runner_up], -1)
    exact = torch.where(ranked > -_MASKED / 2, exact, -math.inf)
    first, second = exact.unbind(-1)
    swap = (second > first) | ((second == first) & (rows.second < rows.first))
    index = torch.where(swap, rows.second, rows.first)
    similarity, other = torch.maximum(first, second), torch.minimum(first, second)
    valid = valid_a & (rows.best > -_MASKED / 2)

    preferred = columns.first.gather(1, index)
    rival = _products(b, a, preferred, of=index)
    own = torch.arange(a.shape[1], device=a.device)
    mutual = (own == preferred) | (similarity > rival) | ((similarity == rival) & (own < preferred))
    sums = torch.stack([rows.exp_sum, columns.exp_sum.gather(1, index)])
    log_sums = sums.clamp_min(_TINY).log().sum(0)
    probability = (2 * (similarity - 1) / temperature - log_sums).exp().clamp_max(1.0)
    near = (1 - similarity).clamp_min(0.0) + _TINY
    far = (1 - other).clamp_min(0.0) + _TINY
    return Nearest(
        index=index,
        similarity=torch.where(valid, similarity, 0.0),
        probability=torch.where(valid, probability, 0.0),
        ratio=torch.where(valid, (near / far).sqrt(), 1.0),
        mutual=mutual & valid,
        valid=valid,
    )


def describe_with(network: nn.Module) -> Describe:
    """A network whose output has ``descriptor`` and ``keypoint``, as a describer.

    Args:
        network: in evaluation mode, on the device of the images to come.
    """

    def describe(image: Float32[Tensor, "b 1 h w"]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            dense = network(image)
        return dense.descriptor.float(), dense.keypoint.float()

    return describe


def describe_gradients(
    image: Float32[Tensor, "b 1 h w"],
) -> tuple[Float32[Tensor, "b 64 h4 w4"], Float32[Tensor, "b 1 h4 w4"]]:
    """Descriptors and keypoints without weights, for an upright image under the map's Sun.

    Descriptor: the gradient of log brightness over its local rms, split into its positive and
    negative parts along u and v and pooled on 4 x 4 places 10 px apart: the layout of SURF (Bay et
    al. 2008, section 4.2) with RootSIFT's square root (Arandjelovic and Zisserman 2012). Keypoint:
    logarithm of the lesser eigenvalue of the structure tensor (Shi and Tomasi 1994).

    Args:
        image: linear brightness, of any exposure; sides are multiples of ``STRIDE_PX``.
    """
    x = avg_pool2d(pad(compress(image), (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    padded = pad(x, (1, 1, 1, 1), mode="replicate")
    du = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dv = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    gradient = avg_pool2d(torch.cat([du, dv], 1), 2)
    strength = _smooth(gradient.square().sum(1, keepdim=True), 4)
    gradient = gradient * (strength + _GRADIENT_FLOOR**2).rsqrt()
    parts = torch.cat([gradient.clamp_min(0.0), (-gradient).clamp_min(0.0)], 1)
    h, w = parts.shape[-2:]
    pooled = pad(_smooth(parts, 2), (7, 8, 7, 8), mode="replicate")
    places = [
        pooled[..., 7 + row : 7 + row + h : 2, 7 + column : 7 + column + w : 2]
        for row in _PLACES
        for column in _PLACES
    ]
    descriptor = normalize((torch.cat(places, 1) + 1e-4).sqrt(), dim=1)

    gu, gv = gradient.unbind(1)
    tensor = _smooth(torch.stack([gu * gu, gv * gv, gu * gv], 1), 2)
    uu, vv, uv = avg_pool2d(tensor, 2).split(1, 1)
    lesser = (uu + vv) / 2 - ((uu - vv).square() / 4 + uv.square()).sqrt()
    return descriptor, lesser.clamp_min(1e-6).log()


def _smooth(x: Tensor, reach: int) -> Tensor:
    """Two running means: nearly a Gaussian."""
    for _ in range(2):
        x = avg_pool2d(pad(x, (reach // 2,) * 4, mode="replicate"), 2 * (reach // 2) + 1, stride=1)
    return x


def _highest_around(logit: Tensor, reach: int) -> Tensor:
    return max_pool2d(logit, 2 * reach + 1, stride=1, padding=reach)


def _inside(h: int, w: int, margin: int, device: torch.device) -> Bool[Tensor, "h w"]:
    row, column = torch.arange(h, device=device), torch.arange(w, device=device)
    good_row, good_column = (row >= margin) & (row < h - margin), (column >= margin)
    return good_row[:, None] & (good_column & (column < w - margin))


def _highest_of_block(rank: Tensor, side: int) -> Tensor:
    """The greatest rank of every cell's block; a block without any gives no cell a bonus."""
    h, w = rank.shape[-2:]
    best = max_pool2d(rank, side, stride=side, ceil_mode=True)
    best = best.repeat_interleave(side, -2).repeat_interleave(side, -1)[..., :h, :w]
    return torch.where(best > -math.inf, best, math.inf)


def _subcell(logit: Float32[Tensor, "b 1 h w"], cell: Int64[Tensor, "b n"]) -> Tensor:
    """Peaks (u, v) in cells, their centres at + 0.5, by a parabola along each axis."""
    h, w = logit.shape[-2:]
    flat, row, column = logit.flatten(1), cell // w, cell % w

    def at(dr: int, dc: int) -> Tensor:
        near = (row + dr).clamp(0, h - 1) * w + (column + dc).clamp(0, w - 1)
        return flat.gather(1, near)

    middle, offsets = at(0, 0), []
    for before, after in ((at(0, -1), at(0, 1)), (at(-1, 0), at(1, 0))):
        curvature = 2 * middle - before - after
        step = (after - before) / (2 * curvature.clamp_min(_FLAT))
        offsets.append(torch.where(curvature > _FLAT, step, 0.0).clamp(-0.5, 0.5))
    return torch.stack([column + 0.5 + offsets[0], row + 0.5 + offsets[1]], -1)


@dataclass(frozen=True, slots=True)
class _Best:
    """Running extremes of the rows, or of the columns, of the similarity matrix."""

    best: Float32[Tensor, "b n"]
    first: Int64[Tensor, "b n"]
    runner_up: Float32[Tensor, "b n"]  # of rows only
    second: Int64[Tensor, "b n"]
    exp_sum: Float32[Tensor, "b n"]  # of exp((s - 1) / T)

    @classmethod
    def none(cls, like: Float[Tensor, "b n d"]) -> "_Best":
        zero = torch.zeros(like.shape[:2], device=like.device)
        index = torch.zeros(like.shape[:2], dtype=torch.int64, device=like.device)
        return cls(zero - math.inf, index, zero - math.inf, index.clone(), zero)

    def part(self, span: slice) -> "_Best":
        """Views of some of the entries."""
        return _Best(*(getattr(self, name)[:, span] for name in self.__slots__))

    def merge_(self, value: Tensor, index: Tensor, exp_sum: Tensor) -> None:
        """Take in a tile's best; an equal one that came before stays."""
        better = value > self.best
        demoted = torch.where(better, self.best, value), torch.where(better, self.first, index)
        self.merge_second_(*demoted)
        self.best.copy_(torch.where(better, value, self.best))
        self.first.copy_(torch.where(better, index, self.first))
        self.exp_sum.add_(exp_sum)

    def merge_second_(self, value: Tensor, index: Tensor) -> None:
        better = value > self.runner_up
        self.runner_up.copy_(torch.where(better, value, self.runner_up))
        self.second.copy_(torch.where(better, index, self.second))


def _scan(a: Tensor, b: Tensor, chunk: int, temperature: float) -> tuple[_Best, _Best]:
    """Extremes of all rows and columns, tile by tile."""
    rows, columns = _Best.none(a), _Best.none(b)
    width = chunk * _COLUMN_CHUNKS
    for r in range(0, a.shape[1], chunk):
        span_r = slice(r, r + chunk)
        of_rows = rows.part(span_r)
        for c in range(0, b.shape[1], width):
            span_c = slice(c, c + width)
            tile = a[:, span_r] @ b[:, span_c].mT
            value, place = tile.max(-1)
            column_value, column_place = tile.max(-2)
            weight = tile.float().sub(1.0).div_(temperature).exp_()
            of_rows.merge_(value.float(), place + c, weight.sum(-1))
            columns.part(span_c).merge_(column_value.float(), column_place + r, weight.sum(-2))
            tile.scatter_(-1, place[..., None], -2 * _MASKED)
            value, place = tile.max(-1)
            of_rows.merge_second_(value.float(), place + c)
    return rows, columns


def _masked(x: Tensor, valid: Tensor, dtype: torch.dtype, *, query: bool) -> Tensor:
    """Descriptors with two more entries, so that a product with a masked one is far below -1."""
    bias = torch.where(valid, 0.0, -_MASKED)[..., None].to(dtype)
    one = torch.ones_like(bias)
    spare = -(x.shape[-1] + 2) % _TENSOR_CORE
    extra = [bias, one] if query else [one, bias]
    return pad(torch.cat([x.to(dtype), *extra], -1), (0, spare))


def _products(
    x: Float[Tensor, "b n d"], y: Float[Tensor, "b m d"], index: Tensor, of: Tensor | None = None
) -> Float32[Tensor, "b k"]:
    """Products of rows of x (all, or the given ones) with the indexed rows of y, in float32."""

    def rows(values: Tensor, which: Tensor) -> Tensor:
        return values.gather(1, which[..., None].expand(-1, -1, values.shape[-1])).float()

    left = x.float() if of is None else rows(x, of)
    return (left * rows(y, index)).sum(-1)


def _check(a: Tensor, b: Tensor, chunk: int, temperature: float) -> None:
    if min(a.shape[1], b.shape[1]) < 1:
        raise ConfigError(f"descriptors: {a.shape[1]} and {b.shape[1]}, expected at least 1 each")
    if chunk < 1:
        raise ConfigError(f"mutual_nearest.chunk: {chunk}, expected at least 1")
    if not temperature >= _LEAST_TEMPERATURE:
        raise ConfigError(
            f"mutual_nearest.temperature: {temperature}, expected at least {_LEAST_TEMPERATURE}"
        )
