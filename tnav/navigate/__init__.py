"""The navigation filter: inertial propagation corrected by star tracker, camera and altimeter."""
