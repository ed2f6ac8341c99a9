"""From statistics to verdicts: what failed, since when, on which evidence.

An altimeter that disagrees with the propagated state and the map only says that *something* is
wrong; the camera's fix is the third source. So a consistency alarm on one sensor waits for the
next word of the other: if that one agrees with the state, the first is named; if it disagrees too,
or never comes, the verdict is UNDECIDED. It is also UNDECIDED when the other was in doubt earlier:
the filter may have taken its error in, and then its agreement proves nothing. "Expected but
absent" needs no second witness: it tests the altimeter against its own specification.
"""

import math
from dataclasses import dataclass, replace

from tnav.errors import ConfigError
from tnav.monitor.evidence import Excursion, Witness
from tnav.monitor.statistics import absence_increments, likelihood_threshold, normalised
from tnav.records import (
    AltimeterReading,
    AltimeterSpec,
    FaultKind,
    FaultVerdict,
    Innovation,
    RangePrediction,
)

# A specification that promises every single range would make one miss a proof.
_MAX_DETECTION_PROBABILITY = 0.99

# How long an alarm waits for the other sensor, in intervals of fixes: one may come late.
_WAIT_FIXES = 1.5

_VISION_COMPONENTS = (
    "m east",
    "m north",
    "m up",
    "rad about east",
    "rad about north",
    "rad about up",
)


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """What may go wrong by chance, and what counts as evidence; thresholds follow from it."""

    # One false alarm of any kind in a thousand descents, shared evenly by absence, altimeter
    # and vision.
    false_alarm_probability: float = 1e-3
    descent_s: float = 120.0  # with the altimeter's rate: epochs a descent
    fix_interval_s: float = 4.0  # with descent_s: fixes a descent
    reference: float = 0.5  # k: soonest for a lasting shift of one sigma
    # Samples in a row that it takes at least: 0.3 s of ranges, two fixes.
    altimeter_evidence: int = 3
    vision_evidence: int = 2
    # Window of the noise test: 2 s of ranges; three fixes, the fewest that are a scatter.
    altimeter_window: int = 20
    vision_window: int = 3
    # A failed altimeter may still catch one range in ten.
    faulty_detection_probability: float = 0.1
    # A range is expected where prediction + 3 sigma lies within the specification, and the
    # incidence on the map does with 5 deg to spare for slopes that the map does not resolve.
    range_margin_sigma: float = 3.0
    incidence_margin_deg: float = 5.0
    # A sensor that testifies agrees with the state unless its NIS is rarer than this.
    witness_probability: float = 1e-3

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"monitor.{name}: {getattr(self, name)}, expected > 0")


@dataclass(frozen=True, slots=True)
class StatisticSample:
    """One point of a statistic's history."""

    t_s: float
    name: str
    value: float
    threshold: float


class Monitor:
    """Watches one descent (batch of one) on the host; reading its tensors synchronises."""

    def __init__(self, spec: AltimeterSpec, config: MonitorConfig) -> None:
        self._spec = spec
        self._config = config
        share = config.false_alarm_probability / 3
        epochs = config.descent_s * spec.rate_hz
        promised = min(spec.detection_probability, _MAX_DETECTION_PROBABILITY)
        self._seen, self._missed = absence_increments(promised, config.faulty_detection_probability)
        self._absence = Excursion(likelihood_threshold(epochs, share))
        self._absence_verdict: int | None = None
        self._acquired = False
        self._misses: list[float] = []  # times of the misses of this excursion
        self._altimeter = Witness(
            "altimeter",
            ("m",),
            epochs,
            config.altimeter_evidence,
            config.altimeter_window,
            config.reference,
            share,
            witness_probability=config.witness_probability,
        )
        self._vision = Witness(
            "vision",
            _VISION_COMPONENTS,
            max(1.0, config.descent_s / config.fix_interval_s),
            config.vision_evidence,
            config.vision_window,
            config.reference,
            share,
            witness_probability=config.witness_probability,
        )
        self._sensor_verdict: dict[str, int] = {}  # witness name -> verdict it stands under
        self._doubted: set[str] = set()  # witnesses that a verdict was ever raised on
        self._verdicts: list[FaultVerdict] = []
        self._history: list[StatisticSample] = []

    @property
    def verdicts(self) -> tuple[FaultVerdict, ...]:
        """All alerts so far, in the order in which they were raised; empty means HEALTHY."""
        return tuple(self._verdicts)

    @property
    def history(self) -> tuple[StatisticSample, ...]:
        """Every statistic at every sample that moved it."""
        return tuple(self._history)

    def step(
        self,
        t_s: float,
        prediction: RangePrediction,
        reading: AltimeterReading,
        altimeter_innovation: Innovation | None,
        vision_innovation: Innovation | None,
    ) -> list[FaultVerdict]:
        """Takes one altimeter epoch and, where there was one, the fix of that epoch.

        Returns:
            The verdicts raised by it.
        """
        before = len(self._verdicts)
        valid = bool(reading.valid[0])
        usable = valid and (altimeter_innovation is None or bool(altimeter_innovation.fused[0]))
        self._watch_absence(t_s, prediction, valid, usable)
        for witness, innovation in (
            (self._altimeter, altimeter_innovation),
            (self._vision, vision_innovation),
        ):
            if innovation is not None and bool(innovation.present[0]):
                self._observe(witness, t_s, innovation)
        self._isolate(t_s)
        self._clear(t_s)
        return self._verdicts[before:]

    def _watch_absence(
        self, t_s: float, prediction: RangePrediction, valid: bool, usable: bool
    ) -> None:
        """CUSUM of "expected but absent"; after an alert only usable ranges count as seen."""
        alarmed = self._absence_verdict is not None
        if self._expected(prediction):
            seen = usable if alarmed else valid
            self._absence.add(t_s, self._seen if seen else self._missed)
            self._record(t_s, "expected but absent", self._absence.peak, self._absence.threshold)
            if self._absence.onset_s is None:
                self._misses.clear()
            elif not valid:
                self._misses.append(t_s)
            if self._absence.crossed and not alarmed:
                self._absence_verdict = self._raise_absence(t_s, prediction)
        self._acquired |= usable

    def _expected(self, prediction: RangePrediction) -> bool:
        """The specification promises a range here, whatever the state's error within reason."""
        if not bool(prediction.defined[0]):
            return False
        farthest_m = float(prediction.range_m[0]) + self._config.range_margin_sigma * float(
            prediction.sigma_m[0]
        )
        incidence_deg = math.degrees(float(prediction.incidence_rad[0]))
        return (
            farthest_m < self._spec.range_max_m
            and incidence_deg + self._config.incidence_margin_deg < self._spec.incidence_max_deg
        )

    def _raise_absence(self, t_s: float, prediction: RangePrediction) -> int:
        onset_s = self._absence.onset_s if self._absence.onset_s is not None else t_s
        margin = self._config.range_margin_sigma
        expected_m, sigma_m = float(prediction.range_m[0]), float(prediction.sigma_m[0])
        kind = FaultKind.DROPOUT if self._acquired else FaultKind.LATE_ACQUISITION
        seen = "ranges were seen before" if self._acquired else "no good range so far"
        reason = (
            f"{len(self._misses)} ranges missed in {t_s - onset_s + 1 / self._spec.rate_hz:.1f} s "
            f"although the map predicts {expected_m:.0f} m +- {margin * sigma_m:.0f} m "
            f"({margin:g} sigma), within the {self._spec.range_max_m:.0f} m the altimeter is "
            f"specified for; {seen}"
        )
        return self._add(kind, onset_s, t_s, self._absence.peak, self._absence.threshold, reason)

    def _observe(self, witness: Witness, t_s: float, innovation: Innovation) -> None:
        z = normalised(innovation.value[0], innovation.covariance[0]).tolist()
        witness.observe(t_s, innovation.value[0].tolist(), z, float(innovation.nis[0]))
        worst = witness.worst
        self._record(t_s, f"{witness.name} CUSUM", worst.peak, worst.threshold)
        self._record(t_s, f"{witness.name} NIS window", witness.nis_sum, witness.nis_threshold)

    def _isolate(self, t_s: float) -> None:
        """Names a culprit for every crossing that the other sensor has spoken on."""
        for own, other, kind in (
            (self._altimeter, self._vision, FaultKind.ALTIMETER_INCONSISTENT),
            (self._vision, self._altimeter, FaultKind.VISION_INCONSISTENT),
        ):
            crossing = own.crossing
            if crossing is None or own.name in self._sensor_verdict:
                continue
            agrees = other.agrees_since(crossing.t_s)
            if other.crossing is not None:
                kind, words = FaultKind.UNDECIDED, other.crossing.words
            elif other.name in self._doubted:
                kind, words = FaultKind.UNDECIDED, f"{other.name} was itself in doubt before"
            elif agrees is not None:
                kind = kind if agrees else FaultKind.UNDECIDED
                verb = "agrees" if agrees else "disagrees too"
                words = f"{other.name} {verb} (NIS {other.last_nis:.1f} at {other.last_s:.1f} s)"
            elif t_s - crossing.t_s > _WAIT_FIXES * self._config.fix_interval_s:
                kind, words = FaultKind.UNDECIDED, f"no word of {other.name} since"
            else:
                continue
            index = self._add(
                kind,
                crossing.onset_s,
                t_s,
                crossing.statistic,
                crossing.threshold,
                f"{crossing.words}; {words}",
            )
            self._sensor_verdict[own.name] = index
            self._doubted.add(own.name)
            if other.crossing is not None:
                self._sensor_verdict.setdefault(other.name, index)

    def _clear(self, t_s: float) -> None:
        """Ends verdicts whose evidence has ended."""
        if self._absence_verdict is not None and self._absence.level == 0.0:
            self._end(self._absence_verdict, t_s)
            self._absence_verdict = None
        for witness in (self._altimeter, self._vision):
            if witness.crossing is not None and witness.over:
                witness.restart()
                index = self._sensor_verdict.pop(witness.name, None)
                if index is not None and index not in self._sensor_verdict.values():
                    self._end(index, t_s)

    def _end(self, index: int, t_s: float) -> None:
        self._verdicts[index] = replace(self._verdicts[index], cleared_s=t_s)

    def _add(
        self,
        kind: FaultKind,
        onset_s: float,
        alert_s: float,
        statistic: float,
        threshold: float,
        reason: str,
    ) -> int:
        self._verdicts.append(
            FaultVerdict(kind, onset_s, alert_s, None, statistic, threshold, reason)
        )
        return len(self._verdicts) - 1

    def _record(self, t_s: float, name: str, value: float, threshold: float) -> None:
        self._history.append(StatisticSample(t_s, name, value, threshold))
