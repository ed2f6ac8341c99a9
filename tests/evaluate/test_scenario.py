import math
from datetime import UTC, datetime

import pytest

from tnav.errors import ConfigError, DeviceError
from tnav.evaluate.scenario import Scenario, load_scenario, resolve_device
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import BrownConrady, Fisheye
from tnav.records import FaultKind


def test_the_shipped_scenario():
    scenario = load_scenario("resilience")
    assert scenario.epoch_utc == datetime(2025, 6, 5, 19, 17, tzinfo=UTC)
    assert (scenario.site.latitude_deg, scenario.site.longitude_deg) == (60.5, -4.6)
    assert scenario.expected_verdict is FaultKind.LATE_ACQUISITION
    assert scenario.healthy().expected_verdict is FaultKind.HEALTHY
    assert scenario.map.coarser == 2


def test_another_draw_moves_every_seed_and_zero_moves_none():
    scenario = load_scenario("resilience")
    assert scenario.with_seed(0) == scenario
    before, after = scenario.seeds.model_dump(), scenario.with_seed(3).seeds.model_dump()
    assert len(set(before.values())) == len(before)  # one seed per source
    assert all(after[name] == value + 3000 for name, value in before.items())


def _write(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: x\nepoch_utc: 2025-06-05T19:17:00Z\n"
        "site: {latitude_deg: 60.5, longitude_deg: -4.6}\n" + text
    )
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera:\n  focal_px: -400\n", r"s.yaml:5: camera.focal_px: .*greater than 0.*-400"),
        ("camera:\n  fov_dge: 40\n", r"s.yaml:5: camera.fov_dge: .*'fov_deg'"),
        ("camera:\n  fov_deg: 150\n", r"s.yaml:4: camera: .*150\.0 needs a fisheye"),
        (
            "camera:\n  distortion: {kind: brown_conrady, k1: -2.9}\n",
            r"s.yaml:4: camera: .*camera\.fov_deg: 45, but the distortion folds at 35\.6",
        ),
        (
            "camera:\n  focal_px: 600\n  distortion: {kind: brown_conrady, k1: -0.2}\n",
            r"s.yaml:4: camera: .*brown_conrady folds .*expected one-to-one over the image",
        ),
        (
            "camera:\n  distortion: {kind: fisheye, k9: 1}\n",
            r"s.yaml:5: camera.distortion.fisheye.k9: unknown key \(known: k1, k2, k3, k4, kind\)",
        ),
        ("camera:\n  distortion: {kind: mirror}\n", r"s.yaml:5: camera.distortion: .*'fisheye'"),
        ("fault: {kind: gremlin}\n", r"s.yaml:4: fault: .*'gremlin'.*late_acquisition"),
        ("imaging: {samples: 3}\n", r"s.yaml:4: imaging.samples: .*1, 4, 9 or 16"),
        ("map: {coarser: 0}\n", r"s.yaml:4: map.coarser"),
        ("fault: {kind: bias, bais_m: 3}\n", r"s.yaml:4: .*bais_m: unknown key.*'bias_m'"),
        (f"seeds: {{terrain: {10**20}}}\n", r"s.yaml:4: seeds.terrain: .*less than or equal"),
        ("altimeter: {rate_hz: 20.1}\n", r"altimeter.rate_hz 20.1 exceeds .* 20.0"),
        (
            "imaging: {interval_s: 0.1}\naltimeter: {rate_hz: 9.9}\n",
            r"imaging.interval_s is shorter",
        ),
        ("altimeter: {boresight_B: [0, 0, 0]}\n", r"altimeter.boresight_B: .*not a zero vector"),
        ("site: {latitude_deg: 60.5, longitude_deg: -4.6, finest_post_m: 50}\n", r"km wide"),
        ("epoch_utc: 2025-13-45\n", r"not valid YAML: month must be in 1..12"),
        ("seeds: {terrain: x}\n", r"s.yaml:4: seeds.terrain"),
    ],
)
def test_mistakes_are_named_with_file_line_and_field(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_scenario(_write(tmp_path, text))


def test_a_camera_with_distortion(tmp_path):
    text = "camera:\n  fov_deg: 190\n  distortion: {kind: fisheye, k1: -0.01}\n"
    camera = load_scenario(_write(tmp_path, text)).camera.camera()
    assert camera.distortion == Fisheye(k1=-0.01)
    assert math.degrees(camera.fov_rad) == pytest.approx(190.0)
    text = "camera:\n  focal_px: 1300\n  distortion: {kind: brown_conrady, k1: -0.2, p1: 1.0e-3}\n"
    camera = load_scenario(_write(tmp_path, text)).camera.camera()
    assert camera == Camera(1024, 1024, 1300.0, 512.0, 512.0, BrownConrady(k1=-0.2, p1=1e-3))
    assert load_scenario(_write(tmp_path, "")).camera.camera().distortion is None


def test_times_without_zone_are_utc(tmp_path):
    scenario = load_scenario(_write(tmp_path, ""))
    assert isinstance(scenario, Scenario)
    assert scenario.epoch_utc.tzinfo is UTC


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"scenario 'apollo': not found; known: .*resilience"):
        load_scenario("apollo")


def test_devices(monkeypatch):
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="no CUDA device is visible"):
        resolve_device("cuda")
    with pytest.raises(DeviceError, match="expected auto, cpu or cuda"):
        resolve_device("tpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cpu").type == "cpu"
