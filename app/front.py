"""The application with its own layers before the framework's."""

from fastapi import FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class FrontedFastAPI(FastAPI):
    """FastAPI whose middleware stands before it instead of inside it.

    The framework puts five layers of its own around what was given to `add_middleware`. What is answered before the
    routing, which is nearly everything, has no use for them, and pays a call and a wait for each (docs/performance.md).
    """

    front: ASGIApp | None = None

    def move_middleware_to_front(self) -> None:
        """Take over what was added so far, in its order; whatever is added later goes inside, as ever."""
        front: ASGIApp = super().__call__
        for layer in reversed(self.user_middleware):
            front = layer.cls(front, *layer.args, **layer.kwargs)
        self.user_middleware = []
        self.front = front

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers without the one that answers what nobody caught.

        It would answer in plain text before `app.middleware.RequestContext`, which now stands outside, sees the error.
        """
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self.front is None:
            await super().__call__(scope, receive, send)
        else:
            await self.front(scope, receive, send)
