"""Embree on a heightfield's triangles: what the ray caster is measured against."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnav.terrain.heightfield import Level


class Embree:
    """The same posts as triangles in Embree, through embreex: single rays, one thread."""

    def __init__(self, level: Level) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        vertices, triangles = _triangles(level)
        resident = resident_bytes()
        began = time.process_time()
        self.scene = EmbreeScene()
        self.mesh = TriangleMesh(self.scene, vertices, triangles)
        self.distances(np.zeros((1, 3)), np.array([[0.0, 0.0, -1.0]]))  # the first query builds
        self.build_s = time.process_time() - began
        self.added_bytes = resident_bytes() - resident

    def distances(self, origin: NDArray[Any], direction: NDArray[Any]) -> NDArray[Any]:
        """Where rays hit."""
        return self.scene.run(
            origin.astype(np.float32), direction.astype(np.float32), query="DISTANCE"
        )

    def blocked(self, origin: NDArray[Any], direction: NDArray[Any]) -> NDArray[Any]:
        """Whether rays hit anything."""
        return self.scene.run(
            origin.astype(np.float32), direction.astype(np.float32), query="OCCLUDED"
        )


def _triangles(level: Level) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    rows, cols = level.z_L.shape
    vertices = np.empty((rows * cols, 3), np.float32)
    vertices[:, 0] = np.tile(level.west_m + level.post_m * np.arange(cols), rows)
    vertices[:, 1] = np.repeat(level.south_m + level.post_m * np.arange(rows), cols)
    vertices[:, 2] = level.z_L.numpy().ravel()
    posts = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    south_west, south_east = posts[:-1, :-1].ravel(), posts[:-1, 1:].ravel()
    north_west, north_east = posts[1:, :-1].ravel(), posts[1:, 1:].ravel()
    triangles = np.empty((2 * len(south_west), 3), np.int32)
    for k, corner in enumerate((south_west, south_east, north_west)):
        triangles[0::2, k] = corner
    for k, corner in enumerate((south_east, north_east, north_west)):
        triangles[1::2, k] = corner
    return vertices, triangles


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """The most that it ever was; getrusage would count the parent's too, up to the fork."""
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)
