"""Writes the fake server's /metrics: the few lines of vLLM's that tell one life from the next and sleep from waking.

The trap guarded against is a test server whose start time is the test's: it is a value here, new for each life.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_STATES = ("awake", "weights_offloaded", "discard_all")


def metrics_text(
    *,
    model: str,
    max_loras: int,
    start_time: float,
    now: float,
    sleep_level: int | None,
    measures_sleep: bool,
    requests: int,
    tokens: int,
    lora_requests: Sequence[str],
) -> str:
    """The metrics as text; times are Unix seconds, `requests` how many run now, `tokens` how many were generated.

    `lora_requests` are the adapters that a request has named so far.
    """
    labels = f'engine="0",model_name="{model}"'
    # Level 0 only holds the scheduler: the weights stay, and the state says no more than "not awake".
    state = {None: "awake", 1: "weights_offloaded", 2: "discard_all"}.get(sleep_level)
    lines = [
        *_family("python_info", "gauge", "Python platform information", [('{implementation="CPython"}', "1.0")]),
        *_family("process_start_time_seconds", "gauge", _START_HELP, [("", _number(round(start_time, 2)))]),
        *_family("process_open_fds", "gauge", "Number of open file descriptors.", [("", "34.0")]),
        *_family(
            "vllm:num_requests_running",
            "gauge",
            "Number of requests in model execution batches.",
            [(f"{{{labels}}}", f"{requests}.0")],
        ),
        *_family(
            "vllm:num_requests_waiting",
            "gauge",
            "Number of requests waiting to be processed.",
            [(f"{{{labels}}}", "0.0")],
        ),
        *_family(
            "vllm:generation_tokens_total",
            "counter",
            "Number of generation tokens processed.",
            [(f"{{{labels}}}", f"{tokens}.0")],
        ),
        *_family(
            "vllm:prompt_tokens_created",
            "gauge",
            "Number of prefill tokens processed.",
            [(f"{{{labels}}}", _number(now))],
        ),
    ]
    if measures_sleep:
        lines += _family(
            "vllm:engine_sleep_state",
            "gauge",
            _SLEEP_HELP,
            [(f'{{{labels},sleep_state="{name}"}}', "1.0" if name == state else "0.0") for name in _STATES],
        )
    if lora_requests:
        names = ",".join(lora_requests)
        series = f'{{max_lora="{max_loras}",running_lora_adapters="{names}",waiting_lora_adapters="{names}"}}'
        lines += _family(
            "vllm:lora_requests_info", "gauge", "Running stats on lora requests.", [(series, _number(now))]
        )
    return "\n".join(lines) + "\n"


_START_HELP = "Start time of the process since unix epoch in seconds."
_SLEEP_HELP = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1"
    " means sleep level 1; discard_all = 1 means sleep level 2."
)


def _number(value: float) -> str:
    # The metrics library writes large numbers with an exponent, as Go does.
    whole, _, fraction = repr(value).partition(".")
    return f"{whole[0]}.{whole[1:]}{fraction}".rstrip("0.") + f"e+{len(whole) - 1:02}"


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, str]]) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in samples)]
