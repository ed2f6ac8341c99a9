"""The only door to OpenCV: images in and out, drawing. OpenCV's pixel centres lie at integers.

Everywhere else the centre of pixel (row, col) is (col + 0.5, row + 0.5): half a pixel is taken off
where coordinates pass through here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from tnav.errors import ImageError
from tnav.files import written_aside

_SHIFT_BITS = 4  # OpenCV draws at sixteenths of a pixel
_GREY16 = {
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
    ".tiff": [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE],
}

# Captions of contact sheets
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
_LINE_PX, _BASELINE_PX, _MARGIN_PX = 20, 6, 4
_INK, _NO_VALUE = (36, 32, 28), (128, 128, 128)
_BAR_PX, _SHEET_GAP_PX = 10, 10


def read_image(path: Path, *, constant_allowed: bool = False) -> Float32[Tensor, "1 1 h w"]:
    """A greyscale image (8 or 16 bit) as linear values in [0, 1].

    Args:
        path: PNG or TIFF.
        constant_allowed: for showing; an image to navigate by must have some contrast.

    Raises:
        ImageError: missing, unreadable, or without any contrast.
    """
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if raw is None:
        reason = "not an image that can be read" if path.is_file() else "no such file"
        raise ImageError(f"{path}: {reason}; expected a PNG or TIFF of 8 or 16 bit")
    if raw.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path}: pixels of type {raw.dtype}, expected 8 or 16 bit unsigned")
    if raw.ndim == 3:
        raw = cv2.cvtColor(raw[..., :3], cv2.COLOR_BGR2GRAY)
    if raw.min() == raw.max() and not constant_allowed:
        raise ImageError(f"{path}: every pixel is {raw.min()}; expected a view of terrain")
    scale = np.float32(np.iinfo(raw.dtype).max)
    return torch.from_numpy(raw.astype(np.float32) / scale)[None, None]


def write_png16(path: Path, image: Float32[Tensor, "h w"]) -> None:
    """Write values in [0, 1] as 16-bit PNG: beside its place, then renamed."""
    with written_aside(path) as aside:
        aside.write_bytes(encode_grey16(image, ".png"))


def encode_grey16(image: Float32[Tensor, "h w"], suffix: str) -> bytes:
    """Values in [0, 1] as a 16-bit grey picture, without loss: the same bytes for the same values.

    Args:
        image: linear.
        suffix: ``.png`` or ``.tiff`` (deflate).

    Raises:
        ImageError: another suffix.
    """
    if suffix not in _GREY16:
        raise ImageError(f"picture as '{suffix}': expected {' or '.join(_GREY16)}")
    grey = (image.clamp(0, 1) * 65535).round().cpu().numpy().astype(np.uint16)
    return _encode(suffix, grey, _GREY16[suffix])


def write_png8(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an 8-bit grey (h, w) or BGR (h, w, 3) picture as PNG."""
    _write(path, ".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def encode_jpeg(image: NDArray[np.uint8], quality: int = 82) -> bytes:
    """An 8-bit picture as JPEG bytes."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def display_grey(image: Float32[Tensor, "h w"], top: float | None = None) -> NDArray[np.uint8]:
    """Linear values as 8-bit grey for people, gamma 2.2.

    Args:
        image: the values.
        top: what is shown white; the 99.5th percentile when absent.
    """
    linear = image.detach().float().cpu().numpy()
    top = max(float(np.quantile(linear, 0.995)) if top is None else top, 1e-6)
    return (255 * np.clip(linear / top, 0, 1) ** (1 / 2.2)).astype(np.uint8)


def draw_matches(
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    left_uv_px: NDArray[np.float64],
    right_uv_px: NDArray[np.float64],
    inlier: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Two grey pictures side by side with their correspondences (n, 2); outliers are red."""
    canvas = cv2.cvtColor(np.hstack([left, right]), cv2.COLOR_GRAY2BGR)
    offset = np.array([left.shape[1], 0.0])
    for a, b, good in zip(left_uv_px, right_uv_px + offset, inlier, strict=True):
        colour = (120, 220, 60) if good else (60, 60, 235)
        p, q = _fixed_point(a), _fixed_point(b)
        cv2.line(canvas, p, q, colour, 1, cv2.LINE_AA, _SHIFT_BITS)
        for point in (p, q):
            cv2.circle(canvas, point, 3 << _SHIFT_BITS, colour, 1, cv2.LINE_AA, _SHIFT_BITS)
    return canvas.astype(np.uint8)


def sift_matches(
    view: NDArray[np.uint8],
    image: NDArray[np.uint8],
    *,
    most: int = 8192,
    ratio: float = 0.8,
) -> tuple[Float64[Tensor, "n 2"], Float64[Tensor, "n 2"], Float32[Tensor, " n"]]:
    """Correspondences of two grey pictures by RootSIFT, mutual nearest neighbours, ratio test.

    SIFT as OpenCV has it (Lowe 2004, IJCV 60(2)), its descriptors by their Hellinger kernel
    (Arandjelovic and Zisserman 2012, CVPR, section 3): square roots of the L1-normalised ones.

    Args:
        view: one picture.
        image: the other.
        most: strongest features kept of each.
        ratio: largest distance to the nearest over that to the second nearest (Lowe, section 7.1).

    Returns:
        Pixel coordinates (u, v) in the two pictures, and the cosine between the descriptors.
    """
    sift = cv2.SIFT.create(nfeatures=most, enable_precise_upscale=True)
    (uv_a, root_a), (uv_b, root_b) = (_root_sift(sift, picture) for picture in (view, image))
    if min(len(uv_a), len(uv_b)) < 2:  # no second nearest, so nothing to tell chance by
        return uv_a[:0], uv_b[:0], torch.zeros(0)
    cosine = root_a @ root_b.T
    best = cosine.topk(2, dim=1)
    nearest = best.indices[:, 0]
    mutual = cosine.argmax(0)[nearest] == torch.arange(len(nearest))
    distance2 = (2 - 2 * best.values).clamp_min(0.0)
    kept = mutual & (distance2[:, 0] < ratio**2 * distance2[:, 1])
    return uv_a[kept], uv_b[nearest[kept]], best.values[kept, 0]


@contextmanager
def opencv_threads(count: int) -> Iterator[None]:
    """OpenCV on so many threads inside the block, for a fair clock."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def resize(image: NDArray[np.uint8], width_px: int) -> NDArray[np.uint8]:
    """A picture at another width, its aspect kept, by area averaging."""
    height_px = max(1, round(image.shape[0] * width_px / image.shape[1]))
    return cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA).astype(np.uint8)


def colourise(share: Float32[Tensor, "h w"], *, cyclic: bool = False) -> NDArray[np.uint8]:
    """Values in [0, 1] as BGR of a perceptually uniform map; NaN is mid-grey.

    Args:
        share: the values.
        cyclic: twilight, whose ends meet, in place of viridis.
    """
    values = share.detach().cpu().numpy()
    known = np.isfinite(values)
    index = np.rint(255 * np.clip(np.where(known, values, 0.0), 0, 1)).astype(np.uint8)
    chosen = cv2.COLORMAP_TWILIGHT if cyclic else cv2.COLORMAP_VIRIDIS
    picture = cv2.applyColorMap(index, chosen).astype(np.uint8)
    picture[~known] = _NO_VALUE
    return picture


def colour_bar(width_px: int, low: str, high: str, *, cyclic: bool = False) -> NDArray[np.uint8]:
    """The map of ``colourise`` from left to right with what its ends stand for."""
    ramp = torch.linspace(0.0, 1.0, width_px).expand(_BAR_PX, width_px)
    bar = colourise(ramp, cyclic=cyclic)
    words = np.full((_LINE_PX, width_px, 3), 255, np.uint8)
    _write_text(words, low, _MARGIN_PX, 0)
    right = max(_MARGIN_PX, width_px - _MARGIN_PX - _text_width_px(high))
    _write_text(words, high, right, 0)
    return np.vstack([bar, words])


def captioned(picture: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """A grey or BGR picture as BGR with lines of text under it, the first one bold.

    A line that is too long is written smaller.

    Raises:
        ImageError: a line that is not ASCII, which is all that every OpenCV can write.
    """
    canvas = picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    words = np.full((_LINE_PX * len(lines) + _MARGIN_PX, canvas.shape[1], 3), 255, np.uint8)
    for k, line in enumerate(lines):
        _write_text(words, line, _MARGIN_PX, k * _LINE_PX, bold=k == 0)
    return np.vstack([canvas, words]).astype(np.uint8)


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """BGR pictures of one width in rows on white; a row is as high as its highest."""
    width_px = pictures[0].shape[1]
    rows = []
    for first in range(0, len(pictures), columns):
        row = list(pictures[first : first + columns])
        height_px = max(p.shape[0] for p in row)
        cells = [_padded(p, height_px) for p in row]
        blank = np.full((height_px, width_px, 3), 255, np.uint8)
        cells += [blank] * (min(columns, len(pictures)) - len(row))
        between = np.full((height_px, _SHEET_GAP_PX, 3), 255, np.uint8)
        rows.append(np.hstack([part for cell in cells for part in (between, cell)][1:]))
    gap = np.full((_SHEET_GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    return np.vstack([part for row in rows for part in (gap, row)][1:]).astype(np.uint8)


def _root_sift(
    sift: cv2.SIFT, picture: NDArray[np.uint8]
) -> tuple[Float64[Tensor, "n 2"], Float32[Tensor, "n 128"]]:
    keypoints, descriptors = sift.detectAndCompute(picture, None)
    if descriptors is None:
        return torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, 128)
    uv_px = torch.from_numpy(np.array(cv2.KeyPoint.convert(keypoints), np.float64)) + 0.5
    counts = torch.from_numpy(np.array(descriptors, np.float32))
    total = counts.sum(1, keepdim=True).clamp_min(1e-6)
    return uv_px, (counts / total).sqrt()


def _padded(picture: NDArray[np.uint8], height_px: int) -> NDArray[np.uint8]:
    more_px = height_px - picture.shape[0]
    return np.pad(picture, ((0, more_px), (0, 0), (0, 0)), constant_values=255)


def _text_width_px(text: str, *, bold: bool = False) -> int:
    (width_px, _), _ = cv2.getTextSize(text, _FONT, _FONT_SCALE, 2 if bold else 1)
    return int(width_px)


def _write_text(
    canvas: NDArray[np.uint8], text: str, left: int, top: int, *, bold: bool = False
) -> None:
    if not text.isascii():
        raise ImageError(f"text '{text}': expected ASCII")
    room_px = canvas.shape[1] - left - _MARGIN_PX
    scale = _FONT_SCALE * min(1.0, room_px / max(1, _text_width_px(text, bold=bold)))
    place = (left, top + _LINE_PX - _BASELINE_PX)
    cv2.putText(canvas, text, place, _FONT, scale, _INK, 2 if bold else 1, cv2.LINE_AA)


def _fixed_point(uv_px: NDArray[np.float64]) -> tuple[int, int]:
    u, v = np.rint((uv_px - 0.5) * (1 << _SHIFT_BITS)).astype(int)
    return int(u), int(v)


def _encode(suffix: str, image: NDArray[np.generic], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    if not done:
        raise ImageError(f"picture of shape {image.shape} could not be encoded as {suffix}")
    return bytes(data)


def _write(path: Path, suffix: str, image: NDArray[np.generic], options: list[int]) -> None:
    with written_aside(path) as aside:
        aside.write_bytes(_encode(suffix, image, options))
