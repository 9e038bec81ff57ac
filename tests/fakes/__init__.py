"""A server that answers as a real vLLM does, to try the sidecar without a GPU and to test it.

`tests/contract` holds it to a real vLLM: every answer that differs is a failing test there.
"""
