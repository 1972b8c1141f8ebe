// Made by `oyez contracts generate typescript` of the events that payments publishes: make it anew, don't edit it.

/** A CloudEvents 1.0 envelope: its attributes and its data. */
export interface CloudEvent<Type extends string = string, Data = unknown> {
  specversion: string;
  /** Unique with `source`: by both, an event that arrives again is known. */
  id: string;
  /** `/SYSTEM/SERVICE` of its publisher. */
  source: string;
  type: Type;
  /** The key. Events of one key arrive in the order in which they were published. */
  subject?: string;
  partitionkey?: string;
  /** RFC 3339, in UTC. */
  time?: string;
  datacontenttype?: string;
  /** `urn:oyez:TYPE:VERSION`. */
  dataschema?: string;
  /** The same for all events that follow from the first one. */
  correlationid?: string;
  /** The id of the event that this one follows from. */
  causationid?: string;
  traceparent?: string;
  tracestate?: string;
  data: Data;
}

/** An event is not what its contract says; `path` tells where. */
export class Misfit extends Error {
  readonly path: string;

  constructor(path: string, reason: string) {
    super(`${path}: ${reason}`);
    this.name = "Misfit";
    this.path = path;
  }
}

// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Schema = { [keyword: string]: any };

function read<Type extends string, Data>(
  event: CloudEvent,
  type: Type,
  version: number,
  name: string,
): CloudEvent<Type, Data> {
  if (event.type !== type) {
    throw new Misfit("type", `expected ${type}, found ${event.type}`);
  }
  const told = /:([0-9]+)$/.exec(event.dataschema ?? "");
  if (told !== null && Number(told[1]) > version) {
    throw new Misfit("dataschema", `version ${told[1]}; these types are of version ${version}`);
  }
  let data: unknown = event.data;
  if (typeof data === "string") {
    try {
      data = JSON.parse(data);
    } catch (error) {
      throw new Misfit("$", `is not JSON: ${String(error)}`);
    }
  }
  check(SCHEMAS[name] ?? {}, data, "$");
  return { ...event, type, data: data as Data };
}

function check(schema: Schema, value: unknown, path: string): void {
  if (schema.$ref !== undefined) {
    check(SCHEMAS[schema.$ref] ?? {}, value, path);
  }
  for (const each of schema.allOf ?? []) {
    check(each, value, path);
  }
  if (schema.anyOf !== undefined) {
    checkOne(schema.anyOf, value, path);
  }
  if (schema.enum !== undefined && !schema.enum.includes(value)) {
    throw new Misfit(path, `expected one of ${JSON.stringify(schema.enum)}`);
  }
  if (schema.type !== undefined) {
    checkType(schema.type, value, path);
  }
  if (Array.isArray(value)) {
    const first: Schema[] = schema.prefixItems ?? [];
    if (value.length < first.length) {
      throw new Misfit(path, `expected ${first.length} items, found ${value.length}`);
    }
    value.forEach((each, index) => {
      check(first[index] ?? schema.items ?? {}, each, `${path}[${index}]`);
    });
  } else if (typeof value === "object" && value !== null) {
    checkFields(schema, value as Record<string, unknown>, path);
  }
}

function checkFields(schema: Schema, value: Record<string, unknown>, path: string): void {
  for (const name of schema.required ?? []) {
    if (!Object.hasOwn(value, name)) {
      throw new Misfit(`${path}.${name}`, "is missing");
    }
  }
  const known: Schema = schema.properties ?? {};
  for (const [name, each] of Object.entries(value)) {
    const field = Object.hasOwn(known, name) ? known[name] : schema.additionalProperties;
    if (typeof field === "object") {
      check(field, each, `${path}.${name}`);
    }
  }
}

function checkOne(schemas: Schema[], value: unknown, path: string): void {
  let first: unknown;
  for (const each of schemas) {
    try {
      return check(each, value, path);
    } catch (error) {
      first ??= error;
    }
  }
  throw first;
}

function checkType(type: string, value: unknown, path: string): void {
  const found = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  if (type === "integer") {
    if (!Number.isInteger(value)) {
      throw new Misfit(path, `expected an integer, found ${found}`);
    }
    if (!Number.isSafeInteger(value)) {
      throw new Misfit(path, "is an integer beyond 2^53, which a number does not hold exactly");
    }
  } else if (type !== found) {
    throw new Misfit(path, `expected ${type}, found ${found}`);
  }
}

export type Payload =
  PaymentFailed | PaymentProcessed | PaymentRefunded | PaymentUnavailable | PaymentVoided;

/**
 * The money was not captured, for a ``reason`` such as ``card_declined``.
 */
export interface PaymentFailed {
  order_id: string;
  reason: string;
}
/**
 * The money was captured.
 */
export interface PaymentProcessed {
  cents: number;
  order_id: string;
}
/**
 * Captured money went back.
 */
export interface PaymentRefunded {
  order_id: string;
}
/**
 * The provider did not answer: whether the money was captured is not known.
 */
export interface PaymentUnavailable {
  order_id: string;
}
/**
 * Nothing was captured, and nothing will be: there is nothing to give back.
 */
export interface PaymentVoided {
  order_id: string;
}

/** shop.payment.failed: version 1, on the stream shop.payments, ordered by order_id. */
export type PaymentFailedEvent = CloudEvent<"shop.payment.failed", PaymentFailed>;

/** Returns the event, its data checked; `data` may be text. Throws Misfit. */
export function parsePaymentFailed(event: CloudEvent): PaymentFailedEvent {
  return read(event, "shop.payment.failed", 1, "PaymentFailed");
}

/** shop.payment.processed: version 1, on the stream shop.payments, ordered by order_id. */
export type PaymentProcessedEvent = CloudEvent<"shop.payment.processed", PaymentProcessed>;

/** Returns the event, its data checked; `data` may be text. Throws Misfit. */
export function parsePaymentProcessed(event: CloudEvent): PaymentProcessedEvent {
  return read(event, "shop.payment.processed", 1, "PaymentProcessed");
}

/** shop.payment.refunded: version 1, on the stream shop.payments, ordered by order_id. */
export type PaymentRefundedEvent = CloudEvent<"shop.payment.refunded", PaymentRefunded>;

/** Returns the event, its data checked; `data` may be text. Throws Misfit. */
export function parsePaymentRefunded(event: CloudEvent): PaymentRefundedEvent {
  return read(event, "shop.payment.refunded", 1, "PaymentRefunded");
}

/** shop.payment.unavailable: version 1, on the stream shop.payments, ordered by order_id. */
export type PaymentUnavailableEvent = CloudEvent<"shop.payment.unavailable", PaymentUnavailable>;

/** Returns the event, its data checked; `data` may be text. Throws Misfit. */
export function parsePaymentUnavailable(event: CloudEvent): PaymentUnavailableEvent {
  return read(event, "shop.payment.unavailable", 1, "PaymentUnavailable");
}

/** shop.payment.voided: version 1, on the stream shop.payments, ordered by order_id. */
export type PaymentVoidedEvent = CloudEvent<"shop.payment.voided", PaymentVoided>;

/** Returns the event, its data checked; `data` may be text. Throws Misfit. */
export function parsePaymentVoided(event: CloudEvent): PaymentVoidedEvent {
  return read(event, "shop.payment.voided", 1, "PaymentVoided");
}

const SCHEMAS: { [name: string]: Schema } = {
  "PaymentFailed": {
    "type": "object",
    "properties": {
      "order_id": {
        "type": "string"
      },
      "reason": {
        "type": "string"
      }
    },
    "required": [
      "order_id",
      "reason"
    ]
  },
  "PaymentProcessed": {
    "type": "object",
    "properties": {
      "cents": {
        "type": "integer"
      },
      "order_id": {
        "type": "string"
      }
    },
    "required": [
      "cents",
      "order_id"
    ]
  },
  "PaymentRefunded": {
    "type": "object",
    "properties": {
      "order_id": {
        "type": "string"
      }
    },
    "required": [
      "order_id"
    ]
  },
  "PaymentUnavailable": {
    "type": "object",
    "properties": {
      "order_id": {
        "type": "string"
      }
    },
    "required": [
      "order_id"
    ]
  },
  "PaymentVoided": {
    "type": "object",
    "properties": {
      "order_id": {
        "type": "string"
      }
    },
    "required": [
      "order_id"
    ]
  }
};
