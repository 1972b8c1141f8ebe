// One job from standard input, its answer as JSON on standard output: write events with the
// CloudEvents SDK and a plain driver, or read as many. See test_cloudevents_node.py.

import { text } from "node:stream/consumers";
import amqp from "amqplib";
import { CloudEvent, HTTP, Kafka as KafkaBinding } from "cloudevents";
import { Kafka, logLevel } from "kafkajs";
import { connect, headers as natsHeaders } from "nats";
import { partitionOf } from "./murmur2.mjs";

const STRUCTURED = "application/cloudevents+json";
const isJson = (event) => /[/+]json\b/.test(event.datacontenttype ?? "application/json");

// -- events ---------------------------------------------------------------------------------------

function eventOf({ attributes, json, text, bytes }) {
  const data = bytes === undefined ? json ?? text : Buffer.from(bytes, "base64");
  return new CloudEvent({ ...attributes, data });
}

function factsOf(event) {
  const { data, data_base64, ...attributes } = event;
  if (data === undefined || data === null) return { attributes };
  if (ArrayBuffer.isView(data)) return { attributes, bytes: Buffer.from(data).toString("base64") };
  return typeof data === "string" && !isJson(event) ? { attributes, text: data } : { attributes, json: data };
}

// The SDK leaves encoding the data of a binary event to its user, but for objects over HTTP.
function body(event) {
  if (event.data === undefined || event.data === null) return Buffer.alloc(0);
  return isJson(event) ? JSON.stringify(event.data) : event.data;
}

// Nor does it encode values for headers, which only take ASCII over HTTP and NATS.
const encoded = (value) => String(value).replace(/[^!#$&-~]+/gu, encodeURIComponent);

function toHttp(event, mode) {
  const { headers, body: whole } = HTTP[mode](event);
  if (mode === "structured") return { headers, body: whole };
  const written = Object.entries(headers).map(([name, value]) => [
    name, name.startsWith("ce-") ? encoded(value) : value,
  ]);
  return { headers: Object.fromEntries(written), body: body(event) };
}

function fromHttp(headers, bytes) {
  const read = {};
  for (const [name, value] of Object.entries(headers)) {
    const lower = name.toLowerCase();
    read[lower === "ce-datacontenttype" ? "content-type" : lower] =
      lower.startsWith("ce-") ? decodeURIComponent(value) : value;
  }
  const kind = read["content-type"] ?? "application/json";
  const whole = kind === "application/octet-stream" ? bytes : bytes.toString();
  return HTTP.toEvent({ headers: read, body: whole.length ? whole : undefined });
}

// -- protocols ------------------------------------------------------------------------------------

const strings = (entries) =>
  Object.fromEntries(entries.filter(([, v]) => v !== undefined && v !== null).map(([k, v]) => [k, String(v)]));

const kafka = {
  client: ({ url }) =>
    new Kafka({ brokers: [new URL(url).host], logLevel: logLevel.NOTHING }),

  async write(job, events) {
    const producer = kafka.client(job).producer();
    await producer.connect();
    const messages = events.map((event) => {
      const { key, value, headers } = KafkaBinding[job.mode](event);
      return {
        key: key ?? null,
        value: job.mode === "binary" ? body(event) : value,
        headers: strings(Object.entries(headers)),
      };
    });
    await producer.send({ topic: job.stream, messages });
    await producer.disconnect();
  },

  async read(job) {
    const consumer = kafka.client(job).consumer({ groupId: `${job.stream}-node` });
    await consumer.connect();
    await consumer.subscribe({ topic: job.stream, fromBeginning: true });
    const found = [];
    await new Promise((enough, failed) => {
      consumer.on(consumer.events.CRASH, ({ payload }) => failed(payload.error));
      consumer.run({
        eachMessage: async ({ message }) => {
          const headers = strings(Object.entries(message.headers));
          const key = message.key?.toString();
          // The SDK would parse an empty value as JSON.
          const empty = !message.value.length && isJson({ datacontenttype: headers["content-type"] });
          const value = empty ? Buffer.from("null") : message.value;
          found.push(KafkaBinding.toEvent({ key, headers, value }));
          if (found.length === job.count) enough();
        },
      }).catch(failed);
    });
    await consumer.disconnect();
    return found;
  },
};

// The SDK has no binding for AMQP: its names are `cloudEvents:` and the attribute's.
const rabbitmq = {
  async write(job, events) {
    const connection = await amqp.connect(job.url);
    const channel = await connection.createConfirmChannel();
    for (const event of events) {
      const { data, data_base64, datacontenttype, ...attributes } = event;
      const structured = job.mode === "structured";
      const headers = structured ? {} : named(attributes);
      const whole = structured ? HTTP.structured(event).body : body(event);
      const key = event.partitionkey ?? event.subject;
      const partition = key === undefined ? 0 : partitionOf(key, job.partitions);
      channel.publish(job.stream, String(partition), Buffer.from(whole), {
        headers, persistent: true, contentType: structured ? STRUCTURED : datacontenttype,
      });
    }
    await channel.waitForConfirms();
    await connection.close();
  },

  async read(job) {
    const connection = await amqp.connect(job.url);
    const channel = await connection.createChannel();
    await channel.prefetch(100);
    const found = [];
    await new Promise((enough, failed) => {
      const take = (message) => {
        const { headers, contentType } = message.properties;
        const names = Object.keys(headers).filter((name) => name.startsWith("cloudEvents:"));
        const read = Object.fromEntries(names.map((name) => [`ce-${name.slice(12)}`, encoded(headers[name])]));
        if (contentType) read["content-type"] = contentType;
        try {
          found.push(fromHttp(read, message.content));
        } catch (error) {
          failed(error);
        }
        channel.ack(message);
        if (found.length === job.count) enough();
      };
      for (let number = 0; number < job.partitions; number++) {
        const first = { arguments: { "x-stream-offset": "first" } };
        channel.consume(`${job.stream}.${number}`, take, first).catch(failed);
      }
    });
    await connection.close();
    return found;
  },
};

function named(attributes) {
  const given = Object.entries(attributes).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given.map(([name, value]) => [`cloudEvents:${name}`, value]));
}

// The SDK has no binding for NATS: its headers are those of HTTP.
const nats = {
  async write(job, events) {
    const connection = await connect({ servers: job.url });
    const jetstream = connection.jetstream();
    for (const event of events) {
      const { headers, body: whole } = toHttp(event, job.mode);
      const sent = natsHeaders();
      for (const [name, value] of Object.entries(headers)) sent.set(name, value);
      const key = event.partitionkey ?? event.subject;
      const partition = key === undefined ? 0 : partitionOf(key, job.partitions);
      await jetstream.publish(`${job.stream}.${partition}`, Buffer.from(whole), { headers: sent });
    }
    await connection.close();
  },

  async read(job) {
    const connection = await connect({ servers: job.url });
    const consumer = await connection.jetstream().consumers.get(job.stream.replaceAll(".", "_"));
    const found = [];
    for await (const message of await consumer.consume()) {
      const headers = Object.fromEntries([...message.headers].map(([name, [value]]) => [name, value]));
      found.push(fromHttp(headers, Buffer.from(message.data)));
      if (found.length === job.count) break;
    }
    await connection.close();
    return found;
  },
};

// No server: the other side is in the same test.
const http = {
  async write(job, events) {
    return events.map((event) => {
      const { headers, body: whole } = toHttp(event, job.mode);
      return { headers, body: Buffer.from(whole).toString("base64") };
    });
  },

  async read(job) {
    return job.messages.map(({ headers, body }) => fromHttp(headers, Buffer.from(body, "base64")));
  },
};

const job = JSON.parse(await text(process.stdin));
const wire = { kafka, rabbitmq, nats, http }[job.wire];
const answer = job.events
  ? (await wire.write(job, job.events.map(eventOf))) ?? []
  : (await wire.read(job)).map(factsOf);
process.stdout.write(JSON.stringify(answer));
