"""Matching of a view rendered from the map with a camera image, dense and coarse to fine."""
