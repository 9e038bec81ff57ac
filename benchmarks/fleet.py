"""What 10,000 pods that restart together ask of the store their adapters come from, simulated.

The servers' own start-up spreads the pods: it takes a minute or so, and never the same. What is asked of the shared
store is one load at a time per pod, or four where the server is idle, each bounded by what the store can give. The
question is whether the sidecar adds a peak of its own, and whether a jitter before the first load would take one away.
"""

from __future__ import annotations

import heapq
import random

from benchmarks.figures import Figures

PODS = 10_000
ADAPTERS = 20
LOAD_SECONDS = 0.05
"""What one load takes where the store is no bottleneck."""


def simulate(*, spread: float, lanes: int, jitter: float, capacity: int, seed: int = 1) -> tuple[int, float, float]:
    """Restart every pod at once; the most loads in flight, the middle and the worst seconds from ready to restored.

    `spread` is the standard deviation of a server's start-up in seconds, `lanes` the loads in flight in a pod,
    `jitter` the longest wait before the first, `capacity` how many loads the store serves at full speed: more share it.
    """
    chance = random.Random(seed)
    left = [ADAPTERS] * PODS
    waiting: list[tuple[float, int, int]] = []
    ready = [max(0.0, chance.gauss(90.0, spread)) for _ in range(PODS)]
    for pod, at in enumerate(ready):
        heapq.heappush(waiting, (at + chance.uniform(0.0, jitter), pod, 0))
    in_flight = most = 0
    done = [0.0] * PODS
    while waiting:
        at, pod, kind = heapq.heappop(waiting)
        if kind:
            in_flight -= 1
            done[pod] = at
            starting = 1
        else:
            starting = lanes
        for _ in range(min(starting, left[pod])):
            left[pod] -= 1
            in_flight += 1
            slowed = max(1.0, in_flight / capacity)
            heapq.heappush(waiting, (at + LOAD_SECONDS * slowed, pod, 1))
        most = max(most, in_flight)
    took = sorted(end - start for end, start in zip(done, ready, strict=True))
    return most, took[PODS // 2], took[-1]


def figures() -> Figures:
    """Start-up spreads, lanes and jitters side by side, for a store that serves 500 loads at full speed."""
    rows = [
        (spread, lanes, jitter, *simulate(spread=spread, lanes=lanes, jitter=jitter, capacity=500))
        for spread in (0.0, 2.0, 10.0)
        for lanes in (1, 4)
        for jitter in (0.0, 10.0, 30.0)
    ]
    columns = ("start-up spread, s", "lanes", "jitter, s", "most in flight", "median, s", "worst, s")
    return Figures("fleet", f"{PODS} pods, {ADAPTERS} adapters each, restart together", columns, tuple(rows))
