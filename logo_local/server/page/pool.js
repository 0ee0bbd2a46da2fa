// The route of an answer, and the adapters of the pool: a list with bars, or a map of many.

export const NO_ROUTE = { adapters: [], scores: {} };
const LONGEST_LIST = 40; // adapters; more are a map

const byId = (id) => document.getElementById(id);
const map = byId("map"), pointed = byId("pointed");
const cells = new Map(); // the elements by adapter

const make = (tag, className = "", textContent = "") =>
  Object.assign(document.createElement(tag), { className, textContent });

const weights = ({ adapters }) => new Map(adapters.map(({ name, weight }) => [name, weight]));
const list = (entries, text) => entries.map(text).join(", ");

export function summary({ adapters, scores }) {
  const n = Object.keys(scores).length;
  if (!adapters.length) return n ? "The base model alone: no adapter fits." : "The base model alone.";
  if (!n) return "Chosen by you: nothing was scored.";
  return `${adapters.length} of ${n} adapters.`;
}

export const blend = (route) =>
  list([...weights(route)], ([name, weight]) => `${name} ${weight.toFixed(2)}`) ||
  "the base model alone";

export const phases = ({ load, ...others }) =>
  list(Object.entries(others), ([phase, ms]) => `${phase} ${Math.round(ms)} ms`);

function bar([name, weight]) {
  const item = make("li"), meter = make("span", "bar");
  meter.style.setProperty("--share", weight);
  item.append(make("span", "name", name), make("span", "share", weight.toFixed(2)), meter);
  return item;
}

export function showRoute(route, text = summary(route)) {
  byId("summary").textContent = text;
  byId("bars").replaceChildren(...[...weights(route)].map(bar));
  byId("timings").textContent = "";
  showScores(route);
}

// Whether all adapters of the route are shown; otherwise the folder has changed.
export const knows = (route) =>
  [...Object.keys(route.scores), ...weights(route).keys()].every((name) => cells.has(name));

// Maps, as an adapter may have the name of a property that every object has.
export function showScores(route) {
  const scores = new Map(Object.entries(route.scores)), shares = weights(route);
  pointed.textContent = ""; // it is out of date
  const highest = Math.max(...scores.values()) || 1;
  for (const [name, cell] of cells) {
    const score = scores.get(name) ?? 0, weight = shares.get(name), texts = [name];
    if (scores.has(name)) texts.push(`score ${Number(score.toPrecision(3))}`);
    if (shares.has(name)) texts.push(`weight ${weight.toFixed(2)}`);
    const light = scores.size ? score / highest : Number(shares.has(name));
    cell.style.setProperty("--light", light);
    cell.style.setProperty("--share", light);
    cell.setAttribute("aria-selected", shares.has(name));
    cell.setAttribute("aria-label", texts.join(", "));
    const number = cell.querySelector(".share");
    if (number) number.textContent = scores.has(name) ? (score ? score.toPrecision(2) : "0") : "";
  }
}

export function showPool({ adapters, problems }) {
  const named = adapters.length <= LONGEST_LIST;
  cells.clear();
  for (const { name } of adapters) {
    const cell = Object.assign(make("li"), { role: "option", tabIndex: cells.size ? -1 : 0 });
    cell.title = named ? name : "";
    if (named) cell.append(make("span", "name", name), make("span", "bar"), make("span", "share"));
    cells.set(name, cell);
  }
  map.replaceChildren(...cells.values());
  map.className = named ? "named" : cells.size > 240 ? "crowd" : cells.size > 60 ? "many" : "";
  const meaning = named ? "Longer" : "Brighter";
  byId("legend").textContent =
    `Adapters: ${cells.size}. ${meaning}: a higher score. Outlined: blended.`;
  byId("problems").textContent = problems
    .map((p) => `${p.name} is left out: ${p.reason}`)
    .join("\n");
  showScores(NO_ROUTE);
}

// The pool is one stop for Tab, however many cells it has; within it the arrow keys move.
function point({ target }) {
  const pointedAt = target.closest("[role=option]");
  if (!pointedAt) return;
  for (const cell of cells.values()) cell.tabIndex = cell === pointedAt ? 0 : -1;
  if (map.className !== "named") pointed.textContent = pointedAt.getAttribute("aria-label");
}

function move(event) {
  const all = [...cells.values()], at = all.indexOf(event.target);
  const columns = getComputedStyle(map).gridTemplateColumns.split(" ").length;
  const across = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 };
  const next = all[{ ...across, ArrowUp: at - columns, ArrowDown: at + columns }[event.key]];
  if (next) event.preventDefault();
  next?.focus();
}

map.addEventListener("keydown", move);
for (const kind of ["focusin", "pointerover"]) map.addEventListener(kind, point);
