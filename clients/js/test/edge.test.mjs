// The package in a context that has web APIs alone, as edge runtimes do: no `process`, no `Buffer`, no module of Node.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import test from "node:test";

import { API_KEY, newSession, SERVICE } from "./support.mjs";

const PROGRAM = `
import { readFileSync } from "node:fs";
import vm from "node:vm";

const entry = import.meta.resolve("@willbuy/client");
const web = { fetch, AbortSignal, URLSearchParams, TextEncoder, crypto, performance, console, setTimeout, clearTimeout };
const context = vm.createContext({ ...web, URL_: process.env.WILLBUY_URL, KEY: process.env.WILLBUY_API_KEY });
const modules = new Map();
function load(address) {
  if (!modules.has(address)) {
    const source = readFileSync(new URL(address), "utf8");
    modules.set(address, new vm.SourceTextModule(source, { context, identifier: address }));
  }
  return modules.get(address);
}
const main = new vm.SourceTextModule(\`
import { Client } from "package";
const client = new Client(URL_, { apiKey: KEY, deadlineMs: 30_000, batchDeadlineMs: 30_000 });
const event = (event_name) => ({ session_id: "\${process.argv[1]}", event_name });
const { probability } = await client.send(event("page_view"));
client.enqueue(event("view_item"));
const waiting = await client.flush();
const { events } = await client.session(event().session_id);
console.log(JSON.stringify([typeof process, typeof Buffer, probability > 0, waiting, events]));
\`, { context });
await main.link((name, from) => load(name === "package" ? entry : new URL(name, from.identifier).href));
await main.evaluate();
`;

test("the client needs nothing but web APIs", () => {
  const command = ["--no-warnings", "--experimental-vm-modules", "--input-type=module", "-e", PROGRAM, newSession()];
  const env = { WILLBUY_URL: SERVICE, WILLBUY_API_KEY: API_KEY };
  const { stdout, stderr } = spawnSync(process.execPath, command, { cwd: import.meta.dirname, env, encoding: "utf8" });
  assert.deepEqual([stdout.trim(), stderr], ['["undefined","undefined",true,0,2]', ""]);
});
