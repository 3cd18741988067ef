"""`POST /v1/tokens`: a short-lived token, with which a browser may read one session or the board."""

from fastapi import APIRouter, Request, Response

from app.api.bodies import read_object
from app.api.openapi import documented
from app.api.responses import json_response
from app.api.services import in_time, services_of
from app.auth.middleware import key_sha256_of
from app.auth.tokens import TokenStore
from app.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    InvalidJsonError,
    InvalidRequestError,
    StoreUnavailableError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
)
from app.schemas.tokens import TokenIn, TokenOut

router = APIRouter(tags=["tokens"])


@router.post(
    "/v1/tokens",
    summary="Make a token for a browser",
    response_model=TokenOut,
    responses=documented(
        InvalidJsonError,
        UnsupportedMediaTypeError,
        UnsupportedEncodingError,
        BodyTooLargeError,
        InvalidRequestError,
        DeadlineExceededError,
        StoreUnavailableError,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TokenIn"}}},
        }
    },
)
async def post_token(request: Request) -> Response:
    """Answer with a token for one session, or for the board, the statistics and the stream.

    The browser sends it as `Authorization: Bearer TOKEN`, or as `?token=TOKEN` where it cannot send headers, as
    `EventSource` cannot. The token allows to read, and ends with its lifetime or with the API key that made it.
    """
    services = services_of(request)
    tokens: TokenStore = request.app.state.tokens
    with in_time(request):
        wanted = await read_object(request, TokenIn, services.settings.max_body_bytes)
        if wanted.session_id is not None:
            services.intake.check_session_id(wanted.session_id)
        token = await tokens.issue(key_sha256_of(request.scope), wanted.session_id, wanted.lifetime_s)
    made = TokenOut(token=token, session_id=wanted.session_id, lifetime_s=wanted.lifetime_s)
    response = json_response(made.model_dump_json().encode())
    response.headers["cache-control"] = "no-store"
    return response
