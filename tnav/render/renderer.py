"""A terrain seen from poses: primary rays, shadow rays, reflectance; on a batch, in bounded memory.

Geometry (range, point, shadow, photometric angles) is that of each pixel's centre, at mid-exposure
of its row. Radiance is the mean over stratified samples: of the pixel where it covers several
posts, of the exposure where the camera moves, of the Sun's disc where its penumbra is asked for.

Beyond the coarsest level of the terrain there is nothing: it neither shows nor casts a shadow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float32, Float64, Int32
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import Fisheye
from tnav.geometry.pose import Pose
from tnav.records import Frame, SurfaceTruth
from tnav.render.dust import DustPlume, veil
from tnav.render.motion import Motion, Readout, pose_at
from tnav.render.reflectance import LunarLambert, ReflectanceModel, radiance_factor
from tnav.render.sampling import CENTRE, Block, Sample, blocks, stratified
from tnav.render.sunlight import Sunlight
from tnav.render.truth import dot, surface_truth
from tnav.terrain.albedo import AlbedoField, AlbedoRaster
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast, occluded

# For the rays under way; what is returned comes on top. On the CPU a small block is faster, since
# its temporaries come from memory that is already mapped; a device wants long launches.
CPU_MEMORY_BYTES = 64 * 2**20
DEVICE_MEMORY_BYTES = 1024 * 2**20
_RAY_BYTES = 256  # a ray with its hit, its shadow and its photometry, at the peak
_LEAST_COSINE = 0.05  # flatter than this (87 deg) the ground's footprint no longer grows


def render(
    terrain: Terrain,
    camera: Camera,
    pose: Pose,
    sun: Sunlight | Float64[Tensor, "3"] | Float64[Tensor, "b 3"],
    *,
    first_level: int = 0,
    samples: int = 1,
    albedo: AlbedoField | AlbedoRaster | None = None,
    reflectance: ReflectanceModel | None = None,
    motion: Motion | None = None,
    dust: DustPlume | None = None,
    truth: bool = False,
    memory_bytes: int | None = None,
) -> Frame:
    """Render a batch of poses.

    A camera on or under the ground, or with a pose that is not finite, hits nothing.

    Args:
        terrain: ground or map, on the device to render on.
        camera: one for all poses.
        pose: where from; at mid-exposure of the frame's middle where the camera moves.
        sun: vector to the Sun, one or one a pose, or how it lights the ground in full.
        first_level: finest level to look at (``Terrain.level_for``).
        samples: 1, 4, 9 or 16 stratified samples a pixel for the radiance.
        albedo: reflectance pattern, without the waves that a sample's footprint averages away;
            uniform when absent.
        reflectance: law of the ground; Lunar-Lambert of mare when absent.
        motion: of the camera during the exposure; none when absent.
        dust: haze of the engine's plume; none when absent.
        truth: also return the photometry of each pixel's centre (``Frame.surface``).
        memory_bytes: for the rays that are traced together (``CPU_MEMORY_BYTES`` or
            ``DEVICE_MEMORY_BYTES`` when absent). It changes no result.

    Raises:
        ConfigError: a number of samples that is not offered, no such level, or Suns or motions that
            are neither one nor one a pose.
        DeviceError: poses and terrain on different devices.
    """
    device = pose.position_L.device
    light = (sun if isinstance(sun, Sunlight) else Sunlight(sun)).to(device)
    motion = None if motion is None else motion.to(device)
    albedo = None if albedo is None else albedo.to(device)
    law = LunarLambert() if reflectance is None else reflectance
    scene = _Scene(terrain, first_level, camera, pose, light, law, albedo, motion, dust, samples)
    scene.check()
    plan = stratified(samples, 1 if motion is None or motion.exposure_s == 0 else motion.samples)
    size = (len(pose), camera.height_px, camera.width_px)
    if memory_bytes is None:
        on_cpu = device.type == "cpu"
        memory_bytes = CPU_MEMORY_BYTES if on_cpu else DEVICE_MEMORY_BYTES
    parts = list(blocks(*size, most_rays=memory_bytes // _RAY_BYTES))
    one = len(plan) == 1
    merged = _Merged(size, len(parts))
    for block, seen in scene.sweep(parts, CENTRE):
        radiance = scene.radiance(block, seen) if one else None
        merged.add(block, scene.outputs(block, seen, radiance, truth))
    if not one:
        image = torch.zeros(size, dtype=torch.float32, device=device)
        for sample in plan:
            for block, seen in scene.sweep(parts, sample):
                image[block.poses, block.rows] += scene.radiance(block, seen)
        merged.tensors["image"] = image / len(plan)
    return _frame(merged.tensors)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the rays of a block met, before any reflectance."""

    hit: Bool[Tensor, "b h w"]
    camera_L: Float64[Tensor, "b #h #w 3"]  # where the rays start
    ray_L: Float64[Tensor, "b h w 3"]
    range_m: Float64[Tensor, "b h w"]
    point_L: Float64[Tensor, "b h w 3"]
    normal_L: Float64[Tensor, "b h w 3"]
    level: Int32[Tensor, "b h w"]
    sun_fraction: Float32[Tensor, "b h w"]
    cos_incidence: Float32[Tensor, "b h w"]  # mean over the part of the Sun that is seen
    axis_cosine: Float64[Tensor, "h w"]  # of the rays to the camera's axis


@dataclass(frozen=True, slots=True)
class _Scene:
    terrain: Terrain
    first_level: int
    camera: Camera
    pose: Pose
    light: Sunlight
    law: ReflectanceModel
    albedo: AlbedoField | AlbedoRaster | None
    motion: Motion | None
    dust: DustPlume | None
    samples: int  # that share a pixel

    def check(self) -> None:
        """Raises ConfigError where a vector is neither one for all poses nor one a pose."""
        given = {"sun": self.light.sun_L}
        if self.light.earth is not None:
            given["earthshine"] = self.light.earth.earth_L
        if self.motion is not None:
            given |= {"velocity": self.motion.velocity_L, "rate": self.motion.rate_C}
        for name, vector in given.items():
            if vector.dim() == 2 and vector.shape[0] not in (1, len(self.pose)):
                raise ConfigError(
                    f"{name}: {vector.shape[0]} vectors, expected 1 or {len(self.pose)}, as poses"
                )

    def sweep(self, parts: list[Block], sample: Sample) -> Iterator[tuple[Block, "_Seen"]]:
        """Trace one ray of every pixel, block by block."""
        uv_px = self.camera.pixel_centres(self.pose.position_L.device)
        rows: slice | None = None
        for block in parts:
            if block.rows != rows:
                rows, rays = block.rows, self.rays(uv_px[block.rows], sample)
            yield block, self.trace(block, sample, rays)

    def rays(
        self, centres_px: Float64[Tensor, "h w 2"], sample: Sample
    ) -> tuple[Float64[Tensor, "h w"], ...]:
        """Components x, y, z in C of unit rays through one point of every pixel."""
        u_px, v_px = centres_px.unbind(-1)
        uv_px = torch.stack([u_px + sample.right_px, v_px + sample.down_px], -1)
        x, y, z = self.camera.unproject(uv_px.view(-1, 2)).unbind(-1)
        length = (x * x + y * y + z * z).sqrt_()
        return tuple((axis / length).view(u_px.shape) for axis in (x, y, z))

    def poses(
        self, block: Block, sample: Sample
    ) -> tuple[Float64[Tensor, "b #h #w 3 3"], Float64[Tensor, "b #h #w 3"]]:
        """Attitude and position of the camera for every pixel of a block."""
        pose, motion = self.pose[block.poses], self.motion
        if motion is None:
            return pose.R_L_C[:, None, None], pose.position_L[:, None, None]
        device = pose.position_L.device
        by_rows = motion.readout is Readout.TOP_TO_BOTTOM
        lines = self.camera.height_px if by_rows else self.camera.width_px
        t_s = motion.line_times_s(lines, device)
        if motion.readout_s == 0:
            t_s = t_s[:1]
        elif by_rows:
            t_s = t_s[block.rows]
        t_s = t_s + sample.time * motion.exposure_s
        velocity_L = self.one_a_pose(block, motion.velocity_L)
        R, position_L = pose_at(pose, velocity_L, self.one_a_pose(block, motion.rate_C), t_s)
        axis = 2 if by_rows else 1
        return R.unsqueeze(axis), position_L.unsqueeze(axis)

    def one_a_pose(self, block: Block, vector: Tensor) -> Float64[Tensor, "a 3"]:
        """A vector for all poses, or those of a block's."""
        rows = vector.view(-1, 3)
        return rows if rows.shape[0] == 1 else rows[block.poses]

    def sun_L(self, block: Block) -> Float64[Tensor, "a 1 1 3"]:
        """To the Sun's centre, over the pixels of a block."""
        return self.one_a_pose(block, self.light.sun_L)[:, None, None]

    def trace(self, block: Block, sample: Sample, rays: tuple[Tensor, ...]) -> _Seen:
        """What one ray of every pixel meets, and the Sun over it."""
        R, camera_L = self.poses(block, sample)
        shape = (R.shape[0], *rays[0].shape)
        ray_L = R.new_empty(*shape, 3)
        for i in range(3):  # by components: the bits of a ray do not depend on the batch around it
            x, y, z = (R[..., i, k] * rays[k] for k in range(3))
            torch.add(x.add_(y), z, out=ray_L[..., i])
        origin_L = camera_L.expand(ray_L.shape).reshape(-1, 3)
        hits = cast(self.terrain, origin_L, ray_L.view(-1, 3), first_level=self.first_level)
        range_m = hits.range_m.view(shape)
        point_L = (range_m[..., None] * ray_L).add_(camera_L)
        normal_L = hits.normal_L.view(*shape, 3)
        hit = hits.hit.view(shape) & (range_m > 0)  # 0: the camera is on or under the ground
        fraction, cos_incidence = self.sunlit(block, sample, hit, point_L, normal_L)
        return _Seen(
            hit=hit,
            camera_L=camera_L,
            ray_L=ray_L,
            range_m=range_m,
            point_L=point_L,
            normal_L=normal_L,
            level=hits.level.view(shape),
            sun_fraction=fraction,
            cos_incidence=cos_incidence,
            axis_cosine=rays[2],
        )

    def sunlit(
        self,
        block: Block,
        sample: Sample,
        hit: Bool[Tensor, "b h w"],
        point_L: Float64[Tensor, "b h w 3"],
        normal_L: Float64[Tensor, "b h w 3"],
    ) -> tuple[Float32[Tensor, "b h w"], Float32[Tensor, "b h w"]]:
        """Share of the Sun's light that reaches points, and the mean cosine of its incidence."""
        first_L, *others_L = self.light.rays_L(sample.sun_shift)
        count, total = self.lit_from(block, first_L, hit, point_L, normal_L)
        for sun_L in others_L:
            seen, cosine = self.lit_from(block, sun_L, hit, point_L, normal_L)
            count += seen
            total += cosine
        return count / self.light.samples, total / count.clamp_min(1.0)

    def lit_from(
        self,
        block: Block,
        sun_L: Float64[Tensor, "a 3"],
        hit: Bool[Tensor, "b h w"],
        point_L: Float64[Tensor, "b h w 3"],
        normal_L: Float64[Tensor, "b h w 3"],
    ) -> tuple[Float32[Tensor, "b h w"], Float32[Tensor, "b h w"]]:
        """Whether one point of the Sun is seen (1 or 0), and the cosine of incidence where it is.

        A ray into the ground that faces away from the Sun ends in its first cell: leaving such rays
        out was measured and saves nothing.
        """
        sun_L = self.one_a_pose(block, sun_L)
        each_L = sun_L[0]
        if sun_L.shape[0] > 1:
            each_L = sun_L[:, None, None].expand(point_L.shape).reshape(-1, 3)
        blocked = occluded(self.terrain, point_L.view(-1, 3), each_L, first_level=self.first_level)
        cosine = dot(normal_L, sun_L[:, None, None])
        seen = hit & (cosine > 0) & ~blocked.view(hit.shape)
        return seen.float(), torch.where(seen, cosine, 0.0).float()

    def radiance(self, block: Block, seen: _Seen) -> Float32[Tensor, "b h w"]:
        """Radiance factor of what the rays met; 0 where they met nothing.

        The law is evaluated once, at the mean incidence of the Sun's visible part: exact for laws
        that are linear in the cosine, second order in the Sun's radius for the others.
        """
        cos_emission = -dot(seen.normal_L, seen.ray_L).float()
        phase_rad = _phase_rad(seen.ray_L, self.sun_L(block))
        value = radiance_factor(self.law, seen.cos_incidence, cos_emission, phase_rad)
        value = torch.where(seen.sun_fraction > 0, value * seen.sun_fraction, 0.0)
        if self.light.earth is not None:
            value = value + self.earthlight(block, seen, cos_emission)
        if self.albedo is not None:
            shortest_m = self.shortest_m(seen, cos_emission)
            pattern = self.albedo.at(seen.point_L[..., :2], shortest_m)
            value = value * torch.where(seen.hit, pattern, 0.0)
        if self.dust is not None:
            value = self.through_dust(block, seen, value, phase_rad)
        return value

    def shortest_m(
        self, seen: _Seen, cos_emission: Float32[Tensor, "b h w"]
    ) -> Float32[Tensor, "b h w"]:
        """Shortest wave of albedo that a sample can show: two of its sides on the ground; or NaN.

        The side is that of a square with the area that the sample covers: range^2 times its solid
        angle over the cosine of emission. On slanted ground this is nearer to the mean over the
        footprint than its longer side, which takes away what the shorter one still resolves.
        """
        stretch = cos_emission.clamp_min(_LEAST_COSINE).rsqrt_()
        shortest_m = stretch.mul_(seen.range_m).mul_(_pixel_rad(self.camera, seen.axis_cosine))
        return torch.where(seen.hit, shortest_m.mul_(2 / math.sqrt(self.samples)), math.nan)

    def earthlight(
        self, block: Block, seen: _Seen, cos_emission: Float32[Tensor, "b h w"]
    ) -> Float32[Tensor, "b h w"]:
        """What the Earth adds, over the Sun's irradiance."""
        earth = self.light.earth
        assert earth is not None
        earth_L = self.one_a_pose(block, earth.earth_L)[:, None, None]
        cosine = dot(seen.normal_L, earth_L).float()
        phase_rad = _phase_rad(seen.ray_L, earth_L)
        value = radiance_factor(self.law, cosine, cos_emission, phase_rad)
        return torch.where(seen.hit, earth.irradiance_ratio * value, 0.0)

    def through_dust(
        self,
        block: Block,
        seen: _Seen,
        value: Float32[Tensor, "b h w"],
        phase_rad: Float32[Tensor, "b h w"],
    ) -> Float32[Tensor, "b h w"]:
        """Radiance dimmed by the plume's dust, with its airlight."""
        assert self.dust is not None
        position_L = self.pose[block.poses].position_L
        ground_m, _ = self.terrain.height_L(position_L[:, :2], first_level=self.first_level)
        agl_m = (position_L[:, 2] - ground_m)[:, None, None]
        through, air = veil(
            self.dust, seen.camera_L, seen.point_L, agl_m, self.sun_L(block), phase_rad
        )
        return torch.where(seen.hit, value * through + air, 0.0)

    def outputs(
        self, block: Block, seen: _Seen, radiance: Tensor | None, truth: bool
    ) -> dict[str, Tensor]:
        """A block's part of the frame, by name."""
        given = {
            "range_m": seen.range_m,
            "xyz_L": seen.point_L,
            "hit": seen.hit,
            "lit": seen.sun_fraction >= 0.5,
        }
        if radiance is not None:
            given["image"] = radiance
        if truth:
            surface = surface_truth(
                hit=seen.hit,
                normal_L=seen.normal_L,
                ray_L=seen.ray_L,
                sun_L=self.sun_L(block),
                sun_fraction=seen.sun_fraction,
                level=seen.level,
            )
            given |= {f.name: getattr(surface, f.name) for f in fields(SurfaceTruth)}
        return given


class _Merged:
    """Blocks put back together; a frame in one block is not copied."""

    def __init__(self, size: tuple[int, int, int], parts: int) -> None:
        self.size, self.parts = size, parts
        self.tensors: dict[str, Tensor] = {}

    def add(self, block: Block, given: dict[str, Tensor]) -> None:
        if self.parts == 1:
            self.tensors = given
            return
        for name, part in given.items():
            if name not in self.tensors:
                self.tensors[name] = part.new_empty(*self.size, *part.shape[3:])
            self.tensors[name][block.poses, block.rows] = part


def _phase_rad(
    ray_L: Float64[Tensor, "b h w 3"], light_L: Float64[Tensor, "a 1 1 3"]
) -> Float32[Tensor, "b h w"]:
    """Angle between the light and the way back along a ray.

    From the half angle's sine, so that single precision holds close to opposition.
    """
    square = dot(ray_L, light_L).add_(1.0).mul_(0.5).clamp_(0.0, 1.0)
    return square.float().sqrt_().asin_().mul_(2.0)


def _pixel_rad(camera: Camera, cosine: Float64[Tensor, "h w"]) -> Float32[Tensor, "h w"]:
    """Root of the solid angle of pixels whose rays have a cosine to the camera's axis.

    A pinhole's is cos^3 / f^2, an equidistant fisheye's sin(a) / a / f^2; what distortion adds to
    either is left out.
    """
    cosine = cosine.float()
    if isinstance(camera.distortion, Fisheye):
        square = torch.sinc(cosine.clamp(-1.0, 1.0).acos_().mul_(1 / math.pi))
    else:
        square = cosine * cosine * cosine
    return square.clamp_min_(0.0).sqrt_().mul_(1 / camera.focal_px)


def _frame(tensors: dict[str, Tensor]) -> Frame:
    surface = None
    if "normal_L" in tensors:
        surface = SurfaceTruth(**{f.name: tensors[f.name] for f in fields(SurfaceTruth)})
    return Frame(
        image=tensors["image"][:, None],
        range_m=tensors["range_m"],
        xyz_L=tensors["xyz_L"],
        hit=tensors["hit"],
        lit=tensors["lit"],
        surface=surface,
    )
