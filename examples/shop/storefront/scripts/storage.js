// What the browser remembers: the basket (for good) and the order being placed (for this tab).

const BASKET = "oyez.basket";
const ATTEMPT = "oyez.attempt";
export const MOST_OF_ONE = 99;

function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(key));
  } catch {
    return null; // blocked by the browser, or not ours
  }
}

function write(storage, key, value) {
  try {
    if (value === null) storage.removeItem(key);
    else storage.setItem(key, JSON.stringify(value));
  } catch {
    // Private mode or full: the page works, it only forgets.
  }
}

/** A Map from sku to quantity. */
export function loadBasket() {
  const stored = read(localStorage, BASKET);
  const basket = new Map();
  if (stored === null || typeof stored !== "object") return basket;
  for (const [sku, quantity] of Object.entries(stored)) {
    if (Number.isInteger(quantity) && quantity > 0) {
      basket.set(sku, Math.min(quantity, MOST_OF_ONE));
    }
  }
  return basket;
}

export function saveBasket(basket) {
  write(localStorage, BASKET, basket.size ? Object.fromEntries(basket) : null);
}

/** Call back with the new basket when another tab changes it. */
export function onBasketChange(callback) {
  addEventListener("storage", (event) => {
    if (event.key === BASKET || event.key === null) callback(loadBasket());
  });
}

/**
 * The idempotency key for exactly this order. It stays the same, also over a reload, until
 * `forgetAttempt`: an order whose answer was lost is found again instead of placed twice.
 */
export function keyFor(order) {
  const payload = JSON.stringify(order);
  const known = read(sessionStorage, ATTEMPT);
  if (known?.payload === payload && typeof known.key === "string") return known.key;
  const key = newKey();
  write(sessionStorage, ATTEMPT, { payload, key });
  return key;
}

export function forgetAttempt() {
  write(sessionStorage, ATTEMPT, null);
}

function newKey() {
  // randomUUID exists in secure contexts only, and a test machine may be reached over plain HTTP.
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
