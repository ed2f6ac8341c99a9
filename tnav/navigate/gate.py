"""The gated update, the same for every sensor.

**Alone, a sensor is never locked out for ever**, unless that is what is being compared. A
measurement is rejected when its normalised innovation squared is less likely than
``1 - gate_probability``. This blames the sensor; a run of them says as loudly that the *state* is
wrong (Hakuto-R M1 discarded a healthy altimeter until it fell from 5 km). So after a sensor's
patience the next one is taken: the covariance is first widened along the observed discrepancy r by
``r r^T``, the least rank-one widening under which it is plausible (its NIS falls to nis / (1 + nis)
< 1), and then the update is the ordinary one. An altimeter that contradicts vision is not alone
against the state: while fixes pass their own gate it stays out, two sources against one, and is the
monitor's to name. The innovation that is reported stays the one before widening, so that a monitor
sees what happened.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.navigate.state import SENSORS, FilterConfig, FilterState, GatePolicy, corrected
from tnav.records import Innovation, Sensor

_ALTIMETER = SENSORS.index(Sensor.ALTIMETER)


def fuse(
    state: FilterState,
    sensor: Sensor,
    residual: Float64[Tensor, "b m"],
    H: Float64[Tensor, "b m 32"],
    noise: Float64[Tensor, "b m m"],
    present: Bool[Tensor, " b"],
    widening: Float64[Tensor, "b 32 k"],
    config: FilterConfig,
    considered: tuple[int, ...] = (),
) -> tuple[FilterState, Innovation]:
    """Gated Joseph update.

    Args:
        residual: measurement minus prediction; may be anything where not present.
        H: its Jacobian by the error state.
        noise: covariance of the measurement.
        present: where there is one.
        widening: W adds W W^T to the covariance where patience is out.
        considered: states that count in the innovation's covariance and are not corrected
            (Schmidt 1966; Joseph's form holds for any gain).
    """
    m, column = residual.shape[-1], SENSORS.index(sensor)
    there = present[:, None, None]
    eye = torch.eye(m, dtype=residual.dtype, device=residual.device)
    residual = torch.where(present[:, None], residual, 0.0)[..., None]
    noise = torch.where(there, noise, eye)
    P = state.covariance
    PHt = P @ H.mT
    S = H @ PHt + noise
    nis = (residual * torch.cholesky_solve(residual, torch.linalg.cholesky_ex(S).L)).flatten(1)
    nis = nis.sum(-1)
    run = state.rejected_run[:, column]
    passes = _passes(sensor, nis, m, config)
    forced = present & ~passes & (run >= config.patience(sensor)) & nis.isfinite()
    fused = (present & passes) | forced

    if not _taken_as_it_is(sensor, config):
        W = torch.where(forced[:, None, None], widening, 0.0)
        P, HW = P + W @ W.mT, H @ W
        PHt, S_wide = PHt + W @ HW.mT, S + HW @ HW.mT
    else:
        S_wide = S
    gain = torch.cholesky_solve(PHt.mT, torch.linalg.cholesky_ex(S_wide).L).mT
    gain = torch.where(fused[:, None, None], gain, 0.0)
    if considered:
        gain[:, list(considered)] = 0.0
    # Joseph's form, (1 - K H) P (1 - K H)^T + K R K^T, one factor at a time: m is 1 to 7, not 32.
    P = P - gain @ (H @ P)
    P = P - (P @ H.mT) @ gain.mT + gain @ noise @ gain.mT
    runs = state.rejected_run.clone()
    runs[:, column] = torch.where(present, torch.where(fused, 0.0, run + 1), run)
    if sensor is Sensor.VISION and config.altimeter_gate is GatePolicy.TERRAIN_AWARE:
        # A fix that passes its own gate vouches for the state: against two sources that agree the
        # altimeter alone must not win, so its count starts anew.
        doubted = runs[:, _ALTIMETER]
        runs[:, _ALTIMETER] = torch.where(present & passes, 0.0, doubted)
    after = corrected(state, (gain @ residual).squeeze(-1), 0.5 * (P + P.mT), runs)
    innovation = Innovation(
        t_s=state.t_s,
        sensor=sensor,
        value=torch.where(present[:, None], residual.squeeze(-1), torch.nan),
        covariance=torch.where(there, S, torch.nan),
        nis=torch.where(present, nis, torch.nan),
        present=present,
        fused=fused,
    )
    return after, innovation


def _passes(
    sensor: Sensor, nis: Float64[Tensor, " b"], dof: int, config: FilterConfig
) -> Bool[Tensor, " b"]:
    if sensor is Sensor.ALTIMETER and config.altimeter_gate is GatePolicy.NONE:
        return nis.isfinite()
    chance = torch.special.gammaincc(torch.full_like(nis, dof / 2), nis / 2)
    return chance >= 1 - config.gate_probability


def _taken_as_it_is(sensor: Sensor, config: FilterConfig) -> bool:
    return sensor is Sensor.ALTIMETER and config.altimeter_gate is GatePolicy.TIMEOUT
