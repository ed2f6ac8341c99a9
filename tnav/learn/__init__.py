"""Learning to match: regions and splits, pairs rendered on the fly, and the training of nets."""
