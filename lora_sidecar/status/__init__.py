"""One snapshot of everything, for every reader."""
