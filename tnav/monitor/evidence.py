"""Running evidence of one descent, on the host: what has accumulated against whom, since when."""

from collections import deque
from dataclasses import dataclass, field

from tnav.monitor.statistics import chi_square_quantile, cusum_threshold


@dataclass(slots=True)
class Excursion:
    """One CUSUM. Its level is capped at the threshold, so that it can fall when a fault ends."""

    threshold: float
    level: float = 0.0
    onset_s: float | None = None  # first sample of the excursion from zero
    peak: float = 0.0  # level before the cap, at the last sample

    def add(self, t_s: float, increment: float) -> None:
        """Takes one sample."""
        self.peak = max(0.0, self.level + increment)
        if self.peak == 0.0:
            self.onset_s = None
        elif self.onset_s is None:
            self.onset_s = t_s
        self.level = min(self.peak, self.threshold)

    @property
    def crossed(self) -> bool:
        """At or over its threshold."""
        return self.level >= self.threshold


@dataclass(slots=True)
class Crossing:
    """Which statistic crossed, and with what."""

    t_s: float
    onset_s: float
    statistic: float
    threshold: float
    words: str


@dataclass(slots=True)
class Witness:
    """Evidence that one sensor disagrees with the state: marginal CUSUMs and a window of NIS.

    One sample can contribute no more than ``threshold / (evidence - 1/2)`` (for the window: of what
    the threshold leaves over the other samples' mean), so that fewer than ``evidence`` samples do
    not alarm, however wild: a spike is the gate's business. The limit only lowers the false-alarm
    rate. Half of the rate goes to the CUSUMs (shared evenly by the components), half to the window.
    """

    name: str
    components: tuple[str, ...]
    samples: float  # per descent
    evidence: int
    window: int
    reference: float
    false_alarm_probability: float
    high: list[Excursion] = field(init=False)
    low: list[Excursion] = field(init=False)
    nis_threshold: float = field(init=False)
    nis_limit: float = field(init=False)
    z_limit: float = field(init=False)
    recent: deque[tuple[float, float]] = field(init=False)  # (t_s, limited NIS)
    last_s: float | None = None
    last_nis: float = 0.0
    agreeing: int = 0  # samples in a row
    agrees_below: float = field(init=False)  # NIS
    crossing: Crossing | None = None
    witness_probability: float = 1e-3

    def __post_init__(self) -> None:
        degrees = len(self.components)
        share = self.false_alarm_probability / 2
        h = cusum_threshold(self.reference, self.samples, share / degrees)
        self.high = [Excursion(h) for _ in self.components]
        self.low = [Excursion(h) for _ in self.components]
        self.z_limit = self.reference + h / (self.evidence - 0.5)
        self.nis_threshold = chi_square_quantile(share / self.samples, degrees * self.window)
        others = degrees * (self.window - self.evidence)
        self.nis_limit = (self.nis_threshold - others) / (self.evidence - 0.5)
        self.recent = deque(maxlen=self.window)
        self.agrees_below = chi_square_quantile(self.witness_probability, degrees)

    @property
    def worst(self) -> Excursion:
        """The largest of the CUSUMs."""
        return max(self.high + self.low, key=lambda e: e.peak)

    @property
    def nis_sum(self) -> float:
        """Sum of the limited NIS over the window."""
        return sum(nis for _, nis in self.recent)

    def observe(self, t_s: float, value: list[float], z: list[float], nis: float) -> None:
        """Takes one innovation: its components, the same by their sigma, and its NIS."""
        self.last_s, self.last_nis = t_s, nis
        self.agreeing = self.agreeing + 1 if nis < self.agrees_below else 0
        for high, low, z_i in zip(self.high, self.low, z, strict=True):
            limited = min(max(z_i, -self.z_limit), self.z_limit)
            high.add(t_s, limited - self.reference)
            low.add(t_s, -limited - self.reference)
        self.recent.append((t_s, min(nis, self.nis_limit)))
        if self.crossing is None:
            self.crossing = self._crossing(t_s, value, z)

    def _crossing(self, t_s: float, value: list[float], z: list[float]) -> Crossing | None:
        worst = self.worst
        if worst.crossed and worst.onset_s is not None:
            index = next(
                i
                for i, pair in enumerate(zip(self.high, self.low, strict=True))
                if any(e is worst for e in pair)
            )
            words = (
                f"{self.name} off the state by {value[index]:+.4g} {self.components[index]} "
                f"({z[index]:+.1f} sigma), CUSUM {worst.peak:.1f} against {worst.threshold:.1f}"
            )
            return Crossing(t_s, worst.onset_s, worst.peak, worst.threshold, words)
        if self.nis_sum >= self.nis_threshold and len(self.recent) == self.window:
            # A window has no zero to start from: its first unlikely sample stands for the onset.
            unlikely = [at for at, nis in self.recent if nis > self.agrees_below]
            words = (
                f"{self.name} scatters: NIS over {self.window} samples {self.nis_sum:.1f} against "
                f"{self.nis_threshold:.1f}"
            )
            onset_s = unlikely[0] if unlikely else self.recent[0][0]
            return Crossing(t_s, onset_s, self.nis_sum, self.nis_threshold, words)
        return None

    @property
    def over(self) -> bool:
        """A whole window of samples in a row agreed with the state, and every CUSUM is falling."""
        return self.agreeing >= self.window and not self.worst.crossed

    def restart(self) -> None:
        """Forgets the evidence, as one does after an alarm has ended."""
        self.crossing = None
        for excursion in self.high + self.low:
            excursion.level, excursion.peak, excursion.onset_s = 0.0, 0.0, None
        self.recent.clear()

    def agrees_since(self, t_s: float) -> bool | None:
        """Whether its last sample at or after ``t_s`` agreed with the state; None without one."""
        if self.last_s is None or self.last_s < t_s:
            return None
        return self.last_nis < self.agrees_below
