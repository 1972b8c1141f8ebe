// The clerk's page: the newest orders of all customers, cancelling one, and releasing one that is held.

import { showAccount } from "./account.js";
import { approveOrder, cancelOrder, getAllOrders } from "./api.js";
import { announce, byId, element, money } from "./dom.js";

const RENEW_MS = 2000;
let timer = 0;

async function show() {
  clearTimeout(timer);
  const notice = byId("clerk-notice");
  try {
    const { orders } = await getAllOrders();
    showRows(orders);
    notice.hidden = orders.length > 0;
    notice.textContent = "Nobody has ordered anything yet.";
    byId("refresh").hidden = true;
    timer = setTimeout(show, RENEW_MS);
  } catch (error) {
    const stranger = error.status === 401 || error.status === 403;
    notice.textContent = stranger ? "Only clerks see all orders: log in as one." : error.message;
    notice.hidden = false;
    if (stranger) byId("orders").replaceChildren();
    byId("refresh").hidden = stranger;
  }
  byId("clerk").setAttribute("aria-busy", "false");
}

/** Bring the rows in line with the orders; rows that stay keep their elements and the focus. */
function showRows(orders) {
  const list = byId("orders");
  const known = new Map([...list.children].map((row) => [row.dataset.order, row]));
  const rows = orders.map((order) => known.get(order.order_id) ?? orderRow(order));
  const same = rows.length === list.children.length && rows.every((row, i) => row === list.children[i]);
  if (!same) list.replaceChildren(...rows);
  orders.forEach((order, index) => renew(rows[index], order));
}

function orderRow(order) {
  const decision = (name, label, ask, said) => {
    const button = element("button", { className: `quiet ${name}`, type: "button" }, label);
    button.append(element("span", { className: "unseen" }, ` the order of ${order.email}`));
    button.addEventListener("click", () => decide(order, button, ask, said));
    return button;
  };
  return element(
    "li",
    { "data-order": order.order_id },
    element("code", {}, `…${order.order_id.slice(-8)}`),
    element("span", { className: "muted" }, order.email),
    element("span", { className: "line-total" }, money(order.total_cents)),
    element("span", { className: "status" }),
    element(
      "span",
      { className: "decisions" },
      decision("approve", "Release", approveOrder, "will go on"),
      decision("cancel", "Cancel", cancelOrder, "will be cancelled"),
    ),
  );
}

function renew(row, order) {
  const status = row.querySelector(".status");
  status.textContent = order.status;
  status.dataset.status = order.status;
  for (const [name, possible] of [
    ["approve", order.can_be_approved],
    ["cancel", order.can_be_cancelled],
  ]) {
    const button = row.querySelector(`.${name}`);
    const focused = button === document.activeElement;
    button.hidden = !possible || row.dataset.decided === "yes";
    if (focused && button.hidden) byId("clerk").focus({ preventScroll: true });
  }
}

async function decide(order, button, ask, said) {
  button.setAttribute("aria-disabled", "true"); // not disabled: it keeps the focus
  try {
    await ask(order.order_id);
    button.closest("li").dataset.decided = "yes";
    announce(`The order of ${order.email} ${said}.`);
  } catch (error) {
    announce(error.message);
  }
  button.removeAttribute("aria-disabled");
  show();
}

byId("refresh").addEventListener("click", show);
showAccount();
show();
