"""Poses, cameras, Moon frames and the Sun. Nothing here knows terrain, images or time series."""
