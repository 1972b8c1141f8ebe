// A service of the shop: it reads one stream and has every effect of an event once, whatever dies.

import { randomUUID } from "node:crypto";
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import Database from "libsql";

import type { Broker } from "./brokers.js";
import { type CloudEvent, keyOf, type Message, open, partitionOf, Refused, versionOf } from "./event.js";

/** Published if, and only if, the transaction it comes from is committed. */
export interface Announcement {
  type: string;
  key: string;
  data: unknown;
}

/** What is done with the events of one type, up to a version. */
export interface Handler {
  version: number;
  /** Runs before the transaction. */
  before?: (event: CloudEvent, signal: AbortSignal) => Promise<void>;
  handle: (store: Database.Database, event: CloudEvent) => Announcement[];
}

export interface Settings {
  source: string;
  input: string;
  output: string;
  /** Of the stream `output`, should it not exist. */
  partitions: number;
  broker: Broker;
  store: Database.Database;
  handlers: Record<string, Handler>;
}

const LEASE_MS = 3_000;
/** Between two attempts at an event, or at anything that failed. */
const PATIENCE_MS = 500;
const ATTEMPTS = 1_200;

const SCHEMA = `
create table if not exists cursor (stream text, partition integer, position integer not null,
  owner text not null, epoch integer not null, until integer not null, primary key (stream, partition));
create table if not exists inbox (source text, id text, handler text, primary key (source, id, handler));
create table if not exists parked (seq integer primary key, chain text not null, partition integer not null,
  attributes text not null, data blob not null, tries integer not null, due integer not null);
create index if not exists parked_chain on parked (chain, seq);
create table if not exists outbox (seq integer primary key autoincrement, key text not null,
  attributes text not null, data blob not null);
create table if not exists dead (seq integer primary key, source text, id text, reason text not null, data blob);
`;

interface Kept {
  seq: number;
  partition: number;
  key: string;
  attributes: string;
  data: ArrayBuffer;
  tries: number;
}

/** Open the SQLite file, made if absent; a commit is on disk when it returns. */
export function openStore(file: string, more: string): Database.Database {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  const store = new Database(file);
  for (const pragma of ["busy_timeout = 10000", "journal_mode = wal", "synchronous = full"]) store.pragma(pragma);
  store.exec(SCHEMA + more);
  return store;
}

/** Work until `signal`: take the partitions when nobody has them, and keep them. */
export async function run(settings: Settings, signal: AbortSignal): Promise<void> {
  const owner = randomUUID();
  while (!signal.aborted) {
    const term = new Term(settings, owner);
    try {
      await term.serve(signal);
    } catch (error) {
      if (!signal.aborted) console.error(String(error));
    }
    settings.store.prepare("update cursor set until = 0 where owner = ?").run(owner);
    await sleep(PATIENCE_MS, undefined, { signal }).catch(() => undefined);
  }
}

/** The time for which one process has the partitions, under one epoch of each. */
export class Term {
  #epochs: number[] = [];

  constructor(private readonly my: Settings, private readonly owner: string) {}

  async serve(outer: AbortSignal): Promise<void> {
    const { broker, input, output, partitions } = this.my;
    await broker.create(output, partitions);
    const outputs = await broker.partitions(output);
    const positions = this.claim(await broker.partitions(input));
    if (positions === null) return;
    const ending = new AbortController();
    const signal = AbortSignal.any([outer, ending.signal]);
    const work = [
      broker.read(input, positions, (message) => this.take(message, signal), signal),
      this.#every(LEASE_MS / 3, signal, () => this.#renew()),
      this.#every(PATIENCE_MS / 2, signal, () => this.retry()),
      this.#every(20, signal, () => this.#relay(outputs, signal)),
    ];
    try {
      await Promise.race(work);
    } finally {
      ending.abort();
      await Promise.allSettled(work);
    }
  }

  /** Take every partition whose owner's time is over, under a new epoch; null if there is none. */
  claim(count: number): number[] | null {
    return this.#transaction(() => {
      for (let partition = 0; partition < count; partition++) {
        this.#run("insert into cursor values (?, ?, 0, '', 0, 0) on conflict do nothing", this.my.input, partition);
      }
      const now = Date.now();
      const taken = this.#run("update cursor set owner = ?, epoch = epoch + 1, until = ? where stream = ? and until < ?",
        this.owner, now + LEASE_MS, this.my.input, now);
      if (taken < count) return null;
      const rows = this.#all<{ position: number; epoch: number }>(
        "select position, epoch from cursor where stream = ? order by partition", this.my.input);
      this.#epochs = rows.map(({ epoch }) => epoch);
      return rows.map(({ position }) => position);
    });
  }

  /** The inbox rule: in ONE transaction the position, the inbox, the effects and the outbox. */
  async take(message: Message, signal: AbortSignal): Promise<void> {
    const { handlers, input } = this.my;
    let event: CloudEvent = { attributes: message.attributes, data: message.data ?? Buffer.alloc(0) };
    let handler: Handler | undefined;
    let refusal: Error | undefined;
    try {
      event = open(message);
      handler = this.#handlerOf(event);
      await handler?.before?.(event, signal);
    } catch (error) {
      refusal = error as Error;
    }
    if (signal.aborted) return;
    this.#transaction(() => {
      const { partition, position } = message;
      // The position moves only for whoever holds the epoch, and only forwards.
      const moved = this.#run(
        "update cursor set position = ? where stream = ? and partition = ? and epoch = ? and position < ?",
        position, input, partition, this.#epochs[partition], position);
      if (moved === 0) return this.#fence(partition);
      if (refusal) return this.#bury(event.attributes, message.data, refusal);
      if (handler === undefined) return;
      const { source, id, type } = event.attributes;
      if (this.#run("insert into inbox values (?, ?, ?) on conflict do nothing", source, id, type) === 0) return; // a copy
      const key = keyOf(event);
      const chain = key ? `key ${key}` : `event ${source} ${id}`;
      const waits = this.#all("select 1 from parked where chain = ? limit 1", chain).length > 0;
      if (!waits && this.#attempt(handlers[type!]!, event, true)) return;
      // A failed event holds up what follows it under its key, and nothing else.
      this.#run("insert into parked values (null, ?, ?, ?, ?, ?, ?)", chain, partition,
        JSON.stringify(event.attributes), event.data, waits ? 0 : 1, Date.now() + PATIENCE_MS);
    });
  }

  /** Try the first parked event of each key whose time has come. */
  async retry(): Promise<void> {
    for (;;) {
      const [first] = this.#all<Kept>(`select * from parked p where due <= ? and not exists
        (select 1 from parked where chain = p.chain and seq < p.seq) limit 1`, Date.now());
      if (first === undefined) return;
      this.#transaction(() => {
        this.#fence(first.partition);
        const event = { attributes: JSON.parse(first.attributes), data: Buffer.from(first.data) };
        const handler = this.my.handlers[event.attributes.type]!;
        if (this.#attempt(handler, event, first.tries < ATTEMPTS)) this.#run("delete from parked where seq = ?", first.seq);
        else this.#run("update parked set tries = tries + 1, due = ? where seq = ?", Date.now() + PATIENCE_MS, first.seq);
      });
    }
  }

  /** Publish the outbox in the order of its commits, and delete what the broker confirmed. */
  async #relay(partitions: number, signal: AbortSignal): Promise<void> {
    const { broker, output } = this.my;
    while (!signal.aborted) {
      const [first] = this.#all<Kept>("select * from outbox order by seq limit 1");
      if (first === undefined) return;
      const partition = partitionOf(first.key, partitions);
      const attributes = JSON.parse(first.attributes);
      await broker.publish({ stream: output, partition, key: first.key, attributes, data: Buffer.from(first.data) });
      this.#run("delete from outbox where seq = ?", first.seq);
    }
  }

  async #renew(): Promise<void> {
    const kept = this.#run("update cursor set until = ? where stream = ? and owner = ?", Date.now() + LEASE_MS,
      this.my.input, this.owner);
    if (kept < this.#epochs.length) throw new Error("another process has taken the partitions over");
  }

  #fence(partition: number): void {
    const [row] = this.#all<{ epoch: number }>("select epoch from cursor where stream = ? and partition = ?",
      this.my.input, partition);
    if (row?.epoch !== this.#epochs[partition]) throw new Error("another process has taken the partition over");
  }

  /** What handles the event, if anything here does. Throws Refused if it is not for us to read. */
  #handlerOf(event: CloudEvent): Handler | undefined {
    const { type, recipient, expires } = event.attributes;
    const handler = Object.hasOwn(this.my.handlers, type!) ? this.my.handlers[type!] : undefined;
    if (handler === undefined || (recipient !== undefined && recipient !== this.my.source.split("/").at(-1))) return undefined;
    if (expires !== undefined && Date.parse(expires) < Date.now()) throw new Refused("expires: it is too late");
    if (versionOf(event) > handler.version) {
      throw new Refused(`dataschema: version ${versionOf(event)} is newer than ${handler.version}`);
    }
    return handler;
  }

  /** Run the handler, with what it announces; false if the event is to be tried again. */
  #attempt(handler: Handler, event: CloudEvent, again: boolean): boolean {
    try {
      this.my.store.exec("savepoint handler");
      for (const each of handler.handle(this.my.store, event)) {
        this.#run("insert into outbox (key, attributes, data) values (?, ?, ?)", each.key,
          JSON.stringify(this.#attributes(each, event)), Buffer.from(JSON.stringify(each.data)));
      }
    } catch (error) {
      this.my.store.exec("rollback to handler");
      if (!(error instanceof Refused) && again) return false;
      this.#bury(event.attributes, event.data, error as Error);
    }
    return true;
  }

  /** Keep an event that will not be handled, with the bytes that it came with. */
  #bury({ source, id }: Record<string, string>, data: Buffer | null, why: Error): void {
    this.#run("insert into dead values (null, ?, ?, ?, ?)", source || null, id || null, why.message, data);
    console.error(`dead letter: ${id}: ${why.message}`);
  }

  /** The attributes of an announcement: its own, and what it takes over from its cause. */
  #attributes({ type, key }: Announcement, { attributes: cause }: CloudEvent): Record<string, string> {
    const found: Record<string, string> = {
      specversion: "1.0", id: randomUUID(), source: this.my.source, type, subject: key,
      datacontenttype: "application/json", time: new Date().toISOString(),
      correlationid: cause.correlationid ?? cause.id!, causationid: cause.id!,
    };
    for (const name of ["traceparent", "tracestate", "authid", "authtype"]) {
      if (cause[name] !== undefined) found[name] = cause[name];
    }
    return found;
  }

  async #every(milliseconds: number, signal: AbortSignal, work: () => Promise<void>): Promise<void> {
    while (!signal.aborted) {
      await work();
      await sleep(milliseconds, undefined, { signal }).catch(() => undefined);
    }
  }

  #transaction<T>(steps: () => T): T {
    return this.my.store.transaction(steps).immediate() as T;
  }

  #run(sql: string, ...values: unknown[]): number {
    return this.my.store.prepare(sql).run(...values).changes;
  }

  #all<T>(sql: string, ...values: unknown[]): T[] {
    return this.my.store.prepare(sql).all(...values) as T[];
  }
}
