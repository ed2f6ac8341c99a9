"""Rasters of the Moon in the formats that products come in, from closed forms and seeds."""

import numpy as np
import rasterio
from rasterio.transform import Affine

RADIUS_M = 1737400.0
DEGREE_M = np.pi / 180 * RADIUS_M
MOON = "IAU_2015:30100"
NORTH_POLE = "+proj=stere +lat_0=90 +lon_0=0 +k=1 +R=1737400 +units=m +no_defs"


def relief_m(latitude, longitude):
    """A surface that is smooth everywhere, the poles too: what every made raster samples."""
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    return 800 * np.sin(3 * lon) * np.cos(lat) ** 3 + 600 * np.sin(lat) ** 3 - 500.0


def write_tiff(path, values, *, crs=MOON, west=-5.0, north=62.0, step=0.05, **more):
    """A GeoTIFF; ``scale``, ``offset`` and ``units`` are band tags."""
    tags = {key: more.pop(key, None) for key in ("scale", "offset", "units")}
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": values.dtype.name,
        "height": values.shape[0],
        "width": values.shape[1],
        "transform": Affine(step, 0.0, west, 0.0, -step, north),
        "crs": crs,
    }
    with rasterio.open(path, "w", **{**profile, **more}) as raster:
        raster.write(values, 1)
        if tags["scale"] is not None:
            raster.scales = (tags["scale"],)
        if tags["offset"] is not None:
            raster.offsets = (tags["offset"],)
        if tags["units"] is not None:
            raster.units = (tags["units"],)
    return path


def cylinder(rows, columns, *, west=-5.0, north=62.0, step=0.05):
    """Relief at the posts of a raster in latitude and longitude."""
    lat = north - step * (np.arange(rows) + 0.5)
    lon = west + step * (np.arange(columns) + 0.5)
    return relief_m(lat[:, None], lon[None, :])


def polar(size, step_m):
    """Relief at the posts of a north polar stereographic raster, closed form (Snyder 1987, 21)."""
    axis = (np.arange(size) + 0.5 - size / 2) * step_m
    x, y = np.meshgrid(axis, -axis)
    latitude = 90 - 2 * np.rad2deg(np.arctan(np.hypot(x, y) / (2 * RADIUS_M)))
    return relief_m(latitude, np.rad2deg(np.arctan2(x, -y)))


_LABEL = """PDS_VERSION_ID            = "PDS3"
RECORD_TYPE               = FIXED_LENGTH
RECORD_BYTES              = {record}
FILE_RECORDS              = {lines}
^IMAGE                    = "{image}"
TARGET_NAME               = MOON
OBJECT                    = IMAGE
  NAME                    = HEIGHT
  LINES                   = {lines}
  LINE_SAMPLES            = {samples}
  SAMPLE_TYPE             = {kind}
  SAMPLE_BITS             = {bits}
  UNIT                    = {unit}
  SCALING_FACTOR          = {scale}
  OFFSET                  = {offset}
END_OBJECT                = IMAGE
OBJECT                    = IMAGE_MAP_PROJECTION
  MAP_PROJECTION_TYPE     = "{projection}"
  A_AXIS_RADIUS           = 1737.4 <km>
  B_AXIS_RADIUS           = 1737.4 <km>
  C_AXIS_RADIUS           = 1737.4 <km>
  POSITIVE_LONGITUDE_DIRECTION = "EAST"
  CENTER_LATITUDE         = {center_latitude} <deg>
  CENTER_LONGITUDE        = {center_longitude} <deg>
  MAP_PROJECTION_ROTATION = 0.0
  MAP_RESOLUTION          = {resolution} <pix/deg>
  MAP_SCALE               = {map_scale}
  LINE_PROJECTION_OFFSET  = {line_offset}
  SAMPLE_PROJECTION_OFFSET = {sample_offset}
  COORDINATE_SYSTEM_NAME  = "MEAN EARTH/POLAR AXIS OF DE421"
END_OBJECT                = IMAGE_MAP_PROJECTION
END
"""


def _write_pds(folder, stem, stored, label):
    folder.mkdir(parents=True, exist_ok=True)
    stored.tofile(folder / f"{stem}.IMG")
    sizes = {"lines": stored.shape[0], "samples": stored.shape[1]}
    text = _LABEL.format(
        image=f"{stem}.IMG", record=stored.shape[1] * stored.itemsize, **sizes, **label
    )
    (folder / f"{stem}.LBL").write_bytes(text.replace("\n", "\r\n").encode("ascii"))
    return folder / f"{stem}.LBL"


def write_ldem(folder, stem="LDEM_2", per_degree=2):
    """A global LOLA GDR: int16 half metres, radius by its label, MAP_SCALE rounded to 4 digits."""
    rows, columns = 180 * per_degree, 360 * per_degree
    height = cylinder(rows, columns, west=0.0, north=90.0, step=1 / per_degree)
    label = {
        "kind": "LSB_INTEGER",
        "bits": 16,
        "unit": "METER",
        "scale": 0.5,
        "offset": "1737400.",
        "projection": "SIMPLE CYLINDRICAL",
        "center_latitude": 0,
        "center_longitude": 180,
        "resolution": per_degree,
        "map_scale": f"{DEGREE_M / per_degree / 1e3:.2f} <km/pix>",
        "line_offset": rows / 2 - 0.5,
        "sample_offset": columns / 2 - 0.5,
    }
    return _write_pds(folder, stem, np.rint(2 * height).astype("<i2"), label)


def write_polar_float(folder, stem="LDEM_80N_FLOAT", size=200, step_m=3000.0):
    """A north polar LOLA GDR: float32 kilometres, radius by its label, meant exact in metres."""
    label = {
        "kind": "PC_REAL",
        "bits": 32,
        "unit": "KILOMETER",
        "scale": 1.0,
        "offset": 1737.4,
        "projection": "POLAR STEREOGRAPHIC",
        "center_latitude": 90,
        "center_longitude": 0,
        "resolution": f"{DEGREE_M / step_m:.4f}",
        "map_scale": f"{step_m:.0f} <m/pix>",
        "line_offset": size / 2 - 0.5,
        "sample_offset": size / 2 - 0.5,
    }
    return _write_pds(folder, stem, (polar(size, step_m) / 1e3).astype("<f4"), label)
