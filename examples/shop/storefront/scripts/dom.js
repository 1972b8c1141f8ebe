// Small helpers. Text always goes in as textContent, never as markup.

const euro = new Intl.NumberFormat("en-IE", { style: "currency", currency: "EUR" });

export const money = (cents) => euro.format(cents / 100);

export const byId = (id) => document.getElementById(id);

/** An element with properties, attributes (those with a dash) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** The product's picture; an unknown product is a parcel. */
export function picture(sku, width) {
  const known = /^[a-z0-9-]+$/.test(sku);
  const image = element("img", {
    src: `pictures/${known ? sku : "parcel"}.svg`,
    alt: "",
    width,
    height: Math.round(width * 0.75),
  });
  image.addEventListener("error", () => (image.src = "pictures/parcel.svg"), { once: true });
  return image;
}

export function announce(text) {
  byId("announcer").textContent = text;
}
