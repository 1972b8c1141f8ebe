import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import type { Broker } from "./brokers.js";
import { type Message, partitionOf } from "./event.js";
import { type Handler, openStore, Term } from "./guest.js";
import { earn, giveBack, TABLES } from "./points.js";

const running = new AbortController().signal;
const usual = {
  "shop.payment.processed": { version: 1, handle: earn },
  "shop.payment.refunded": { version: 1, handle: giveBack },
};

/** A guest that has claimed two partitions, and how to look into its store. */
function guest(handlers: Record<string, Handler> = usual) {
  const store = openStore(join(mkdtempSync(join(tmpdir(), "loyalty-")), "test.db"), TABLES);
  const settings = { source: "/shop/loyalty", input: "shop.payments", output: "shop.loyalty", partitions: 8, store, handlers };
  const term = new Term({ ...settings, broker: {} as Broker }, "one");
  assert.deepEqual(term.claim(2), [0, 0]);
  const number = (sql: string) => Object.values(store.prepare(sql).get() as object)[0] as number;
  const take = async (...messages: Message[]) => {
    for (const message of messages) await term.take(message, running);
  };
  return { store, settings, term, number, take };
}

function message(position: number, type: string, data: object, attributes: Record<string, string> = {}): Message {
  const usual = { specversion: "1.0", id: `${type} ${position}`, source: "/shop/payments", type, subject: "4711" };
  return { partition: 0, position, attributes: { ...usual, ...attributes }, data: Buffer.from(JSON.stringify(data)) };
}

const paid = (position: number, attributes = {}) =>
  message(position, "shop.payment.processed", { order_id: "4711", cents: 900 }, attributes);

test("points are the cents that were paid, until they go back", async () => {
  const { number, take } = guest();
  await take(paid(1));
  assert.equal(number("select points from points"), 900);
  await take(message(2, "shop.payment.refunded", { order_id: "4711" }));
  assert.equal(number("select points from points"), 0);
  assert.equal(number("select count(*) from outbox"), 2);
});

test("a copy is handled once", async () => {
  const { number, take } = guest();
  await take(paid(1), paid(1), paid(2, { id: "shop.payment.processed 1" }));
  assert.equal(number("select count(*) from outbox"), 1);
  assert.equal(number("select position from cursor where partition = 0"), 2);
});

test("a process that lost its partitions commits nothing", async () => {
  const { number, store, take } = guest();
  store.exec("update cursor set epoch = epoch + 1");
  await assert.rejects(take(paid(1)), /taken/);
  assert.equal(number("select (select count(*) from points) + (select max(position) from cursor)"), 0);
});

test("nobody takes what another has", () => {
  const { settings } = guest();
  assert.equal(new Term({ ...settings, broker: {} as Broker }, "two").claim(2), null);
});

test("a failed event parks its key alone", async () => {
  let broken = true;
  const order: number[] = [];
  const handle: Handler["handle"] = (store, event) => {
    store.prepare("insert into points values (?, 1)").run(event.attributes.id);
    if (broken && event.attributes.subject === "4711") throw new Error("broken");
    order.push(Number(event.attributes.id!.split(" ")[1]));
    return [];
  };
  const { number, store, take, term } = guest({ "shop.payment.processed": { version: 1, handle } });
  await take(paid(1), paid(2), paid(3, { subject: "4712" }));
  assert.deepEqual(order, [3]);
  assert.equal(number("select count(*) from points"), 1);
  broken = false;
  store.exec("update parked set due = 0");
  await term.retry();
  assert.deepEqual(order, [3, 1, 2]);
  assert.equal(number("select count(*) from parked"), 0);
});

test("what is refused is kept with its bytes", async () => {
  const { number, store, take } = guest();
  await take(
    paid(1, { dataschema: "urn:oyez:shop.payment.processed:2" }),
    message(2, "shop.payment.processed", { order_id: "4711", cents: "many" }),
    paid(3, { specversion: "0.3" }),
    { partition: 0, position: 4, attributes: {}, data: null },
  );
  assert.equal(number("select count(*) from dead where data is null or cast(data as text) like '%order_id%'"), 4);
  const reasons = store.prepare("select reason from dead order by seq").all() as { reason: string }[];
  assert.match(reasons[0]!.reason, /version 2 is newer/);
  assert.match(reasons[1]!.reason, /cents/);
  assert.equal(number("select position from cursor where partition = 0"), 4);
});

test("partitions are those of Kafka", () => {
  const keys = ["4711", "a", "customer-7", "Jürgen", "東京"];
  assert.deepEqual(keys.map((key) => partitionOf(key, 8)), [2, 4, 7, 7, 3]);
});
