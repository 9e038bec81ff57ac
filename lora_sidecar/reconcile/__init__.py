"""The pure step from what is desired and observed to a plan, with one module for each rule."""
