// Loyalty keeps a point for each cent that a customer of the shop has paid, and not got back.
//
// It joins by the broker only: BROKER (kafka://… or nats://…), SYSTEM, and DATA, the folder of its
// store. What makes each payment count once is in guest.ts.

import { join } from "node:path";

import { brokerOf } from "./brokers.js";
import { counter } from "./counter.js";
import { openStore, run, type Settings } from "./guest.js";
import { earn, giveBack, TABLES } from "./points.js";

function loyalty(): Settings {
  const system = setting("SYSTEM");
  return {
    source: `/${system}/loyalty`,
    input: `${system}.payments`,
    output: `${system}.loyalty`,
    partitions: 8,
    broker: brokerOf(setting("BROKER")),
    store: openStore(join(setting("DATA"), "loyalty.db"), TABLES),
    handlers: {
      "shop.payment.processed": { version: 1, handle: earn },
      "shop.payment.refunded": { version: 1, handle: giveBack },
    },
  };
}

function setting(name: string): string {
  const value = process.env[name];
  if (value) return value;
  console.error(`loyalty: ${name} is not set; it needs BROKER, SYSTEM and DATA`);
  process.exit(2);
}

const ending = new AbortController();
for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => ending.abort());
await run(process.env.CONFORMANCE_LEVEL ? counter() : loyalty(), ending.signal);
process.exit(0); // clients of brokers keep timers
