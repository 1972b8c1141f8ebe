// A CloudEvent as it stands on the broker, in either mode, and the partition that its key belongs to.

/** What stands at one position of a partition, whoever wrote it. */
export interface Message {
  partition: number;
  /** Reading goes on after it. */
  position: number;
  /** The attributes by their plain names. */
  attributes: Record<string, string>;
  /** null for a tombstone. */
  data: Buffer | null;
}

export interface CloudEvent {
  attributes: Record<string, string>;
  data: Buffer;
}

/** An event that can never be handled: it becomes a dead letter at once. */
export class Refused extends Error {}

/** What orders the event among others; undefined for none. */
export const keyOf = ({ attributes }: CloudEvent) => attributes.partitionkey ?? attributes.subject;

/** The version that dataschema names, urn:oyez:TYPE:VERSION; 1 without it. */
export function versionOf({ attributes }: CloudEvent): number {
  const own = `urn:oyez:${attributes.type}:`;
  return attributes.dataschema?.startsWith(own) ? Number(attributes.dataschema.slice(own.length)) || 1 : 1;
}

/** The event's data, as JSON. */
export const decode = (event: CloudEvent): unknown => parsed(event.data, "data");

/** The event of a message. Throws Refused, which names the attribute that is wrong. */
export function open(message: Message): CloudEvent {
  if (message.data === null) throw new Refused("data: is absent (a tombstone)");
  const kind = message.attributes.datacontenttype?.toLowerCase() ?? "";
  const event = kind.startsWith("application/cloudevents")
    ? openStructured(message.attributes, message.data)
    : { attributes: message.attributes, data: message.data };
  const { attributes } = event;
  for (const [name, value] of Object.entries(attributes)) {
    if (!/^[a-z0-9]{1,20}$/.test(name) || name === "data") throw new Refused(`${name.slice(0, 40)}: is no attribute's name`);
    if (/[\x00-\x1f\x7f-\x9f]|\p{Surrogate}|\ufffd/u.test(value)) throw new Refused(`${name}: holds a control character`);
    if ([...value].length > 8_192) throw new Refused(`${name}: is too long`);
  }
  for (const name of ["id", "source", "type"]) if (!attributes[name]) throw new Refused(`${name}: is missing`);
  if (attributes.specversion !== "1.0") throw new Refused("specversion: expected 1.0");
  for (const name of ["time", "expires"]) {
    const time = attributes[name];
    if (time !== undefined && !isTime(time)) throw new Refused(`${name}: expected RFC 3339`);
  }
  if (event.data.length === 0 && attributes.dataref) throw new Refused("data: is elsewhere, at dataref");
  return event;
}

function openStructured(outer: Record<string, string>, bytes: Buffer): CloudEvent {
  const body = parsed(bytes, "$");
  if (body === null || typeof body !== "object" || Array.isArray(body)) throw new Refused("$: expected an object");
  const { data, data_base64: encoded, ...rest } = body as Record<string, unknown>;
  const attributes: Record<string, string> = {};
  for (const [name, value] of Object.entries(rest)) {
    if (value === null) continue;
    const plain = typeof value === "string" || typeof value === "boolean" || Number.isInteger(value);
    if (!plain) throw new Refused(`${name}: expected a text, a boolean or an integer`);
    attributes[name] = String(value);
  }
  for (const name of ["id", "source", "type", "specversion", "subject", "partitionkey"]) {
    if (name in outer && outer[name] !== attributes[name]) throw new Refused(`${name}: differs between headers and body`);
  }
  if (data !== undefined && encoded !== undefined) throw new Refused("data_base64: is given beside data");
  if (encoded !== undefined) {
    const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;
    if (typeof encoded !== "string" || !base64.test(encoded)) throw new Refused("data_base64: is not base64");
    return { attributes, data: Buffer.from(encoded, "base64") };
  }
  return { attributes, data: Buffer.from(data === undefined ? "" : JSON.stringify(data)) };
}

function parsed(bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw new Refused(`${what}: is not JSON: ${(error as Error).message}`);
  }
}

function isTime(text: string): boolean {
  const form = /^\d{4}-\d\d-(\d\d)[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d{1,9})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$/;
  const day = form.exec(text)?.[1];
  if (day === undefined) return false;
  const date = new Date(`${text.slice(0, 10)}T00:00:00Z`);
  return !Number.isNaN(date.getTime()) && date.getUTCDate() === Number(day); // there is no 31 February
}

/** murmur2 as Kafka's Java client computes it: the same on every broker. */
export function partitionOf(key: string, partitions: number): number {
  const data = Buffer.from(key), mul = Math.imul, m = 0x5bd1e995, end = data.length & ~3;
  let h = 0x9747b28c ^ data.length;
  for (let at = 0; at < end; at += 4) {
    const k = mul(data.readInt32LE(at), m);
    h = mul(h, m) ^ mul(k ^ (k >>> 24), m);
  }
  for (let at = data.length - 1; at >= end; at--) h ^= data[at]! << (8 * (at - end));
  if (end < data.length) h = mul(h, m);
  h = mul(h ^ (h >>> 13), m);
  return ((h ^ (h >>> 15)) & 0x7fffffff) % partitions;
}
