"""The ground: DEM tiles, synthetic relief, nested heightfields and the one ray caster."""
