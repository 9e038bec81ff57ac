"""Adapters' folders, read and watched."""
