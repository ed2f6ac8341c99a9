"""From matches to a pose and an altitude, each with its covariance. Knows the map, never the truth."""
