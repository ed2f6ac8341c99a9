"""From matches to pose and altitude, each with its covariance. Knows the map, never the truth."""
