"""The routes of the fake vLLM as its Rust frontend answers them (0.33).

The trap guarded against is one idea of vLLM: the same API is written twice there. This one lists real paths, takes
local paths only below the prefixes that it was given, words errors otherwise, and publishes no start of its process.
The words were read in the source (rust/src/server, lora.rs and routes/); none of it was compared with a running one.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from tests.fakes.engine import EngineDeadError, FakeEngine, LoadFailedError
from tests.fakes.overrides import Answer
from tests.fakes.requests import InvalidRequestError, json_body, json_response, load_request, unload_request
from tests.fakes.routes import Routes, ServedModel

_PREFIXES = "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES"


class RustRoutes(Routes):
    """Answers the requests of one life of a server with the Rust frontend; `allowed` are the path prefixes."""

    def __init__(self, model: ServedModel, engine: FakeEngine, start_time: float, allowed: tuple[str, ...]) -> None:
        super().__init__(model, engine, start_time)
        self._allowed = allowed

    async def _route(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as refusal:
            return web.Response(status=405, headers={"Allow": ",".join(sorted(refusal.allowed_methods))})
        except web.HTTPNotFound:
            return web.Response(status=404)
        except InvalidRequestError as error:
            return _invalid(error.message)
        except EngineDeadError:
            return _server_error("engine core is not healthy")

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n# EOF\n")

    async def _models(self, request: web.Request) -> web.Response:
        del request
        created = int(self.now)
        parent = self.model.names[0]
        card: dict[str, object] = {"object": "model", "created": created, "owned_by": "vllm-frontend-rs"}
        base = card | {"root": self.model.root, "parent": None, "max_model_len": self.model.max_model_len}
        data = [{"id": name} | base for name in self.model.names]
        data += [
            {"id": name} | card | {"root": path, "parent": parent, "max_model_len": None}
            for name, path in self.registry.adapters.items()
        ]
        return json_response({"object": "list", "data": data})

    async def _load(self, request: web.Request) -> web.Response:
        asked = load_request(json_body(request.headers.get("Content-Type", ""), await request.read()))
        path = asked.lora_path
        if path.startswith(("/", "~", ".")) or ".." in path.split("/"):
            resolved = self._resolved(path)
            if isinstance(resolved, web.Response):
                return resolved
            path = resolved
        return await self.load(asked.lora_name, path, inplace=asked.load_inplace)

    def _resolved(self, path: str) -> str | web.Response:
        if not self._allowed:
            return _invalid(f"Local LoRA adapter paths require {_PREFIXES} to be configured.")
        if not path.startswith("/"):
            return _invalid(
                f"Local LoRA adapter paths must be absolute and under one of the prefixes configured by {_PREFIXES}."
            )
        try:
            real = Path(path).resolve(strict=True)
        except OSError:
            return _invalid("Local LoRA adapter path must exist and be accessible.")
        if not any(real.is_relative_to(Path(prefix).resolve()) for prefix in self._allowed):
            return _invalid("Local LoRA adapter path is outside the configured allowed prefixes.")
        return str(real)

    async def load(self, name: str, path: str, *, inplace: bool = False) -> web.Response:
        """Load an adapter and list it; static ones come here past the prefixes."""
        async with self.registry.locks[""]:
            if not name.strip() or not path.strip():
                return _invalid("lora_name must not be empty" if not name.strip() else "lora_path must not be empty")
            if name in self.model.names:
                return _invalid(f"LoRA adapter `{name}` conflicts with a served base model")
            if name in self.registry.adapters and not inplace:
                return _invalid(
                    f"The lora adapter `{name}` is already loaded. If you want to load the adapter in place,"
                    " set 'load_inplace' to true."
                )
            try:
                await self.engine.load(path, self.registry.identity(name))
            except FileNotFoundError as error:
                return _server_error(f"failed to load LoRA adapter `{name}`: No adapter found for {path}: {error}")
            except LoadFailedError as error:
                if "LoRA is not enabled" in str(error):
                    return _invalid("engine was not started with LoRA enabled")
                return _server_error(f"failed to load LoRA adapter `{name}`: {error}")
            self.registry.adapters[name] = path
            return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = unload_request(json_body(request.headers.get("Content-Type", ""), await request.read()))
        async with self.registry.locks[""]:
            if name not in self.registry.adapters:
                message = f"The model `{name}` does not exist."
                return _error(404, "invalid_request_error", message, "model_not_found")
            del self.registry.adapters[name]
            return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def _invalid(message: str) -> web.Response:
    return _error(400, "invalid_request_error", message, "invalid_request_error")


def _server_error(message: str) -> web.Response:
    return _error(500, "server_error", message, "server_error")


def _error(status: int, kind: str, message: str, code: str) -> web.Response:
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)
