"""`willbuy webhooks`, against scripted answers of a service."""

import json

from support.scripted_http import Reply, scripted_server
from typer.testing import CliRunner

from app.interventions.cli import cli

WEBHOOKS = [{"name": "shop.example-1", "rules": None, "waiting": 3, "next_attempt": None, "dead": 2}]
MESSAGE = {"id": "msg_1", "cause": "timeout", "attempts": 10, "died": "2026-11-29T12:00:00Z", "body": "{}"}


def run(*arguments, reply):
    with scripted_server(reply) as server:
        result = CliRunner().invoke(cli, [*arguments, "--url", server.url, "--api-key", "wb_secret"])
    return result, server.received


def body(value, status=200):
    return Reply(status=status, body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def test_queues_are_listed_with_the_key() -> None:
    result, (request,) = run("list", reply=body({"rules": [], "webhooks": WEBHOOKS}))
    assert result.exit_code == 0
    assert "shop.example-1" in result.output
    assert (request.path, request.headers["authorization"]) == ("/v1/interventions", "Bearer wb_secret")


def test_given_up_messages_are_lines_of_json() -> None:
    found = {"webhook": "shop.example-1", "dead": 7, "messages": [MESSAGE]}
    result, (request,) = run("dead", "shop.example-1", "--limit", "1", reply=body(found))
    assert json.loads(result.stdout) == MESSAGE
    assert "1 of 7 given-up messages" in result.stderr
    assert request.path == "/v1/webhooks/shop.example-1/dead?limit=1"


def test_all_or_some_are_sent_again() -> None:
    answer = body({"webhook": "shop.example-1", "resent": 2})
    result, (request,) = run("resend", "shop.example-1", reply=answer)
    assert (result.stdout, json.loads(request.body)) == ("2 messages wait to be sent again\n", {})
    _, (request,) = run("resend", "shop.example-1", "--id", "msg_1", "--id", "msg_2", reply=answer)
    assert json.loads(request.body) == {"ids": ["msg_1", "msg_2"]}


def test_a_failure_is_one_line_that_names_it_and_not_the_key() -> None:
    refused = body({"detail": "The API key lacks interventions:admin."}, status=403)
    for reply, expected in (
        (refused, "lacks interventions:admin"),
        (Reply(body=b"<html>"), "is it a willbuy service?"),
    ):
        result, _ = run("resend", "shop.example-1", reply=reply)
        assert result.exit_code == 1
        assert expected in result.stderr
        assert "wb_secret" not in result.output
    result = CliRunner().invoke(cli, ["list", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: http://127.0.0.1:1")
