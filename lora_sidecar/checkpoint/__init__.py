"""The durable copy of what is desired."""
