"""One rendered pair used several times: mirrored and turned, as other ground under another Sun.

Rendering costs more than a step of training. A mirrored Moon obeys the same laws, so that all eight
symmetries of a square give true pairs.
"""

import torch

from tnav.learn.pairs import PairBatch

SYMMETRIES = 8


def symmetric(batch: PairBatch, number: int) -> PairBatch:
    """Both images of each pair under the same symmetry of the square.

    Args:
        batch: pairs; square ones, where the number asks for a transposition.
        number: 0 to 7: bit 0 mirrors u, bit 1 mirrors v, bit 2 then transposes. 0 changes nothing.
    """
    view, image, uv_px, known = batch.view, batch.image, batch.uv_px, batch.known
    height, width = known.shape[1:]
    for bit, axis, length in ((1, 0, width), (2, 1, height)):
        if number & bit:
            rows = -1 - axis
            view, image, known = view.flip(rows), image.flip(rows), known.flip(rows)
            parts = list(uv_px.flip(2 - axis).unbind(-1))
            parts[axis] = length - parts[axis]
            uv_px = torch.stack(parts, -1)
    if number & 4:
        view, image, known = (x.transpose(-1, -2) for x in (view, image, known))
        uv_px = uv_px.transpose(1, 2).flip(-1)
    return PairBatch(*(x.contiguous() for x in (view, image, uv_px, known)))
