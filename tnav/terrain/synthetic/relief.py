"""Relief below a DEM's resolution: craters, boulders and roughness on a window of a lattice.

SYNTHETIC: everything here is invented within published statistics of lunar mare, and every output
that shows it says so. It is a function of the place in L and of the seed, never of the window: two
windows agree where they overlap, and a level shows the same craters as the finer ones, averaged
by the hat of its posts, which is what (1 2 1)/4 along both axes from level to level tends to.
"""

from jaxtyping import Float32
from torch import Tensor

from tnav.terrain.lattice import Window
from tnav.terrain.synthetic import boulders, craters, profile, roughness
from tnav.terrain.synthetic.recipe import Relief, Resolution
from tnav.terrain.synthetic.stamping import stamped_heights

# Smaller features are below a level's resolution. With 2 instead of 1, the coarser level would lack
# craters of 2 to 4 of the finer posts, and as its averages replace the finer level's, take up to
# 43 % of their depth.
POSTS_PER_DIAMETER = 1.0


def relief_m(
    window: Window,
    recipe: Relief,
    *,
    diameter_max_m: float,
    wavelength_max_m: float,
    seed: int,
    resolution: Resolution | None = None,
) -> Float32[Tensor, "rows cols"]:
    """Heights (m) to add to a smooth ground, on the CPU.

    Args:
        window: the posts.
        recipe: what the ground is made of.
        diameter_max_m: craters from one post up to this diameter are drawn, with their boulders;
            larger ones are the DEM's affair.
        wavelength_max_m: roughness up to this wavelength is added.
        seed: of the relief.
        resolution: of a DEM that is finer here than there; nothing is drawn that it holds already.
    """
    box = craters.box_of(window)
    smallest_m = POSTS_PER_DIAMETER * window.post_m
    found = craters.craters_near(
        box, recipe, diameter_min_m=smallest_m, diameter_max_m=diameter_max_m, seed=seed
    ).not_in(resolution)
    heights = stamped_heights(window, found.features(), profile.crater_table())
    if recipe.boulders:
        smallest_m = max(smallest_m, recipe.boulder_diameter_min_m)
        thrown = boulders.boulders_near(
            box,
            recipe,
            diameter_min_m=smallest_m,
            diameter_max_m=diameter_max_m,
            seed=seed,
            resolution=resolution,
        )
        heights += stamped_heights(window, thrown, profile.boulder_table())
    heights += roughness.rough_heights(
        window, recipe, wavelength_max_m=wavelength_max_m, seed=seed, resolution=resolution
    )
    return heights.float()
