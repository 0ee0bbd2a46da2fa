// Conversations and settings in the browser's local storage, the API key in its session storage.
// Browsers may refuse storage, or have no space left: the page then works without it.

const PREFIX = "logo-local:";
const CONVERSATION = `${PREFIX}conversation:`;
const MOST = 100; // conversations that are kept

function attempt(action, otherwise = null) {
  try {
    return action();
  } catch {
    return otherwise;
  }
}

const parsed = (text) => attempt(() => JSON.parse(text));

function entries() {
  const all = attempt(() => Object.entries(localStorage), []);
  return all.filter(([name]) => name.startsWith(CONVERSATION));
}

// The key is kept until the tab is closed.
export const apiKey = () => attempt(() => sessionStorage.getItem(`${PREFIX}key`));
export const saveApiKey = (key) => attempt(() => sessionStorage.setItem(`${PREFIX}key`, key));

export const settings = () => parsed(attempt(() => localStorage.getItem(`${PREFIX}settings`))) ?? {};
export const saveSettings = (values) =>
  attempt(() => localStorage.setItem(`${PREFIX}settings`, JSON.stringify(values)));

// Which conversation this tab shows; null for a new tab.
export const openId = () => attempt(() => sessionStorage.getItem(`${PREFIX}open`));
export const saveOpenId = (id) => attempt(() => sessionStorage.setItem(`${PREFIX}open`, id));

const isTurn = (turn) => typeof turn?.prompt === "string" && typeof turn.text === "string";

// All stored conversations, {id, changed, turns}, the latest first.
export function conversations() {
  return entries()
    .map(([name, text]) => ({ ...parsed(text), id: name.slice(CONVERSATION.length) }))
    .filter(({ turns }) => Array.isArray(turns) && turns.length && turns.every(isTurn))
    .sort((one, other) => (other.changed || 0) - (one.changed || 0));
}

// Makes space by removing the oldest. Returns whether it was saved.
export function saveConversation({ id, turns }) {
  const stored = turns.map(({ prompt, text, note, error, route, summary }) => ({
    ...{ prompt, text, note, error, summary },
    route: route && { adapters: route.adapters, scores: {} },
  }));
  const value = JSON.stringify({ changed: Date.now(), turns: stored });
  const others = conversations().filter((other) => other.id !== id);
  while (others.length >= MOST) deleteConversation(others.pop().id);
  for (;;) {
    if (attempt(() => localStorage.setItem(CONVERSATION + id, value) ?? true, false)) return true;
    if (!others.length) return false;
    deleteConversation(others.pop().id);
  }
}

export const deleteConversation = (id) =>
  attempt(() => localStorage.removeItem(CONVERSATION + id));
