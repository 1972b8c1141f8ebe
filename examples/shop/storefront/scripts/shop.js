// The shop's page: catalogue, basket, checkout.

import { showAccount } from "./account.js";
import { getCatalogue, placeOrder } from "./api.js";
import { announce, byId, element, money, picture } from "./dom.js";
import {
  MOST_OF_ONE,
  forgetAttempt,
  keyFor,
  loadBasket,
  onBasketChange,
  saveBasket,
} from "./storage.js";

let products = new Map();
let basket = loadBasket();
let placing = false;

// ---- catalogue

async function showCatalogue() {
  const notice = byId("catalogue-notice");
  byId("catalogue-retry").hidden = true;
  notice.hidden = false;
  notice.textContent = "Fetching the goods…";
  try {
    const catalogue = await getCatalogue();
    products = new Map(catalogue.products.map((product) => [product.sku, product]));
  } catch (error) {
    notice.textContent = `${error.message} The goods can’t be shown now.`;
    byId("catalogue-retry").hidden = false;
    return;
  }
  notice.hidden = products.size > 0;
  notice.textContent = "The shelves are empty.";
  byId("products").replaceChildren(...[...products.values()].map(productCard));
  byId("products").setAttribute("aria-busy", "false");
  // What is no longer sold can't be ordered.
  for (const sku of basket.keys()) if (!products.has(sku)) basket.delete(sku);
  showBasket();
}

function productCard(product) {
  const add = element(
    "button",
    { type: "button", className: "add", "data-sku": product.sku },
    "Add",
    element("span", { className: "unseen" }, ` ${product.name} to the basket`),
  );
  add.addEventListener("click", () => {
    const quantity = Math.min((basket.get(product.sku) ?? 0) + 1, MOST_OF_ONE);
    setQuantity(product.sku, quantity);
    announce(`${product.name} added, ${quantity} in the basket.`);
  });
  return element(
    "li",
    { className: "product" },
    element("div", { className: "product-picture" }, picture(product.sku, 320)),
    element("h3", {}, product.name),
    element("p", { className: "blurb" }, product.blurb ?? ""),
    element("p", { className: "price" }, money(product.cents)),
    add,
  );
}

// ---- basket

function setQuantity(sku, quantity) {
  if (quantity > 0) basket.set(sku, quantity);
  else basket.delete(sku);
  saveBasket(basket);
  showBasket();
}

/** Bring the rows in line with the basket; rows that stay keep their elements and the focus. */
function showBasket() {
  const list = byId("lines");
  for (const row of [...list.children]) {
    if (!basket.has(row.dataset.line)) removeRow(row);
  }
  let total = 0;
  let count = 0;
  for (const [sku, quantity] of basket) {
    const product = products.get(sku);
    if (!product) continue; // the catalogue is not here yet
    total += product.cents * quantity;
    count += quantity;
    let row = [...list.children].find((candidate) => candidate.dataset.line === sku);
    if (!row) list.append((row = basketRow(product)));
    row.querySelector("input").value = quantity;
    row.querySelector(".fewer").disabled = quantity <= 1;
    row.querySelector(".more").disabled = quantity >= MOST_OF_ONE;
    row.querySelector(".line-total").textContent = money(product.cents * quantity);
  }
  byId("total").textContent = money(total);
  byId("basket-badge").textContent = count;
  byId("basket-empty").hidden = count > 0;
  byId("total-row").hidden = count === 0;
  byId("checkout").hidden = count === 0;
}

function removeRow(row) {
  const held = row.contains(document.activeElement);
  row.remove();
  if (held) byId("basket").focus({ preventScroll: true });
}

function basketRow(product) {
  const change = (by) => () => setQuantity(product.sku, basket.get(product.sku) + by);
  const name = product.name;
  const button = (className, label, text) =>
    element("button", { type: "button", className, "aria-label": label }, text);
  const fewer = button("step fewer", `One ${name} fewer`, "−");
  const more = button("step more", `One ${name} more`, "+");
  const remove = button("remove", `Remove ${name}`, "Remove");
  const input = element("input", {
    type: "number",
    min: 1,
    max: MOST_OF_ONE,
    inputMode: "numeric",
    "aria-label": `Quantity of ${name}`,
  });
  fewer.addEventListener("click", change(-1));
  more.addEventListener("click", change(1));
  remove.addEventListener("click", () => {
    setQuantity(product.sku, 0);
    announce(`${name} removed.`);
  });
  input.addEventListener("change", () => {
    const wanted = Math.trunc(Number(input.value)) || 1;
    setQuantity(product.sku, Math.min(Math.max(wanted, 1), MOST_OF_ONE));
  });
  return element(
    "li",
    { className: "line", "data-line": product.sku },
    picture(product.sku, 64),
    element("span", { className: "line-name" }, name),
    element("span", { className: "line-total" }),
    element("div", { className: "stepper" }, fewer, input, more),
    remove,
  );
}

// ---- checkout

function filledIn() {
  const form = byId("checkout");
  const phone = form.phone.value.replace(/[\s().-]/g, "");
  return {
    lines: [...basket].map(([sku, quantity]) => ({ sku, quantity })),
    email: form.email.value.trim(),
    phone: phone || null,
    card: form.card.value,
  };
}

/** What is plainly wrong before the shop is asked: the same form as the shop's own errors. */
function plainMistakes(order) {
  const mistakes = [];
  if (!order.email) {
    mistakes.push({ field: "$.email", problem: "Fill in your e-mail address." });
  } else if (!/^[^\s@]+@[^\s@]+$/.test(order.email)) {
    mistakes.push({
      field: "$.email",
      problem: "This is not an e-mail address, e.g. you@example.org.",
    });
  }
  if (order.phone && !/^\+[1-9]\d{6,14}$/.test(order.phone)) {
    mistakes.push({
      field: "$.phone",
      problem: "Start with + and the country, e.g. +31 6 1234 5678.",
    });
  }
  return mistakes;
}

function clearMistakes() {
  for (const place of document.querySelectorAll(".field-error")) place.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
  }
  byId("lines-error").hidden = true;
  byId("trouble").replaceChildren();
  byId("retry").hidden = true;
}

/** Show each mistake next to its field and take the reader to the first. */
function showMistakes(mistakes) {
  let first = null;
  for (const { field, problem } of mistakes) {
    const name = /^\$\.(\w+)/.exec(field)?.[1];
    if (name === "email" || name === "phone") {
      byId(`${name}-error`).textContent = problem;
      byId(name).setAttribute("aria-invalid", "true");
      first ??= byId(name);
    } else if (name === "card") {
      byId("card-error").textContent = problem;
      first ??= document.querySelector("input[name=card]:checked");
    } else {
      byId("lines-error").textContent = problem;
      byId("lines-error").hidden = false;
      first ??= byId("basket");
    }
  }
  first?.focus();
}

function showTrouble(error) {
  const wait = error.retryAfter ? ` It asks to wait ${error.retryAfter} s.` : "";
  const advice = error.again
    ? `${wait} Your basket is safe. Trying again can’t order or charge twice.`
    : "";
  byId("trouble").replaceChildren(
    element("p", {}, element("strong", {}, error.message), advice),
  );
  byId("retry").hidden = !error.again;
}

async function place() {
  if (placing || !basket.size) return;
  clearMistakes();
  const order = filledIn();
  const mistakes = plainMistakes(order);
  if (mistakes.length) {
    showMistakes(mistakes);
    return;
  }
  busy(true);
  try {
    const placed = await placeOrder(order, keyFor(order));
    forgetAttempt();
    basket.clear();
    saveBasket(basket);
    location.assign(`order.html?id=${encodeURIComponent(placed.order_id)}`);
  } catch (error) {
    // A definite no ends the attempt; after anything else the same key must be used again.
    if (!error.again) forgetAttempt();
    if (error.status === 422 && error.fields.length) showMistakes(error.fields);
    else showTrouble(error);
    busy(false);
  }
}

function busy(is) {
  placing = is;
  const button = byId("place-order");
  button.setAttribute("aria-disabled", String(is)); // not disabled: it keeps the focus
  button.textContent = is ? "Placing your order…" : "Place order";
  byId("checkout").setAttribute("aria-busy", String(is));
}

byId("checkout").addEventListener("submit", (event) => {
  event.preventDefault();
  place();
});
byId("retry").addEventListener("click", place);
byId("catalogue-retry").addEventListener("click", showCatalogue);
onBasketChange((changed) => {
  basket = changed;
  showBasket();
});
// A page from the back-forward cache still shows the basket of before the order.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  basket = loadBasket();
  busy(false);
  showBasket();
});
showAccount();
showCatalogue();
