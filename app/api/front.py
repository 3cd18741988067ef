"""The application with its own layers before the framework's."""

from typing import Any

from fastapi import FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class FrontedFastAPI(FastAPI):
    """FastAPI whose middleware stands before it instead of inside it.

    The framework puts five layers of its own around what was given to `add_middleware`. What is answered before the
    routing, which is nearly everything, has no use for them, and pays a call and a wait for each (docs/performance.md).
    """

    front: ASGIApp | None = None
    _server_state: dict[str, Any] | None = None

    def move_middleware_to_front(self) -> None:
        """Take over what was added so far, in its order; whatever is added later goes inside, as ever."""
        front: ASGIApp = super().__call__
        for layer in reversed(self.user_middleware):
            front = layer.cls(front, *layer.args, **layer.kwargs)
        self.user_middleware = []
        self.front = front

    def share(self, name: str, value: object) -> None:
        """Let the server's connections know something, within the lifespan; a server may share nothing with them.

        It is the lifespan's state of ASGI (https://asgi.readthedocs.io/en/latest/specs/lifespan.html#lifespan-state).
        """
        if self._server_state is not None:
            self._server_state[name] = value

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers without the one that answers what nobody caught.

        It would answer in plain text before `app.api.middleware.RequestContext`, which now stands outside, sees the
        error.
        """
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            self._server_state = scope.get("state")
        if self.front is None:
            await super().__call__(scope, receive, send)
        else:
            await self.front(scope, receive, send)
