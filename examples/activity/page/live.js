"use strict";

// The key is behind the # of the address, which no browser sends to a server.
const given = new URLSearchParams(location.hash.slice(1));
const key = given.get("key") ?? "";
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

function list(id, texts) {
  $(id).replaceChildren(...(texts.length ? texts : ["nothing yet"]).map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
}

function show(now) {
  for (const id of ["live", "people", "clicks", "bought"]) $(id).textContent = number.format(now[id] ?? 0);
  const most = Math.max(1, ...now.trending.map((each) => each.views));
  $("trending").replaceChildren(...now.trending.map((each) => {
    const item = document.createElement("li");
    const line = document.createElement("div");
    const title = document.createElement("span");
    const views = document.createElement("span");
    const meter = document.createElement("meter");
    title.textContent = each.title;
    views.textContent = each.views;
    meter.max = most;
    meter.value = each.views;
    meter.setAttribute("aria-label", `views of ${each.title}`);
    line.append(title, views);
    item.append(line, meter);
    return item;
  }));
  $("model").textContent = now.model ? `The challenger is the model of ${now.model}.` : "No model is trained yet.";
}

$("name").value = given.get("name") ?? "";

const source = new EventSource("/live");
source.onopen = () => { $("state").textContent = "live"; };
source.onerror = () => { $("state").textContent = "connecting again"; };
source.onmessage = (event) => show(JSON.parse(event.data));

async function ask(method) {
  const name = $("name").value;
  const answer = await fetch(`/people/${encodeURIComponent(name)}`, { method, headers: { "X-Api-Key": key } });
  return [answer.status, await answer.json().catch(() => ({}))];
}

$("who").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [status, person] = await ask("GET");
  $("person").hidden = status !== 200;
  if (status !== 200) {
    $("said").textContent = status === 404 ? "Nobody of this name is known here" : person.detail ?? `The server answered ${status}.`;
    return;
  }
  $("said").textContent = `${person.clicks} clicks, ${person.bought} bought`;
  $("by").textContent = `by ${person.by}`;
  list("also", person.also);
  list("recent", person.recent);
  list("searches", person.searches);
});

$("forget").addEventListener("click", async () => {
  const [status] = await ask("DELETE");
  $("person").hidden = true;
  $("said").textContent = { 202: "Forgotten.", 404: "Nobody of this name is known here." }[status] ?? `The server answered ${status}.`;
});
