"""Wires the stages: a scenario becomes a run, a run becomes metrics. The only place that sees all."""
