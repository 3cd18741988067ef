// Events that nobody waits for.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import test from "node:test";

import { Client, NoAnswerError, ProblemError, QueueFullError } from "@willbuy/client";
import { API_KEY, batchScored, newSession, PATIENT, problem, reply, scripted, SERVICE, until } from "./support.mjs";

const HOUR_MS = 3_600_000;
const NAMES = ["page_view", "view_item", "add_to_cart"];
const visit = (session_id) => NAMES.map((event_name) => ({ session_id, event_name }));

test("queued events go in one request, in order and with their times", async (t) => {
  const script = await scripted(t, batchScored);
  const client = new Client(script.url, { ...PATIENT, flushIntervalMs: HOUR_MS });
  const ids = visit("s-0").map((event) => client.enqueue(event));
  assert.equal(await client.flush(), 0);
  const [{ lines }] = script.received;
  assert.equal(script.received.length, 1);
  assert.deepEqual(lines.map((line) => [line.event_id, line.event_name]), ids.map((id, at) => [id, NAMES[at]]));
  for (const { timestamp } of lines) assert.ok(Math.abs(timestamp - Date.now()) < 60_000);
});

test("queued events are sent after a while, and at once where they fill a batch", async () => {
  const session_id = newSession();
  const client = new Client(SERVICE, { ...PATIENT, flushIntervalMs: 10 });
  for (const event of visit(session_id)) client.enqueue(event);
  await until(async () => (await client.session(session_id).catch(() => ({}))).events === 3);

  const second = newSession();
  const patient = new Client(SERVICE, { ...PATIENT, flushIntervalMs: HOUR_MS, batchEvents: 3 });
  for (const event of visit(second)) patient.enqueue(event);
  await until(async () => (await client.session(second).catch(() => ({}))).events === 3);
});

test("what the service cannot take is sent again, with the same ids and in order", async (t) => {
  const script = await scripted(t, problem(503, "overloaded"), "silent", batchScored);
  const lost = [];
  const limits = { batchDeadlineMs: 1, timeoutMs: 50, flushIntervalMs: 5 };
  const client = new Client(script.url, { ...limits, onLost: (events) => lost.push(...events) });
  const ids = visit("s-0").map((event) => client.enqueue(event));
  await until(() => script.received.length >= 3);
  await client.flush();
  for (const { lines } of script.received) assert.deepEqual(lines.map(({ event_id }) => event_id), ids);
  assert.deepEqual(lost, []);
});

test("a refused event is reported, and the others count", async () => {
  const session_id = newSession();
  const lost = [];
  const client = new Client(SERVICE, { ...PATIENT, onLost: (...told) => lost.push(told) });
  client.enqueue({ session_id, event_name: "page_view" });
  const event_id = client.enqueue({ session_id, event_name: "page_view", price: -1 });
  client.enqueue({ session_id, event_name: "search" });
  await client.close();
  assert.equal((await client.session(session_id)).events, 2);
  const [[[event], error]] = lost;
  assert.deepEqual([lost.length, event.event_id, error.code], [1, event_id, "invalid_event"]);
  assert.ok(error instanceof ProblemError);
  assert.throws(() => client.enqueue(event), TypeError);
});

test("a wrong key loses no time, and nothing silently", async () => {
  const lost = [];
  const options = { ...PATIENT, apiKey: "wrong", onLost: (events, error) => lost.push([events.length, error.code]) };
  const client = new Client(SERVICE, options);
  for (const event of visit(newSession())) client.enqueue(event);
  assert.equal(await client.flush(), 0);
  assert.deepEqual(lost, [[3, "unauthorized"]]);
});

test("an event of a batch that the service cannot take waits for the next", async (t) => {
  const busy = { status: 503, problem: { type: "t", title: "T", status: 503, detail: "No.", code: "overloaded" } };
  let isBusy = true;
  const script = await scripted(t, (request) => (isBusy ? reply(200, { results: [busy] }) : batchScored(request)));
  const client = new Client(script.url, { batchDeadlineMs: 300, flushIntervalMs: HOUR_MS });
  const event_id = client.enqueue({ session_id: "a", event_name: "page_view" });
  assert.equal(await client.flush(), 1);
  isBusy = false;
  await until(async () => (await client.flush()) === 0);
  assert.equal(script.received.at(-1).lines[0].event_id, event_id);
});

test("the queue is bounded", () => {
  const lost = [];
  const client = new Client("http://127.0.0.1:1", {
    queueEvents: 2,
    // What is left goes out as this process ends, which waits for it.
    batchDeadlineMs: 20,
    flushIntervalMs: HOUR_MS,
    onLost: (events, error) => lost.push([events.length, error instanceof QueueFullError]),
  });
  for (const event of visit("s-0")) client.enqueue(event);
  assert.deepEqual(lost, [[1, true]]);
});

test("what has no answer when the client is closed is reported", async () => {
  const lost = [];
  const onLost = (events, error) => lost.push([events.length, error instanceof NoAnswerError]);
  const client = new Client("http://127.0.0.1:1", { batchDeadlineMs: 20, flushIntervalMs: HOUR_MS, onLost });
  for (const event of visit("s-0")) client.enqueue(event);
  assert.equal(await client.flush(), 3);
  await client.close();
  assert.deepEqual(lost, [[3, true]]);
});

/** Runs a program that queues a visit to `url` and then does what `last` says; returns its status and errors. */
async function program(url, session_id, last = "") {
  const code = `
    import { Client } from "@willbuy/client";
    const client = new Client(${JSON.stringify(url)}, {
      apiKey: ${JSON.stringify(API_KEY)}, batchDeadlineMs: ${
    url === SERVICE ? 30_000 : 100
  }, flushIntervalMs: ${HOUR_MS},
    });
    for (const event of ${JSON.stringify(visit(session_id))}) client.enqueue(event);
    ${last}`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", code], { cwd: import.meta.dirname });
  let errors = "";
  child.stderr.on("data", (part) => (errors += part));
  if (last) once(child.stdout, "data").then(() => child.kill("SIGTERM"));
  const [status] = await once(child, "close");
  return { status, errors };
}

test("a program that ends sends what is queued first", async () => {
  const session_id = newSession();
  assert.deepEqual(await program(SERVICE, session_id), { status: 0, errors: "" });
  assert.equal((await new Client(SERVICE, PATIENT).session(session_id)).events, 3);
});

test("a program that is told to end sends what is queued first, as the page says", async () => {
  const session_id = newSession();
  const last = `
    process.once("SIGTERM", async () => {
      await client.close();
      process.exit(0);
    });
    setInterval(() => {}, 1000);
    console.log("ready");`;
  assert.deepEqual(await program(SERVICE, session_id, last), { status: 0, errors: "" });
  assert.equal((await new Client(SERVICE, PATIENT).session(session_id)).events, 3);
});

test("a program without a service ends all the same, and says what is lost", async () => {
  const { status, errors } = await program("http://127.0.0.1:1", "s-0");
  assert.equal(status, 0);
  assert.match(errors, /^willbuy: 3 events are lost: NoAnswerError/);
});
