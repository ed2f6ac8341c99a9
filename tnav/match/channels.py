"""Feature channels that make a rendered view and a camera image comparable.

Every channel starts from the logarithm of the image over its own mean, so that exposure and, to
first order, slowly varying albedo drop out. Channels differ in what else they forgive:
signed gradients need the true Sun, CFOG only needs edges to lie in the same places.
"""

import math
from enum import StrEnum

import torch
from jaxtyping import Float32
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn.functional import conv2d, pad

from tnav.errors import ConfigError

# Brightness over the mean below which the logarithm flattens out: shadows hold noise, not signal.
_SHADOW_FRACTION = 0.1
# Smallest mean brightness that counts as light at all; an empty image stays constant, not NaN.
_DARK = 1e-12
# Gaussian before differencing. One pixel keeps the correlation peak resolvable by 3 x 3 samples.
_FINE_BLUR_PX = 1.0
# Window of local mean and spread. Wider ones let edges of cast shadows outweigh the rest (31 px
# makes errors four times as large on a smoothed map), narrower ones flatten the peak's fit.
_CONTRAST_WINDOW_PX = 9
# Spread of log brightness that is contrast and not noise.
_CONTRAST_FLOOR = 0.02
# Orientations of CFOG over 180 deg. Ye et al. take 9; 6 correlate in two thirds of the time.
_ORIENTATIONS = 6
_ORIENTED_BLUR_PX = 0.8
# Reach of the rms gradient that gradients are divided by: about the width of a shadow's edge.
_STRENGTH_BLUR_PX = 2.0
# Gradient of log brightness per pixel that normalisation treats as noise.
_GRADIENT_FLOOR = 0.02


class Channel(StrEnum):
    """What is correlated."""

    SIGNED_GRADIENT = "signed_gradient"  # d/du and d/dv over the local rms gradient
    LOCAL_CONTRAST = "local_contrast"  # 1 channel: deviation from the local mean over the spread
    CFOG = "cfog"  # unsigned oriented gradients, blind to contrast reversal
    INTENSITY = "intensity"  # 1 channel: deviation of brightness from its mean, as of old
    LEARNED = "learned"  # features of a network at half resolution, see tnav.match.network


HAND_MADE = tuple(channel for channel in Channel if channel is not Channel.LEARNED)


def features(image: Float32[Tensor, "b 1 h w"], channel: Channel) -> Float32[Tensor, "b c h w"]:
    """Feature channels of linear images.

    Args:
        image: linear brightness, at least 0, of any exposure.
        channel: which features, one made by hand; see ``Channel`` for their number ``c``.

    Returns:
        Features of the same height and width; all zero where the image is constant.

    Raises:
        ConfigError: learned features, which need a network.
    """
    log_image = compress(image)
    match channel:
        case Channel.SIGNED_GRADIENT:
            return _signed_gradient(_blur(log_image, _FINE_BLUR_PX))
        case Channel.LOCAL_CONTRAST:
            return _local_contrast(_blur(log_image, _FINE_BLUR_PX))
        case Channel.CFOG:
            return _oriented_gradients(log_image)
        case Channel.INTENSITY:
            mean = image.mean((1, 2, 3), keepdim=True)
            return (image - mean) / mean.clamp_min(_DARK)
        case Channel.LEARNED:
            raise ConfigError("channel 'learned': needs the weights of a network; give one")


def compress(image: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b 1 h w"]:
    """Logarithm of brightness over the image's mean, flat in the shadows."""
    mean = image.mean((1, 2, 3), keepdim=True).clamp_min(_DARK)
    return (image.clamp_min(0.0) / mean + _SHADOW_FRACTION).log()


def box_sum(x: Float32[Tensor, "*b h w"], size_px: int) -> Float32[Tensor, "*b p q"]:
    """Sums over all ``size_px`` squares inside the image: ``p = h - size_px + 1``, q likewise.

    Running sums, one axis after the other, in float64: a cost that does not grow with the square.
    """
    for _ in range(2):
        running = pad(x, (1, 0)).cumsum(-1, dtype=torch.float64)
        x = (running[..., size_px:] - running[..., :-size_px]).float().mT
    return x


def _blur(x: Float32[Tensor, "b c h w"], sigma_px: float) -> Float32[Tensor, "b c h w"]:
    size = 2 * math.ceil(3 * sigma_px) + 1
    return gaussian_blur2d(x, (size, size), (sigma_px, sigma_px), border_type="replicate")


def _gradient(x: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b 2 h w"]:
    """Sobel derivatives per pixel along u and v.

    By slices: a convolution with one channel costs ten times as much on a CPU (3 ms, 30 ms).
    """
    x = pad(x, (1, 1, 1, 1), mode="replicate")
    across = x[..., 2:] - x[..., :-2]
    down = x[..., 2:, :] - x[..., :-2, :]
    du = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    dv = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return torch.cat([du, dv], 1) / 8


def _signed_gradient(x: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b 2 h w"]:
    """Derivatives over the local rms gradient.

    Edges of cast shadows are by far the strongest gradients under a low Sun, and they stand in the
    wrong place where the map has smoothed a rim. Normalised, they count no more than the rest.
    """
    gradient = _gradient(x)
    strength = _blur(gradient.square().sum(1, keepdim=True), _STRENGTH_BLUR_PX)
    return gradient / (strength + _GRADIENT_FLOOR**2).sqrt()


def _local_contrast(x: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b 1 h w"]:
    """Deviation from the mean of a window over its standard deviation."""
    half = _CONTRAST_WINDOW_PX // 2
    padded = pad(x, (half, half, half, half), mode="replicate")
    moments = box_sum(torch.cat([padded, padded.square()], 1), _CONTRAST_WINDOW_PX)
    mean, square = (moments / _CONTRAST_WINDOW_PX**2).chunk(2, 1)
    variance = (square - mean.square()).clamp_min(0.0)
    return (x - mean) / (variance + _CONTRAST_FLOOR**2).sqrt()


def _oriented_gradients(x: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b k h w"]:
    """Channel features of orientated gradients (Ye et al. 2019, IEEE TGRS 57(11), section III).

    Absolute derivative along each of k directions over 180 deg, blurred over space and with
    [1 2 1] over direction (cyclic), then divided by the norm over directions.
    """
    angle = torch.arange(_ORIENTATIONS, device=x.device) * (math.pi / _ORIENTATIONS)
    gradient = _gradient(x)
    directions = torch.stack([angle.cos(), angle.sin()], 1)[:, :, None, None]
    oriented = conv2d(gradient, directions).abs()
    oriented = _blur(oriented, _ORIENTED_BLUR_PX)
    oriented = oriented.roll(1, 1) + 2 * oriented + oriented.roll(-1, 1)
    norm = oriented.norm(dim=1, keepdim=True)
    return oriented / (norm + 4 * _GRADIENT_FLOOR * math.sqrt(_ORIENTATIONS / 2))
