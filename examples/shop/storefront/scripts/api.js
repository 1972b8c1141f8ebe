// Requests to the shop. Every failure is a ShopError; `again` tells whether the same request may
// be sent once more.

const PATIENCE_MS = 15000;

export class ShopError extends Error {
  constructor(message, { status = 0, fields = [], again = false, retryAfter = 0 } = {}) {
    super(message);
    this.status = status; // 0: no answer at all
    this.fields = fields; // [{field: "$.email", problem: "…"}]
    this.again = again;
    this.retryAfter = retryAfter; // seconds
  }
}

async function send(path, options) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), PATIENCE_MS);
  try {
    const answer = await fetch(path, {
      ...options,
      credentials: "same-origin",
      cache: "no-store",
      signal: controller.signal,
    });
    return { answer, text: await answer.text() };
  } catch {
    throw new ShopError("The shop did not answer.", { again: true });
  } finally {
    clearTimeout(timer);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// One session for all requests of this page. A session that the browser has already is only made
// longer, so it is asked for first, instead of after an answer of 401.
let session = null;

function openSession() {
  session ??= send("/session", { method: "POST" }).catch((error) => {
    session = null;
    throw error;
  });
  return session;
}

/** The parsed JSON answer. With `own`, as a customer; a session that is no longer good is renewed. */
export async function request(path, { own = false, ...options } = {}) {
  if (own) await openSession();
  let { answer, text } = await send(path, options);
  if (own && answer.status === 401) {
    session = null;
    await openSession();
    ({ answer, text } = await send(path, options));
  }
  const body = parsed(text);
  if (answer.ok && body !== null) return body;
  const { status } = answer;
  throw new ShopError(body?.detail || body?.title || `The shop answered ${status}.`, {
    status,
    fields: Array.isArray(body?.errors) ? body.errors : [],
    // 409: the first request with this key is still being worked on.
    again: status >= 500 || [408, 409, 425, 429].includes(status) || answer.ok,
    retryAfter: Number(answer.headers.get("retry-after")) || 0,
  });
}

export const getCatalogue = () => request("/catalogue");

export const getOrder = (id) => request(`/orders/${encodeURIComponent(id)}`, { own: true });

/** The customer's orders, the newest first. The gateway sees to it that the last one is there. */
export const getOrders = () => request("/orders", { own: true });

/** Who is logged in: `{user}`, null for nobody; an error where nobody can log in. */
export const getUser = () => request("/session");

/** The newest orders of all customers, for a clerk. */
export const getAllOrders = () => request("/clerk/orders");

/** Have an order undone, for a clerk. */
export const cancelOrder = (id) =>
  request(`/clerk/orders/${encodeURIComponent(id)}/cancel`, { method: "POST" });

/** Let an order go on that is held, for a clerk. */
export const approveOrder = (id) =>
  request(`/clerk/orders/${encodeURIComponent(id)}/approve`, { method: "POST" });

/** Place an order; the same key never orders twice. */
export const placeOrder = (order, key) =>
  request("/orders", {
    own: true,
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": key },
    body: JSON.stringify(order),
  });
