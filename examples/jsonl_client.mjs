// The engine as a process beside your app, with nothing but Node.
//
//   node examples/jsonl_client.mjs "a prompt" [MODEL ADAPTERS]
//
// Streams the answer to standard output and says on standard error what it was blended from; Ctrl+C
// cancels the answer. Needs logo-local in the PATH; the protocol is in docs/embedding.md.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

/** One engine. Requests may overlap: they are answered in order. */
export class Client {
  constructor(model = "demo", adapters) {
    const more = adapters ? ["--adapters", adapters] : [];
    // A session of its own: Ctrl+C in a terminal is for this program to pass on.
    this.process = spawn("logo-local", ["run", model, "--jsonl", ...more], {
      stdio: ["pipe", "pipe", "inherit"],
      detached: true,
    });
    this.waiting = new Map(); // by id: what takes the events of a request
    this.lastId = 0;
    this.ready = new Promise((resolve, reject) => {
      createInterface({ input: this.process.stdout, crlfDelay: Infinity })
        .on("line", (line) => {
          const event = JSON.parse(line);
          if (event.event === "ready") resolve(event);
          else this.waiting.get(event.id)?.(event);
        })
        .on("close", () => {
          reject(new Error("the engine has ended; standard error says why"));
          for (const take of this.waiting.values()) take({ event: "error", message: "it ended" });
        });
      this.process.on("error", reject); // logo-local is not there
    });
  }

  /** The events of one answer as they come. Leaving the loop cancels the answer. */
  async *ask(prompt, options = {}) {
    await this.ready;
    const id = ++this.lastId;
    const events = [];
    let wake = () => {};
    this.waiting.set(id, (event) => {
      events.push(event);
      wake();
    });
    this.send({ id, prompt, ...options });
    let ended = false;
    try {
      while (!ended) {
        if (!events.length) await new Promise((resolve) => (wake = resolve));
        const event = events.shift();
        if (!event) continue;
        ended = event.event === "done" || event.event === "error";
        yield event;
      }
    } finally {
      if (!ended) this.send({ cancel: id });
      this.waiting.delete(id);
    }
  }

  send(request) {
    this.process.stdin.write(JSON.stringify(request) + "\n");
  }

  /** Ends the process once everything is answered. */
  close() {
    this.process.stdin.end();
  }
}

async function main(prompt, ...engine) {
  const client = new Client(...engine);
  let stopped = false;
  process.on("SIGINT", () => (stopped = true));
  try {
    for await (const event of client.ask(prompt, { max_tokens: 256 })) {
      if (event.event === "token") {
        process.stdout.write(event.text);
      } else if (event.event === "route") {
        const blend = event.route.adapters.map((a) => `${a.name} ${a.weight.toFixed(2)}`);
        process.stderr.write((blend.join(" · ") || "the base alone") + "\n");
      } else if (event.event === "error") {
        process.stderr.write(event.message + "\n");
        process.exitCode = 1;
      }
      if (stopped) break;
    }
    process.stdout.write("\n");
  } finally {
    client.close();
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  await main(...process.argv.slice(2));
}
