"""Clients of the servers that load adapters: the only part that talks to them."""
