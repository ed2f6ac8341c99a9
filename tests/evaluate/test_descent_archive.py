"""Descent records on disk: what is written is read, and what is damaged is named."""

import hashlib
import io
import json
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tnav.errors import RunFileError
from tnav.evaluate.descent_archive import find_descents, read_descent, write_descent
from tnav.evaluate.descent_record import (
    FILTER_STATES,
    DescentRecord,
    DescentSeries,
    InnovationSeries,
    Touchdown,
)
from tnav.evaluate.scenario import load_scenario
from tnav.geometry.pose import so3_exp
from tnav.navigate import mechanisation
from tnav.records import Sensor

EPOCHS = 7


def _innovations(sensor, generator, epochs, size):
    present = torch.arange(epochs) % 3 != 1
    value = torch.randn(epochs, size, generator=generator, dtype=torch.float64)
    covariance = torch.eye(size, dtype=torch.float64).expand(epochs, size, size).clone()
    value[~present], covariance[~present] = torch.nan, torch.nan
    return InnovationSeries(
        sensor=sensor,
        t_s=0.25 + torch.arange(epochs, dtype=torch.float64),
        value=value,
        covariance=covariance,
        nis=value.square().sum(-1),
        present=present,
        fused=present & (torch.arange(epochs) % 2 == 0),
    )


def made(name="atlas", seed=3, epochs=EPOCHS):
    """A record of seeded numbers, with all that may be missing missing somewhere."""
    g = torch.Generator().manual_seed(seed % 1000)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    agl_m = 1e3 * rand(epochs).abs()
    series = DescentSeries(
        t_s=torch.arange(epochs, dtype=torch.float64) / 3,
        position_L=1e4 * rand(epochs, 3),
        velocity_L=1e2 * rand(epochs, 3),
        R_L_B=so3_exp(rand(epochs, 3)),
        agl_m=agl_m,
        propellant_kg=rand(epochs).abs(),
        thrust_n=rand(epochs).abs(),
        phase=torch.arange(epochs) // 2,
        position_nav_L=1e4 * rand(epochs, 3),
        velocity_nav_L=1e2 * rand(epochs, 3),
        R_nav_L_B=so3_exp(rand(epochs, 3)),
        agl_nav_m=torch.where(torch.arange(epochs) == 1, torch.nan, agl_m),
        sigma=rand(epochs, len(FILTER_STATES)).abs(),
    )
    return DescentRecord(
        name=name,
        fidelity="model",
        policy="isolate",
        seed=seed,
        latitude_deg=47.581,
        longitude_deg=44.094,
        series=series,
        innovations=(
            _innovations(Sensor.VISION, g, 5, 6),
            _innovations(Sensor.ALTIMETER, g, 8, 1),
            _innovations(Sensor.STAR_TRACKER, g, 0, 3),
        ),
        touchdown=Touchdown(12.5, 1.5, 0.3, 42.0, 70.0, "landed", -0.4, 5.0, 0.1),
        recipe=load_scenario("atlas").model_dump(mode="json"),
    )


def assert_same(ours, theirs):
    """Equal to the last bit, NaN to NaN, types and all."""
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert theirs.device.type == "cpu"
        np.testing.assert_array_equal(theirs.numpy(), ours.cpu().numpy())
    elif is_dataclass(ours):
        assert type(ours) is type(theirs)
        for field in fields(ours):
            assert_same(getattr(ours, field.name), getattr(theirs, field.name))
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)


@pytest.fixture(scope="module")
def record():
    return made()


@pytest.fixture
def path(record, tmp_path):
    return write_descent(record, tmp_path / "descents")


def test_the_states_are_named_in_the_order_of_the_filter_s_covariance():
    assert len(FILTER_STATES) == len(set(FILTER_STATES)) == mechanisation.CORE
    for prefix in ("position", "velocity", "attitude", "gyro_bias", "accelerometer_bias",
                   "thrust_scale", "map_shift", "map_mean", "map_local", "map_beam",
                   "range_bias", "map_side"):  # fmt: skip
        at = getattr(mechanisation, prefix.upper())
        named = FILTER_STATES[at] if isinstance(at, slice) else (FILTER_STATES[at],)
        assert all(name.startswith(prefix) for name in named), named


def test_a_record_is_read_as_it_was_written(record, path):
    assert path.name == "atlas-3.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["atlas-3.json", "atlas-3.npz"]
    assert_same(record, read_descent(path))


def test_a_record_that_ends_in_flight_and_without_innovations(record, tmp_path):
    bare = replace(record, touchdown=None, innovations=(), fidelity="image", seed=-4, recipe={})
    path = write_descent(bare, tmp_path)
    assert path.name == "atlas--4.json"
    assert_same(bare, read_descent(path))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_every_bit(tmp_path_factory, number):
    folder = tmp_path_factory.getbasetemp() / "bits"
    record = made()
    end = replace(record.touchdown, agl_error_m=number)
    velocity_L = torch.full_like(record.series.velocity_L, number)
    series = replace(record.series, velocity_L=velocity_L)
    there = read_descent(write_descent(replace(record, touchdown=end, series=series), folder))
    assert there.touchdown.agl_error_m == number
    assert torch.equal(there.series.velocity_L, velocity_L)


def test_the_same_record_gives_the_same_files(record, path, tmp_path):
    again = write_descent(record, tmp_path / "again")
    for suffix in (".json", ".npz"):
        assert again.with_suffix(suffix).read_bytes() == path.with_suffix(suffix).read_bytes()


def test_from_an_accelerator_the_same_files(record, path, tmp_path, simgpu):
    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.to(simgpu)
        if not is_dataclass(value):
            return value
        return replace(value, **{f.name: moved(getattr(value, f.name)) for f in fields(value)})

    there = replace(
        record,
        series=moved(record.series),
        innovations=tuple(moved(i) for i in record.innovations),
    )
    assert there.series.t_s.device.type == simgpu
    assert (again := write_descent(there, tmp_path / "there"))
    assert again.with_suffix(".npz").read_bytes() == path.with_suffix(".npz").read_bytes()


def test_an_earlier_record_of_that_name_is_replaced(record, path):
    other = replace(record, policy="trust", series=made(epochs=9).series)
    assert write_descent(other, path.parent) == path
    assert_same(other, read_descent(path))


def test_a_write_that_breaks_off_leaves_no_record(record, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)  # the JSON is the last
    with pytest.raises(OSError, match="No space"):
        write_descent(record, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["atlas-3.npz"]
    with pytest.raises(RunFileError, match=r"no NAME-SEED\.json"):
        find_descents(tmp_path)


def test_arrays_of_another_descent_are_refused(record, path):
    other = write_descent(replace(record, seed=4, series=made(seed=4).series), path.parent)
    path.with_suffix(".npz").write_bytes(other.with_suffix(".npz").read_bytes())
    with pytest.raises(RunFileError, match=r"atlas-3\.npz: sha256 .*of another descent"):
        read_descent(path)
    read_descent(other)


def test_one_bit_of_the_arrays_is_noticed(path):
    arrays = path.with_suffix(".npz")
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    with pytest.raises(RunFileError, match="sha256"):
        read_descent(path)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_missing_file_is_named(path, suffix):
    path.with_suffix(suffix).unlink()
    with pytest.raises(RunFileError, match=rf"atlas-3\{suffix}: missing") as found:
        read_descent(path)
    assert len(str(found.value).splitlines()) == 1


def _edit(path, key, value):
    data = json.loads(path.read_text())
    *way, last = key.split(".")
    place = data
    for part in way:
        place = place[int(part) if part.isdecimal() else part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_name", "tnav-descent/1", r"schema_name: found 'tnav-descent/1', expected 'tnav-d"),
        ("schema_name", ..., r"schema_name: found None"),
        ("seed", "3", r"seed: .*valid integer"),
        ("seed", True, r"seed: .*valid integer"),
        ("fidelity", "toy", r"fidelity: .*'model' or 'image'"),
        ("latitude_deg", 91.0, r"latitude_deg: .*90"),
        ("longitude_deg", None, r"longitude_deg: .*valid number"),
        ("weather", "fine", r"weather: extra inputs"),
        ("touchdown", ..., r"touchdown: field required"),
        ("touchdown.outcome", "hovered", r"touchdown.outcome: .*'landed'"),
        ("touchdown.miss_m", float("nan"), r"not strict JSON: found NaN"),
        ("touchdown.miss_m", float("inf"), r"not strict JSON: found Infinity"),
        ("innovations.1.sensor", "sonar", r"innovations.1.sensor: .*'altimeter'"),
        ("filter_states", list(FILTER_STATES)[::-1], r"filter_states: not the 26 states"),
        ("arrays_sha256", "x", r"arrays_sha256: .*pattern"),
        ("name", "../x", r"name: .*pattern"),
        # right JSON, but not that of the arrays
        ("epochs", 8, r"npz: series_t_s: found float64 7, expected float64 8"),
        (
            "innovations.0.degrees_of_freedom", 3,
            r"npz: innovation_0_value: found float64 5 x 6, expected float64 5 x 3",
        ),
        ("innovations.1.epochs", 9, r"npz: innovation_1_t_s: found float64 8, expected float64 9"),
        ("innovations", [], r"npz: innovation_0_covariance: unknown array"),
    ],
)  # fmt: skip
def test_a_wrong_json_is_one_line_with_file_and_field(path, key, value, message):
    _edit(path, key, value)
    with pytest.raises(RunFileError, match=rf"atlas-3\.(json: )?{message}") as found:
        read_descent(path)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", '{"a": 1e999}'])
def test_what_is_not_a_record_is_refused(path, text):
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RunFileError, match=r"atlas-3\.json: "):
        read_descent(path)


def _swap(path, name, array):
    """Another array with a hash that fits, as a program with a fault would write."""
    arrays = path.with_suffix(".npz")
    with np.load(arrays) as data:
        held = {key: data[key] for key in data.files}
    if array is None:
        del held[name]
    else:
        held[name] = array(held[name].copy()) if callable(array) else array
    buffer = io.BytesIO()
    np.savez(buffer, **held)
    arrays.write_bytes(buffer.getvalue())
    _edit(path, "arrays_sha256", hashlib.sha256(buffer.getvalue()).hexdigest())


def _with(value, *at):
    def put(array):
        array[at] = value
        return array

    return put


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("series_agl_m", None, "missing array"),
        ("series_extra", np.zeros(3), "unknown array"),
        ("series_position_L", np.zeros((7, 2)), "found float64 7 x 2, expected float64 7 x 3"),
        ("series_position_L", np.zeros((7, 3), np.float32), "found float32 7 x 3, expected float6"),
        ("series_phase", np.zeros(7), "found float64 7, expected int64 7"),
        ("series_sigma", np.zeros((7, 16)), "found float64 7 x 16, expected float64 7 x 26"),
        ("innovation_0_present", np.ones(5), "found float64 5, expected bool 5"),
        ("series_velocity_L", _with(np.nan, 4, 1), "row 4: expected finite"),
        ("series_R_L_B", _with(np.inf, 0, 2, 2), "row 0: expected finite"),
        ("series_agl_m", _with(-np.inf, 2), "row 2: expected finite or NaN"),
        ("series_sigma", _with(-1e-9, 6, 21), "row 6: expected 0 or more"),
        ("series_t_s", _with(0.0, 1), "row 1: expected strictly increasing"),
        ("series_t_s", _with(np.nan, 1), "row 1: expected finite"),
        ("innovation_1_t_s", _with(3.25, 4), "row 4: expected strictly increasing"),
        ("innovation_1_nis", _with(np.nan, 3), "row 3: expected finite where present"),
        ("innovation_0_covariance", _with(np.inf, 2, 5, 5), "row 2: expected finite where present"),
        ("innovation_0_fused", _with(True, 1), "row 1: expected fused only where present"),
    ],
)
def test_wrong_arrays_are_one_line_with_file_and_field(path, name, array, message):
    _swap(path, name, array)
    with pytest.raises(RunFileError, match=rf"atlas-3\.npz: {name}: {message}") as found:
        read_descent(path)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("series_agl_m", _with(np.nan, 2)),
        ("series_sigma", _with(0.0, 6, 21)),
        ("series_t_s", _with(1e-9, 1)),
        ("innovation_1_nis", _with(np.inf, 1)),  # row 1 is not present
    ],
)
def test_just_inside_is_read(path, name, array):
    _swap(path, name, array)
    read_descent(path)


def test_no_object_is_unpickled(path):
    _swap(path, "series_agl_m", np.array([print] * 7, dtype=object))
    with pytest.raises(RunFileError, match=r"not an npz of plain arrays \(.*allow_pickle"):
        read_descent(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip", "npy"])
def test_a_file_that_is_no_npz_is_refused(path, content):
    if content == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        content = buffer.getvalue()
    path.with_suffix(".npz").write_bytes(content)
    _edit(path, "arrays_sha256", hashlib.sha256(content).hexdigest())
    with pytest.raises(RunFileError, match=r"atlas-3\.npz: not an npz"):
        read_descent(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, r"name: .*pattern"),
        ({"name": "atlas-"}, r"name: .*pattern"),
        ({"name": ""}, r"name: .*pattern"),
        ({"recipe": {"a": float("nan")}}, r"recipe"),
        ({"recipe": {"a": [{"b": {1}}]}}, r"recipe"),
        ({"latitude_deg": float("nan")}, r"latitude_deg"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(record, tmp_path, change, message):
    folder = tmp_path / "out"
    with pytest.raises(RunFileError, match=message):
        write_descent(replace(record, **change), folder)
    assert not folder.exists()


def test_numbers_that_could_not_be_read_again_are_not_written(record, tmp_path):
    velocity_L = record.series.velocity_L.clone()
    velocity_L[3, 0] = torch.nan
    broken = replace(record, series=replace(record.series, velocity_L=velocity_L))
    with pytest.raises(RunFileError, match=r"series_velocity_L: row 3: expected finite"):
        write_descent(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_s_descents_come_by_name_and_number(record, tmp_path):
    for name, seed in (("b", 1), ("a-2", 3), ("a", 10), ("a", 9), ("a", -1)):
        write_descent(replace(record, name=name, seed=seed), tmp_path)
    (tmp_path / "campaign.json").write_text("{}")
    found = [path.name for path in find_descents(tmp_path)]
    assert found == ["a--1.json", "a-9.json", "a-10.json", "a-2-3.json", "b-1.json"]
    assert [(r.name, r.seed) for r in map(read_descent, find_descents(tmp_path))] == [
        ("a", -1), ("a", 9), ("a", 10), ("a-2", 3), ("b", 1),
    ]  # fmt: skip
    assert find_descents(tmp_path / "a-9.json") == [tmp_path / "a-9.json"]
