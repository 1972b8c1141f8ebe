// The rule: a point for each cent that a customer has paid, and not got back.

import type Database from "libsql";

import { type CloudEvent, decode, Refused } from "./event.js";
import type { Announcement } from "./guest.js";
import { Misfit, parsePaymentProcessed, parsePaymentRefunded, type CloudEvent as Typed } from "./payments.js";

export const TABLES = "create table if not exists points (order_id text primary key, points integer not null)";

/** shop.payment.processed: the order's points. */
export function earn(store: Database.Database, event: CloudEvent): Announcement[] {
  const { order_id, cents } = read(parsePaymentProcessed, event);
  store.prepare("insert into points values (?, ?)").run(order_id, cents);
  return [changed(order_id, cents)];
}

/** shop.payment.refunded: the money went back, and so do the points. */
export function giveBack(store: Database.Database, event: CloudEvent): Announcement[] {
  const { order_id } = read(parsePaymentRefunded, event);
  store.prepare("insert into points values (?, 0) on conflict (order_id) do update set points = 0").run(order_id);
  return [changed(order_id, 0)];
}

function changed(order_id: string, points: number): Announcement {
  return { type: "shop.points.changed", key: order_id, data: { order_id, points } };
}

function read<Data>(parse: (event: Typed) => { data: Data }, event: CloudEvent): Data {
  try {
    return parse({ ...event.attributes, data: decode(event) } as Typed).data;
  } catch (error) {
    throw error instanceof Misfit ? new Refused(error.message) : error;
  }
}
