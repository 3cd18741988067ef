"""Routes for operators: liveness, readiness, the loaded model, its reload, and the metrics."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.openapi import documented
from app.api.services import services_of
from app.auth.middleware import holder_of
from app.errors import (
    ArtifactRefusedError,
    ReloadDisabledError,
    ReloadInProgressError,
    problem,
    problem_response,
)
from app.monitoring.health import failing
from app.schemas.model import ModelOut

router = APIRouter(tags=["operations"])

# Vocabularies learned from logs are too long to read here, so the answer has only their sizes.
_LONG_VOCABULARIES = ("items", "item_categories")


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """Answer while the process serves requests; nothing else is checked."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False, response_model=None)
@router.get(
    "/readyz",
    summary="Should this replica get requests?",
    response_model=None,
    responses={503: {"description": "`not_ready`: something that requests need is not there; `checks` names it."}},
)
async def readyz(request: Request) -> Response | dict[str, Any]:
    """Check Redis, the model and whether the replica is shutting down; each is `ok` or has its problem code.

    Redis is checked with the scripts of an event, on keys of their own. `causes` has the server's error word, such as
    `NOPERM`. `warnings` names what stops no event and needs an operator, such as an eviction policy.
    """
    services = services_of(request)
    checks = await services.readiness.checks()
    names = failing(checks)
    if not names:
        warnings = await services.readiness.warnings()
        return {"status": "ready", "checks": checks} | ({"warnings": warnings} if warnings else {})
    causes = dict(services.readiness.causes)
    said = [f"{name} ({causes[name]})" if name in causes else name for name in names]
    detail = f"Not ready: {', '.join(said)}."
    body = problem(503, "not_ready", "This replica cannot answer events", detail, checks=checks, causes=causes)
    return problem_response(body, {"Retry-After": "1"})


@router.get("/v1/model", summary="Which model is loaded?")
async def get_model(request: Request) -> ModelOut:
    """Answer with the artifact's manifest, when it was loaded, where it runs, and how its states are stored."""
    services = services_of(request)
    model = services.model
    manifest = model.manifest.to_dict()
    sizes = {f"{name}_count": len(manifest.pop(name)) for name in _LONG_VOCABULARIES if name in manifest}
    return ModelOut(
        fingerprint=model.fingerprint,
        loaded_at=services.models.loaded_at,
        device=model.device,
        engine=model.engine,
        engine_reason=model.engine_reason,
        state_dtype=services.settings.state_dtype,
        state_bytes=model.state_size,
        base_rate=services.settings.base_rate,
        access="open" if services.settings.open_access else "keys",
        manifest=manifest | sizes,
    )


@router.post(
    "/v1/model/reload",
    summary="Load the artifact's path anew",
    responses=documented(ReloadDisabledError, ReloadInProgressError, ArtifactRefusedError),
)
async def reload_model(request: Request) -> dict[str, str]:
    """Load the file at the configured path, and use its model from the next batch on.

    No request fails meanwhile, and sessions continue with their whole history. An unusable artifact is refused, and
    the loaded model stays. Only this worker process reloads; the file watch reaches all workers.
    """
    services = services_of(request)
    if services.settings.open_access:
        # With keys, only a key with the scope `model:admin` gets here.
        raise ReloadDisabledError("Access is open, so everybody could call this. Use API keys, or watch the file.")
    services.logger.info("reload_requested", key=holder_of(request.scope))
    result = await services.models.reload()
    return {"result": result, "fingerprint": services.model.fingerprint}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Answer in Prometheus' text format, for all worker processes together; docs/reference/metrics.md explains them."""
    metrics = services_of(request).metrics
    # In a thread: it takes as long as many events do.
    return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.content_type)
