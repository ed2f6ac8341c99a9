"""Truth: the flown trajectory, and what instruments read of it, with their faults."""
