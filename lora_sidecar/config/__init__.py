"""From a YAML file to settings, or to every problem in it."""
