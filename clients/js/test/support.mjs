// A server with scripted replies, and a proxy to the real service that loses answers; both on loopback.

import { once } from "node:events";
import { createServer } from "node:http";
import { randomUUID } from "node:crypto";

/** Address of the real service, and a key of it. */
export const SERVICE = process.env.WILLBUY_URL;
export const API_KEY = process.env.WILLBUY_API_KEY;
/** Options of clients whose tests do not look at deadlines: the machine may be busy. */
export const PATIENT = { apiKey: API_KEY, deadlineMs: 30_000, batchDeadlineMs: 30_000 };

export const newSession = () => `js-${randomUUID()}`;

export const SCORE = {
  session_id: "s-0",
  probability: 0.25,
  events: 1,
  model: "m",
  outcome: "open",
  folded: true,
  duplicate: false,
  warnings: [],
};

export const reply = (status, body, headers = {}) => ({ status, headers, body: JSON.stringify(body) });
export const scored = reply(200, SCORE);
export const problem = (status, code, headers) =>
  reply(status, { type: "t", title: "T", status, detail: "No.", code }, headers);
/** Answers a batch with a score for each event. */
export const batchScored = ({ lines }) => reply(200, { results: lines.map(() => ({ status: 200, score: SCORE })) });

/**
 * Starts a server: the n-th request gets the n-th reply, further ones the last. A reply is {status, headers, body}, a
 * function of the request, "silent" or "drops" (one byte at a time, never ending).
 */
export async function scripted(t, ...replies) {
  const received = [];
  const server = createServer(async (request, response) => {
    let text = "";
    for await (const part of request) text += part;
    const { method, url: path, headers } = request;
    const lines = text ? text.split("\n").map((line) => JSON.parse(line)) : [];
    received.push({ method, path, headers, lines });
    let said = replies[Math.min(received.length, replies.length) - 1];
    if (typeof said === "function") said = await said(received.at(-1));
    if (said === "silent") return;
    if (said === "drops") {
      response.writeHead(200);
      const timer = setInterval(() => response.write(" "), 20);
      response.on("close", () => clearInterval(timer));
      return;
    }
    response.writeHead(said.status, said.headers).end(said.body);
  });
  return { url: await listening(t, server), received };
}

/** A server without a network, which answers in no time: a deadline that passes is that of the retries alone. */
export function answering({ status, headers, body }) {
  const server = { url: "http://127.0.0.1:1", count: 0 };
  server.fetch = () => {
    server.count++;
    return Promise.resolve(new Response(body, { status, headers }));
  };
  return server;
}

/** Starts a proxy to the service that passes requests on and loses the first `toLose` answers. */
export async function lossyProxy(t, toLose) {
  const state = { toLose, lost: 0 };
  const server = createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const body = parts.length ? Buffer.concat(parts) : undefined;
    const { authorization, "content-type": type = "application/json" } = request.headers;
    const headers = { authorization, "content-type": type };
    const answer = await fetch(SERVICE + request.url, { method: request.method, headers, body });
    const text = await answer.text();
    if (state.toLose-- > 0) {
      state.lost++;
      response.destroy();
    } else {
      response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") }).end(text);
    }
  });
  state.url = await listening(t, server);
  return state;
}

async function listening(t, server) {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

/** Resolves once `state` returns something truthy. */
export async function until(state) {
  for (;;) {
    const found = await state();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
