// The chat: streams /v1/chat/completions, shows text, reasoning, errors and how sure the model was of each token.

export const $ = (id) => document.getElementById(id);

export function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

// ---- the key, for servers that ask for one; forgotten when the tab is closed

let key = sessionStorage.getItem("octavo-key") ?? "";

export function headers(more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

export function askForKey() {
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("octavo-key", key);
  $("key-form").hidden = true;
  document.dispatchEvent(new Event("octavo-key"));
  loadModels();
});

/** What an answer that is no success says. */
async function reason(response) {
  const body = await response.text();
  try {
    const said = JSON.parse(body);
    return said.error?.message ?? said.message ?? body;
  } catch {
    return body || `${response.status} ${response.statusText}`;
  }
}

/** The data of server-sent events, as they come. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}

// ---- theme

const themes = ["light", "dark"];
const saved = localStorage.getItem("octavo-theme");
if (themes.includes(saved)) document.documentElement.dataset.theme = saved;
$("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const current = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = current === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("octavo-theme", next);
  document.dispatchEvent(new Event("octavo-theme"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.dispatchEvent(new Event("octavo-theme"));
});

// ---- narrow screens show one view at a time

for (const button of document.querySelectorAll("nav button")) {
  button.addEventListener("click", () => {
    document.querySelector("main").dataset.view = button.dataset.view;
    for (const other of document.querySelectorAll("nav button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    document.dispatchEvent(new Event("octavo-view"));
  });
}

// ---- models

async function loadModels() {
  let response;
  try {
    response = await fetch("v1/models", { headers: headers() });
  } catch {
    setTimeout(loadModels, 3000); // the live view says that the server is away
    return;
  }
  if (response.status === 401) return askForKey();
  if (!response.ok) {
    $("model").replaceChildren(new Option("the engine is starting …", ""));
    setTimeout(loadModels, 1500);
    return;
  }
  const models = (await response.json()).data.map((model) => model.id);
  $("model").replaceChildren(...models.map((id) => new Option(id, id)));
  $("model").disabled = models.length < 2;
  $("model").title = models.join("\n");
}
loadModels();

// ---- parameters

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

function parameters() {
  const chosen = {};
  for (const name of NUMBERS) {
    const text = $(name).value.trim();
    if (text !== "") chosen[name] = Number(text);
  }
  if ($("logprobs").checked) Object.assign(chosen, { logprobs: true, top_logprobs: 5 });
  return chosen;
}

function noteSettings() {
  const chosen = Object.entries(parameters()).filter(([name]) => NUMBERS.includes(name));
  const words = chosen.map(([name, value]) => `${name.replace("_", " ")} ${value}`);
  if ($("system").value.trim()) words.unshift("system prompt");
  if ($("logprobs").checked) words.push("colours");
  $("settings-note").textContent = words.length ? `· ${words.join(", ")}` : "";
}
$("settings").addEventListener("input", noteSettings);
noteSettings();

// ---- the conversation

const turns = []; // {role, content}
let running = null; // the AbortController of the answer in the making

function addMessage(role) {
  const item = make("li", `message ${role}`);
  item.append(make("span", "sr", role === "user" ? "You said: " : "Answer: "));
  $("messages").append(item);
  return item;
}

function scroll(always = false) {
  const list = $("messages");
  if (always || list.scrollHeight - list.scrollTop - list.clientHeight < 120) list.scrollTop = list.scrollHeight;
}

/** Draws an answer as it grows: what comes between two frames is added at once. */
class Answer {
  constructor() {
    this.item = addMessage("assistant");
    this.item.classList.add("busy");
    this.item.setAttribute("aria-busy", "true");
    this.body = make("div", "text");
    this.item.append(this.body);
    this.content = "";
    this.reasoning = "";
    this.pending = [];
    this.frame = 0;
    this.started = performance.now();
    this.first = 0;
    this.chunks = 0;
    this.usage = null;
    this.finish = "";
  }

  take(choice) {
    const delta = choice.delta ?? {};
    const thought = delta.reasoning ?? delta.reasoning_content;
    if (thought || delta.content) {
      this.first ||= performance.now();
      this.chunks += 1;
    }
    if (thought) {
      this.reasoning += thought;
      this.later();
    }
    if (delta.content) {
      this.content += delta.content;
      const tokens = choice.logprobs?.content ?? [];
      // tokens may be of a reasoning mark, or end inside a character: then the text is shown whole
      const whole = tokens.map((token) => token.token).join("") === delta.content;
      if (whole) for (const token of tokens) this.pending.push([token.token, token]);
      else this.pending.push([delta.content, null]);
      this.later();
    }
    for (const call of delta.tool_calls ?? []) {
      const text = `${call.function?.name ? `\n⚙ ${call.function.name} ` : ""}${call.function?.arguments ?? ""}`;
      this.pending.push([text, null]);
      this.later();
    }
    if (choice.finish_reason) this.finish = choice.finish_reason;
  }

  later() {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    if (this.reasoning) {
      if (!this.thoughts) {
        this.thoughts = make("details", "reasoning");
        this.thoughts.append(make("summary"), make("div"));
        this.body.before(this.thoughts);
      }
      const state = this.content || this.finish ? "Reasoning" : "Reasoning …";
      this.thoughts.firstChild.textContent = `${state} (${this.reasoning.length.toLocaleString()} characters)`;
      this.thoughts.lastChild.textContent = this.reasoning;
    }
    const added = document.createDocumentFragment();
    for (const [text, token] of this.pending) {
      if (token === null) {
        added.append(text);
        continue;
      }
      const span = make("span", "token", text);
      span.style.setProperty("--doubt", Math.round(75 * (1 - Math.exp(token.logprob))));
      span.tabIndex = -1;
      told.set(span, token);
      added.append(span);
    }
    this.pending = [];
    this.body.append(added);
    this.body.normalize();
    scroll();
  }

  fail(message) {
    const box = make("div", "error", message);
    box.setAttribute("role", "alert");
    this.item.append(box);
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.draw();
    this.item.classList.remove("busy");
    this.item.removeAttribute("aria-busy");
    const foot = make("footer");
    const words = [];
    const tokens = this.usage?.completion_tokens ?? this.chunks;
    if (this.first) {
      const seconds = (performance.now() - this.first) / 1000;
      words.push(`${tokens} tokens`);
      if (tokens > 1 && seconds > 0.05) words.push(`${((tokens - 1) / seconds).toFixed(1)} a second`);
      words.push(`first after ${((this.first - this.started) / 1000).toFixed(2)} s`);
    }
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) words.push(`${cached} of ${this.usage.prompt_tokens} prompt tokens cached`);
    if (this.finish) words.push(this.finish);
    foot.append(make("span", "", words.join(" · ")));
    const again = make("button", "quiet again", "Regenerate");
    const copy = make("button", "quiet", "Copy");
    again.type = copy.type = "button";
    again.addEventListener("click", regenerate);
    copy.addEventListener("click", async () => {
      await navigator.clipboard?.writeText(this.content);
      copy.textContent = "Copied";
    });
    foot.append(again);
    if (this.content && navigator.clipboard) foot.append(copy);
    this.item.append(foot);
    scroll();
  }
}

async function answer() {
  for (const button of document.querySelectorAll("button.again")) button.remove(); // only the last can be made anew
  const shown = new Answer();
  scroll(true);
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  const system = $("system").value.trim();
  const body = {
    model: $("model").value || undefined,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    stream: true,
    stream_options: { include_usage: true },
    ...parameters(),
  };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error(await reason(response));
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message ?? JSON.stringify(chunk.error));
      if (chunk.usage) shown.usage = chunk.usage;
      for (const choice of chunk.choices ?? []) shown.take(choice);
    }
  } catch (error) {
    if (error.name === "AbortError") shown.finish = "stopped";
    else shown.fail(error.message === "Failed to fetch" ? "The server cannot be reached." : error.message);
  }
  running = null;
  shown.end();
  if (shown.content) turns.push({ role: "assistant", content: shown.content });
  $("send").hidden = false;
  $("stop").hidden = true;
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  turns.push({ role: "user", content: text });
  addMessage("user").append(make("div", "text", text));
  answer();
}

function regenerate() {
  if (running) return;
  $("messages").lastElementChild?.remove();
  if (turns.at(-1)?.role === "assistant") turns.pop();
  answer();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  $("messages").replaceChildren();
  $("prompt").focus();
});

// ---- what else a token could have been

const told = new WeakMap(); // span -> its log-probabilities

export function tip(content, x, y) {
  const box = $("tip");
  box.hidden = content === null;
  if (content === null) return;
  box.replaceChildren(content);
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  box.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 10) : y + 18}px`;
}

const visible = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll(" ", "␣");
const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(logprob < -4.6 ? 2 : 1)}%`;

function alternatives(token) {
  const table = make("table");
  const rows = [...(token.top_logprobs ?? [])];
  if (!rows.some((row) => row.token === token.token)) rows.unshift(token);
  rows.sort((a, b) => b.logprob - a.logprob);
  for (const row of rows) {
    const line = make("tr", row.token === token.token ? "chosen" : "");
    line.append(make("td", "", visible(row.token)), make("td", "", percent(row.logprob)));
    table.append(line);
  }
  return table;
}

for (const kind of ["pointerover", "focusin"]) {
  $("messages").addEventListener(kind, (event) => {
    const token = told.get(event.target);
    if (!token) return tip(null);
    const box = event.target.getClientRects()[0];
    tip(alternatives(token), box.left - 12, box.bottom - 14);
  });
}
for (const kind of ["pointerleave", "focusout", "scroll"]) $("messages").addEventListener(kind, () => tip(null));
