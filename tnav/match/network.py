"""The feature network: one image in, features that two Suns agree on out.

A pyramid of residual blocks from 1/2 down to 1/16 of the image, and a way back up (Lin et al. 2017,
"Feature pyramid networks"). What comes out at 1/2 is correlated as templates; what comes out at 1/4
are descriptors and keypoints for a search without a prior.
"""

import copy
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, normalize, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tnav.config import Recipe
from tnav.match.channels import compress

STRIDE = 2  # of the template features, px of the image a cell
DESCRIPTOR_STRIDE = 4
MULTIPLE_PX = 16  # sides of an image are multiples of this

# Window of the local mean and spread: three cells of 16 px.
_NORM_CELL_PX = 16
# Spread of log brightness that is contrast and not noise (as the hand-made local contrast).
_CONTRAST_FLOOR = 0.02
# Normalised contrast beyond which an edge of a shadow counts no more.
_CONTRAST_CEILING = 4.0
# ln of the error, px, that an untrained network states: about what it makes.
_LOG_SIGMA_START = 1.0


_Width = Annotated[int, Field(ge=1, le=1024)]
_Count = Annotated[int, Field(ge=0, le=16)]


class NetworkRecipe(Recipe):
    """Widths of the network; the defaults have 0.77 M parameters."""

    widths: tuple[_Width, _Width, _Width, _Width] = (24, 48, 64, 96)  # at 1/2, 1/4, 1/8, 1/16
    blocks: tuple[_Count, _Count, _Count, _Count] = (1, 1, 2, 2)  # residual blocks at each
    pyramid: int = Field(default=64, ge=8, le=256)  # channels on the way up
    half: int = Field(default=32, ge=8, le=128)  # the same at 1/2
    fine: int = Field(default=16, ge=4, le=64)  # channels of the template features
    descriptor: int = Field(default=64, ge=8, le=256)


class DenseFeatures(NamedTuple):
    """What the network says of an image; cell (r, c) at stride s is centred at s (c, r) + s / 2.

    ``log_sigma`` is the natural logarithm of the 1-sigma error, px of the input, that a template
    centred there will have; ``keypoint`` the logit that a place is found again.
    """

    fine: Float[Tensor, "b c h2 w2"]
    log_sigma: Float[Tensor, "b 1 h2 w2"]
    descriptor: Float[Tensor, "b d h4 w4"]  # unit length over d
    keypoint: Float[Tensor, "b 1 h4 w4"]


class Block(nn.Module):
    """Two 3 x 3 convolutions around which the input passes (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(width, width), Convolution(width, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape as the input."""
        return relu(x + self.second(relu(self.first(x))))


class Convolution(nn.Sequential):
    """A 3 x 3 convolution and its normalisation over the batch."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out, momentum=0.02),
        )


class FeatureNet(nn.Module):
    """Fully convolutional features of linear images of any exposure."""

    def __init__(self, recipe: NetworkRecipe | None = None) -> None:
        """Random weights, from torch's global generator."""
        super().__init__()
        self.recipe = recipe = recipe or NetworkRecipe()
        previous = 2
        self.down, self.stages = nn.ModuleList(), nn.ModuleList()
        for width, count in zip(recipe.widths, recipe.blocks, strict=True):
            self.down.append(Convolution(previous, width, stride=2))
            self.stages.append(nn.Sequential(*(Block(width) for _ in range(count))))
            previous = width
        outs = (recipe.half, recipe.pyramid, recipe.pyramid, recipe.pyramid)
        self.lateral = nn.ModuleList(
            nn.Conv2d(w, o, 1) for w, o in zip(recipe.widths, outs, strict=True)
        )
        self.narrow = nn.Conv2d(recipe.pyramid, recipe.half, 1)
        self.smooth = nn.ModuleList(Convolution(o, o) for o in outs[:3])
        self.fine = nn.Conv2d(recipe.half, recipe.fine, 1)
        self.sigma = nn.Conv2d(recipe.half, 1, 1)
        self.describe = nn.Conv2d(recipe.pyramid, recipe.descriptor, 1)
        self.keypoint = nn.Conv2d(recipe.pyramid, 1, 1)
        # (a, b, c) of the size of a match's covariance, see ``tnav.match.search``; fitted after
        # training on regions of their own.
        self.register_buffer("calibration", torch.tensor([0.0, 0.5, 0.5]))
        self.calibration: Tensor
        nn.init.constant_(self.sigma.bias, _LOG_SIGMA_START)  # type: ignore[arg-type]

    def forward(self, image: Float[Tensor, "b 1 h w"]) -> DenseFeatures:
        """Features of a batch.

        Args:
            image: linear brightness, at least 0; sides are multiples of ``MULTIPLE_PX``.
        """
        half, quarter = self._pyramid(image)
        return DenseFeatures(
            fine=self.fine(half),
            log_sigma=self.sigma(half).clamp(-4.0, 3.0),
            descriptor=normalize(self.describe(quarter), dim=1),
            keypoint=self.keypoint(quarter),
        )

    def templates(
        self, image: Float[Tensor, "b 1 h w"]
    ) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b 1 h2 w2"]]:
        """Template features and their ``log_sigma`` alone, as ``forward`` gives them."""
        half, _ = self._pyramid(image)
        return self.fine(half), self.sigma(half).clamp(-4.0, 3.0)

    def folded(self) -> "FeatureNet":
        """A copy in ``eval`` mode whose normalisations are part of the convolutions before them."""
        net = copy.deepcopy(self).eval().requires_grad_(requires_grad=False)
        for module in list(net.modules()):
            if isinstance(module, Convolution):
                convolution, norm = module
                assert isinstance(convolution, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _pyramid(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the way up holds at 1/2 and at 1/4."""
        x, levels = prepare(image), []
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(relu(down(x)))
            levels.append(x)
        up = self.lateral[3](levels[3])
        up = relu(self.smooth[2](self.lateral[2](levels[2]) + _twice(up)))
        quarter = relu(self.smooth[1](self.lateral[1](levels[1]) + _twice(up)))
        half = relu(self.smooth[0](self.lateral[0](levels[0]) + _twice(self.narrow(quarter))))
        return half, quarter


def prepare(image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Log brightness over the image's mean, and the same over its local mean and spread.

    Pooled, not filtered: a box filter of this size costs more than a layer of the network.
    """
    x = compress(image)
    moments = avg_pool2d(torch.cat([x, x.square()], 1), _NORM_CELL_PX)
    moments = avg_pool2d(moments, 3, stride=1, padding=1, count_include_pad=False)
    moments = interpolate(moments, scale_factor=_NORM_CELL_PX, mode="bilinear")
    mean, square = moments.chunk(2, 1)
    spread = (square - mean.square()).clamp_min(0.0) + _CONTRAST_FLOOR**2
    contrast = ((x - mean) * spread.rsqrt()).clamp(-_CONTRAST_CEILING, _CONTRAST_CEILING)
    return torch.cat([x, contrast], 1)


def _twice(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="bilinear")
