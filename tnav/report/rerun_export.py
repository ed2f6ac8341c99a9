"""Descent records as one recording for the Rerun viewer (``.rrd``), written without a viewer.

In ``world`` the true and the estimated flight, with body axes and the ellipsoid of 3 sigma an axis;
beside it, on the time line ``flight``, height over the ground, speed downwards, errors between
their 3-sigma bounds, NIS of each sensor, thrust, propellant and phase. Every descent is a branch of
each. The viewer holds places as float32: 4 mm at 50 km from the site.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.descent_record import FILTER_STATES, DescentRecord, InnovationSeries
from tnav.files import written_aside
from tnav.geometry.moon import up_L

TIMELINE = "flight"
_AXES_M = 200.0  # length of the drawn body axes
_BOUND = 3.0  # sigmas, each axis of L by itself: the record has no correlations
_TRUTH, _NAVIGATION, _BOUNDS = (60, 170, 90), (60, 120, 220), (150, 150, 150)
_PLOTS = ("agl_m", "speed_down_m_s", "position_error_m", "velocity_error_m_s", "nis")
_ENGINE = ("thrust_n", "propellant_kg", "phase")
_AXES = ("east", "north", "up")

Numbers = NDArray[np.float64]


def write_rerun(path: Path, records: Iterable[DescentRecord]) -> int:
    """Write descents into one ``.rrd``; it takes its name when all went well.

    Args:
        path: the file, replaced if there.
        records: read one after the other.

    Returns:
        How many descents it holds.

    Raises:
        ConfigError: rerun-sdk is not installed or is switched off, or the name does not end in
            ``.rrd``, by which the viewer knows its files.
    """
    rr, blueprint = _required("rerun"), _required("rerun.blueprint")
    if path.suffix != ".rrd":
        raise ConfigError(f"{path}: found '{path.suffix}', expected a file name that ends in .rrd")
    stream = rr.RecordingStream("tnav")  # neither default nor connected: it only meets its file
    if not stream.is_enabled():
        raise ConfigError("RERUN: the environment switches recording off; unset it")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with written_aside(path) as aside:
        stream.save(aside, default_blueprint=_layout(blueprint))
        try:
            world = rr.ViewCoordinates.RIGHT_HAND_Z_UP
            stream.log("world", world, static=True, strict=True)
            for record in records:
                _Descent(rr, stream, record).log()
                count += 1
        finally:
            stream.disconnect()  # waits until all is in the file
    return count


class _Descent:
    """One descent on its way into a recording."""

    def __init__(self, rr: Any, stream: Any, record: DescentRecord) -> None:
        self._rr, self._stream, self._record = rr, stream, record
        self._label = f"{record.name}-{record.seed}"
        self._branch = rr.escape_entity_path_part(self._label)
        self._t_s = _array(record.series.t_s)

    def log(self) -> None:
        s = self._record.series
        self._flight("truth", s.position_L, s.R_L_B, _TRUTH)
        self._flight("navigation", s.position_nav_L, s.R_nav_L_B, _NAVIGATION)
        self._bound()
        self._pair("agl_m", _array(s.agl_m), _array(s.agl_nav_m))
        self._pair(
            "speed_down_m_s",
            _array(_speed_down_m_s(s.position_L, s.velocity_L)),
            _array(_speed_down_m_s(s.position_nav_L, s.velocity_nav_L)),
        )
        self._errors("position", "m", s.position_nav_L - s.position_L)
        self._errors("velocity", "m_s", s.velocity_nav_L - s.velocity_L)
        for innovations in self._record.innovations:
            self._nis(innovations)
        for name in _ENGINE:
            values = getattr(s, name).to(torch.float64)
            self._scalars(f"{name}/{self._branch}", self._t_s, _array(values))
        self._touchdown()

    def _flight(self, whose: str, position_L: Tensor, R_L_B: Tensor, color: object) -> None:
        rr, where = self._rr, f"world/{self._branch}/{whose}"
        places = _array(position_L)
        line = rr.LineStrips3D([places], colors=[color], labels=[f"{self._label} {whose}"])
        self._stream.log(f"{where}/path", line, static=True, strict=True)
        axes = rr.TransformAxes3D(_AXES_M)
        self._stream.log(f"{where}/body", axes, static=True, strict=True)
        poses = rr.Transform3D.columns(translation=places, mat3x3=_array(R_L_B))
        self._columns(f"{where}/body", self._t_s, poses)

    def _bound(self) -> None:
        rr, s = self._rr, self._record.series
        where = f"world/{self._branch}/navigation/bound"
        style = rr.Ellipsoids3D.from_fields(colors=[_NAVIGATION])
        self._stream.log(where, style, static=True, strict=True)
        bound = rr.Ellipsoids3D.columns(
            centers=_array(s.position_nav_L), half_sizes=_BOUND * _array(s.sigma[:, :3])
        )
        self._columns(where, self._t_s, bound)

    def _pair(self, plot: str, truth: Numbers, navigation: Numbers) -> None:
        for whose, values, color in (
            ("truth", truth, _TRUTH),
            ("navigation", navigation, _NAVIGATION),
        ):
            self._scalars(f"{plot}/{self._branch}/{whose}", self._t_s, values, color)

    def _errors(self, what: str, unit: str, error_L: Tensor) -> None:
        """Estimate minus truth along L's axes, between plus and minus 3 sigma."""
        sigma = self._record.series.sigma
        for axis, name in enumerate(_AXES):
            bound = _BOUND * _array(sigma[:, FILTER_STATES.index(f"{what}_{name}")])
            where = f"{what}_error_{unit}/{self._branch}/{name}"
            self._scalars(f"{where}/error", self._t_s, _array(error_L[:, axis]), _NAVIGATION)
            self._scalars(f"{where}/upper", self._t_s, bound, _BOUNDS)
            self._scalars(f"{where}/lower", self._t_s, -bound, _BOUNDS)

    def _nis(self, innovations: InnovationSeries) -> None:
        """NIS where a measurement is present; those that were not fused once more, as points."""
        where = f"nis/{self._branch}/{innovations.sensor.value}"
        here, fused = _array(innovations.present), _array(innovations.fused)
        t_s, nis = _array(innovations.t_s), _array(innovations.nis)
        self._scalars(where, t_s[here], nis[here])
        refused = here & ~fused
        if refused.any():
            points = self._rr.SeriesPoints(colors=[(220, 60, 50)], markers="cross")
            self._stream.log(f"{where}/refused", points, static=True, strict=True)
            self._send(f"{where}/refused", t_s[refused], nis[refused])

    def _touchdown(self) -> None:
        end = self._record.touchdown
        if end is None:
            return
        text = (
            f"{self._label}: {end.outcome} at {end.speed_down_m_s:.2f} m/s down, "
            f"{end.speed_horizontal_m_s:.2f} m/s sideways, {end.miss_m:.1f} m from the target, "
            f"{end.propellant_kg:.1f} kg left; height over ground off by {end.agl_error_m:.2f} m"
        )
        level = "INFO" if end.outcome == "landed" else "WARN"
        columns = self._rr.TextLog.columns(text=[text], level=[level])
        self._columns(f"touchdown/{self._branch}", np.array([end.t_s]), columns)

    def _scalars(self, where: str, t_s: Numbers, values: Numbers, color: object = None) -> None:
        """A line; missing (NaN) values are left out."""
        if color is not None:
            style = self._rr.SeriesLines(colors=[color])
            self._stream.log(where, style, static=True, strict=True)
        there = np.isfinite(values)
        self._send(where, t_s[there], values[there])

    def _send(self, where: str, t_s: Numbers, values: Numbers) -> None:
        if values.size:
            self._columns(where, t_s, self._rr.Scalars.columns(scalars=values))

    def _columns(self, where: str, t_s: Numbers, columns: Any) -> None:
        times = self._rr.TimeColumn(TIMELINE, duration=t_s)
        self._stream.send_columns(where, [times], columns, strict=True)


def _layout(blueprint: Any) -> Any:
    """Space at the left, plots over one time at the right, the touchdowns below."""
    plots, engine = (
        [blueprint.TimeSeriesView(origin=f"/{name}", name=name) for name in names]
        for names in (_PLOTS, _ENGINE)
    )
    return blueprint.Blueprint(
        blueprint.Horizontal(
            blueprint.Vertical(
                blueprint.Spatial3DView(origin="/world", name="world"),
                blueprint.TextLogView(origin="/touchdown", name="touchdown"),
                row_shares=[4, 1],
            ),
            blueprint.Vertical(*plots, blueprint.Tabs(*engine)),
        ),
        collapse_panels=True,
    )


def _speed_down_m_s(position_L: Tensor, velocity_L: Tensor) -> Tensor:
    return -(velocity_L * up_L(position_L)).sum(-1)


def _array(values: Tensor) -> Any:
    return values.cpu().numpy()


def _required(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            "rerun-sdk: not installed, expected for .rrd files; pip install 'tnav[viz]'"
        ) from error
