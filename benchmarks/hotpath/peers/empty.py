"""Peer (a): a FastAPI endpoint that does nothing but take the same body; the framework's own cost.

uvicorn --factory benchmarks.hotpath.peers.empty:create_app --http httptools --loop uvloop --no-access-log
"""

from fastapi import FastAPI

from app.schemas.events import EventIn


def create_app() -> FastAPI:
    """Return the app."""
    app = FastAPI()

    @app.post("/v1/events")
    async def post_event(event: EventIn) -> dict[str, str]:
        return {"session_id": event.session_id}

    return app
