"""A plain sequential poller of the usual kind: list, post what is missing, sleep. What the sidecar is compared with.

python -m benchmarks.polling URL SECONDS NAME=PATH...
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from contextlib import closing, suppress
from urllib.parse import urlsplit


def once(url: str, adapters: dict[str, str]) -> int:
    """Load what is missing, one after the other; how many were posted. Raises `OSError` and `HTTPException`."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)) as connection:
        connection.request("GET", "/v1/models")
        listed = {card["id"] for card in json.loads(connection.getresponse().read())["data"]}
        missing = {name: path for name, path in adapters.items() if name not in listed}
        for name, path in missing.items():
            body = json.dumps({"lora_name": name, "lora_path": path})
            connection.request("POST", "/v1/load_lora_adapter", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        return len(missing)


def main(arguments: list[str]) -> None:
    """Poll for ever, and print when the server was first found up or away: "up" or "down", and Unix seconds."""
    url, seconds, *pairs = arguments
    adapters = dict(pair.split("=", 1) for pair in pairs)
    pause = threading.Event()
    last = ""
    while True:
        found = "down"
        with suppress(OSError, http.client.HTTPException, ValueError):
            once(url, adapters)
            found = "up"
        if found != last:
            sys.stdout.write(f"{found} {time.clock_gettime(time.CLOCK_REALTIME)}\n")
            sys.stdout.flush()
        last = found
        pause.wait(float(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
