"""How the versions of vLLM differ in what they answer, as far as anybody reads it.

The trap guarded against is a fake of a version that was only read about: everything here is held to what a real server
of that version answered (`tests/contract/answers`). Between two versions that were recorded, a change is dated by
vLLM's source where that was read, and else by the first recording that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

_COMPLETION = {
    "completion_tokens_details": "0.28",
    "ec_transfer_params": "0.28",
    "metrics": "0.28",
    "routed_experts": "0.24",
}
"""The first version with each field of a completion that not all have."""


class Dialect(Struct, frozen=True):
    """What a version knows and how it words its answers."""

    version: str

    def since(self, version: str) -> bool:
        """Whether this version is that one or a later one."""
        return _numbers(self.version) >= _numbers(version)

    @property
    def takes_base_names(self) -> bool:
        """Whether an adapter may have the name of the base model."""
        return not self.since("0.31")

    @property
    def flags(self) -> tuple[str, ...]:
        """The fields of a load that are true or false; others are ignored, whatever they hold."""
        known = (("load_inplace", "0.15"), ("is_3d_lora_weight", "0.22"))
        return tuple(name for name, since in known if self.since(since))

    @property
    def advice(self) -> str:
        """What is added to the refusal of a name that is loaded."""
        if "load_inplace" not in self.flags:
            return ""
        return " If you want to load the adapter in place, set 'load_inplace' to True."

    @property
    def load_failed(self) -> tuple[int, str]:
        """Status and type of the answer to a load that the engine refused."""
        return (500, "InternalServerError") if self.since("0.18") else (400, "BadRequestError")

    @property
    def dead(self) -> tuple[int, str]:
        """Status and error type of the answer to a completion by a dead engine."""
        if self.since("0.18"):
            return 500, "InternalServerError"
        return (200, "InternalServerError") if self.since("0.16") else (500, "Internal Server Error")

    def refusal(self, why: str) -> str:
        """The engine's sentence in the frames that are put around it on its way."""
        if self.since("0.18"):
            why = f"Worker failed with error '{why}', please check the stack trace above for the root cause"
        return self.shown(f"Call to add_lora method failed: {why}")

    def not_found(self, name: str, path: str) -> str:
        """What is said where there is no adapter at `path`."""
        frame = "" if self.since("0.18") else "Call to add_lora method failed: "
        return self.shown(f"{frame}Loading lora {name} failed: No adapter found for {path}")

    @property
    def has_pause(self) -> bool:
        """Whether the engine can be paused."""
        return self.since("0.12")

    @property
    def guards_pause(self) -> bool:
        """Whether pausing takes the developer mode."""
        return self.since("0.16")

    @property
    def measures_sleep(self) -> bool:
        """Whether the metrics tell a sleeping engine from one that is awake."""
        return self.since("0.11.1")

    @property
    def unknown_model_param(self) -> str | None:
        """What the refusal of an unknown model names as its parameter."""
        return "model" if self.since("0.16") else None

    def members(self, texts: Iterable[str]) -> str:
        """How a set of texts is printed."""
        return str(set(texts) if self.since("0.12") else list(texts))

    @property
    def names_fields(self) -> bool:
        """Whether the refusal of a body names the field that is wrong as its parameter."""
        return self.since("0.24")

    @property
    def checks_rank(self) -> bool:
        """Whether a rank of zero is refused by name, instead of divided by."""
        return self.since("0.28")

    @property
    def bias_refused(self) -> str:
        """What is said of an adapter with a bias."""
        if self.since("0.11.1"):
            return "Adapter bias is not supported."
        return "Adapter bias cannot be used without bias_enabled."

    def shown(self, message: str) -> str:
        """A message as it is sent: since 0.26 paths are hidden, by folder names and by file extensions."""
        if not self.since("0.26"):
            return message
        message = re.sub(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+", "<path>", message)
        return re.sub(r"(?:/[\w\-]+)+/[\w\-]+\.\w+", "<path>", message).strip()

    def completion(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A completion without the fields that this version does not know, however deep they lie."""
        known = {name: self._part(part) for name, part in fields.items() if self.since(_COMPLETION.get(name, "0"))}
        if "system_fingerprint" in known and not self.since("0.24"):
            known["system_fingerprint"] = None
        return known

    def _part(self, part: object) -> object:
        match part:
            case dict():
                return self.completion(part)
            case list():
                return [self._part(each) for each in part]
            case _:
                return part

    @property
    def tells_sleep(self) -> bool:
        """Whether /sleep and /wake_up say what they did; before, their answers are empty."""
        return self.since("0.32")

    @property
    def names_aliases(self) -> bool:
        """Whether a request for an unknown model is told which there are."""
        return self.since("0.32")

    @property
    def varies(self) -> bool:
        """Whether answers depend on the origin of the request, by their headers."""
        return self.since("0.32")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
