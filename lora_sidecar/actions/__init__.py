"""Tasks that carry out the newest plan: loads, unloads, replacements, probes by inference."""
