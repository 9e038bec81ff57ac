"""Manifests as texts: split into documents, read for positions, changed in place."""
