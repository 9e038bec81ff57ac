"""`lora-sidecar inject`: a sidecar for each pod of a manifest that runs vLLM or SGLang, and nothing else changed.

Needs ruamel.yaml, which is the package's extra `inject`; `command` alone imports without it.
"""

from lora_sidecar.cli.inject.command import add_parser, run

__all__ = ["add_parser", "run"]
