"""Views of a terrain: reflectance, rays, shadows, detector."""
