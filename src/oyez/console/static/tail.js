// Follows a stream: new rows come above the others, until it is paused.
const MOST = 200;
const button = document.getElementById("follow");
const state = document.getElementById("follow-state");
const table = document.getElementById("events");
let source = null;
let at = "";
let dropped = 0;

if (button) {
  button.hidden = false;
  button.addEventListener("click", () => (source ? pause() : follow()));
  addEventListener("pagehide", pause);
}

function follow() {
  const from = at ? `&at=${encodeURIComponent(at)}` : "";
  source = new EventSource(button.dataset.tail + from);
  source.addEventListener("message", (event) => arrived(event));
  source.addEventListener("dropped", (event) => {
    dropped += Number(event.data);
    said();
  });
  source.addEventListener("gap", (event) => say(event.data));
  source.addEventListener("open", said);
  source.addEventListener("error", () => say("The console does not answer."));
  button.textContent = "Pause";
  button.setAttribute("aria-pressed", "true");
}

function pause() {
  source?.close();
  source = null;
  button.textContent = "Follow";
  button.setAttribute("aria-pressed", "false");
  say(at ? "Paused: what comes meanwhile is read when you go on." : "");
}

function arrived(event) {
  at = event.lastEventId;
  said();
  if (!event.data) return;
  document.getElementById("none")?.remove();
  table.hidden = false;
  const rows = table.tBodies[0];
  // Rendered by the console, which escapes every value.
  rows.insertAdjacentHTML("afterbegin", event.data);
  while (rows.rows.length > MOST) rows.lastElementChild.remove();
}

function said() {
  say(dropped ? `Following. ${dropped.toLocaleString("en")} were left out: too many at once.` : "Following.");
}

function say(text) {
  if (state.textContent !== text) state.textContent = text;
}
