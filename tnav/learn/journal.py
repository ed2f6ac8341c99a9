"""What a training run leaves behind: rows of ``log.jsonl``, TensorBoard events, figures.

The log is the record: it is cut at a checkpoint's length when a run is taken up again, so that no
step is in it twice. Timings and notes are rows of their own: all other rows repeat bit by bit.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tnav.errors import RunFileError
from tnav.images import captioned, contact_sheet, display_grey, draw_matches, write_png8
from tnav.learn.pairs import PairBatch
from tnav.match.network import DESCRIPTOR_STRIDE, DenseFeatures

LOG_FILE = "log.jsonl"
FIGURES = "figures"
EVENTS = "tensorboard"

_MATCHES = 40  # drawn a pair
_CELL_ERROR_MAX = 1.5  # cells that a drawn match may be off and still be called right


class Journal:
    """The open log of one run; only the leading process has one."""

    def __init__(self, folder: Path, kept_bytes: int, step: int) -> None:
        """Open, and forget what was written after a checkpoint.

        Args:
            folder: of the run.
            kept_bytes: length of the log that counts.
            step: of the checkpoint; 0 at the start.

        Raises:
            RunFileError: the log is shorter than its checkpoint says.
        """
        from tensorboardX import SummaryWriter

        self._folder, path = folder, folder / LOG_FILE
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        self._log = path.open("ab")
        length = self._log.seek(0, 2)
        if length < kept_bytes:
            self._log.close()
            raise RunFileError(
                f"{path}: {length} bytes, the checkpoint counts {kept_bytes}: not of one run; "
                "start over with --fresh"
            )
        self._log.truncate(kept_bytes)
        self._log.seek(kept_bytes)
        # Files are named by the second: one that is taken up at once must not meet its own.
        self._events = SummaryWriter(
            str(folder / EVENTS),
            purge_step=step + 1 if step else None,
            filename_suffix=f".{step}.{time.time_ns() % 10**9}",
        )

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a row to the log and, what of it is a number, to TensorBoard.

        Args:
            kind: ``start``, ``train``, ``time``, ``validation`` or ``checkpoint``.
            step: steps that are done.
            values: by name; a number that is not finite is ``null``.
        """
        plain = {name: _finite(value) for name, value in values.items()}
        row = {"kind": kind, "step": step, **plain}
        self._log.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._log.flush()
        for name, value in plain.items():
            if isinstance(value, (int, float)) and kind not in ("start", "checkpoint"):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def figure(self, epoch: int, step: int, picture: NDArray[np.uint8]) -> Path:
        """Write the picture of an epoch, as a file and to TensorBoard."""
        from tensorboardX.proto.summary_pb2 import Summary

        path = self._folder / FIGURES / f"epoch-{epoch:03d}.png"
        write_png8(path, picture)
        height, width, _ = picture.shape
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        shown = Summary(value=[Summary.Value(tag="validation/matches", image=image)])
        self._events.file_writer.add_summary(shown, step)
        return path

    def length_bytes(self) -> int:
        """Length of the log as it lies on the disk."""
        return self._log.tell()

    def close(self) -> None:
        """Write what is left."""
        self._log.close()
        self._events.close()


def read_rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of one kind of a run's log.

    Raises:
        RunFileError: missing, or a line that is no JSON.
    """
    path = folder / LOG_FILE
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RunFileError(f"{path}: missing; expected a folder that 'tnav train' wrote") from error
    except ValueError as error:
        raise RunFileError(f"{path}: not JSON a line: {error}") from error
    return [row for row in rows if row.get("kind") == kind]


def draw_pairs(net: nn.Module, batches: list[PairBatch], pairs: int) -> NDArray[np.uint8]:
    """Pairs side by side with the matches of their descriptors, the right ones green.

    Each of the places that the network deems most distinctive in the view is sought among all cells
    of the image, without a prior: the hardest thing that is asked of it.
    """
    pictures: list[NDArray[np.uint8]] = []
    for batch in batches:
        for k in range(len(batch)):
            if len(pictures) < pairs:
                pictures.append(_draw_pair(net, batch, k))
    return contact_sheet(pictures, columns=2)


@torch.no_grad()
def _draw_pair(net: nn.Module, batch: PairBatch, k: int) -> NDArray[np.uint8]:
    view, image = (DenseFeatures(*net(x[k : k + 1])) for x in (batch.view, batch.image))
    stride = DESCRIPTOR_STRIDE
    known = batch.known[k, stride // 2 :: stride, stride // 2 :: stride]
    there = view.keypoint[0, 0].masked_fill(~known, -math.inf).flatten()
    best = there.topk(min(_MATCHES, int(known.sum())), largest=True).indices
    row, column = best // known.shape[1], best % known.shape[1]
    similar = view.descriptor[0, :, row, column].mT @ image.descriptor[0].flatten(1)
    found = similar.argmax(1)
    width = image.descriptor.shape[-1]
    uv_view_px = _centres_px(row, column)
    uv_px = _centres_px(found // width, found % width)
    corner = (stride * row + stride // 2, stride * column + stride // 2)
    true_px = batch.uv_px[k][corner].double() - 0.5
    error_px = (uv_px - true_px).norm(dim=1)
    right = error_px <= _CELL_ERROR_MAX * stride
    picture = draw_matches(
        display_grey(batch.view[k, 0]),
        display_grey(batch.image[k, 0]),
        uv_view_px.cpu().numpy(),
        uv_px.cpu().numpy(),
        right.cpu().numpy(),
    )
    limit_px = _CELL_ERROR_MAX * stride
    return captioned(picture, [f"{int(right.sum())} of {len(right)} within {limit_px:g} px"])


def _centres_px(row: Tensor, column: Tensor) -> Tensor:
    return DESCRIPTOR_STRIDE * (torch.stack([column, row], -1).double() + 0.5)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
