"use strict";
// The theme, the list of pages on a small screen, and the search, which reads index.js when it is
// first asked: a script of this folder, so that it works without a server.

const up = document.currentScript.dataset.up;
const root = document.documentElement;
const stored = { get: () => { try { return localStorage.theme; } catch { return undefined; } },
  set: (value) => { try { localStorage.theme = value; } catch { /* a file may have no storage */ } } };
if (stored.get()) root.dataset.theme = stored.get();
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  stored.set(root.dataset.theme);
});
if (matchMedia("(max-width: 50rem)").matches) document.getElementById("pages").open = false;

const field = document.getElementById("search");
const found = document.getElementById("found");
const SHOWN = 12;
let asked = false;

field.addEventListener("focus", () => {
  if (asked) return;
  asked = true;
  const script = document.createElement("script");
  script.src = `${up}index.js`;
  script.addEventListener("load", show);
  document.head.append(script);
});
field.addEventListener("input", show);
field.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { field.value = ""; show(); }
  if (event.key === "ArrowDown" || event.key === "Enter") {
    const first = found.querySelector("a");
    if (!first) return;
    event.preventDefault();
    if (event.key === "Enter") first.click(); else first.focus();
  }
});
found.addEventListener("keydown", (event) => {
  const item = document.activeElement.parentElement;
  const next = { ArrowDown: item.nextElementSibling, ArrowUp: item.previousElementSibling }[event.key];
  if (next) { event.preventDefault(); next.querySelector("a").focus(); }
  if (event.key === "Escape") field.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement === document.body) { event.preventDefault(); field.focus(); }
});

function score(words, [title, heading, , text]) {
  let sum = 0;
  for (const word of words) {
    const at = heading.toLowerCase().includes(word) ? 8 : title.toLowerCase().includes(word) ? 5
      : text.toLowerCase().includes(word) ? 1 : 0;
    if (!at) return 0;
    sum += at + (heading.toLowerCase() === word ? 10 : 0);
  }
  return sum;
}

function show() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  found.replaceChildren();
  found.hidden = !words.length;
  if (!words.length || typeof INDEX === "undefined") return;
  const best = INDEX.map((entry) => [score(words, entry), entry]).filter(([points]) => points)
    .sort((one, other) => other[0] - one[0]).slice(0, SHOWN);
  for (const [, [title, heading, place, text]] of best) {
    const item = document.createElement("li"), link = document.createElement("a");
    const said = document.createElement("small");
    link.href = up + place;
    link.textContent = heading === title ? title : `${title}: ${heading}`;
    said.textContent = text;
    link.append(said);
    item.append(link);
    found.append(item);
  }
  if (!best.length) {
    const none = document.createElement("li");
    none.className = "none";
    none.textContent = "Nothing found.";
    found.append(none);
  }
}
