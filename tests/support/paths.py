"""Where the checkout is, so that a test may be moved without counting its folders anew."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
