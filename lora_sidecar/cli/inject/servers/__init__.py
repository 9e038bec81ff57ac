"""What a container of a manifest runs, as far as the manifest says it."""
