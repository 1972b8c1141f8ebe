// Replaces parts of the page by what the server renders anew.
const state = document.getElementById("live-state");

for (const part of document.querySelectorAll("[data-live]")) {
  const source = new EventSource(part.dataset.live);
  source.addEventListener("message", (event) => replace(part, event.data));
  source.addEventListener("open", () => say(""));
  source.addEventListener("error", () => say("Not kept up to date: the console does not answer."));
  source.addEventListener("over", () => source.close());
  addEventListener("pagehide", () => source.close());
}

function say(text) {
  if (state.textContent !== text) state.textContent = text;
}

function replace(part, html) {
  const picture = part.querySelector(".picture");
  const scrolled = picture ? [picture.scrollLeft, picture.scrollTop] : [0, 0];
  const focused = place(part);
  // Rendered by the console, which escapes every value.
  part.innerHTML = html;
  const after = part.querySelector(".picture");
  if (after) [after.scrollLeft, after.scrollTop] = scrolled;
  if (focused) focused()?.focus({ preventScroll: true });
}

// Returns a function that finds the focused element again, by its address or its class.
function place(part) {
  const active = document.activeElement;
  if (!part.contains(active)) return null;
  const href = active.getAttribute("href");
  if (href) return () => [...part.querySelectorAll("a")].find((a) => a.getAttribute("href") === href);
  return () => part.querySelector("[tabindex='0']");
}
