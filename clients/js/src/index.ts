/**
 * The service's client for JavaScript, for Node 20 or later and for edge runtimes: it needs `fetch`, `AbortSignal`,
 * `crypto` and no package.
 *
 *     const willbuy = new Client("http://127.0.0.1:8000");
 *     const score = await willbuy.send({ session_id: "s-81", event_name: "view_item", item_id: "SKU-1" });
 *     console.log(score.probability);
 *
 * @module
 */

export * from "./client.ts";
export * from "./errors.ts";
export type { OnLost } from "./queue.ts";
export type { Limits } from "./retries.ts";
export type * from "./types.ts";
