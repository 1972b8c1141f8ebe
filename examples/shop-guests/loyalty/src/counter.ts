// The program as the subject of `oyez conformance`: another handler, the same guest.

import { existsSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type Database from "libsql";

import { brokerOf } from "./brokers.js";
import { type CloudEvent, decode, keyOf, Refused } from "./event.js";
import { type Announcement, openStore, type Settings } from "./guest.js";

const TABLES = "create table if not exists counted (seq integer primary key, name text, number integer)";
const told = process.env;

interface Tick {
  name: string;
  number: number;
}

/** What makes the program the counter, as the environment says. */
export function counter(): Settings {
  const store = openStore(join(told.CONFORMANCE_DATA!, "counter.db"), TABLES);
  if (told.CONFORMANCE_HTTP) {
    const [host, port] = told.CONFORMANCE_HTTP.split(":");
    createServer((_, response) => response.end(rows(store))).listen(Number(port), host);
  }
  return {
    source: told.CONFORMANCE_SOURCE!,
    input: told.CONFORMANCE_IN!,
    output: told.CONFORMANCE_OUT!,
    partitions: Number(told.CONFORMANCE_PARTITIONS),
    broker: brokerOf(told.CONFORMANCE_BROKER!),
    store,
    handlers: { "conformance.tick": { version: 1, before: hold, handle: count } },
  };
}

function count(store: Database.Database, event: CloudEvent): Announcement[] {
  const { name, number } = tickOf(event);
  if (name === "poison" && existsSync(told.CONFORMANCE_FAIL!)) throw new Error("the tick is poison");
  store.prepare("insert into counted values (null, ?, ?)").run(name, number);
  return [{ type: "conformance.tock", key: keyOf(event) ?? name, data: { name, number } }];
}

async function hold(event: CloudEvent, signal: AbortSignal): Promise<void> {
  const file = told.CONFORMANCE_HOLD!;
  if (tickOf(event).name !== "slow" || !existsSync(file)) return;
  writeFileSync(`${file}.started`, "");
  while (existsSync(file) && !signal.aborted) await sleep(20);
}

function tickOf(event: CloudEvent): Tick {
  const data = decode(event) as Tick | null;
  if (typeof data?.name !== "string" || !Number.isSafeInteger(data.number)) {
    throw new Refused("data: expected name and number");
  }
  return data;
}

/** What the store holds, as JSON lines. */
function rows(store: Database.Database): string {
  const all = (sql: string) => store.prepare(sql).all() as Record<string, unknown>[];
  const dead = all("select id, source, reason, data from dead order by seq").map(({ data, ...letter }) => ({
    dead: { ...letter, data: data === null ? null : Buffer.from(data as ArrayBuffer).toString("base64") },
  }));
  const lines = [
    ...all("select name, number from counted order by seq").map((row) => ({ row })),
    ...dead,
    ...all("select partition, position from cursor order by partition").map((position) => ({ position })),
  ];
  return lines.map((line) => JSON.stringify(line) + "\n").join("");
}
