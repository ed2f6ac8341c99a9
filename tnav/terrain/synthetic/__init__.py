"""SYNTHETIC ground below the DEM's resolution, within published statistics of lunar mare."""

from tnav.terrain.synthetic.recipe import Relief, Resolution
from tnav.terrain.synthetic.relief import relief_m

__all__ = ["Relief", "Resolution", "relief_m"]
