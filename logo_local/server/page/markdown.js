// Answers are Markdown. Marked makes HTML of it, DOMPurify removes everything that is not in the
// lists below. HTML that an answer contains is shown as text, and images become links: the page
// loads nothing from other servers.

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "br", "hr", "strong", "em", "del", "a", "blockquote", "ul", "ol", "li"],
    ...["h4", "h5", "h6", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (found) => `&#${found.charCodeAt(0)};`);

const renderer = {
  html: ({ text, block }) => (block ? `<p>${escaped(text.trimEnd())}</p>` : escaped(text)),
  image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
  checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  heading({ tokens, depth }) {
    const level = Math.min(6, depth + 3); // below the page's own headings
    return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
  },
};

const marked = new Marked({ gfm: true, breaks: true, renderer });

// Show `text` in `element`; as it is where it cannot be parsed.
export function showMarkdown(element, text) {
  try {
    element.replaceChildren(globalThis.DOMPurify.sanitize(marked.parse(text), ALLOWED));
  } catch {
    element.textContent = text;
    return;
  }
  for (const link of element.querySelectorAll("a[href]")) {
    Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  }
  for (const table of element.querySelectorAll("table")) wrap(table, "scroll");
  for (const block of element.querySelectorAll("pre")) wrap(block, "code").prepend(bar(block));
}

function wrap(element, className) {
  const around = Object.assign(document.createElement("div"), { className });
  element.replaceWith(around);
  around.append(element);
  return around;
}

// The line above a code block: its language, and a button that copies it.
function bar(block) {
  const line = Object.assign(document.createElement("div"), { className: "code-bar quiet" });
  const language = block.querySelector("code")?.className.match(/language-(\S+)/)?.[1] ?? "";
  line.append(
    Object.assign(document.createElement("span"), { textContent: language }),
    copyButton("Copy code", () => block.textContent.replace(/\n$/, "")),
  );
  return line;
}

// A button that copies what `text` returns, and says whether it did.
export function copyButton(label, text) {
  const button = Object.assign(document.createElement("button"), {
    ...{ type: "button", className: "plain small", textContent: label },
  });
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

// Browsers offer the clipboard only to pages from this machine or over TLS; the older way does
// without.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = Object.assign(document.createElement("textarea"), { value: text });
    const focused = document.activeElement;
    field.className = "unseen";
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return copied;
  }
}
