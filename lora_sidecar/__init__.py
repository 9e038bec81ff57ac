"""Keeps the LoRA adapters of a vLLM server loaded across its restarts."""

__version__ = "0.1.0"
