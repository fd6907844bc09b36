// The live view: reads the event stream while it is in sight, keeps the last minute, draws when something is new.

import { $, askForKey, events, headers, make, tip } from "./app.js";

const MINUTE = 60; // seconds of history in the small charts
const MAX_BARS = 600; // of history in the large one
const WINDOW = 2; // seconds over which a rate is taken
const BAR = 7; // pixels, the gap of one included

let budget = 0;
let now = 0; // seconds of stream time: the sum of what ticks cover
let ticks = []; // {at, ...tick}, the last minute
let bars = []; // {parts, others, steps, ms, late}, oldest first
let dirty = false;
let frame = 0;
let colours = {};
let byRequest = false;
let pointer = null; // place over the large chart, in its pixels
let described = 0;

// ---- the stream

let stream = null; // an AbortController while one is open

const inSight = () => !document.hidden && $("engine").getClientRects().length > 0;

function follow() {
  if (!inSight()) {
    stream?.abort();
    stream = null;
  } else if (stream === null) {
    stream = new AbortController();
    read(stream);
  }
}

async function read(mine) {
  while (mine === stream) {
    let wait = 2000;
    try {
      const response = await fetch("internal/events", { headers: headers(), signal: mine.signal });
      if (response.status === 401) {
        link("lost", "needs a key");
        askForKey();
        stream = null; // until there is one
        return;
      }
      if (!response.ok) {
        const said = await response.json().catch(() => ({}));
        link("lost", response.status === 503 ? "starting" : "off");
        note(said.error?.message ?? `the server answered ${response.status}`);
        if (response.status === 404) return;
        throw new Error("not yet");
      }
      link("live", "live");
      note("");
      for await (const data of events(response)) take(JSON.parse(data));
      wait = 500;
    } catch {
      if (mine.signal.aborted) return;
    }
    if ($("link").dataset.state === "live") link("lost", "connection lost");
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function link(state, text) {
  $("link").dataset.state = state;
  $("link-text").textContent = text;
}

function note(text) {
  $("engine-note").textContent = text;
}

function take(event) {
  if (event.type === "hello") {
    budget = event.budget;
    ticks = [];
    $("scale").title = `a step may compute ${budget.toLocaleString()} tokens, of up to ${event.max_requests} requests`;
    return;
  }
  now += event.seconds;
  const late = ticks.length > 0 && event.seconds > 0.8;
  const tick = { ...event, at: now, bars: undefined };
  ticks.push(tick);
  tick.perSecond = { generated: rate("generated"), prefill: rate("prefill") };
  tick.hitRate = hitRate();
  while (ticks[0].at < now - MINUTE) ticks.shift();
  event.bars?.forEach((bar, i) => bars.push({ steps: 1, ...bar, late: late && i === 0 }));
  if (bars.length > MAX_BARS) bars = bars.slice(-MAX_BARS);
  draw();
}

// ---- numbers

const short = (value) =>
  value >= 1e6 ? `${(value / 1e6).toFixed(1)}M` : value >= 1e4 ? `${(value / 1e3).toFixed(1)}k`
    : value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString() : value.toFixed(1);

/** Sums over the last seconds: {seconds, and each of `names`}. */
function recent(names, window) {
  const sums = Object.fromEntries(["seconds", ...names].map((name) => [name, 0]));
  for (let i = ticks.length - 1; i >= 0 && sums.seconds < window; i--) {
    for (const name in sums) sums[name] += ticks[i][name];
  }
  return sums;
}

function rate(name) {
  const sums = recent([name], WINDOW);
  return sums.seconds ? sums[name] / sums.seconds : 0;
}

function hitRate() {
  const sums = recent(["queries", "hits"], 15);
  return sums.queries ? Math.min(1, sums.hits / sums.queries) : null;
}

const TILES = [
  { id: "generated", colour: "decode", value: (tick) => tick.perSecond.generated, text: short },
  { id: "prefill", colour: "prefill", value: (tick) => tick.perSecond.prefill, text: short },
  {
    id: "running", colour: "decode", value: (tick) => tick.running, second: (tick) => tick.waiting, floor: 4,
    text: (value, last) => [short(value), last.waiting ? ` + ${short(last.waiting)}` : ""],
  },
  { id: "step", colour: "accent", value: (tick) => (tick.steps ? tick.step_ms : null), text: (v) => (v < 10 ? v.toFixed(2) : short(v)) },
  { id: "cache", colour: "cached", value: (tick) => tick.cache, top: 1, text: (v) => [(100 * v).toFixed(1), " %"] },
  { id: "hits", colour: "cached", value: (tick) => tick.hitRate, top: 1, text: (v) => [(100 * v).toFixed(0), " %"] },
];

// ---- drawing

function draw() {
  dirty = true;
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (!dirty || !inSight()) return;
    dirty = false;
    readColours();
    if (ticks.length) TILES.forEach(drawTile);
    drawSteps();
    describe();
  });
}

function readColours() {
  if (colours.ink) return;
  const probe = make("span");
  document.body.append(probe);
  for (const name of ["ink", "faint", "line", "accent", "sheet", "prefill", "decode", "cached", "warn"]) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  colours.dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (document.documentElement.dataset.theme === undefined && matchMedia("(prefers-color-scheme: dark)").matches);
  probe.remove();
}

/** The canvas cleared, and in CSS pixels: [context, width, height]. */
function begin(canvas) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function drawTile(tile) {
  const values = ticks.map(tile.value);
  const current = values.findLast((value) => value !== null) ?? null;
  const written = current === null ? ["–"] : [tile.text(current, ticks.at(-1))].flat();
  const output = $(`v-${tile.id}`);
  if (output.textContent !== written.join("")) {
    output.replaceChildren(written[0], ...(written[1] ? [make("small", "", written[1])] : []));
  }
  const seconds = tile.second ? ticks.map(tile.second) : [];
  const [context, width, height] = begin($(`c-${tile.id}`));
  const top = tile.top ?? Math.max(tile.floor ?? 1e-9, ...values, ...seconds) * 1.1;
  const span = Math.min(MINUTE, Math.max(15, now - ticks[0].at));
  const x = (i) => width - ((now - ticks[i].at) / span) * width;
  const y = (value) => height - 1.5 - (value / top) * (height - 6);
  const line = (list, colour, filled) => {
    context.beginPath();
    let from = null, to = 0;
    list.forEach((value, i) => {
      if (value === null) return;
      if (from === null) context.moveTo((from = x(i)), y(value));
      else context.lineTo((to = x(i)), y(value));
    });
    if (from === null) return;
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    if (!filled) return;
    context.lineTo(to, height);
    context.lineTo(from, height);
    context.globalAlpha = 0.14;
    context.fillStyle = colour;
    context.fill();
    context.globalAlpha = 1;
  };
  line(values, colours[tile.colour], true);
  if (seconds.some((value) => value > 0)) line(seconds, colours.warn, false);
}

/** 1, 2 or 5 times a power of ten, the first that is no less. */
function niceTop(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * unit).find((top) => top >= value);
}

/** From the ground away: [request or null for the others, kind, tokens in a step]. */
function segments(bar) {
  const rows = bar.parts.map(([number, ...tokens]) => [number, tokens]);
  if (bar.others) rows.push([null, bar.others.slice(1)]);
  const found = [];
  const kinds = [[1, "decode"], [0, "prefill"], [2, "cached"]];
  const push = (number, tokens, [at, kind]) => tokens[at] && found.push([number, kind, tokens[at] / bar.steps]);
  if (byRequest) for (const [number, tokens] of rows) for (const kind of kinds) push(number, tokens, kind);
  else for (const kind of kinds) for (const [number, tokens] of rows) push(number, tokens, kind);
  return found;
}

function fill(number, kind) {
  if (!byRequest) return colours[kind];
  if (number === null) return colours.faint;
  const hue = (number * 137.508) % 360; // the golden angle: neighbours differ most
  const light = kind === "decode" ? (colours.dark ? 0.78 : 0.74) : colours.dark ? 0.66 : 0.58;
  return `oklch(${light} 0.13 ${hue.toFixed(1)})`;
}

let boxes = []; // of the last drawing: {bar, x, parts: [[number, kind, tokens, top, bottom]]}

/** What is computed stands above the ground, against the budget; what was found in the cache hangs below it. */
function drawSteps() {
  const [context, width, height] = begin($("steps"));
  const left = 38, ceiling = 8, floor = height - 4;
  const shown = bars.slice(-Math.max(1, Math.floor((width - left) / BAR)));
  const stacks = shown.map(segments);
  const tallest = (isCached) => Math.max(0, ...stacks.map((stack) =>
    stack.reduce((sum, [, kind, tokens]) => sum + ((kind === "cached") === isCached ? tokens : 0), 0)));
  const top = niceTop(Math.max(8, tallest(false)));
  const deepest = tallest(true);
  const scale = (floor - ceiling) / (top + deepest * 1.05); // pixels a token
  const ground = ceiling + top * scale;
  const rule = (at, colour, dashes = []) => {
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash(dashes);
    context.beginPath();
    context.moveTo(left, Math.round(at) + 0.5);
    context.lineTo(width, Math.round(at) + 0.5);
    context.stroke();
    context.setLineDash([]);
  };
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillStyle = colours.faint;
  const unit = niceTop(Math.max(top, deepest) / 5);
  for (let tokens = Math.floor(top / unit) * unit; tokens >= -deepest; tokens -= unit) {
    const at = ground - tokens * scale;
    rule(at, tokens ? colours.line : colours.faint);
    context.fillText(short(Math.abs(tokens)), left - 6, at);
  }
  if (!shown.length) {
    context.textAlign = "center";
    context.font = "14px system-ui, sans-serif";
    context.fillText("nothing to compute yet", (left + width) / 2, height / 2);
  }
  boxes = [];
  const snap = (value) => Math.round(value * (devicePixelRatio || 1)) / (devicePixelRatio || 1); // no seams
  shown.forEach((bar, i) => {
    const x = width - (shown.length - i) * BAR;
    let up = ground, down = ground;
    const box = { bar, x, parts: [] };
    for (const [number, kind, tokens] of stacks[i]) {
      const long = tokens * scale;
      const gap = long > 3 ? 1 : 0; // a hairline between two requests, where there is room for it
      if (kind === "cached") {
        hatch(context, x, snap(down) + gap, BAR - 1, snap(down + long) - snap(down) - gap, fill(number, kind));
        box.parts.push([number, kind, tokens, down, down += long]);
      } else {
        context.fillStyle = fill(number, kind);
        context.fillRect(x, snap(up - long), BAR - 1, snap(up) - snap(up - long) - gap);
        box.parts.push([number, kind, tokens, up - long, up]);
        up -= long;
      }
    }
    if (ground - up < 2) context.fillRect(x, ground - 2, BAR - 1, 2); // however little, it is seen
    if (bar.late) {
      context.fillStyle = colours.faint;
      for (let at = ceiling; at < floor; at += 5) context.fillRect(x - 1, at, 1, 2);
    }
    boxes.push(box);
  });
  if (budget && budget <= top) rule(ground - budget * scale, colours.warn, [5, 4]);
  if (budget) $("scale").textContent = `budget ${short(budget)} tokens a step`;
  point();
}

function hatch(context, x, top, width, height, colour) {
  context.fillStyle = colour;
  context.globalAlpha = 0.22;
  context.fillRect(x, top, width, height);
  context.globalAlpha = 1;
  for (let at = top + ((4 - (top % 4)) % 4); at < top + height - 0.5; at += 4) context.fillRect(x, at, width, 1.25);
}

const WORDS = { prefill: "prefill", decode: "decode", cached: "found in the cache" };

/** Says what the pointer is over. */
function point() {
  if (pointer === null) return;
  const box = boxes.find(({ x }) => pointer.x >= x && pointer.x < x + BAR);
  if (!box) return tip(null);
  const { bar } = box;
  const totals = { prefill: 0, decode: 0, cached: 0 };
  for (const [, kind, tokens] of box.parts) totals[kind] += tokens;
  const requests = bar.parts.length + (bar.others?.[0] ?? 0);
  const content = make("div");
  const means = bar.steps > 1 ? `mean of ${bar.steps} steps` : "one step";
  content.append(make("div", "", `${means}, ${bar.ms < 10 ? bar.ms.toFixed(2) : bar.ms.toFixed(1)} ms, ${requests} request${requests === 1 ? "" : "s"}`));
  const table = make("table");
  for (const kind in totals) {
    if (!totals[kind]) continue;
    const row = make("tr");
    row.append(make("td", "", WORDS[kind]), make("td", "", `${short(totals[kind])} tokens`));
    table.append(row);
  }
  content.append(table);
  const under = box.parts.find(([, , , high, low]) => pointer.y >= high && pointer.y <= low);
  if (under) {
    const who = under[0] === null ? "the others" : `request ${under[0] + 1}`;
    content.append(make("div", "", `here: ${who}, ${short(under[2])} ${WORDS[under[1]]}`));
  }
  tip(content, pointer.clientX, pointer.clientY);
}

/** The same for those who do not see it, once a second at most. */
function describe() {
  if (performance.now() - described < 1000 || !ticks.length) return;
  described = performance.now();
  const last = ticks.at(-1);
  const words = [`${last.running} running, ${last.waiting} waiting`, `${short(last.perSecond.generated)} tokens generated a second`,
    `cache ${(100 * last.cache).toFixed(0)} percent in use`];
  const bar = bars.at(-1);
  if (bar) {
    const sum = (at) => short([...bar.parts, ...(bar.others ? [bar.others] : [])].reduce((t, part) => t + part[at], 0) / bar.steps);
    words.push(`last step: ${sum(1)} tokens of prefill, ${sum(2)} of decode, ${sum(3)} from the cache`);
  }
  $("steps").setAttribute("aria-label", `Tokens of each step. ${words.join("; ")}`);
}

// ---- what wakes it

for (const input of document.querySelectorAll("[name=colours]")) {
  input.addEventListener("change", () => {
    byRequest = input.value === "request" && input.checked;
    document.querySelector(".legend").classList.toggle("by-request", byRequest);
    draw();
  });
}
$("steps").addEventListener("pointermove", (event) => {
  pointer = { x: event.offsetX, y: event.offsetY, clientX: event.clientX, clientY: event.clientY };
  point();
});
$("steps").addEventListener("pointerleave", () => {
  pointer = null;
  tip(null);
});
document.addEventListener("visibilitychange", follow);
document.addEventListener("octavo-view", follow);
document.addEventListener("octavo-key", follow);
document.addEventListener("octavo-theme", () => {
  colours = {};
  draw();
});
new ResizeObserver(() => {
  follow();
  draw();
}).observe($("engine"));
follow();
draw();

// for tests, and for the curious
window.octavoLive = () => ({ bars: bars.length, ticks: ticks.length, now, open: stream !== null });
