"""Boards in the situations that readers of snapshots have to show, made as a watch makes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin, Withdrawn
from lora_sidecar.core.observation import BaseModel, Listed, Observed
from lora_sidecar.core.observation import Reason as Why
from lora_sidecar.core.outcomes import Failure, FailureKind
from lora_sidecar.reconcile.backoff import Attempt
from lora_sidecar.reconcile.loads import Loads
from lora_sidecar.reconcile.outage import Phase, ServerState
from lora_sidecar.reconcile.state import State, Verdict
from lora_sidecar.reconcile.verification import Trials
from lora_sidecar.status.board import Board, ServerStatus

HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "' onmouseover='document.title=1",
    "</title></style><script>document.title='owned'</script>",
    "line\nbreak\tand\x00nul",
    "rtl \u202egnp.exe",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "half \ud800 of a pair",
    "&amp; <!-- --> ]]>",
    "javascript:alert(1)",
    "L" * 200_000,
)
"""Names as somebody would choose them who wants the page to break."""


def a_status(
    name: str = "vllm",
    adapters: Iterable[str] = (),
    *,
    listed: Iterable[str] = (),
    phase: Phase = Phase.UP,
    at: float = 50.0,
    detail: str = "",
    failing: Iterable[str] = (),
    required: Iterable[str] = (),
    conditions: tuple[Condition, ...] = (),
    number: int = 1,
    trials: Trials | None = None,
    withdrawn: Iterable[str] = (),
) -> ServerStatus:
    """What a watch publishes at `at` of a server that desires `adapters`, of which `listed` are listed."""
    wanted = {one: Adapter(one, f"/adapters/{one}", Origin.ADOPTED, one in set(required)) for one in adapters}
    cards = tuple(Listed(one, f"/adapters/{one}", "base") for one in listed)
    last = Observed(at, (BaseModel("base", "/models/base"),), cards, 1.0, runtime_loading=True)
    failure = Failure(FailureKind.ADAPTER, "LoRA rank 64 is greater than max_lora_rank 16", 500)
    work = State(
        server=ServerState(phase, at, None if phase is Phase.UP else Why.REFUSED, detail, last_good=at),
        last=last,
        loads=Loads({one: Attempt(failures=1, failure=failure) for one in failing}),
        conditions=conditions,
    )
    return ServerStatus(
        name=name,
        desired=Desired(
            wanted,
            Incarnation(number, 1.0),
            frozenset(wanted),
            withdrawn={one: Withdrawn(pending=False) for one in withdrawn},
        ),
        work=work,
        verdict=Verdict.STEADY,
        beat_at=at,
        beat_seconds=0.01,
        saved_generation=3,
        conditions=conditions,
        trials=trials or {},
    )


def a_board(*, hostile: bool = False, **status: Any) -> Board:
    """A board with one server and an event or two; with `hostile`, whatever can have a text has a bad one."""
    board = Board(("vllm",), 0.0)
    board.note("", 1.0, [info(EventName.DAEMON_STARTED, version="0.1.0")])
    if not hostile:
        board.publish(a_status(**status))
        return board
    held = tuple(Condition(ConditionType.ADAPTER_FAILING, text, text) for text in HOSTILE[:1])
    facts = [warning(EventName.RESTORE_FAILED, adapter=text, message=text) for text in HOSTILE]
    board.note("vllm", 49.0, [*facts, warning(EventName.SERVER_DOWN, detail=HOSTILE[0])])
    board.config_conditions = (Condition(ConditionType.CONFIG_REJECTED, "\n".join(HOSTILE), HOSTILE[1]),)
    names = {"adapters": HOSTILE, "listed": HOSTILE[::2], "failing": HOSTILE[1::2], "required": HOSTILE[:2]}
    board.publish(a_status(**{**names, "conditions": held, "detail": HOSTILE[3], **status}))
    return board
