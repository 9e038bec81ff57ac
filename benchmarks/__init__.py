"""What the sidecar costs and how fast it is, each figure as a ratio against something measured in the same run."""
