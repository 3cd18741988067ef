// The client against the real service, over connections that lose answers, and against what is no service at all.

import assert from "node:assert/strict";
import test from "node:test";

import {
  Client,
  ClientError,
  IncompleteBatchError,
  NoAnswerError,
  ProblemError,
  UnavailableError,
  UnexpectedAnswerError,
} from "@willbuy/client";
import {
  answering,
  API_KEY,
  batchScored,
  lossyProxy,
  newSession,
  PATIENT,
  problem,
  reply,
  SCORE,
  scored,
  scripted,
  SERVICE,
  until,
} from "./support.mjs";

const EVENT = { session_id: "s-0", event_name: "page_view" };
const client = new Client(SERVICE, PATIENT);

test("a session from its first event to its end", async () => {
  const session_id = newSession();
  const probabilities = [];
  for (const event_name of ["page_view", "view_item", "add_to_cart"]) {
    const score = await client.send({ session_id, event_name, item_id: "SKU-1", timestamp: new Date() });
    assert.equal(score.events, probabilities.push(score.probability));
    assert.ok(score.probability > 0 && score.probability < 1);
  }
  const { trace } = await client.session(session_id, { trace: true });
  trace.forEach((point, at) => assert.ok(Math.abs(point.probability - probabilities[at]) < 2e-3));

  const bought = await client.send({ session_id, event_name: "purchase" });
  assert.deepEqual([bought.probability, bought.outcome, bought.folded], [null, "purchase", false]);
  assert.equal((await client.session(session_id)).probability, null);
  assert.equal((await client.outcome(session_id, "purchase")).outcome, "purchase");
  await assert.rejects(client.outcome(session_id, "none"), (error) => {
    assert.ok(error instanceof ProblemError && !(error instanceof UnavailableError));
    return error.status === 409 && error.code === "outcome_conflict";
  });

  await client.delete(session_id);
  await client.delete(session_id);
  await assert.rejects(client.session(session_id), { name: "ProblemError", status: 404, code: "session_not_found" });
});

test("decisions of control groups are told on request", async () => {
  const viewed = { session_id: newSession(), event_name: "view_cart", event_id: "e-0" };
  assert.deepEqual((await client.send(viewed)).interventions, []);
  assert.equal((await client.send(viewed, { control: true })).interventions[0].group, "control");
  const [{ score }] = await client.sendBatch([viewed], { control: true });
  assert.equal(score.interventions[0].name, "chat");
});

test("reasons, history, rules and tokens are read", async () => {
  const session_id = newSession();
  const { probability } = await client.send({ session_id, event_name: "page_view" });
  const { why, trace } = await client.session(session_id, { why: true });
  assert.ok(Math.abs(why.after - probability) < 2e-3);
  assert.equal(trace, undefined);
  assert.ok(Array.isArray((await client.history(1)).hours));
  assert.equal((await client.interventions()).rules[0].name, "chat");
  const { token, lifetime_s } = await client.token({ session_id, lifetime_s: 60 });
  assert.equal(lifetime_s, 60);
  assert.equal((await new Client(SERVICE, { ...PATIENT, apiKey: token }).session(session_id)).events, 1);
});

test("an outcome is recorded with its time", async () => {
  const session_id = newSession();
  await client.send({ session_id, event_name: "page_view" });
  assert.equal((await client.outcome(session_id, "none", { timestamp: new Date() })).outcome, "none");
});

test("a batch is answered event by event", async () => {
  const session_id = newSession();
  const good = ["page_view", "search", "view_item"].map((event_name) => ({ session_id, event_name }));
  const results = await client.sendBatch([...good, { session_id, event_name: "page_view", price: "dear" }]);
  assert.deepEqual(results.map(({ score }) => score?.events), [1, 2, 3, undefined]);
  const { problem: refused, score } = results[3];
  assert.equal(score, null);
  assert.deepEqual([refused.status, refused.code, refused.errors[0].field], [422, "invalid_event", "price"]);
});

test("a batch is split into requests within the limits, in order", async (t) => {
  const script = await scripted(t, batchScored);
  const one = (session_id) => ({ session_id, event_name: "page_view" });
  const sizes = () => script.received.splice(0).map(({ lines }) => lines.length);
  const ids = ["a", "b", "7", "7.0", " 7", "c", "d"];
  await new Client(script.url, { ...PATIENT, batchEvents: 3 }).sendBatch(ids.map(one));
  assert.deepEqual(script.received.flatMap(({ lines }) => lines.map((line) => line.session_id)), ids);
  assert.deepEqual(sizes(), [3, 3, 1]);
  // The service reads the third to the fifth as one session
  await new Client(script.url, { ...PATIENT, sessionEvents: 2 }).sendBatch(ids.map(one));
  assert.deepEqual(sizes(), [4, 3]);
  await new Client(script.url, { ...PATIENT, batchBytes: 250 }).sendBatch(ids.map(one));
  assert.deepEqual(sizes(), [2, 2, 2, 1]);
});

test("board, statistics and model are read", async () => {
  const session_id = newSession();
  await client.send({ session_id, event_name: "page_view" });
  const query = { id_prefix: session_id, limit: 5, recent: 3, cursor: null, seen_since: new Date(0) };
  const page = await until(async () => {
    const found = await client.sessions(query);
    return found.sessions.length && found;
  });
  assert.equal(page.sessions[0].recent_probabilities.length, 1);
  const model = await client.model();
  assert.equal(model.fingerprint, page.sessions[0].model);
  assert.ok(model.manifest.event_names.length > 0);
  assert.equal((await client.stats()).replicas, 1);
});

for (const given of ["a/b", "50%", "a?b#c", "...", "a b", "größe", "+", "%2F", "x/outcome", "'\"<&>"]) {
  test(`the session ${given} is found again`, async () => {
    const session_id = given + newSession();
    await client.send({ session_id, event_name: "page_view" });
    assert.equal((await client.session(session_id)).session_id, session_id);
    await client.delete(session_id);
  });
}

test("what no path leads to is refused before it is sent", async () => {
  for (const id of ["", ".", ".."]) await assert.rejects(client.session(id), TypeError);
});

test("an event whose answer is lost counts once", async (t) => {
  const proxy = await lossyProxy(t, 2);
  const session_id = newSession();
  const score = await new Client(proxy.url, PATIENT).send({ session_id, event_name: "page_view" });
  assert.deepEqual([proxy.lost, score.duplicate, score.events], [2, true, 1]);
  assert.equal((await client.session(session_id)).events, 1);
});

test("a batch whose answers are lost counts once", async (t) => {
  const proxy = await lossyProxy(t, 3);
  const events = [newSession(), newSession()].flatMap((session_id) =>
    Array(6).fill({ session_id, event_name: "page_view" })
  );
  const results = await new Client(proxy.url, { ...PATIENT, batchEvents: 5 }).sendBatch(events);
  assert.equal(proxy.lost, 3);
  assert.deepEqual(results.map(({ score }) => score.events), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]);
});

test("an overload is waited out with the same event id", async (t) => {
  const script = await scripted(t, problem(503, "overloaded", { "retry-after": "0" }), problem(429, "busy"), scored);
  const score = await new Client(script.url, { deadlineMs: 30_000 }).send(EVENT);
  assert.equal(score.probability, 0.25);
  assert.equal(script.received.length, 3);
  assert.equal(new Set(script.received.map(({ lines }) => lines[0].event_id)).size, 1);
});

test("the wait of Retry-After is kept, also where it passes the deadline", async (t) => {
  const again = await scripted(t, problem(503, "overloaded", { "retry-after": "1" }), scored);
  const began = performance.now();
  await new Client(again.url, { deadlineMs: 30_000 }).send(EVENT);
  assert.ok(performance.now() - began >= 1000);

  const inAnHour = new Date(Date.now() + 3_600_000).toUTCString();
  for (const [value, least] of [["2", 2000], [inAnHour, 3_590_000], ["soon", undefined], ["1.5", undefined]]) {
    const script = answering(problem(503, "overloaded", { "retry-after": value }));
    await assert.rejects(new Client(script.url, script).send({ ...EVENT, event_id: "e-1" }), (error) => {
      assert.ok(error instanceof UnavailableError, `${error}`);
      assert.deepEqual([error.code, error.eventId], ["overloaded", "e-1"]);
      assert.equal(error.retryAfterMs === undefined, least === undefined);
      if (least === undefined) return script.count > 1;
      return error.retryAfterMs >= least && script.count === 1;
    });
  }
});

test("an event of a batch that the service cannot take is sent again", async (t) => {
  const busy = { status: 503, problem: { type: "t", title: "T", status: 503, detail: "No.", code: "overloaded" } };
  const first = reply(200, { results: [busy, { status: 200, score: SCORE }] });
  const script = await scripted(t, first, batchScored);
  const results = await new Client(script.url, PATIENT).sendBatch([EVENT, EVENT]);
  assert.deepEqual(results.map(({ problem }) => problem), [null, null]);
  assert.deepEqual(script.received[1].lines, [script.received[0].lines[0]]);
});

test("a batch that ends early has the results so far and the rest", async (t) => {
  const script = await scripted(t, batchScored, problem(413, "body_too_large"));
  const events = [1, 2, 3].map((number) => ({ ...EVENT, event_id: `e-${number}` }));
  await assert.rejects(new Client(script.url, { ...PATIENT, batchEvents: 1 }).sendBatch(events), (error) => {
    assert.ok(error instanceof IncompleteBatchError && error instanceof ClientError);
    assert.deepEqual(error.results.map(({ event_id }) => event_id), ["e-1"]);
    assert.deepEqual(error.unanswered, events.slice(1));
    return error.cause.code === "body_too_large";
  });
});

test("a refusal is thrown at once with its code, and the key is sent", async (t) => {
  const script = await scripted(t, problem(401, "unauthorized"));
  await assert.rejects(new Client(script.url, PATIENT).send(EVENT), { code: "unauthorized", status: 401 });
  assert.equal(script.received.length, 1);
  assert.equal(script.received[0].headers.authorization, `Bearer ${API_KEY}`);
  await assert.rejects(new Client(SERVICE, { ...PATIENT, apiKey: "wrong" }).stats(), { code: "unauthorized" });
});

test("a key is not carried to where a redirect leads", async (t) => {
  const other = await scripted(t, scored);
  const script = await scripted(t, { status: 307, headers: { location: other.url }, body: "" });
  await assert.rejects(new Client(script.url, PATIENT).send(EVENT), UnexpectedAnswerError);
  assert.equal(other.received.length, 0);
});

test("a service behind a path is reached there, with a fetch of the caller's", async (t) => {
  const script = await scripted(t, scored);
  const own = (url, options) => fetch(url, { ...options, headers: { ...options.headers, "x-shop": "1" } });
  await new Client(`${script.url}/shop/willbuy/`, { ...PATIENT, fetch: own }).send(EVENT);
  const { path, headers } = script.received[0];
  assert.deepEqual([path, headers["x-shop"]], ["/shop/willbuy/v1/events", "1"]);
});

for (const kind of ["silent", "drops"]) {
  test(`an answer that never ends (${kind}) ends with the deadline of 200 ms`, async (t) => {
    const script = await scripted(t, kind);
    const began = performance.now();
    await assert.rejects(new Client(script.url).send(EVENT), (error) => {
      assert.ok(error instanceof NoAnswerError, `${error}`);
      return error.eventId === script.received[0].lines[0].event_id;
    });
    const took = performance.now() - began;
    // The rest is room for a busy machine
    assert.ok(took >= 190 && took < 2000, `${took}`);
  });
}

test("an attempt ends before the deadline where it has a limit of its own", async (t) => {
  const script = await scripted(t, "silent", scored);
  await new Client(script.url, { deadlineMs: 30_000, timeoutMs: 100 }).send(EVENT);
  const [first, second] = script.received;
  assert.equal(second.lines[0].event_id, first.lines[0].event_id);
});

test("nobody at the address is an error of the client", async () => {
  await assert.rejects(new Client("http://127.0.0.1:1", { deadlineMs: 50 }).stats(), NoAnswerError);
});

test("an answer of another program is told apart", async (t) => {
  const html = { status: 200, headers: {}, body: "<html>hello</html>" };
  const script = await scripted(t, html);
  const message = "not an answer of willbuy: <html>hello</html>";
  await assert.rejects(new Client(script.url, PATIENT).send(EVENT), { name: "UnexpectedAnswerError", message });
  const gateway = answering({ ...html, status: 502 });
  await assert.rejects(new Client(gateway.url, gateway).send(EVENT), { name: "UnavailableError", code: "http_502" });
});

test("what JSON cannot hold is thrown before it is sent", async () => {
  for (const wrong of [{ price: NaN }, { timestamp: new Date("never") }, { properties: { a: Infinity } }]) {
    await assert.rejects(client.send({ ...EVENT, ...wrong }), TypeError);
    await assert.rejects(client.sendBatch([EVENT, { ...EVENT, ...wrong }]), TypeError);
    assert.throws(() => client.enqueue({ ...EVENT, ...wrong }), TypeError);
  }
});

test("wrong options are refused", async () => {
  assert.throws(() => new Client("ftp://host"), TypeError);
  assert.throws(() => new Client(SERVICE, { apiKey: "ä" }), TypeError);
  assert.throws(() => new Client(SERVICE, { deadlineMs: 0 }), RangeError);
  await assert.rejects(client.send(EVENT, { deadlineMs: NaN }), ClientError);
});
