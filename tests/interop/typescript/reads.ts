// Reads events by generated types; tsc checks it, node runs it.
import { Misfit, parseMade, parsePlaced } from "./orders.js";
import type { CloudEvent, Line, PlacedEvent } from "./orders.js";

const data = {
  order_id: "1",
  cents: 4500,
  big: 7,
  lines: [{ sku: "a" }],
  pair: ["a", 1],
  paid: { type: "Card", last: "42" },
  tags: { a: 1 },
  state: "open",
  note: null,
};
const event: CloudEvent = {
  specversion: "1.0",
  id: "1",
  source: "/shop/orders",
  type: "shop.placed",
  dataschema: "urn:oyez:shop.placed:2",
  data: JSON.stringify(data),
};

const made: CloudEvent = { ...event, type: "shop.made", dataschema: "urn:oyez:shop.made:1" };
const read: PlacedEvent = parsePlaced(event);
const lines: Line[] = read.data.lines;
const pair: [string, number] = read.data.pair;
const state: "open" | "closed" = read.data.state;
const note: string | null = read.data.note;
if (read.data.paid.type === "Card") {
  read.data.paid.last.toUpperCase();
}
// @ts-expect-error a field that is not published
read.data.colour;
// @ts-expect-error a value that is not published
const wrong: "open" = read.data.state;

function refusal(change: object, attributes: Partial<CloudEvent> = {}): string {
  try {
    parsePlaced({ ...event, ...attributes, data: { ...data, ...change } });
  } catch (error) {
    return error instanceof Misfit ? error.path : `not a Misfit: ${String(error)}`;
  }
  return "";
}

console.log(
  JSON.stringify({
    read: [lines, pair, state, note],
    more: refusal({ colour: "red" }),
    missing: refusal({ order_id: undefined, lines: {} }),
    gone: parseGone(),
    kind: refusal({ cents: "4500" }),
    fraction: refusal({ cents: 1.5 }),
    wide: refusal({ big: 2 ** 53 }),
    deep: refusal({ lines: [{ sku: "a" }, { sku: 1 }] }),
    pair: refusal({ pair: ["a"] }),
    union: refusal({ paid: { type: "Cheque" } }),
    map: refusal({ tags: { a: "1" } }),
    value: refusal({ state: "lost" }),
    newer: refusal({}, { dataschema: "urn:oyez:shop.placed:3" }),
    older: refusal({}, { dataschema: "urn:oyez:shop.placed:1" }),
    type: refusal({}, { type: "shop.made" }),
    tree: parseMade({ ...made, data: { below: [{ below: [] }] } }).data.below,
  }),
);

function parseGone(): string {
  try {
    parsePlaced({ ...event, data: '{"cents": 1}' });
    parsePlaced({ ...event, data: "{" });
  } catch (error) {
    return (error as Misfit).path;
  }
  return "";
}
