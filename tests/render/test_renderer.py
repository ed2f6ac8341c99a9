import math

import pytest
import simulated_device
import torch
from render_scenes import CAMERA, NADIR, flat, ground, hills, pose_over, vector

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import Fisheye
from tnav.geometry.pose import Pose, concatenate
from tnav.geometry.sun import direction_L
from tnav.render.dust import DustPlume
from tnav.render.motion import Motion
from tnav.render.reflectance import Hapke, Lambert, LunarLambert, radiance_factor
from tnav.render.renderer import _pixel_rad, render
from tnav.render.sampling import blocks
from tnav.render.sunlight import Earthshine, Sunlight
from tnav.terrain.albedo import AlbedoField
from tnav.terrain.heightfield import Level, Terrain


def test_a_tilted_plane_has_one_radiance_and_exact_points():
    slope = 0.1
    terrain = ground(lambda x, y: slope * x)
    sun_L = direction_L(90.0, 30.0)
    frame = render(terrain, CAMERA, pose_over(), sun_L)
    assert bool(frame.hit.all())
    assert bool(frame.lit.all())
    xyz = frame.xyz_L[0]
    assert torch.allclose(xyz[..., 2], slope * xyz[..., 0], atol=1e-4)
    # each pixel's point projects to its centre
    point_C = (xyz - pose_over().position_L[0]) @ NADIR
    assert torch.allclose(CAMERA.project(point_C), CAMERA.pixel_centres("cpu"), atol=1e-6)
    normal = torch.tensor([-slope, 0.0, 1.0], dtype=torch.float64)
    normal = normal / normal.norm()
    ray = (xyz - pose_over().position_L[0]) / frame.range_m[0][..., None]
    expected = radiance_factor(
        LunarLambert(),
        (normal @ sun_L).expand(ray.shape[:2]),
        -(ray @ normal),
        torch.acos(-(ray @ sun_L)),
    )
    assert torch.allclose(frame.image[0, 0].double(), expected, atol=1e-5)


def test_a_wall_casts_a_shadow_of_the_right_length():
    """A 40 m wall at x = 0 under a Sun in the west at 20 deg: 40 / tan 20 = 110 m to the east."""
    terrain = ground(lambda x, y: torch.where(x.abs() < 5.0, 40.0, 0.0), post_m=5.0)
    frame = render(terrain, CAMERA, pose_over(z=600.0), direction_L(270.0, 20.0))
    row = frame.xyz_L[0, 20]
    lit, x = frame.lit[0, 20], row[:, 0]
    flat = row[:, 2].abs() < 0.1
    tip = 40.0 / math.tan(math.radians(20.0))
    pixel_m = CAMERA.ground_sample_distance_m(600.0)
    dark = flat & ~lit
    assert float(x[dark].max()) == pytest.approx(tip, abs=pixel_m + 5.0)
    assert bool(lit[flat & (x > tip + pixel_m + 5.0)].all())
    assert bool(lit[flat & (x < -10)].all())
    assert float(frame.image[0, 0, 20][dark].max()) == 0.0


def test_a_slope_that_faces_away_is_dark():
    terrain = ground(lambda x, y: -0.5 * x)
    frame = render(terrain, CAMERA, pose_over(), direction_L(270.0, 20.0))  # slope of 26 deg
    assert not bool(frame.lit.any())
    assert float(frame.image.max()) == 0.0


def test_sky_is_no_hit():
    frame = render(
        ground(lambda x, y: 0 * x), CAMERA, pose_over(tilt_deg=180.0), direction_L(0.0, 45.0)
    )
    assert not bool(frame.hit.any())
    assert not bool(frame.lit.any())
    assert torch.equal(frame.image, torch.zeros_like(frame.image))


def test_samples_average_a_checkerboard_that_one_sample_aliases():
    """Facets much smaller than a pixel: more samples, less variance from pixel to pixel."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(257, 257, generator=generator) * 0.2
    terrain = Terrain((Level(west_m=-256.0, south_m=-256.0, post_m=2.0, z_L=rough),))
    spread = {}
    for samples in (1, 4, 16):
        frame = render(
            terrain, CAMERA, pose_over(z=600.0), direction_L(90.0, 30.0), samples=samples
        )
        spread[samples] = float(frame.image.std())
    assert spread[4] < 0.65 * spread[1]
    assert spread[16] < 0.65 * spread[4]


def test_samples_leave_geometry_at_the_pixel_centre():
    terrain = ground(lambda x, y: 5 * torch.sin(x / 20))
    one = render(terrain, CAMERA, pose_over(), direction_L(90.0, 30.0))
    four = render(terrain, CAMERA, pose_over(), direction_L(90.0, 30.0), samples=4)
    assert torch.equal(one.xyz_L, four.xyz_L)
    assert torch.equal(one.lit, four.lit)


@pytest.mark.parametrize("samples", [0, 2, 3, 5])
def test_samples_must_be_a_square(samples):
    with pytest.raises(ConfigError, match="expected a square"):
        render(
            ground(lambda x, y: 0 * x), CAMERA, pose_over(), direction_L(0.0, 45.0), samples=samples
        )


def test_batch_equals_singles():
    terrain = ground(lambda x, y: 5 * torch.sin(x / 20) * torch.cos(y / 30))
    a, b = pose_over(10.0, 0.0, 400.0, 5.0), pose_over(-30.0, 20.0, 700.0, -8.0)
    both = concatenate([a, b])
    sun_L = direction_L(108.0, 12.0)
    batch = render(terrain, CAMERA, both, sun_L)
    for k, single in enumerate((a, b)):
        frame = render(terrain, CAMERA, single, sun_L)
        assert torch.equal(batch.image[k], frame.image[0])
        assert torch.equal(batch.xyz_L[k], frame.xyz_L[0])


def test_albedo_is_a_factor_with_the_stated_contrast():
    terrain = ground(lambda x, y: 0 * x)
    albedo = AlbedoField.draw(0, contrast=0.1, wavelengths_m=(20.0, 100.0))
    plain = render(terrain, CAMERA, pose_over(), direction_L(90.0, 30.0))
    painted = render(terrain, CAMERA, pose_over(), direction_L(90.0, 30.0), albedo=albedo)
    ratio = (painted.image / plain.image)[0, 0]
    expected = albedo.at(plain.xyz_L[0, ..., :2])
    assert torch.allclose(ratio, expected, atol=1e-5)


def _albedo_error(camera, pose, samples, field, cuts=12):
    """RMS off the dense mean of the field over each pixel, and that of unfiltered samples."""

    wide, sun_L = ground(lambda x, y: 0 * x, half_m=2e6, post_m=1e5), direction_L(0.0, 90.0)

    def points(camera):
        return field.at(render(wide, camera, pose, sun_L).xyz_L[0, ..., :2]).double()

    def cells(points, count):
        return points.unflatten(0, (-1, count)).unflatten(2, (-1, count)).mean((1, 3))

    def finer(cuts):
        return Camera(
            camera.width_px * cuts, camera.height_px * cuts, camera.focal_px * cuts,
            camera.cx_px * cuts, camera.cy_px * cuts, camera.distortion,
        )  # fmt: skip

    mean, side = cells(points(finer(cuts)), cuts), round(samples**0.5)
    options = {"samples": samples, "reflectance": Lambert()}
    painted = render(wide, camera, pose, sun_L, albedo=field, **options).image
    plain = render(wide, camera, pose, sun_L, **options).image
    filtered = (painted / plain)[0, 0].double()
    unfiltered = cells(points(finer(side)), side)
    return [float((a - mean).square().mean().sqrt()) for a in (filtered, unfiltered)]


@pytest.mark.parametrize(
    ("tilt_deg", "height_m", "samples", "most"),
    [
        (0.0, 1e3, 1, 0.009),
        (0.0, 1e5, 1, 0.02),  # 275 m a pixel
        (0.0, 1e5, 4, 0.008),
        (60.0, 1e4, 1, 0.02),
        (60.0, 1e4, 4, 0.008),
    ],
)
def test_albedo_is_its_mean_over_the_pixel(tilt_deg, height_m, samples, most):
    """Contrast 10 % from 2 to 2048 m; samples of all of it err by 1.5 to 7 % where one is taken."""
    field = AlbedoField.draw(3, contrast=0.1, wavelengths_m=(2.0, 2048.0))
    camera = Camera(48, 48, 363.0, 24.0, 24.0)
    pose = pose_over(100.0, 50.0, height_m, tilt_deg)
    filtered, unfiltered = _albedo_error(camera, pose, samples, field)
    assert filtered < most
    assert filtered < 0.5 * unfiltered


def test_albedo_is_its_mean_over_a_fisheyes_pixels():
    """55 deg off the axis a pixel is as wide as on it, and not cos^1.5 of that as a pinhole's."""
    field = AlbedoField.draw(3, contrast=0.1, wavelengths_m=(2.0, 2048.0))
    camera = Camera.from_field_of_view(48, 48, 80.0, Fisheye())
    filtered, unfiltered = _albedo_error(camera, pose_over(100.0, 50.0, 5e3), 1, field)
    assert filtered < 0.02
    assert filtered < 0.5 * unfiltered


@pytest.mark.parametrize("lens", [None, Fisheye()])
def test_pixels_have_their_solid_angle(lens):
    """Against that of the two triangles between the rays of a pixel's corners (Girard)."""
    camera = Camera.from_field_of_view(24, 20, 100.0, lens)
    u = torch.arange(25, dtype=torch.float64)
    v = torch.arange(21, dtype=torch.float64)
    corners = camera.unproject(torch.stack(torch.meshgrid(u, v, indexing="xy"), -1))
    corners = corners / corners.norm(dim=-1, keepdim=True)
    a, b, c, d = corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]

    def triangle(p, q, r):  # van Oosterom and Strackee 1983
        volume = (p * torch.linalg.cross(q, r)).sum(-1)
        return 2 * torch.atan2(
            volume.abs(), 1 + (p * q).sum(-1) + (q * r).sum(-1) + (r * p).sum(-1)
        )

    expected = triangle(a, b, c) + triangle(a, c, d)
    ray = camera.unproject(camera.pixel_centres("cpu"))
    found = _pixel_rad(camera, ray[..., 2] / ray.norm(dim=-1)).double().square()
    assert torch.allclose(found, expected, rtol=0.01)


def test_albedo_and_motion_from_the_host_go_over_once(simgpu):
    """However many blocks and samples: the tile, and velocity and rate."""
    poses, light, options = _everything(simgpu)
    motion = options["motion"]
    options["motion"] = Motion(
        motion.velocity_L.cpu(), motion.rate_C.cpu(), exposure_s=0.01, readout_s=0.05
    )
    there = hills().to(simgpu)
    with simulated_device.count_syncs(uploads=True) as syncs:
        render(there, CAMERA, poses, light, memory_bytes=256 * 1920, **options)
    assert sum(syncs.values()) == 3, syncs


def test_the_length_of_the_suns_vector_does_not_matter():
    frame = render(hills(), CAMERA, pose_over(), direction_L(90.0, 30.0))
    longer = render(hills(), CAMERA, pose_over(), 2.0 * direction_L(90.0, 30.0))
    assert torch.allclose(longer.image, frame.image, rtol=1e-5)
    assert torch.equal(longer.lit, frame.lit)


def _everything(device="cpu"):
    """All options at once, for three poses with their own Suns and motions."""
    poses = concatenate([
        pose_over(10.0, 0.0, 25.0, 5.0),
        pose_over(-30.0, 20.0, 18.0, 40.0),
        pose_over(5.0, 5.0, 60.0, 80.0),
    ]).to(device)  # fmt: skip
    suns_L = torch.stack([direction_L(108.0, 12.0), direction_L(250.0, 3.0), vector(0.0, 0.0, 1.0)])
    velocity_L = torch.stack(
        [vector(5.0, 0.0, -1.0), vector(0.0, -9.0, 0.0), vector(0.0, 0.0, 0.0)]
    )
    earth = Earthshine(direction_L(190.0, 30.0).to(device), 1e-4)
    motion = Motion(
        velocity_L.to(device), vector(0.1, 0.0, -0.2).to(device), exposure_s=0.01, readout_s=0.05
    )
    options = {
        "samples": 4,
        "albedo": AlbedoField.draw(0, contrast=0.1, wavelengths_m=(4.0, 100.0)),
        "motion": motion,
        "dust": DustPlume(),
        "reflectance": Hapke(),
        "truth": True,
    }
    return poses, Sunlight(suns_L.to(device), samples=3, earth=earth), options


def _assert_same(a, b):
    for name in ("image", "range_m", "xyz_L", "hit", "lit"):
        assert torch.equal(getattr(a, name).nan_to_num(-1), getattr(b, name).nan_to_num(-1)), name
    for name in a.surface.__slots__:
        left, right = getattr(a.surface, name), getattr(b.surface, name)
        assert torch.equal(left.nan_to_num(-1), right.nan_to_num(-1)), name


# of a 48 x 40 frame: some rows, one frame, two frames
@pytest.mark.parametrize("rays", [17 * 48 + 5, 1920, 2 * 1920])
def test_memory_changes_no_bit(rays):
    poses, light, options = _everything()
    expected = render(hills(), CAMERA, poses, light, **options)
    assert 0.2 < float(expected.hit.double().mean()) < 1
    frame = render(hills(), CAMERA, poses, light, memory_bytes=256 * rays, **options)
    _assert_same(frame, expected)


@pytest.mark.parametrize(
    ("size", "most"), [((5, 7, 9), 1), ((5, 7, 9), 20), ((5, 7, 9), 130), ((64, 1024, 1024), 2**21)]
)
def test_blocks_cover_every_ray_once_within_their_size(size, most):
    seen = torch.zeros(size[:2], dtype=torch.int64)
    for block in blocks(*size, most_rays=most):
        part = seen[block.poses, block.rows]
        assert part.numel() * size[2] <= max(most, size[2])
        part += 1
    assert bool((seen == 1).all())


def test_an_empty_batch_is_an_empty_frame():
    frame = render(hills(), CAMERA, pose_over()[:0], direction_L(90.0, 30.0), samples=4)
    assert frame.image.shape == (0, 1, 40, 48)


def test_simulated_accelerator_gives_the_same_picture_without_waiting(simgpu):
    """With everything switched on, in blocks and in one."""
    poses, light, options = _everything()
    expected = render(hills(), CAMERA, poses, light, **options)
    there = hills().to(simgpu)
    poses, light, options = _everything(simgpu)
    options["albedo"] = options["albedo"].to(simgpu)
    for memory_bytes in (None, 256 * 1920):
        with simulated_device.count_syncs(uploads=True) as syncs:
            frame = render(there, CAMERA, poses, light, memory_bytes=memory_bytes, **options)
        assert not syncs, syncs
        assert frame.image.device.type == simgpu
        assert torch.equal(frame.image.cpu(), expected.image)
        assert torch.equal(frame.xyz_L.cpu().nan_to_num(-1), expected.xyz_L.nan_to_num(-1))
        assert torch.equal(
            frame.surface.sun_fraction.cpu().nan_to_num(-1),
            expected.surface.sun_fraction.nan_to_num(-1),
        )


@pytest.mark.parametrize("azimuth_deg", [0.0, 90.0, 180.0, 270.0, 33.0])
def test_a_grazing_sun_leaks_no_light(azimuth_deg):
    """At 1 deg, east, west and along the grid too: what faces away or is hidden is black."""
    sun_L = direction_L(azimuth_deg, 1.0)
    frame = render(hills(), CAMERA, pose_over(), sun_L, truth=True)
    image, surface = frame.image[:, 0], frame.surface
    assert bool(frame.hit.all())
    assert float(image[~frame.lit].max()) == 0.0
    assert float(image[frame.lit].min()) > 0.0
    away = surface.incidence_rad > math.pi / 2
    assert 0.2 < float(away.double().mean()) < 0.8
    assert float(image[away].max()) == 0.0
    # behind 5 m hills nearly all of the ground lies in shadow at 1 deg, whatever faces the Sun
    assert 0 < float(frame.lit.double().mean()) < 0.35


@pytest.mark.parametrize("rays", [1, 16])
@pytest.mark.parametrize("elevation_deg", [-1.0, -20.0, -90.0])
def test_under_the_horizon_the_sun_lights_nothing(elevation_deg, rays):
    light = Sunlight(direction_L(90.0, elevation_deg), samples=rays)
    frame = render(hills(), CAMERA, pose_over(), light)
    assert not bool(frame.lit.any())
    assert float(frame.image.abs().max()) == 0.0


@pytest.mark.parametrize("heading", [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])
def test_from_over_a_post_along_the_grid(heading):
    """The camera over a post, its middle column of rays exactly over a line of posts."""
    camera = Camera(9, 9, 6.0, 4.5, 4.5)
    terrain = hills()
    east, north = heading
    R = torch.tensor([[north, 0, east], [-east, 0, north], [0, -1, 0]], dtype=torch.float64)
    tilt = 0.6
    c, s = math.cos(tilt), math.sin(tilt)
    R = R @ torch.tensor([[1, 0, 0], [0, c, s], [0, -s, c]], dtype=torch.float64)
    pose = Pose(R[None], torch.tensor([[20.0, -30.0, 40.0]], dtype=torch.float64))
    frame = render(terrain, camera, pose, direction_L(90.0, 1.0))
    column = frame.xyz_L[0, :, 4][frame.hit[0, :, 4]]
    across = column[:, 1] + 30.0 if east else column[:, 0] - 20.0
    assert len(column) > 4
    assert float(across.abs().max()) < 1e-9
    height_m, _ = terrain.height_L(column[:, :2])
    assert torch.allclose(column[:, 2], height_m, atol=1e-9)


def test_straight_down_over_a_post():
    camera = Camera(3, 3, 30.0, 1.5, 1.5)
    frame = render(hills(), camera, pose_over(10.0, 20.0, 100.0), direction_L(90.0, 45.0))
    assert bool(frame.hit.all())
    assert torch.allclose(frame.xyz_L[0, 1, 1, :2], vector(10.0, 20.0), atol=1e-12)


def _at_ground(offset_m):
    terrain = hills()
    z, _ = terrain.height_L(torch.tensor([[20.0, -30.0]], dtype=torch.float64))
    return terrain, pose_over(20.0, -30.0, float(z[0]) + offset_m)


@pytest.mark.parametrize("offset_m", [0.0, -1e-6, -3.0, -500.0])
def test_on_or_under_the_ground_the_camera_sees_nothing(offset_m):
    terrain, pose = _at_ground(offset_m)
    frame = render(terrain, CAMERA, pose, direction_L(90.0, 45.0), truth=True)
    assert not bool(frame.hit.any())
    assert not bool(frame.lit.any())
    assert float(frame.image.abs().max()) == 0.0
    assert bool(frame.surface.incidence_rad.isnan().all())


def test_a_millimetre_over_the_ground_it_sees():
    terrain, pose = _at_ground(1e-3)
    frame = render(terrain, CAMERA, pose, direction_L(90.0, 45.0))
    assert bool(frame.hit.all())


@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_from_nowhere_nothing_is_hit(x):
    poses = concatenate([pose_over(x, 0.0, 500.0), pose_over()])
    options = {"samples": 4, "truth": True, "dust": DustPlume(onset_m=900.0)}
    frame = render(hills(), CAMERA, poses, direction_L(90.0, 45.0), **options)
    assert not bool(frame.hit[0].any())
    assert float(frame.image[0].abs().max()) == 0.0
    alone = render(hills(), CAMERA, pose_over(), direction_L(90.0, 45.0), **options)
    assert torch.equal(frame.image[1], alone.image[0])


@pytest.mark.parametrize("x", [641.0, 700.0, 900.0])
def test_from_beside_the_terrain_only_its_rim_is_hit(x):
    """A ray that comes in under the ground ends at once, in the face where the terrain is cut."""
    frame = render(hills(), CAMERA, pose_over(x, 0.0, 500.0), direction_L(90.0, 45.0), samples=4)
    assert bool(torch.isfinite(frame.image).all())
    assert not bool(frame.hit.all())
    inside = frame.xyz_L[frame.hit][:, 0]
    assert float(inside.max()) <= 640.0 + 1e-9


def test_a_nan_attitude_hits_nothing():
    pose = Pose(torch.full((1, 3, 3), math.nan, dtype=torch.float64), pose_over().position_L)
    frame = render(hills(), CAMERA, pose, direction_L(90.0, 45.0), samples=4)
    assert not bool(frame.hit.any())
    assert float(frame.image.abs().max()) == 0.0


@pytest.mark.parametrize("fov_deg", [60.0, 150.0])
def test_a_fisheye_sees_each_point_at_its_pixel(fov_deg):
    lens = Fisheye(k1=0.02, k2=-0.005, k3=0.001)
    camera = Camera.from_field_of_view(48, 40, fov_deg, distortion=lens)
    frame = render(flat(), camera, pose_over(z=50.0), direction_L(90.0, 30.0))
    point_C = (frame.xyz_L[0] - pose_over(z=50.0).position_L[0]) @ NADIR
    away_px = (camera.project(point_C) - camera.pixel_centres("cpu")).norm(dim=-1)
    assert float(frame.hit.double().mean()) > 0.5
    assert float(away_px[frame.hit[0]].max()) < 1e-6
