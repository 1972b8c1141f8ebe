// The live feed of one order: server-sent events while they work, polling while they don't.

import { getOrder } from "./api.js";

const POLL_MS = 2000;
const SLOWEST_POLL_MS = 15000;
const SILENCE_MS = 15000; // after so much silence a stream is checked by one request
const STREAM_AGAIN_MS = 20000; // while polling, the stream is tried again so often
const STREAM_FAILURES = 3;
const LATE_POLLS = 10; // something may follow the end of the stream

const isFinal = (order) => order.status === "shipped" || order.status === "cancelled";

/** A refund follows the cancellation; a parcel may leave before the order hears "confirmed". */
function awaitsMore(order) {
  const happened = new Set(order.history?.map(({ stage }) => stage));
  if (order.status === "shipped") return !happened.has("confirmed");
  return order.status === "cancelled" && happened.has("paid") && !happened.has("refunded");
}

/**
 * Follow the order until its last status. `onOrder(order)` gets each newer state, `onConnection`
 * one of connecting, live, reconnecting, polling, lost, finished.
 */
export function follow(id, onOrder, onConnection) {
  let stream = null;
  let failures = 0;
  let seen = -1; // the length of the newest history; an older answer that comes late is dropped
  let wait = POLL_MS;
  let pollTimer = 0;
  let streamTimer = 0;
  let silenceTimer = 0;
  let latePolls = LATE_POLLS;
  let finished = false;

  function take(order) {
    const length = order.history?.length ?? 0;
    if (finished || length < seen) return;
    seen = length;
    onOrder(order);
    if (!isFinal(order)) return;
    close(); // the server has closed the stream too
    if (awaitsMore(order) && latePolls > 0) {
      latePolls -= 1;
      onConnection("polling");
      pollTimer = setTimeout(poll, POLL_MS);
    } else {
      finished = true;
      onConnection("finished");
    }
  }

  function close() {
    stream?.close();
    stream = null;
    clearTimeout(pollTimer);
    clearTimeout(streamTimer);
    clearTimeout(silenceTimer);
  }

  function open() {
    clearTimeout(streamTimer);
    stream?.close();
    stream = new EventSource(`/orders/${encodeURIComponent(id)}/events`);
    stream.addEventListener("open", heard);
    stream.addEventListener("order", (event) => {
      heard();
      try {
        take(JSON.parse(event.data));
      } catch {
        // Not JSON: the check after silence will ask for the state.
      }
    });
    stream.addEventListener("error", failed);
  }

  function heard() {
    failures = 0;
    wait = POLL_MS;
    clearTimeout(pollTimer);
    if (finished) return;
    onConnection("live");
    clearTimeout(silenceTimer);
    silenceTimer = setTimeout(async () => {
      await ask().catch(() => {});
      if (stream && !finished) heard();
    }, SILENCE_MS);
  }

  function failed() {
    if (finished) return;
    failures += 1;
    clearTimeout(silenceTimer);
    // The browser reconnects by itself unless the answer was not a stream at all (CLOSED).
    if (stream.readyState !== EventSource.CLOSED && failures < STREAM_FAILURES) {
      onConnection("reconnecting");
      return;
    }
    stream.close();
    stream = null;
    onConnection("polling");
    clearTimeout(pollTimer);
    poll();
    streamTimer = setTimeout(open, STREAM_AGAIN_MS);
  }

  async function ask() {
    take(await getOrder(id));
  }

  async function poll() {
    try {
      await ask();
      wait = POLL_MS;
      if (!finished && !live()) onConnection("polling");
    } catch {
      wait = Math.min(wait * 2, SLOWEST_POLL_MS);
      if (!finished && !live()) onConnection("lost");
    }
    // Between 75 and 125 %, so that a crowd that was cut off does not come back at once.
    if (finished || live()) return;
    clearTimeout(pollTimer);
    pollTimer = setTimeout(poll, wait * (0.75 + Math.random() / 2));
  }

  const live = () => stream?.readyState === EventSource.OPEN;

  function watchTheBrowser() {
    addEventListener("online", () => {
      if (finished || live()) return;
      failures = 0;
      open();
    });
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => {
      if (event.persisted && !finished) open();
    });
  }

  // The first state by a plain request: it opens the session if need be and tells "unknown" from
  // "out of reach", which an EventSource can't.
  return ask().then(() => {
    if (finished) return;
    watchTheBrowser();
    if (latePolls === LATE_POLLS) open();
  });
}
