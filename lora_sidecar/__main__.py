"""Runs the command line as `python -m lora_sidecar`."""

from __future__ import annotations

import sys

from lora_sidecar.cli import main

sys.exit(main())
