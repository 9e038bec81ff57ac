"""Values and names that pass between all parts."""
