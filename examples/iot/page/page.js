/* The fleet comes as server-sent events; the two curves are fetched when it has changed. */

const $ = id => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const chosen = { site: "", sensor: "" };
const charts = {};
let last = null;
let drawing = false;

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const degrees = value => `${value.toFixed(1)} °C`;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function button(text, kind, key, attributes = {}) {
  const pressed = String(chosen[kind] === key);
  const made = element("button", text, { ...attributes, type: "button", "aria-pressed": pressed });
  made.addEventListener("click", () => {
    chosen[kind] = key;
    show(last);
  });
  return made;
}

function siteButton(site) {
  const marks = {};
  if (site.hot) marks["data-hot"] = "";
  if (site.silent) marks["data-silent"] = "";
  const said = `${site.site_id}: ${degrees(site.celsius)}, ${site.hot} too warm, ${site.silent} silent`;
  return button(site.celsius.toFixed(0), "site", site.site_id, { ...marks, title: said, "aria-label": said });
}

function troubleRow(sensor) {
  const row = document.createElement("tr");
  const name = document.createElement("td");
  name.append(button(sensor.sensor_id, "sensor", sensor.sensor_id));
  const state = sensor.hot ? "too warm" : sensor.silent ? "silent" : "cooled down";
  const at = new Date(sensor.measured_at * 1000).toLocaleTimeString();
  row.append(name, element("td", degrees(sensor.celsius)), element("td", at),
    element("td", state, sensor.hot ? { class: "hot" } : {}));
  return row;
}

/** Replaces children, and gives the focus back to the button of the same name. */
function replace(parent, children) {
  const held = parent.contains(document.activeElement) ? document.activeElement : null;
  const name = held && (held.getAttribute("aria-label") || held.textContent).split(":")[0];
  parent.replaceChildren(...children);
  if (!name) return;
  for (const each of parent.querySelectorAll("button")) {
    if ((each.getAttribute("aria-label") || each.textContent).split(":")[0] === name) each.focus();
  }
}

function show(fleet) {
  if (!fleet) return;
  last = fleet;
  $("sensors").textContent = number.format(fleet.sensors);
  $("readings").textContent = number.format(fleet.readings);
  for (const what of ["hot", "silent"]) {
    $(what).textContent = number.format(fleet.sites.reduce((sum, site) => sum + site[what], 0));
  }
  if (!chosen.site && fleet.sites.length) chosen.site = fleet.sites[0].site_id;
  const warm = fleet.trouble.find(sensor => sensor.alerts) || fleet.trouble[0];
  if (!chosen.sensor && warm) chosen.sensor = warm.sensor_id;
  replace($("sites"), fleet.sites.map(siteButton));
  if (fleet.trouble.length) replace($("trouble"), fleet.trouble.map(troubleRow));
  draw();
}

async function draw() {
  if (drawing) return;
  drawing = true;
  try {
    await Promise.all([
      curve("site", ["mean", "median", "p95"], []),
      curve("sensor", ["mean", "highest"], [30, 28]),
    ]);
  } finally {
    drawing = false;
  }
}

async function curve(kind, names, bounds) {
  const key = chosen[kind];
  if (!key) return;
  const answer = await fetch(`/fleet/${kind}s/${encodeURIComponent(key)}`);
  if (!answer.ok) return;
  const { windows } = await answer.json();
  const title = kind === "site" ? `${key}, by the minute` : `${key}, by ten seconds`;
  $(`${kind}-title`).textContent = windows.length ? title : `${title}: none is over yet`;
  const columns = [windows.map(each => each.start), ...names.map(name => windows.map(each => each[name]))];
  const data = [...columns, ...bounds.map(bound => windows.map(() => bound))];
  charts[kind] ??= new uPlot(options(names, bounds, $(kind)), data, $(kind));
  charts[kind].setData(data);
}

function options(names, bounds, place) {
  const colours = ["#1f77b4", "#2ca02c", "#d9822b"];
  const axis = { stroke: css("--muted"), grid: { stroke: css("--grid") }, ticks: { stroke: css("--grid") } };
  const lines = names.map((name, index) => ({ label: name, stroke: colours[index], width: 2 }));
  const limits = bounds.map((bound, index) => ({
    label: index ? "cleared below" : "raised above", stroke: index ? css("--calm") : css("--hot"), dash: [6, 6], points: { show: false },
  }));
  return {
    width: place.clientWidth, height: 260,
    series: [{}, ...lines, ...limits],
    axes: [axis, { ...axis, values: (_, ticks) => ticks.map(tick => `${tick}°`) }],
  };
}

addEventListener("resize", () => {
  for (const kind of Object.keys(charts)) charts[kind].setSize({ width: $(kind).clientWidth, height: 260 });
});

const source = new EventSource("/fleet/events");
const say = word => {
  $("connection").textContent = word;
  $("connection").dataset.is = word;
};
source.onmessage = event => show(JSON.parse(event.data));
source.addEventListener("open", () => say("live"));
source.addEventListener("error", () => say("connecting"));
