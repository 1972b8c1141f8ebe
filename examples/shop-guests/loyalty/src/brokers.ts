// Kafka and NATS behind one face of four calls. What fails, fails: the guest tries everything again.

import { jetstream, jetstreamManager, DeliverPolicy, type JsMsg } from "@nats-io/jetstream";
import { connect, headers, nanos, type NatsConnection } from "@nats-io/transport-node";
import { Kafka, logLevel, type Producer } from "kafkajs";

import type { Message } from "./event.js";

export interface Outgoing {
  stream: string;
  partition: number;
  key: string;
  attributes: Record<string, string>;
  data: Buffer;
}

export interface Broker {
  /** The number of a stream's partitions. */
  partitions(stream: string): Promise<number>;
  /** Make a stream unless it exists. */
  create(stream: string, partitions: number): Promise<void>;
  /** Hand on what follows the position of each partition, in order, one after the other, until `signal`. */
  read(stream: string, after: number[], take: (message: Message) => Promise<void>, signal: AbortSignal): Promise<void>;
  /** Publish; done once the broker has confirmed it. */
  publish(event: Outgoing): Promise<void>;
}

/** The broker of a URL; connections are made when they are needed. */
export function brokerOf(url: string): Broker {
  if (url.startsWith("kafka://")) return new KafkaBroker(url.slice(8).split(/[?/]/)[0]!.split(","));
  if (url.startsWith("nats://")) return new NatsBroker(url);
  throw new Error(`BROKER is ${url.split("://")[0]}://…; loyalty reads kafka:// and nats://`);
}

class KafkaBroker implements Broker {
  #kafka: Kafka;
  #producer: Promise<Producer> | undefined;

  constructor(brokers: string[]) {
    this.#kafka = new Kafka({ brokers, logLevel: logLevel.NOTHING, retry: { retries: 2 } });
  }

  async partitions(stream: string): Promise<number> {
    return this.#asked(async (admin) => {
      const { topics } = await admin.fetchTopicMetadata({ topics: [stream] });
      return topics[0]!.partitions.length;
    });
  }

  async create(topic: string, numPartitions: number): Promise<void> {
    await this.#asked(async (admin) => {
      if ((await admin.listTopics()).includes(topic)) return;
      await admin.createTopics({ topics: [{ topic, numPartitions }] });
    });
  }

  async read(topic: string, after: number[], take: (message: Message) => Promise<void>, signal: AbortSignal) {
    // kafkajs can't read without a group. One of its own for each term never waits for a dead member:
    // which partitions are ours, and how far we are, our own store knows.
    const groupId = `${topic}.loyalty-${crypto.randomUUID()}`;
    const consumer = this.#kafka.consumer({ groupId, retry: { retries: 0, restartOnFailure: async () => false } });
    const ended = new Promise<Error | undefined>((resolve) => {
      consumer.on("consumer.crash", ({ payload }) => resolve(payload.error));
      signal.addEventListener("abort", () => resolve(undefined), { once: true });
    });
    try {
      await consumer.connect();
      await consumer.subscribe({ topic, fromBeginning: true });
      await consumer.run({
        autoCommit: false,
        eachBatch: async ({ batch: { partition, messages } }) => {
          for (const { offset, headers, value } of messages) {
            if (signal.aborted) return;
            const attributes: Record<string, string> = {};
            for (const [name, found] of Object.entries(headers ?? {})) {
              const last = String(Array.isArray(found) ? found.at(-1) : found);
              if (name.startsWith("ce_")) attributes[name.slice(3)] = last;
              else if (name === "content-type") attributes.datacontenttype = last;
            }
            await take({ partition, position: Number(offset) + 1, attributes, data: value });
          }
        },
      });
      after.forEach((offset, partition) => consumer.seek({ topic, partition, offset: String(offset) }));
      const error = await ended;
      if (error) throw error;
    } finally {
      await consumer.disconnect();
    }
  }

  async publish({ stream, partition, key, attributes, data }: Outgoing): Promise<void> {
    this.#producer ??= this.#connected();
    const headers: Record<string, string> = {};
    for (const [name, value] of Object.entries(attributes)) {
      headers[name === "datacontenttype" ? "content-type" : `ce_${name}`] = value;
    }
    try {
      await (await this.#producer).send({ topic: stream, acks: -1, messages: [{ key, partition, headers, value: data }] });
    } catch (error) {
      this.#producer = undefined;
      throw error;
    }
  }

  async #connected(): Promise<Producer> {
    const producer = this.#kafka.producer({ allowAutoTopicCreation: false });
    await producer.connect();
    return producer;
  }

  async #asked<T>(ask: (admin: ReturnType<Kafka["admin"]>) => Promise<T>): Promise<T> {
    const admin = this.#kafka.admin();
    await admin.connect();
    try {
      return await ask(admin);
    } finally {
      await admin.disconnect();
    }
  }
}

class NatsBroker implements Broker {
  #connection: Promise<NatsConnection> | undefined;

  constructor(private readonly url: string) {}

  async partitions(stream: string): Promise<number> {
    return (await (await this.#manager()).streams.info(nameOf(stream))).config.subjects.length;
  }

  async create(stream: string, partitions: number): Promise<void> {
    const { streams } = await this.#manager();
    for await (const name of streams.names(`${stream}.0`)) if (name === nameOf(stream)) return;
    await streams.add({
      name: nameOf(stream),
      subjects: Array.from({ length: partitions }, (_, partition) => `${stream}.${partition}`),
      max_age: nanos(7 * 86_400_000),
      allow_direct: true,
      first_seq: Date.now() * 1_000, // a stream that is made again begins after every stored position
    });
  }

  async read(stream: string, after: number[], take: (message: Message) => Promise<void>, signal: AbortSignal) {
    const connection = await this.#connect(); // closed with the term, so nothing of it is left over
    const aborted = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    try {
      const { consumers } = jetstream(connection);
      let turn = Promise.resolve(); // partitions are read side by side, and handled one after the other
      const reading = after.map(async (position, partition) => {
        const start = position > 0
          ? { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: position + 1 }
          : { deliver_policy: DeliverPolicy.All };
        const consumer = await consumers.get(nameOf(stream), { filter_subjects: `${stream}.${partition}`, ...start });
        for await (const message of await consumer.consume({ max_messages: 100, expires: 5_000, idle_heartbeat: 1_000 })) {
          await (turn = turn.then(() => take(readNats(message, partition))));
        }
        throw new Error(`${stream}.${partition}: reading has ended`);
      });
      const failed = Promise.all(reading);
      failed.catch(() => undefined); // what fails once the term is over is not of interest
      await Promise.race([aborted, failed]);
    } finally {
      await connection.close();
    }
  }

  async publish({ stream, partition, attributes, data }: Outgoing): Promise<void> {
    const sent = headers();
    for (const [name, value] of Object.entries(attributes)) {
      sent.set(`ce-${name}`, value.replace(/[^!#$&-~]+/gu, encodeURIComponent));
    }
    // Returns with JetStream's answer.
    await jetstream(await this.#connected()).publish(`${stream}.${partition}`, data, { headers: sent, timeout: 2_000 });
  }

  async #manager() {
    return jetstreamManager(await this.#connected());
  }

  async #connected(): Promise<NatsConnection> {
    if ((await this.#connection?.catch(() => undefined))?.isClosed() !== false) {
      this.#connection = this.#connect();
    }
    return this.#connection!;
  }

  #connect(): Promise<NatsConnection> {
    return connect({ servers: this.url, maxReconnectAttempts: -1, reconnectTimeWait: 200, timeout: 2_000 });
  }
}

const nameOf = (stream: string) => stream.replaceAll(".", "_");

function readNats(message: JsMsg, partition: number): Message {
  const attributes: Record<string, string> = {};
  let data: Buffer | null = Buffer.from(message.data);
  for (const name of message.headers?.keys() ?? []) {
    const value = message.headers!.values(name).at(-1)!;
    const plain = name.toLowerCase();
    if (plain.startsWith("ce-")) attributes[plain.slice(3)] = unescape(value);
    else if (plain === "content-type") attributes.datacontenttype = value;
    else if (plain === "oyez-absent" && value === "data") data = null;
  }
  if (Object.keys(attributes).length === 0 && data?.[0] === 0x7b) {
    attributes.datacontenttype = "application/cloudevents+json";
  }
  return { partition, position: message.seq, attributes, data };
}

function unescape(value: string): string {
  let found = value.replace(/^[ \t]+|[ \t]+$/g, "");
  if (/^".*"$/s.test(found)) found = found.slice(1, -1).replace(/\\(.)/gs, "$1");
  try {
    return decodeURIComponent(found);
  } catch {
    return found;
  }
}
