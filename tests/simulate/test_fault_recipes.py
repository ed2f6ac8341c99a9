"""The fault catalogue: what it takes, what it refuses, and how its numbers are drawn."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnav.config import Recipe, load_recipe
from tnav.errors import ConfigError
from tnav.simulate.fault_spans import Span, draw, reach
from tnav.simulate.faults import Fault, SingleFault

KINDS = [
    get_args(model.model_fields["kind"].annotation)[0]
    for model in get_args(get_args(SingleFault)[0])
]


class Plan(Recipe):
    faults: tuple[Fault, ...] = ()


def load(text: str, tmp_path) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_recipe(path, Plan)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Recipes ------------------------------------------------------------------------------------------


def test_the_catalogue_is_whole() -> None:
    asked = """dropout late_acquisition permanent_outage not_fused step_terrain step_sensor bias
    scale drift stuck spike noise_inflation latency tilt_coupled velocity_coupled imu_saturation
    imu_dropout false_lock spurious_event map_fault camera_fault thrust_bias"""
    assert sorted(KINDS) == sorted(asked.split())


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_whole_by_its_kind_and_its_defaults_pass_its_own_checks(kind, tmp_path):
    fault = load(f"faults: [{{kind: {kind}}}]", tmp_path).faults[0]
    assert fault.kind == kind
    again = type(fault).model_validate(fault.model_dump(exclude_defaults=True) | {"kind": kind})
    assert again == fault
    for field, value in fault:  # each default, given by hand
        checked = type(fault).model_validate({"kind": kind, field: value})
        assert getattr(checked, field) == value


def test_numbers_are_fixed_or_drawn(tmp_path) -> None:
    text = """
faults:
  - kind: bias
    begins: {at_s: {low: 10, high: 20}}
    lasts_s: {low: 1, high: 100, log: true}
    bias_m: {low: 5, high: 500, log: true, either_sign: true}
  - kind: bias
    begins: {below_agl_m: 1500}
    bias_m: -300
"""
    drawn, fixed = load(text, tmp_path).faults
    assert drawn.begins.at_s == Span(low=10.0, high=20.0)
    assert drawn.bias_m == Span(low=5.0, high=500.0, log=True, either_sign=True)
    assert (fixed.begins.below_agl_m, fixed.lasts_s, fixed.bias_m) == (1500.0, None, -300.0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("bias, bias_m: {low: 5, high: 3}", "range from 5 to 3: expected low <= high"),
        (
            "bias, bias_m: {low: 0, high: 3, log: true}",
            "range from 0 to 3 with log: expected low >",
        ),
        (
            "bias, bias_m: {low: -1, high: 3, either_sign: true}",
            "range from -1 to 3 with either_sign: expected low >= 0",
        ),
        ("bias, bias_m: much", "bias_m.number: input should be a valid number"),
        ("bias, bias_m: [1, 2]", "input should be a valid number, found [1, 2]"),
        ("bias, bias_m: {low: 5}", "bias_m.range.high: field required"),
        ("bias, bias_m: {low: 1, high: .nan}", "input should be a finite number"),
        ("bias, begins: {}", "expected one of below_agl_m and at_s, found neither"),
        (
            "bias, begins: {at_s: 5, below_agl_m: 100}",
            "expected one of below_agl_m and at_s, found both",
        ),
        ("bias, begins: {at_s: -1}", "expected >= 0, found -1"),
        ("bias, lasts_s: {low: 0, high: 5}", "expected > 0, found 0 to 5"),
        ("dropout, lost_share: 1.1", "expected a share from 0 to 1, found 1.1"),
        ("spike, share: {low: 0.1, high: 0.2, either_sign: true}", "found -0.2 to 0.2"),
        ("noise_inflation, factor: 0.5", "expected a factor >= 1, found 0.5"),
        ("scale, scale: 2", "expected a fraction from -0.5 to 0.5, found 2"),
        ("permanent_outage, lasts_s: 5", "lasts_s: input should be None, found 5"),
        ("imu_saturation, lasts_s: null", "lasts_s.number: input should be a valid number"),
        ("late_acquisition, range_max_m: 893, link_loss_db: 6", "one of range_max_m and link_loss"),
        ("compound, faults: [{kind: bias}]", "should have at least 2 items"),
        (
            "compound, gap_s: 31, faults: [{kind: bias}, {kind: spike}]",
            "expected 0 to 30 s, found 31",
        ),
        (
            "compound, faults: [{kind: bias}, {kind: spike, begins: {at_s: 1}}]",
            "begins of 'spike': it begins gap_s after the first fault",
        ),
        ("bias, bias_n: 5", "bias_n: unknown key"),
        ("biass", "tag 'biass' found using 'kind' does not match any of the expected tags"),
    ],
)
def test_impossible_faults_are_refused_in_one_line(fault: str, words: str, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.yaml:2: faults\.0") as caught:
        load(f"faults:\n  - {{kind: {fault}}}", tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("found") <= 1 + words.count("tag")


def test_bounds_themselves_are_possible(tmp_path) -> None:
    text = """
faults:
  - {kind: dropout, lost_share: {low: 0, high: 1}, begins: {at_s: 0}}
  - {kind: noise_inflation, factor: 1}
  - {kind: compound, gap_s: 30, faults: [{kind: bias}, {kind: spike}]}
  - {kind: bias, bias_m: {low: 3, high: 3}}
"""
    assert len(load(text, tmp_path).faults) == 4


# Draws --------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.floats(1e-3, 1e4), st.floats(1.0, 1e3), st.booleans(), st.booleans(), st.integers(0, 2**31)
)
def test_drawn_numbers_lie_in_their_range(low, factor, log, either_sign, seed) -> None:
    span = Span(low=low, high=low * factor, log=log, either_sign=either_sign)
    value = draw(span, 64, seeded(seed), seeded(seed + 1))
    assert float(value.abs().min()) >= span.low
    assert float(value.abs().max()) <= span.high
    assert reach(span) == (-span.high if either_sign else span.low, span.high)
    if not either_sign:
        assert bool((value > 0).all())


@pytest.mark.parametrize("log", [False, True])
def test_quantiles_are_those_of_the_distribution(log: bool) -> None:
    """The empirical distribution stays within Kolmogorov's bound, 1.95 / sqrt(n) at 0.1 %."""
    n, span = 4000, Span(low=5.0, high=500.0, log=log)
    value = draw(span, n, seeded(3), seeded(4)).sort().values
    u = (value / 5).log() / math.log(100) if log else (value - 5) / 495
    rank = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert float((u - rank).abs().max()) < 1.95 / math.sqrt(n)
    assert float(value.median()) == pytest.approx(50.0 if log else 252.5, rel=0.1)


def test_either_sign_is_as_often_negative_as_positive() -> None:
    n, span = 4000, Span(low=1.0, high=2.0, either_sign=True)
    negative = (draw(span, n, seeded(1), seeded(2)) < 0).double().mean()
    assert float(negative) == pytest.approx(0.5, abs=3.3 * 0.5 / math.sqrt(n))
    unsigned = draw(Span(low=1.0, high=2.0), n, seeded(1), seeded(2))
    torch.testing.assert_close(draw(span, n, seeded(1), seeded(2)).abs(), unsigned)


def test_a_fixed_number_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    assert draw(7.5, 3, generator, generator).tolist() == [7.5] * 3
    assert torch.equal(generator.get_state(), before)
