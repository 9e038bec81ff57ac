"""Who may do what: tokens that expire, and a Role on ConfigMaps by name. Asked when a request begins, never later."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.kube_api.store import ApiError

ADMIN_TOKEN = "admin-token"


class Access:
    """`clock` is the loop's; tokens are valid until a time of it, and roles are by user."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._users: dict[str, tuple[str, float]] = {ADMIN_TOKEN: ("admin", float("inf"))}
        self._roles: dict[str, tuple[frozenset[str], str]] = {}

    def issue(self, token: str, user: str, seconds: float = float("inf")) -> None:
        """Have a token known for so many seconds."""
        self._users[token] = user, self._clock() + seconds

    def expire(self, token: str) -> None:
        """Have a token known no longer."""
        self._users.pop(token, None)

    def grant(self, user: str, name: str, verbs: tuple[str, ...] = ("get", "list", "watch", "patch")) -> None:
        """Bind a Role with `resourceNames: [name]`."""
        self._roles[user] = frozenset(verbs), name

    def revoke(self, user: str) -> None:
        """Take the RoleBinding away."""
        self._roles.pop(user, None)

    def check(self, authorization: str, verb: str, resource: str, name: str | None) -> None:
        """Raise `ApiError` where the bearer of a token may not do this; `name` None is all of them."""
        user, until = self._users.get(authorization.removeprefix("Bearer "), ("", 0.0))
        if not user or self._clock() >= until:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        verbs, allowed = self._roles.get(user, (frozenset(), None))
        if user == "admin" or (resource == "configmaps" and verb in verbs and name == allowed):
            return
        what = f"{resource} {name!r}" if name else resource
        sentence = f'{what} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group ""'
        raise ApiError(403, "Forbidden", f'{sentence} in the namespace "default"')
