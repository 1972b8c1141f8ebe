// Asks for what there is once a second, and shows it.

const money = (cents) => (cents / 100).toLocaleString("en", { minimumFractionDigits: 2 });
const when = (text) => text.slice(0, 16).replace("T", " ");
const place = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function rows(id, found) {
  place(id).replaceChildren(
    ...found.map((cells) => {
      const row = element("tr");
      row.append(
        ...cells.map((cell) => element("td", cell, typeof cell === "number" ? "number" : "")),
      );
      return row;
    }),
  );
}

function bars(hours) {
  const most = Math.max(1, ...hours.map((hour) => hour.completed + hour.refused));
  place("volume").replaceChildren(
    ...hours.map((hour) => {
      const bar = element("div", undefined, "bar");
      bar.title = `${when(hour.hour)}:00: ${hour.completed} completed, ${hour.refused} refused`;
      for (const kind of ["refused", "completed"]) {
        const part = element("span", undefined, kind);
        part.style.blockSize = `${(100 * hour[kind]) / most}%`;
        bar.append(part);
      }
      return bar;
    }),
  );
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function refresh() {
  try {
    const [found, volume, report] = await Promise.all(["/cases", "/volume", "/report"].map(ask));
    place("counts").textContent =
      `${found.looked_at} looked at, ${found.refused} refused; version ${found.model} of the model`;
    bars(volume.hours);
    rows("cases", found.cases.map((each) => [
      each.transfer_id, each.source, when(each.at), each.country, money(each.cents),
      each.score.toFixed(2), each.reason, each.model,
    ]));
    rows("report", report.countries.map((each) => [
      each.country, each.completed, each.refused, money(each.cents), when(each.busiest),
    ]));
  } catch (error) {
    place("counts").textContent = `No answer at the moment (${error.message}); asking again.`;
  }
  setTimeout(refresh, 1000);
}

refresh();
