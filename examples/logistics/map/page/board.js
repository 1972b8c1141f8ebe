// Draws what /board sends: places by their real coordinates, longitude across and latitude up.

const AIRPORTS = [["JFK", 40.6398, -73.7789], ["EWR", 40.6925, -74.1687], ["LGA", 40.7772, -73.8726]];
const VANS = ["#2f6f4f", "#b4532a", "#3a5ba0", "#8a3b8f", "#a88400", "#00808a", "#7a7a7a"];
const STAGES = { departed: "in the air", arrived: "at a depot", delivered: "delivered" };
const $ = (id) => document.getElementById(id);

function make(name, attributes, ...children) {
  const space = ["svg", "line", "circle", "text", "polyline", "rect", "title"].includes(name);
  const element = space ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function projection(places, width, height, margin) {
  const lats = places.map(([lat]) => lat), lons = places.map(([, lon]) => lon);
  const [south, north] = [Math.min(...lats), Math.max(...lats)];
  const [west, east] = [Math.min(...lons), Math.max(...lons)];
  const narrow = Math.cos(((south + north) / 2) * Math.PI / 180);
  const scale = Math.min((width - 2 * margin) / ((east - west) * narrow || 1), (height - 2 * margin) / (north - south || 1));
  return ([lat, lon]) => [
    (width + (2 * lon - west - east) * narrow * scale) / 2, (height - (2 * lat - south - north) * scale) / 2];
}

function legs(depots) {
  const places = [...AIRPORTS.map(([, lat, lon]) => [lat, lon]), ...depots.map((each) => [each.lat, each.lon])];
  const at = projection(places, 640, 270, 40);
  const [x0, y0] = at([40.7, -73.9]);
  const most = Math.max(1, ...depots.map((each) => each.parcels));
  const labels = [[x0 + 8, y0 + 12]];
  const drawn = depots.map((each) => ({ ...each, place: at([each.lat, each.lon]) })).sort((a, b) => a.place[1] - b.place[1]).flatMap((each) => {
    const [x, y] = each.place;
    const label = [x + 7, y + 4];
    while (labels.some((other) => Math.abs(other[0] - label[0]) < 70 && Math.abs(other[1] - label[1]) < 11)) label[1] += 1;
    labels.push(label);
    return [
      make("line", { x1: x0, y1: y0, x2: x, y2: y, stroke: "var(--leg)", "stroke-opacity": .4, "stroke-width": 1 + 4 * each.parcels / most }),
      make("circle", { cx: x, cy: y, r: 3, fill: "var(--leg)" }),
      make("text", { x: label[0], y: label[1] }, `${each.depot} ${each.delivered}/${each.parcels}`)];
  });
  $("legs").replaceChildren(...drawn, make("circle", { cx: x0, cy: y0, r: 4, fill: "var(--ink)" }), make("text", { x: x0 + 8, y: y0 + 12 }, "New York"));
}

function tour(round) {
  const stops = new Map(Object.entries(round.stops).map(([parcel, stop]) => [parcel, [stop.lat, stop.lon]]));
  const home = [round.lat, round.lon];
  const at = projection([home, ...stops.values()], 300, 240, 12);
  const lines = Object.entries(round.routes).map(([van, parcels], index) => make("polyline", {
    points: [home, ...parcels.map((parcel) => stops.get(parcel)), home].map((place) => at(place).join(",")).join(" "),
    fill: "none", stroke: VANS[index % VANS.length], "stroke-width": 1.5 }, make("title", {}, van)));
  const doors = [...stops.values()].map(at).map(([cx, cy]) => make("circle", { cx, cy, r: 2, fill: "var(--ink)" }));
  const [x, y] = at(home);
  const picture = make("svg", { viewBox: "0 0 300 240", role: "img", "aria-label": `Tours of ${round.round_id}` },
    ...lines, ...doors, make("rect", { x: x - 4, y: y - 4, width: 8, height: 8, fill: "var(--ink)" }));
  const doing = `${lines.length} vans, plan ${round.version}`;
  return make("figure", {}, picture, make("figcaption", {}, `${round.round_id}: ${stops.size} stops, ${doing}`));
}

function show(board) {
  $("stages").replaceChildren(...Object.entries(STAGES).map(([stage, words]) =>
    make("div", {}, make("dt", {}, words), make("dd", {}, String(board.stages[stage] ?? 0)))));
  legs(board.depots);
  $("tours").replaceChildren(...board.tours.map(tour));
}

const source = new EventSource("/board");
source.addEventListener("open", () => { $("state").textContent = "live"; });
source.addEventListener("error", () => { $("state").textContent = "out of reach, trying again …"; });
source.addEventListener("message", (event) => show(JSON.parse(event.data)));
