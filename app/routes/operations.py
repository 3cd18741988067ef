"""What operators and their machines ask: is it alive, is it ready, which model, how is it going."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import StoreError, problem
from app.routes.responses import problem_response
from app.services import services_of

router = APIRouter(tags=["operations"])

# Vocabularies learned from logs: too long to be read here, so only their sizes are told.
_LONG_VOCABULARIES = ("items", "item_categories")


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """Answer as long as requests are answered at all; nothing else is looked at."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Should this replica get requests?",
    response_model=None,
    responses={503: {"description": "`not_ready`: something that requests need is not there; `checks` names it."}},
)
async def readyz(request: Request) -> Response | dict[str, Any]:
    """Ask Redis, the model and the batcher; each is named with `ok` or with what is wrong."""
    services = services_of(request)
    checks = {"redis": "ok", "model": "ok" if services.batcher.running else "not taking events"}
    try:
        await services.store.ping()
    except StoreError as exc:
        checks["redis"] = exc.code
    failing = [name for name, state in checks.items() if state != "ok"]
    if not failing:
        return {"status": "ready", "checks": checks}
    detail = f"Not ready: {', '.join(failing)}."
    body = problem(503, "not_ready", "This replica cannot answer events", detail, checks=checks)
    return problem_response(body, {"Retry-After": "1"})


@router.get("/v1/model", summary="Which model is loaded?")
async def get_model(request: Request) -> dict[str, Any]:
    """Answer with the artifact's manifest, where it runs, and how its states are stored."""
    services = services_of(request)
    manifest = services.model.manifest.to_dict()
    sizes = {f"{name}_count": len(manifest.pop(name)) for name in _LONG_VOCABULARIES if name in manifest}
    return {
        "fingerprint": services.model.fingerprint,
        "device": services.model.device,
        "state_dtype": services.settings.state_dtype,
        "state_bytes": services.model.state_size,
        "manifest": manifest | sizes,
    }


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Answer in Prometheus' text format; `docs/metrics.md` explains each."""
    services = services_of(request)
    return Response(services.metrics.exposition(), media_type=services.metrics.content_type)
