// The built-in page: prompts go to the server, answers stream back with their route.
// What was typed, and what the server sends, becomes text: nothing here makes HTML of it.

const PAUSE = 400, CHEAP = 500; // milliseconds: from the last key to a look ahead; of a cheap one
const KEY = "logo-local-key";
const NO_ROUTE = { adapters: [], scores: {} };

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const turns = []; // each {prompt, text, route} and its elements
const cells = new Map(); // the map's elements by adapter
const state = { running: null, ahead: null, timer: 0, looksAhead: true, editing: false };

const make = (tag, className = "", textContent = "") =>
  Object.assign(document.createElement(tag), { className, textContent });

// Asking the server
const LOST = "The connection to the server is lost. Is it still running?";
const lost = (error) => Promise.reject(error?.name === "AbortError" ? error : new Error(LOST));

async function ask(path, body, signal) {
  const headers = body ? { "content-type": "application/json" } : {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  const request = { method: body ? "POST" : "GET", headers, body: JSON.stringify(body), signal };
  const response = await fetch(path, request).catch(lost);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const { status } = response, seconds = Number(response.headers.get("retry-after")) || 1;
  const said = error?.message ?? `The server answers with status ${status}.`;
  throw Object.assign(new Error(said), { status, seconds });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read().catch(lost);
    if (done) await lost();
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      yield JSON.parse(part.slice("data: ".length));
    }
  }
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => reject(signal.reason));
  });

// What was said before, as far as it was answered: templates want prompts and answers in turn.
function messages(prompt) {
  const before = (state.editing ? turns.slice(0, -1) : turns).filter(({ text }) => text);
  const said = before.flatMap((turn) => [["user", turn.prompt], ["assistant", turn.text]]);
  return [...said, ["user", prompt]].map(([role, content]) => ({ role, content }));
}

// The route
const applied = ({ adapters }) => new Map(adapters.map(({ name, weight }) => [name, weight]));

function summary({ adapters, scores }) {
  const n = Object.keys(scores).length;
  if (!adapters.length) return n ? "The base alone: no adapter fits." : "The base alone.";
  if (!n) return "Chosen by hand: nothing was scored.";
  return `${adapters.length} of ${n} adapters.`;
}

const list = (entries, text) => entries.map(text).join(", ");
const blend = (route) =>
  list([...applied(route)], ([name, share]) => `${name} ${share.toFixed(2)}`) || "the base alone";
const phases = ({ load, ...others }) =>
  list(Object.entries(others), ([phase, ms]) => `${phase} ${Math.round(ms)} ms`);

function bar([name, share]) {
  const item = make("li"), meter = make("span", "bar");
  meter.style.setProperty("--share", share);
  item.append(make("span", "name", name), make("span", "share", share.toFixed(2)), meter);
  return item;
}

// Maps, as an adapter may be called like what every object has.
function light(route) {
  const scores = new Map(Object.entries(route.scores)), shares = applied(route);
  page.pointed.textContent = ""; // what it said is no longer so
  const highest = Math.max(...scores.values()) || 1;
  for (const [name, cell] of cells) {
    const score = scores.get(name) ?? 0, share = shares.get(name), texts = [name];
    if (scores.has(name)) texts.push(`score ${Number(score.toPrecision(3))}`);
    if (shares.has(name)) texts.push(`weight ${share.toFixed(2)}`);
    cell.style.setProperty("--light", scores.size ? score / highest : Number(shares.has(name)));
    cell.setAttribute("aria-selected", shares.has(name));
    cell.setAttribute("aria-label", texts.join(", "));
  }
}

async function showRoute(route, text = summary(route)) {
  page.summary.textContent = text;
  page.bars.replaceChildren(...[...applied(route)].map(bar));
  page.timings.textContent = "";
  const named = [...Object.keys(route.scores), ...applied(route).keys()];
  if (!named.every((name) => cells.has(name))) await load(); // the folder has changed
  light(route);
}

// The pool and the models
async function load() {
  try {
    const get = async (path) => (await ask(path)).json();
    const [models, pool] = await Promise.all([get("/v1/models"), get("/v1/adapters")]);
    const chosen = page.model.value, ids = models.data.map(({ id }) => id);
    page.model.replaceChildren(...ids.map((id) => new Option(id.replace(/^base:/, ""), id)));
    page.model.value = ids.includes(chosen) ? chosen : ids[0];
    showPool(pool);
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else page.log.append(make("p", "error", error.message));
  }
}

function showPool({ adapters, problems }) {
  const cell = (tabIndex) => Object.assign(make("li"), { role: "option", tabIndex });
  cells.clear();
  for (const { name } of adapters) cells.set(name, cell(cells.size ? -1 : 0));
  page.map.replaceChildren(...cells.values());
  page.map.className = cells.size > 240 ? "crowd" : cells.size > 60 ? "many" : "";
  page.legend.textContent = `Adapters: ${cells.size}. Brighter: a higher score. Outlined: blended.`;
  state.looksAhead = cells.size > 0 && !problems.length;
  page.problems.textContent = problems.map((p) => `${p.name} is left out: ${p.reason}`).join("\n");
  light(NO_ROUTE);
}

// The map is one stop for Tab, however many cells it has; within it the arrows move.
function point({ target }) {
  if (target === page.map) return;
  for (const cell of cells.values()) cell.tabIndex = cell === target ? 0 : -1;
  page.pointed.textContent = target.getAttribute("aria-label");
}

function move(event) {
  const all = [...cells.values()], at = all.indexOf(event.target);
  const columns = getComputedStyle(page.map).gridTemplateColumns.split(" ").length;
  const across = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 };
  const next = all[{ ...across, ArrowUp: at - columns, ArrowDown: at + columns }[event.key]];
  if (next) event.preventDefault();
  next?.focus();
}

function askForKey(error) {
  page["key-why"].textContent = error.message;
  page["key-form"].hidden = false;
  page.key.focus();
}

function useKey() {
  sessionStorage.setItem(KEY, page.key.value);
  page["key-form"].hidden = true;
  page.key.value = "";
  load();
}

// The conversation
function begin(prompt) {
  const element = make("article");
  const [answer, error, note] = ["answer", "error", "note quiet"].map((name) => make("p", name));
  const asked = [make("h3", "unseen", "Prompt"), make("p", "prompt", prompt)];
  element.append(...asked, make("h3", "unseen", "Answer"), answer, error, note);
  page.welcome.remove();
  page.log.append(element);
  page.log.scrollTop = page.log.scrollHeight;
  turns.push({ prompt, text: "", route: null, element, answer, error, note });
  return turns.at(-1);
}

// New text is followed, unless somebody has scrolled away from it.
function write(element, text) {
  const there = page.log.scrollHeight - page.log.scrollTop - page.log.clientHeight < 40;
  element.append(text);
  if (there) page.log.scrollTop = page.log.scrollHeight;
}

async function receive(turn, body, signal) {
  const tried = () => ask("/v1/chat/completions", body, signal);
  const response = await tried().catch(async (error) => {
    if (error.status !== 429) throw error;
    write(turn.note, `Too many are waiting. Trying again in ${error.seconds} s.`);
    await pause(error.seconds, signal).finally(() => turn.note.replaceChildren());
    return tried(); // once only: the next refusal is shown
  });
  for await (const { error, logo, choices } of events(response)) {
    if (error) throw new Error(error.message);
    if (logo && !turn.route) showRoute((turn.route = logo.route));
    if (logo?.timings_ms) page.timings.textContent = phases(logo.timings_ms);
    const text = choices[0].delta?.content ?? "";
    write(turn.answer, turn.text.trim() ? text : text.trimStart());
    turn.text += text;
    if (choices[0].finish_reason === "length") write(turn.note, "Cut off at its longest. ");
  }
}

async function send() {
  const prompt = page.prompt.value, model = page.model.value;
  if (state.running || !prompt.trim()) return;
  stopLookingAhead();
  const body = { model, messages: messages(prompt), stream: true };
  if (state.editing) turns.pop().element.remove();
  edit(false, "");
  const turn = begin(prompt);
  run(new AbortController());
  await receive(turn, body, state.running.signal).catch((error) => fail(turn, error));
  if (turn.route) write(turn.note, blend(turn.route));
  run(null);
}

function fail(turn, error) {
  if (error.name === "AbortError") return write(turn.note, "Stopped. ");
  if (error.status !== 401) return write(turn.error, error.message);
  turns.pop().element.remove();
  page.prompt.value = turn.prompt;
  askForKey(error);
}

function run(controller) {
  state.running = controller;
  page.send.textContent = controller ? "Stop" : "Send";
  page.log.setAttribute("aria-busy", controller !== null); // read aloud when it is whole
}

function edit(on, text) {
  state.editing = on;
  page.ask.classList.toggle("editing", on);
  page.prompt.value = text;
}

function startAnew() {
  state.running?.abort();
  stopLookingAhead();
  edit(false, "");
  turns.length = 0;
  page.log.replaceChildren(page.welcome);
  showRoute(NO_ROUTE, "Nothing yet. An answer's adapters appear here with their weights.");
  page.prompt.focus();
}

// Looking ahead: the map lights up while somebody types, as long as that is cheap.
const stopLookingAhead = () => [clearTimeout(state.timer), state.ahead?.abort()];

function lookAheadSoon() {
  stopLookingAhead();
  const wanted = state.looksAhead && !state.running && page.model.value === "auto";
  if (wanted && page.prompt.value.trim()) state.timer = setTimeout(lookAhead, PAUSE);
}

async function lookAhead() {
  const begun = performance.now(), body = { messages: messages(page.prompt.value) };
  state.ahead = new AbortController();
  try {
    const response = await ask("/v1/route", body, state.ahead.signal);
    light((await response.json()).route);
    state.looksAhead = performance.now() - begun < CHEAP;
  } catch (error) {
    if (error.name !== "AbortError") state.looksAhead = false;
  }
}

// Keys and clicks
function onPromptKey(event) {
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  const edits = event.key === "ArrowUp" && !page.prompt.value && turns.length && !state.running;
  if (sends || edits) event.preventDefault();
  if (sends) send();
  if (edits) edit(true, turns.at(-1).prompt);
}

function onEscape({ key }) {
  if (key === "Escape" && state.running) state.running.abort();
  else if (key === "Escape" && state.editing) edit(false, "");
}

function onSubmit(event) {
  event.preventDefault();
  if (event.target === page["key-form"]) useKey();
  else if (state.running) state.running.abort();
  else send();
  page.prompt.focus();
}

document.addEventListener("submit", onSubmit);
document.addEventListener("keydown", onEscape);
page.prompt.addEventListener("keydown", onPromptKey);
page.prompt.addEventListener("input", lookAheadSoon);
page.fresh.addEventListener("click", startAnew);
page.map.addEventListener("keydown", move);
for (const kind of ["focusin", "pointerover"]) page.map.addEventListener(kind, point);
startAnew();
load();
