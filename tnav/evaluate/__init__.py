"""Wires the stages: scenario to run, run to metrics. The only place that sees all."""
