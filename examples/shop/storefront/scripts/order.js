// The page of one order: its stages as they happen.

import { showAccount } from "./account.js";
import { getOrders } from "./api.js";
import { announce, byId, element, money, picture } from "./dom.js";
import { follow } from "./feed.js";

const HEADLINES = {
  placed: "We have your order.",
  paid: "Your payment has arrived.",
  reserved: "Your goods are set aside.",
  held: "We are taking a second look at your order.",
  confirmed: "Your order is confirmed.",
  shipped: "Your order is on its way.",
  cancelled: "Your order was cancelled.",
};
const UNDER_WAY = {
  paid: "asking the bank…",
  reserved: "at the shelves…",
  shipped: "being packed…",
};
const HAPPENED = {
  placed: "Order placed",
  paid: "Payment taken",
  reserved: "Stock reserved",
  released: "Stock released",
  flagged: "Set aside for a second look",
  approved: "Looked at, and all is well",
  confirmed: "Order confirmed",
  shipped: "Parcel sent",
  cancelled: "Order cancelled",
  refunded: "Payment refunded",
  voided: "Nothing was charged",
};
const REASONS = {
  card_declined: "The card was declined.",
  payment_declined: "The card was declined.",
  out_of_stock: "One of the goods is out of stock.",
  withdrawn: "The shop had to cancel it.",
};
const CONNECTIONS = {
  connecting: "connecting",
  live: "live",
  reconnecting: "reconnecting…",
  polling: "checking every few seconds",
  lost: "out of reach, trying again…",
  finished: "complete",
};

const id = new URLSearchParams(location.search).get("id") ?? "";
let lastStatus = null;

function show(order) {
  byId("order").setAttribute("aria-busy", "false");
  byId("details").hidden = byId("tracker").hidden = false;
  byId("order-status").hidden = false;
  byId("order-status").textContent = order.status;
  byId("order-status").dataset.status = order.status;
  byId("headline").textContent = HEADLINES[order.status] ?? "Your order";
  byId("order-id").textContent = order.order_id;
  byId("total").textContent = money(order.total_cents);
  showReason(order);
  showTracker(order);
  byId("lines").replaceChildren(...order.lines.map(lineRow));
  byId("timeline").replaceChildren(...order.history.map(timelineRow));
  if (order.status !== lastStatus) {
    document.title = `${order.status} · The Crier’s Outfitter`;
    announce([byId("headline").textContent, reasonOf(order)].filter(Boolean).join(" "));
    lastStatus = order.status;
    showMine();
  }
}

// ---- the customer's other orders

/** They are an extra: when they can't be read, what is shown of them stays. */
async function showMine() {
  const found = await getOrders().catch(() => null);
  if (!found || found.orders.length < 2) return;
  byId("mine-list").replaceChildren(...found.orders.map(mineRow));
  byId("mine").hidden = false;
}

function mineRow(order) {
  const link = element(
    "a",
    { href: `order.html?id=${encodeURIComponent(order.order_id)}` },
    `…${order.order_id.slice(-8)}`,
  );
  if (order.order_id === id) link.setAttribute("aria-current", "page");
  return element(
    "li",
    {},
    link,
    element("span", { className: "status", "data-status": order.status }, order.status),
    element("span", { className: "line-total" }, money(order.total_cents)),
  );
}

function reasonOf(order) {
  if (order.status !== "cancelled" || !order.reason) return "";
  return REASONS[order.reason] ?? order.reason;
}

function showReason(order) {
  const refunded = order.history.some(({ stage }) => stage === "refunded");
  const reason = [reasonOf(order), refunded ? "Your money was given back." : ""].filter(Boolean);
  byId("reason").hidden = reason.length === 0;
  byId("reason").textContent = reason.join(" ");
}

// ---- tracker

/** The state of every stage. Once cancelled, what had happened stays done. */
function states(order) {
  const happened = new Set(order.history.map(({ stage }) => stage));
  const cancelled = order.status === "cancelled";
  const sent = order.status === "shipped";
  const confirmed = sent || order.status === "confirmed" || happened.has("confirmed");
  const paid = confirmed || order.paid || happened.has("paid");
  const reserved = confirmed || order.reserved || happened.has("reserved");
  const next = cancelled ? "todo" : "current";
  const reason = order.reason ?? "";
  const lost = (stage, words) => (cancelled && words.test(reason) ? "failed" : next);
  return {
    placed: "done",
    paid: paid ? "done" : lost("paid", /card|pay|declin|void/i),
    reserved: reserved ? "done" : lost("reserved", /stock|reserv|inventory/i),
    confirmed: confirmed ? "done" : paid && reserved ? next : "todo",
    shipped: sent ? "done" : confirmed ? next : "todo",
    cancelled: cancelled ? "failed" : "todo",
  };
}

function showTracker(order) {
  const found = states(order);
  const times = new Map(order.history.map(({ stage, at }) => [stage, at]));
  for (const item of document.querySelectorAll("[data-stage]")) {
    const { stage } = item.dataset;
    item.dataset.state = found[stage];
    if (found[stage] === "current") item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
    item.querySelector(".note").textContent = noteFor(stage, found[stage], times.get(stage));
    item.hidden =
      order.status === "cancelled"
        ? hiddenOnceCancelled(stage, found)
        : stage === "cancelled";
  }
  byId("tracker").dataset.status = order.status;
}

const hiddenOnceCancelled = (stage, found) =>
  (stage === "confirmed" || stage === "shipped") && found[stage] === "todo";

function noteFor(stage, state, at) {
  if (state === "done") return at ? clock(at) : "done";
  if (state === "current") return UNDER_WAY[stage] ?? "now…";
  if (state === "failed") return stage === "cancelled" && at ? clock(at) : "did not happen";
  return "";
}

// ---- lines and timeline

function lineRow(line) {
  return element(
    "li",
    { className: "line" },
    picture(line.sku, 64),
    element("span", { className: "line-name" }, line.name),
    element("span", { className: "line-total" }, money(line.cents * line.quantity)),
    element("span", { className: "muted" }, `${line.quantity} × ${money(line.cents)}`),
  );
}

function timelineRow({ stage, at }, index, history) {
  return element(
    "li",
    { "data-happened": stage },
    element("span", {}, HAPPENED[stage] ?? stage),
    element("time", { dateTime: at }, clock(at)),
    element("span", { className: "gap" }, index ? elapsed(history[index - 1].at, at) : ""),
  );
}

function elapsed(from, to) {
  const ms = new Date(to) - new Date(from);
  if (!(ms >= 0)) return "";
  if (ms < 1000) return `+${ms} ms`;
  return `+${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}

const clockFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

function clock(at) {
  const moment = new Date(at);
  return Number.isNaN(moment.getTime()) ? "" : clockFormat.format(moment);
}

// ---- connection

function showConnection(state) {
  byId("connection").dataset.connection = state;
  byId("connection").textContent = CONNECTIONS[state];
}

const AGAIN_MS = 3000;
let again = 0;

async function start() {
  clearTimeout(again);
  showWayOn(null);
  if (!id) {
    unknown();
    return;
  }
  try {
    await follow(id, show, showConnection);
  } catch (error) {
    if (error.again) {
      byId("headline").textContent = "The shop can’t be reached now.";
      byId("reason").textContent = `${error.message} Your order is safe.`;
      byId("reason").hidden = false;
      showWayOn("retry");
      showConnection("lost");
      announce("The shop can’t be reached now.");
      again = setTimeout(start, AGAIN_MS);
    } else {
      unknown();
    }
  }
}

/** What the reader can do when there is no order to show: the id of a button or link, or null. */
function showWayOn(shown) {
  byId("ways-on").hidden = !shown;
  for (const id of ["retry", "to-goods"]) byId(id).hidden = id !== shown;
}

function unknown() {
  byId("order").setAttribute("aria-busy", "false");
  byId("headline").textContent = "We don’t know this order.";
  byId("reason").textContent =
    "It may be somebody else’s: an order is shown to who placed it, in the browser or by login.";
  byId("reason").hidden = false;
  byId("connection").hidden = true;
  showWayOn("to-goods");
  announce("We don’t know this order.");
}

byId("retry").addEventListener("click", start);
showAccount();
start();
