"""What is learnt from snapshots: segments, rules, propensities, and whether they earned to serve."""
