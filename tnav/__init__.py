"""Terrain-relative navigation for lunar landing: render, match, solve, fuse, monitor, score."""

__version__ = "0.1.0"
