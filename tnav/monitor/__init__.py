"""The fault monitor: sequential statistics on what the filter finds, and who is to blame."""
