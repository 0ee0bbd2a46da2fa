// The web page: prompts go to the server, answers stream back with their route.

import { copyButton, showMarkdown } from "./markdown.js";
import { NO_ROUTE, blend, knows, phases, showPool, showRoute, showScores, summary } from "./pool.js";
import { ConnectionError, events, get, pause, request, serverIsBack } from "./server.js";
import * as storage from "./storage.js";

const TYPING_PAUSE = 400, CHEAP = 500; // milliseconds: before a preview; that a cheap one takes

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const state = {
  conversation: { id: "", turns: [] }, // each turn {prompt, text, note, error, route} and elements
  running: null, // the AbortController of the answer
  preview: null, // and that of the preview
  timer: 0,
  previews: true,
  editing: false,
  offline: false,
};

const make = (tag, className = "", textContent = "") =>
  Object.assign(document.createElement(tag), { className, textContent });
const newId = () => `${Date.now()}-${Math.random().toString(36).slice(2)}`;
const lastTurn = () => state.conversation.turns.at(-1);

// The pool and the models

async function load() {
  try {
    const [models, pool] = await Promise.all([get("/v1/models"), get("/v1/adapters")]);
    const selected = page.model.value, ids = models.data.map(({ id }) => id);
    page.model.replaceChildren(...ids.map((id) => new Option(id.replace(/^base:/, ""), id)));
    page.model.value = ids.includes(selected) ? selected : ids[0];
    page.base.textContent = pool.base.name;
    document.title = `${pool.base.name} · logo-local`;
    showPool(pool);
    state.previews = pool.adapters.length > 0 && !pool.problems.length;
    const turn = lastTurn();
    if (turn?.route) showRoute(turn.route, turn.summary);
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else if (error instanceof ConnectionError) reconnect();
    else page.log.append(make("p", "error", error.message));
  }
}

// Wait for the server; then load the pool again, and repeat, once, a prompt that got no answer.
async function reconnect() {
  if (state.offline) return;
  state.offline = true;
  page.offline.hidden = false;
  await serverIsBack();
  state.offline = false;
  page.offline.hidden = true;
  await load();
  const turn = lastTurn();
  const unanswered = turn?.wasLost && !turn.text && !turn.repeated;
  if (unanswered && !state.running && !state.editing) send(turn.prompt, { repeated: true });
}

function askForKey(error) {
  page["key-why"].textContent = error.message;
  page["key-form"].hidden = false;
  page.key.focus();
}

function useKey() {
  storage.saveApiKey(page.key.value);
  page["key-form"].hidden = true;
  page.key.value = "";
  load();
}

// The conversation on the screen

function addTurn(conversation, saved) {
  const turn = { text: "", note: "", error: "", summary: "", route: null, ...saved };
  const parts = ["answer", "error", "note quiet"].map((name) => make("div", name));
  [turn.answer, turn.errorLine, turn.noteLine] = parts;
  turn.element = make("article");
  const prompt = [make("h3", "unseen", "Prompt"), make("p", "prompt", turn.prompt)];
  turn.element.append(...prompt, make("h3", "unseen", "Answer"), ...parts, actions(turn));
  conversation.turns.push(turn);
  page.welcome.remove();
  page.log.append(turn.element);
  show(turn);
  return turn;
}

function actions(turn) {
  const line = make("div", "actions"), button = (name, onclick) =>
    Object.assign(make("button", "plain small last", name), { type: "button", onclick });
  line.append(
    copyButton("Copy", () => turn.text),
    button("Regenerate", () => state.running || send(turn.prompt, { replace: true })),
    button("Edit", () => state.running || edit(true, turn.prompt)),
  );
  return line;
}

// New text is followed, unless the user has scrolled away from the end.
function show(turn) {
  const { log } = page, atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  showMarkdown(turn.answer, turn.text);
  turn.errorLine.textContent = turn.error;
  turn.noteLine.textContent = turn.note;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// Once a frame, however fast tokens come.
function showSoon(turn) {
  turn.frame ??= requestAnimationFrame(() => {
    turn.frame = null;
    show(turn);
  });
}

function removeLastTurn() {
  state.conversation.turns.pop().element.remove();
}

// Stored conversations

function save(conversation) {
  if (conversation.deleted) return;
  if (conversation.turns.length) storage.saveConversation(conversation);
  else storage.deleteConversation(conversation.id);
  if (conversation === state.conversation) storage.saveOpenId(conversation.id);
  listConversations();
}

function listConversations() {
  const stored = storage.conversations(), { id } = state.conversation;
  const title = ({ turns }) => turns[0].prompt.replace(/\s+/g, " ").trim().slice(0, 60);
  const options = stored.map((one) => new Option(title(one), one.id));
  if (!stored.some((one) => one.id === id)) options.unshift(new Option("New conversation", id));
  page.conversation.replaceChildren(...options);
  page.conversation.value = id;
  page.delete.disabled = !state.conversation.turns.length;
}

function open(saved) {
  state.running?.abort();
  cancelPreview();
  edit(false, "");
  state.conversation = { id: saved?.id ?? newId(), turns: [] };
  page.log.replaceChildren(page.welcome);
  storage.saveOpenId(state.conversation.id);
  for (const turn of saved?.turns ?? []) {
    const cut = !turn.text && !turn.error && !turn.note; // the page was closed before
    addTurn(state.conversation, { ...turn, note: cut ? "No answer." : turn.note });
  }
  page.log.scrollTop = page.log.scrollHeight;
  const turn = lastTurn();
  if (turn?.route) showRoute(turn.route, turn.summary);
  else showRoute(NO_ROUTE, "The adapters of an answer appear here with their weights.");
  listConversations();
  page.prompt.focus();
}

const openStored = (id) => open(storage.conversations().find((one) => one.id === id));

function deleteConversation() {
  if (!confirm("Delete this conversation?")) return;
  state.conversation.deleted = true;
  storage.deleteConversation(state.conversation.id);
  open(null);
}

// Settings

function readSettings() {
  const { system = "", temperature = "" } = storage.settings();
  Object.assign(page.system, { value: system });
  Object.assign(page.temperature, { value: temperature });
  summariseSettings();
}

function summariseSettings() {
  const { system, temperature } = page;
  const changed = [
    system.value.trim() && "system prompt",
    temperature.value && `temperature ${temperature.value}`,
  ].filter(Boolean);
  page.changed.textContent = changed.length ? `: ${changed.join(", ")}` : "";
}

function changeSettings() {
  storage.saveSettings({ system: page.system.value, temperature: page.temperature.value });
  summariseSettings();
}

// What was said before, as far as it was answered: templates want prompts and answers in turn.
function messages(prompt, before = state.conversation.turns) {
  const system = page.system.value.trim() ? [["system", page.system.value]] : [];
  const turns = before
    .filter(({ text }) => text)
    .flatMap((turn) => [["user", turn.prompt], ["assistant", turn.text]]);
  return [...system, ...turns, ["user", prompt]].map(([role, content]) => ({ role, content }));
}

function bodyOf(prompt) {
  const body = { model: page.model.value, messages: messages(prompt), stream: true };
  if (page.temperature.value) body.temperature = Number(page.temperature.value);
  return body;
}

// Answers

async function send(prompt, { replace = state.editing, repeated = false } = {}) {
  if (state.running || !prompt.trim()) return;
  if (!page.temperature.checkValidity()) {
    page.settings.open = true;
    page.temperature.reportValidity();
    return;
  }
  cancelPreview();
  if (replace || repeated) removeLastTurn();
  const { conversation } = state, body = bodyOf(prompt);
  if (state.editing || prompt === page.prompt.value) edit(false, "");
  const turn = addTurn(conversation, { prompt, repeated });
  page.log.scrollTop = page.log.scrollHeight;
  run(new AbortController());
  save(conversation);
  await receive(turn, body, state.running.signal).catch((error) => fail(turn, error));
  if (turn.route) turn.note += blend(turn.route);
  if (turn.frame) cancelAnimationFrame(turn.frame);
  show(turn);
  save(conversation);
  run(null);
  if (turn.wasLost) reconnect();
}

async function receive(turn, body, signal) {
  const post = () => request("/v1/chat/completions", body, signal);
  const response = await post().catch(async (error) => {
    if (error.status !== 429) throw error;
    turn.noteLine.textContent = `Too many are waiting. Trying again in ${error.seconds} s.`;
    await pause(error.seconds, signal).finally(() => (turn.noteLine.textContent = ""));
    return post(); // once only: the next refusal is shown
  });
  for await (const { error, logo, choices } of events(response)) {
    if (error) throw new Error(error.message);
    if (logo && !turn.route) await useRoute(turn, logo.route);
    if (logo?.timings_ms) page.timings.textContent = phases(logo.timings_ms);
    const text = choices[0].delta?.content ?? "";
    turn.text += turn.text ? text : text.trimStart();
    if (choices[0].finish_reason === "length") turn.note = "Cut off: the maximum length is reached. ";
    showSoon(turn);
  }
  if (!turn.text) turn.note += "The answer is empty. ";
}

async function useRoute(turn, route) {
  Object.assign(turn, { route, summary: summary(route) });
  if (!knows(route)) await load(); // the folder has changed
  showRoute(route);
}

function fail(turn, error) {
  if (error.name === "AbortError") turn.note = "Stopped. ";
  else turn.error = error.message;
  turn.wasLost = error instanceof ConnectionError;
  if (error.status !== 401) return;
  removeLastTurn();
  page.prompt.value = turn.prompt;
  askForKey(error);
}

function run(controller) {
  state.running = controller;
  page.send.textContent = controller ? "Stop" : "Send";
  page.log.setAttribute("aria-busy", controller !== null); // read aloud when it is complete
}

function edit(on, text) {
  state.editing = on;
  page.ask.classList.toggle("editing", on);
  page.prompt.value = text;
  if (on) page.prompt.focus();
}

// The preview: the pool shows the scores of the prompt while the user types, if that is cheap.

function cancelPreview() {
  clearTimeout(state.timer);
  state.preview?.abort();
}

function previewSoon() {
  cancelPreview();
  const wanted = state.previews && !state.running && page.model.value === "auto";
  if (wanted && page.prompt.value.trim()) state.timer = setTimeout(preview, TYPING_PAUSE);
}

async function preview() {
  const { turns } = state.conversation, before = state.editing ? turns.slice(0, -1) : turns;
  const started = performance.now();
  const body = { messages: messages(page.prompt.value, before) };
  state.preview = new AbortController();
  try {
    const response = await request("/v1/route", body, state.preview.signal);
    showScores((await response.json()).route);
    state.previews = performance.now() - started < CHEAP;
  } catch (error) {
    if (error.name !== "AbortError") state.previews = false;
  }
}

// Keys and clicks

function onPromptKey(event) {
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  const edits = event.key === "ArrowUp" && !page.prompt.value && lastTurn() && !state.running;
  if (sends || edits) event.preventDefault();
  if (sends) send(page.prompt.value);
  if (edits) edit(true, lastTurn().prompt);
}

function onEscape({ key }) {
  if (key === "Escape" && state.running) state.running.abort();
  else if (key === "Escape" && state.editing) edit(false, "");
}

function onSubmit(event) {
  event.preventDefault();
  if (event.target === page["key-form"]) useKey();
  else if (state.running) state.running.abort();
  else send(page.prompt.value);
  page.prompt.focus();
}

document.addEventListener("submit", onSubmit);
document.addEventListener("keydown", onEscape);
window.addEventListener("pagehide", () => state.running && save(state.conversation));
page.prompt.addEventListener("keydown", onPromptKey);
page.prompt.addEventListener("input", previewSoon);
page.settings.addEventListener("input", changeSettings);
page.fresh.addEventListener("click", () => open(null));
page.delete.addEventListener("click", deleteConversation);
page.conversation.addEventListener("change", () => openStored(page.conversation.value));
readSettings();
openStored(storage.openId() ?? storage.conversations()[0]?.id);
load();
