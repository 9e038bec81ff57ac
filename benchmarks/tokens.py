"""One stream of completions after another, in a process of its own; prints when each piece came.

python -m benchmarks.tokens URL MODEL
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from contextlib import closing
from urllib.parse import urlsplit

_TOKENS = 400


def stream(connection: http.client.HTTPConnection, model: str) -> None:
    """Ask for one completion, and print the time of each of its pieces: seconds of the system's monotonic clock."""
    body = {"model": model, "prompt": "ab", "max_tokens": _TOKENS, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    while line := reply.readline():
        if line.startswith(b"data: {"):
            sys.stdout.write(f"{time.monotonic()}\n")
            sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Stream for ever."""
    url, model = arguments
    parts = urlsplit(url)
    while True:
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)) as connection:
            stream(connection, model)


if __name__ == "__main__":
    main(sys.argv[1:])
