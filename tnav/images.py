"""The only door to OpenCV: images in and out, drawing. OpenCV's pixel centres lie at integers.

Everywhere else the centre of pixel (row, col) is (col + 0.5, row + 0.5): half a pixel is taken off
where coordinates pass through here.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from tnav.errors import ImageError
from tnav.files import written_aside

_SHIFT_BITS = 4  # OpenCV draws at sixteenths of a pixel


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
    grey = (image.clamp(0, 1) * 65535).round().cpu().numpy().astype(np.uint16)
    _write(path, ".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def write_png8(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an 8-bit grey (h, w) or BGR (h, w, 3) picture as PNG."""
    _write(path, ".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def encode_jpeg(image: NDArray[np.uint8], quality: int = 82) -> bytes:
    """An 8-bit picture as JPEG bytes."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def display_grey(image: Float32[Tensor, "h w"]) -> NDArray[np.uint8]:
    """Linear values as 8-bit grey for people: stretched to the 99.5th percentile, gamma 2.2."""
    linear = image.detach().float().cpu().numpy()
    top = max(float(np.quantile(linear, 0.995)), 1e-6)
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


def resize(image: NDArray[np.uint8], width_px: int) -> NDArray[np.uint8]:
    """A picture at another width, its aspect kept, by area averaging."""
    height_px = max(1, round(image.shape[0] * width_px / image.shape[1]))
    return cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA).astype(np.uint8)


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
