"""What a server answered to a test, in a form in which two runs of one version give the same file.

The trap guarded against is an expectation written by hand: it is right for the one version that its author looked at.
So the suite writes down what a real server of each version answered, and whatever claims to answer like that version is
held to the file. What differs from run to run (folders, ports, names, times, identities, what the model says) is
replaced by a word in braces; nothing else is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from tests.support.http_client import Api, Reply

ANSWERS = Path(__file__).parent / "answers"
_HEADERS = ("content-type", "allow", "location", "www-authenticate")
# The families of /metrics that are read by somebody; the others are many, and change with everything.
_FAMILIES = (
    "process_start_time_seconds",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:engine_sleep_state",
    "vllm:generation_tokens_total",
)
_SET = re.compile(r"([{\[])('\w+'(?:, '\w+')*)([}\]])")
_UNSTEADY = ("process_start_time_seconds", "vllm:generation_tokens_total")


class Recording(Struct, kw_only=True):
    """What one version of vLLM answered, by test; `day` is that of the last run that wrote into it."""

    vllm: str
    day: str
    answers: dict[str, list[dict[str, Any]]]


def recorded_versions() -> tuple[str, ...]:
    """The versions of which there is a recording, oldest first."""
    return tuple(sorted((file.stem for file in ANSWERS.glob("*.json")), key=version_key))


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions by their numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def read_recording(version: str) -> Recording:
    """The recording of that version. Raises `OSError` where there is none, and `msgspec.MsgspecError`."""
    return msgspec.json.decode((ANSWERS / f"{version}.json").read_bytes(), type=Recording)


def write_recording(recording: Recording) -> None:
    """Replace the recording of its version."""
    text = json.dumps(msgspec.to_builtins(recording), indent=1, ensure_ascii=False)
    (ANSWERS / f"{recording.vllm}.json").write_text(text + "\n")


class Transcript:
    """What one test asked and was answered, in order.

    `words` maps what differs from run to run to the word that stands for it. Of a listing, the base
    models and the adapters whose names begin with one of `mine` are kept, since what else is loaded depends on the
    tests before; of a card, what tells one model from another.
    """

    def __init__(self, words: Mapping[str, str], mine: tuple[str, ...]) -> None:
        self._words = dict(words)
        self._mine = mine
        self.entries: list[dict[str, Any]] = []

    def call(self, found: str, word: str) -> None:
        """Write `word` wherever `found` stands, from now on."""
        self._words[found] = word

    def note(self, what: str, value: Any) -> None:
        """Write down what was seen otherwise than as an answer to one request."""
        self.entries.append({"seen": what, "value": self._steady(value)})

    def heard(self, method: str, path: str, reply: Reply) -> None:
        """Write down the answer to a request."""
        headers = {name: self._steady(reply.headers[name]) for name in _HEADERS if name in reply.headers}
        self.entries.append(
            {"asked": f"{method} {self._steady(path)}", "status": reply.status}
            | headers
            | {"body": self._body(path.partition("?")[0], reply)}
        )

    def unanswered(self, method: str, path: str, error: BaseException) -> None:
        """Write down that a request had no answer, for as long as the test waited."""
        kind = "no answer" if isinstance(error, TimeoutError) else "connection lost"
        self.entries.append({"asked": f"{method} {self._steady(path)}", "status": kind})

    def _body(self, path: str, reply: Reply) -> Any:
        if path == "/metrics":
            return sorted(self._metric(line) for line in reply.text.splitlines() if _is_read(line))
        try:
            body = reply.json()
        except ValueError:
            return self._steady(reply.text)
        if path == "/v1/completions" and "choices" in body:
            return "{a completion}"
        if reply.status == 200 and path == "/v1/models":
            cards = [card for card in body["data"] if card["parent"] is None or card["id"].startswith(self._mine)]
            body["data"] = [{key: card[key] for key in ("id", "root", "parent")} for card in cards]
        match body:
            case {"error": {"type": "Bad Request", "message": str()}}:
                # The web framework's account of a body that it cannot read: its own files and lines are in it.
                body["error"]["message"] = "{words of the framework}"
            case _:
                pass
        return self._steady(body)

    def _metric(self, line: str) -> str:
        if line.startswith(_UNSTEADY):
            line = f"{line.rpartition(' ')[0]} {{number}}"
        return line

    def _steady(self, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._field(key, part) for key, part in value.items()}
            case list() | tuple():
                return [self._steady(part) for part in value]
            case str():
                return self._text(value)
            case _:
                return value

    def _field(self, key: str, value: Any) -> Any:
        if key == "created" and isinstance(value, int):
            return "{time}"
        if isinstance(value, str) and (identity := re.fullmatch(r"(modelperm|cmpl)-[\w-]+", value)):
            return f"{identity[1]}-{{id}}"
        return self._steady(value)

    def _text(self, text: str) -> str:
        for found, word in sorted(self._words.items(), key=lambda item: -len(item[0])):
            text = text.replace(found, word)
        # The members of a set of texts come in an order that is new in each process; one version made a list of them.
        return _SET.sub(lambda match: match[1] + ", ".join(sorted(match[2].split(", "))) + match[3], text)


def _is_read(line: str) -> bool:
    return re.split(r"[ {]", line.removeprefix("# TYPE "), maxsplit=1)[0] in _FAMILIES


def shape(value: object) -> object:
    """The keys and the types of a JSON value, without its contents."""
    match value:
        case dict():
            return {key: shape(part) for key, part in value.items()}
        case list():
            return [shape(part) for part in value]
        case _:
            return type(value).__name__


class HeardApi(Api):
    """A client of whose requests every answer is written down; `quiet` is one for looking again and again."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, transcript: Transcript, key: str | None = None
    ) -> None:
        super().__init__(session, url, key)
        self.quiet = Api(session, url, key)
        self._transcript = transcript

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        """Ask as `Api` does, and write down what came."""
        try:
            reply = await super().ask(method, path, **more)
        except (aiohttp.ClientError, TimeoutError) as error:
            self._transcript.unanswered(method, path, error)
            raise
        self._transcript.heard(method, path, reply)
        return reply
