// Requests to the server that this page came from.

import { apiKey } from "./storage.js";

// The connection failed, or the server is shutting down.
export class ConnectionError extends Error {
  constructor() {
    super("The connection to the server is lost. Is it still running?");
  }
}

const lost = (error) =>
  Promise.reject(error?.name === "AbortError" ? error : new ConnectionError());

// A GET request, or a POST request with `body`. The error of a refused request has its status, and
// after how many seconds to try again.
export async function request(path, body, signal) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  const options = { method: body ? "POST" : "GET", headers, body: JSON.stringify(body), signal };
  const response = await fetch(path, options).catch(lost);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  if (error?.code === "closing") throw new ConnectionError();
  const { status } = response, seconds = Number(response.headers.get("retry-after")) || 1;
  const message = error?.message ?? `The server answers with status ${status}.`;
  throw Object.assign(new Error(message), { status, seconds });
}

export const get = async (path) => (await request(path)).json();

// The server-sent events of a response, until [DONE].
export async function* events(response) {
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

export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => reject(signal.reason));
  });

// Resolves when the server accepts requests again; asks every two seconds.
export async function serverIsBack() {
  for (;;) {
    await pause(2);
    const { status } = await get("/health").catch(() => ({}));
    if (status === "ready" || status === "busy") return;
  }
}
