"""Rules, their experiments and switches; webhooks and their dead messages."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from app.api.bodies import read_object
from app.api.openapi import documented
from app.api.responses import json_response
from app.api.services import in_time, services_of
from app.auth.middleware import holder_of
from app.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    InvalidJsonError,
    InvalidRequestError,
    RuleNotFoundError,
    StoreUnavailableError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    WebhookNotFoundError,
)
from app.interventions.experiments import RuleResult
from app.interventions.statistics import Interval, wilson
from app.interventions.webhooks import Webhook
from app.schemas.interventions import (
    DeadMessageOut,
    DeadMessagesOut,
    ExperimentOut,
    GroupOut,
    IntervalOut,
    InterventionsOut,
    ResendIn,
    ResendOut,
    RuleOut,
    SwitchIn,
    SwitchOut,
    WebhookOut,
)
from model.clock import utc
from model.interventions.rules import Rule

router = APIRouter(tags=["interventions"])

_BODY_ERRORS: Final = (
    InvalidJsonError, UnsupportedMediaTypeError, UnsupportedEncodingError, BodyTooLargeError, InvalidRequestError
)  # fmt: skip


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.get(
    "/v1/interventions",
    summary="Rules, and whether they paid",
    response_model=InterventionsOut,
    responses=documented(DeadlineExceededError, StoreUnavailableError),
)
async def get_interventions(request: Request) -> Response:
    """Answer with each rule: its switch, how often it fired, both groups' conversions and the difference.

    The counts are those of all replicas, once for each ended session.
    """
    services = services_of(request)
    with in_time(request):
        results = await services.experiments.results()
        states = {
            webhook.name: await services.store.webhooks.state(webhook.name) for webhook in services.sender.webhooks
        }
    answer = InterventionsOut(
        as_of=utc(services.now_ms()),
        rules=[_rule_out(result) for result in results],
        webhooks=[
            WebhookOut(
                name=webhook.name,
                rules=None if webhook.rules is None else sorted(webhook.rules),
                waiting=states[webhook.name].waiting,
                next_attempt=None if (due_ms := states[webhook.name].next_ms) is None else utc(due_ms),
                dead=states[webhook.name].dead,
            )
            for webhook in services.sender.webhooks
            if webhook.name in states
        ],
    )
    return json_response(answer.model_dump_json().encode())


@router.post(
    "/v1/interventions/{name}/switch",
    summary="Switch a rule on or off, everywhere",
    response_model=SwitchOut,
    responses=documented(RuleNotFoundError, DeadlineExceededError, StoreUnavailableError, *_BODY_ERRORS),
    openapi_extra=_body_of(SwitchIn),
)
async def switch_rule(request: Request, name: Annotated[str, Path(description="The rule.")]) -> SwitchOut:
    """Switch the rule in all replicas within two seconds; the same again changes nothing.

    The switch stays until it is used again, also when the file changes or the service restarts.
    """
    services = services_of(request)
    with in_time(request):
        wanted = await read_object(request, SwitchIn, services.settings.max_body_bytes)
        await services.experiments.switch(name, on=wanted.on)
    services.logger.info("rule_switched", rule=name, on=wanted.on, key=holder_of(request.scope))
    return SwitchOut(name=name, on=wanted.on)


@router.get(
    "/v1/webhooks/{name}/dead",
    summary="Messages that are not sent any more",
    response_model=DeadMessagesOut,
    responses=documented(WebhookNotFoundError, InvalidRequestError, DeadlineExceededError, StoreUnavailableError),
)
async def dead_messages(
    request: Request,
    name: Annotated[str, Path(description="The webhook's name, as `GET /v1/interventions` has it.")],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DeadMessagesOut:
    """Answer with the latest dead messages: why each is dead, and what it said."""
    services = services_of(request)
    with in_time(request):
        state = await services.store.webhooks.state(_webhook(request, name).name, most_dead=limit)
    return DeadMessagesOut(
        webhook=name,
        dead=state.dead,
        messages=[
            DeadMessageOut(
                id=one.message_id, cause=one.cause, attempts=one.attempts, died=utc(one.died_ms), body=one.body
            )
            for one in state.messages
        ],
    )


@router.post(
    "/v1/webhooks/{name}/resend",
    summary="Send dead messages again",
    response_model=ResendOut,
    responses=documented(WebhookNotFoundError, DeadlineExceededError, StoreUnavailableError, *_BODY_ERRORS),
    openapi_extra=_body_of(ResendIn),
)
async def resend_messages(request: Request, name: Annotated[str, Path(description="The webhook's name.")]) -> ResendOut:
    """Put dead messages back into the queue, with all attempts ahead; each keeps its id."""
    services = services_of(request)
    webhook = _webhook(request, name)
    with in_time(request):
        wanted = await read_object(request, ResendIn, services.settings.max_body_bytes)
        resent = await services.store.webhooks.resend(webhook.name, wanted.ids or ())
    services.logger.info("webhook_resent", webhook=name, messages=resent, key=holder_of(request.scope))
    return ResendOut(webhook=name, resent=resent)


def _webhook(request: Request, name: str) -> Webhook:
    for webhook in services_of(request).sender.webhooks:
        if webhook.name == name:
            return webhook
    raise WebhookNotFoundError("There is no such webhook; `GET /v1/interventions` lists them.")


def _rule_out(result: RuleResult) -> RuleOut:
    found = result.comparison
    return RuleOut(
        name=result.name,
        on=result.is_on,
        in_file=result.rule is not None,
        switched_off=None if result.switched_off_ms is None else utc(result.switched_off_ms),
        control=0.0 if result.rule is None else result.rule.control,
        rule={} if result.rule is None else _fields(result.rule),
        fired_today=sum(result.fired_today.values()),
        treatment=_group_out(result, "treatment"),
        control_group=_group_out(result, "control"),
        experiment=ExperimentOut(
            difference=found.difference,
            interval=_interval_out(found.sequence),
            interval_once=_interval_out(found.fixed),
            revenue_difference=found.revenue_difference,
            revenue_interval=_interval_out(found.revenue_sequence),
            minimum_detectable_effect=found.detectable,
            sample_ratio_p=found.mismatch_p,
            days_left=found.verdict.days_left,
            finding=found.verdict.finding.value,
            verdict=found.verdict.text,
        ),
    )


def _group_out(result: RuleResult, group: str) -> GroupOut:
    counts = result.groups[group]
    low, high = wilson(counts.buyers, counts.sessions)
    return GroupOut(
        fired_today=result.fired_today[group],
        sessions=counts.sessions,
        pending=result.pending[group],
        buyers=counts.buyers,
        conversion=counts.conversion,
        conversion_interval=IntervalOut(low=low, high=high),
        revenue=counts.revenue,
        revenue_per_session=counts.revenue_a_session,
        currency=result.currency or None,
    )


def _fields(rule: Rule) -> dict[str, Any]:
    """Return the fields of a rule that differ from their defaults."""
    plain = Rule(name=rule.name)
    differing = {
        name: getattr(rule, name) for name in rule.__struct_fields__ if getattr(rule, name) != getattr(plain, name)
    }
    fields: dict[str, Any] = msgspec.to_builtins(differing)
    return fields


def _interval_out(interval: Interval | None) -> IntervalOut | None:
    return None if interval is None else IntervalOut(low=interval.low, high=interval.high)
