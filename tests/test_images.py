"""16-bit pictures, without loss."""

import cv2
import numpy as np
import pytest
import torch

from tnav.errors import ImageError
from tnav.images import encode_grey16, read_image, write_png16


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_survive(tmp_path, suffix):
    values = torch.arange(65536, dtype=torch.float32).reshape(128, 512) / 65535
    data = encode_grey16(values, suffix)
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert raw.dtype == np.uint16
    np.testing.assert_array_equal(raw.ravel(), np.arange(65536))
    (tmp_path / f"x{suffix}").write_bytes(data)
    assert torch.equal(read_image(tmp_path / f"x{suffix}")[0, 0], values)
    assert encode_grey16(values.clone(), suffix) == data


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_values_outside_are_clipped(suffix):
    data = encode_grey16(torch.tensor([[-0.5, 0.0, 0.5, 1.0, 1.5]]), suffix)
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert raw[0].tolist() == [0, 0, 32768, 65535, 65535]


def test_a_file_is_the_encoded_picture(tmp_path):
    image = torch.rand(20, 30, generator=torch.Generator().manual_seed(1))
    write_png16(tmp_path / "x.png", image)
    assert (tmp_path / "x.png").read_bytes() == encode_grey16(image, ".png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_other_formats_are_refused():
    with pytest.raises(ImageError, match=r"'.jpg': expected .png or .tiff"):
        encode_grey16(torch.zeros(4, 4), ".jpg")
