"""A model loads whole and checked, or not at all; input outside of its contract is said once."""

import warnings

import pytest
import torch
import yaml
from model_folders import BANDS, small_network, write_model

from tnav.config import load_recipe
from tnav.errors import ConfigError
from tnav.match import weights
from tnav.match.weights import (
    Conditions,
    ModelContract,
    OutOfContractWarning,
    default_model,
    load_model,
    model_folder,
    outside,
    read_contract,
    warn_once,
)

WITHIN: Conditions = {"ground_sample_distance_m": 5.0, "sun_elevation_deg": 10.0, "agl_m": 6000.0}


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("TNAV_MODELS", str(tmp_path))
    weights._loaded.cache_clear()
    yield tmp_path
    weights._loaded.cache_clear()


def test_a_model_loads_with_every_tensor_and_is_frozen(models):
    write_model(models / "a")
    state = torch.random.get_rng_state()
    model = load_model("a", "cpu")
    assert torch.equal(state, torch.random.get_rng_state())  # loading draws nothing
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    kernel = model.network.down[1][0].weight  # of a convolution
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    original = small_network()
    for name, tensor in original.folded().state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name]), name
    image = torch.rand(2, 1, 96, 112)
    with torch.no_grad():
        expected = original(image)
    for ours, theirs in zip(model.network(image), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_default_model_is_loaded_once_or_is_none(models):
    assert default_model("cpu") is None
    write_model(models / "frigoris-s")
    model = default_model("cpu")
    assert model is not None
    assert model.contract.name == "frigoris-s"
    assert default_model(torch.device("cpu")) is model


def test_a_model_works_on_another_device(models, simgpu):
    write_model(models / "a")
    model = load_model("a", simgpu)
    found = model.network(torch.rand(1, 1, 64, 64).to(simgpu))
    assert found.fine.device.type == simgpu


def test_names_folders_and_neither(models):
    write_model(models / "a")
    assert model_folder("a") == models / "a"
    assert model_folder(models / "a") == models / "a"
    with pytest.raises(ConfigError, match=r"model 'b': no such model; .*\(a\)$"):
        model_folder("b")


def _without(tensors, key):
    return {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: _without(t, "fine.bias"),
            r"fine.bias: not there, expected float32 \[4\]",
        ),
        (
            lambda t: t | {"fine.weight": torch.zeros(4, 9, 1, 1)},
            r"fine.weight: float32 \[4, 9, 1, 1\], expected float32 \[4, 8, 1, 1\]",
        ),
        (
            lambda t: t | {"fine.weight": t["fine.weight"].double()},
            r"fine.weight: float64 \[4, 8, 1, 1\], expected float32",
        ),
        (
            lambda t: t | {"finer.weight": torch.zeros(3)},
            r"finer.weight: float32 \[3\], expected no tensor of that name",
        ),
        (
            lambda t: t | {"fine.bias": torch.tensor([0.0, 1.0, torch.nan, 0.0])},
            "fine.bias: holds NaN or infinity",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_one_line(models, change, words):
    contract = write_model(models / "a", change(dict(small_network().state_dict())))
    with pytest.raises(ConfigError, match=words) as caught:
        load_model("a", "cpu")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(models / "a" / contract["weights"]))


def test_damaged_missing_and_foreign_files(models):
    contract = write_model(models / "a")
    path = models / "a" / contract["weights"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the least damage there is
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"sha256 .*, expected {contract['sha256']}"):
        load_model("a", "cpu")
    path.unlink()
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        load_model("a", "cpu")
    write_model(models / "b", b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load_model("b", "cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "weights-00000000.safetensors"}, "disagree"),
        ({"weights": "../weights-00000000.safetensors"}, r"model.yaml:\d+: weights: .*pattern"),
        ({"sha256": "abc"}, "sha256"),
        ({"input": BANDS | {"tilt_deg": [30.0, 0.0]}}, "tilt_deg: expected low, high"),
        ({"input": BANDS | {"albedo": [0.0, 1.0]}}, "albedo: unknown key"),
        ({"network": {"width": 3}}, "network.width: unknown key.*'widths'"),
    ],
)
def test_a_contract_that_does_not_fit(models, changes, words):
    write_model(models / "a", **changes)
    with pytest.raises(ConfigError, match=words):
        load_model("a", "cpu")


def test_a_contract_survives_its_file(models):
    write_model(models / "a")
    contract = read_contract(models / "a")
    again = models / "again.yaml"
    again.write_text(yaml.safe_dump(contract.model_dump(mode="json")))
    assert load_recipe(again, ModelContract) == contract


@pytest.mark.parametrize(
    ("quantity", "low", "high"),
    [
        ("ground_sample_distance_m", 0.5, 12.0),
        ("agl_m", 500.0, 15000.0),
        ("sun_elevation_deg", 2.0, 31.0),
        ("tilt_deg", 0.0, 30.0),
        ("map_coarser", 1.0, 8.0),
    ],
)
def test_bands_hold_their_ends_and_nothing_beyond(models, quantity, low, high):
    write_model(models / "a")
    contract = read_contract(models / "a")

    def lines(value):
        return outside(contract, **(WITHIN | {quantity: value}))

    assert lines(low) == lines(high) == ()
    for value in (low - 1e-3, high + 1e-3, float("nan")):
        (line,) = lines(value)
        assert f"a was trained for {low:g} to {high:g}" in line


def test_image_side_and_several_reasons(models):
    write_model(models / "a")
    contract = read_contract(models / "a")
    assert outside(contract, **WITHIN, image_side_px=256) == ()
    (line,) = outside(contract, **WITHIN, image_side_px=255)
    assert line == "shorter side 255 px: a was trained for 256 px and more"
    low = outside(contract, ground_sample_distance_m=0.1, sun_elevation_deg=1.0, agl_m=100.0)
    assert low == (
        "ground sample distance 0.1 m: a was trained for 0.5 to 12 m",
        "Sun elevation 1 deg: a was trained for 2 to 31 deg",
        "height above ground 100 m: a was trained for 500 to 15000 m",
    )


def test_a_reason_is_warned_of_once_and_always_recorded(models):
    write_model(models / "a", trained={"steps": 11, "pairs": 22})
    contract = read_contract(models / "a")
    weights._WARNED.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_once(contract, **WITHIN) == ()
    with pytest.warns(OutOfContractWarning, match="height above ground 400 m"):
        warn_once(contract, **(WITHIN | {"agl_m": 400.0}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (line,) = warn_once(contract, **(WITHIN | {"agl_m": 300.0}))
    assert "300 m" in line
    with pytest.warns(OutOfContractWarning, match="Sun elevation 1 deg"):  # another reason
        warn_once(contract, **(WITHIN | {"sun_elevation_deg": 1.0, "agl_m": 300.0}))
