"use strict";
// Keeps the page as the server paints it. The server sends whole sections; only what differs is touched, so that focus,
// scroll, selection and what was opened stay as they are.

const $ = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=mlxq-token]")?.content;

// ---- sections

const keyOf = (node) => node.nodeType === 1 ? node.id || node.dataset.key || "" : "";
const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

function morph(old, fresh) {
  if (old.nodeType !== 1) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.dataset && ("keep" in old.dataset || (old.dataset.chart && chosen()))) return;
  const changed = sameAttributes(old, fresh);
  if (old.nodeName === "TIME") {
    if (changed) old.textContent = fresh.textContent;
    return;
  }
  morphChildren(old, fresh);
}

function sameAttributes(old, fresh) {
  let changed = false;
  for (const { name, value } of [...fresh.attributes])
    if (old.getAttribute(name) !== value) { old.setAttribute(name, value); changed = true; }
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== "open" && name !== "disabled") { old.removeAttribute(name); changed = true; }
  return changed;
}

function morphChildren(old, fresh) {
  let at = old.firstChild;
  for (const want of [...fresh.childNodes]) {
    let found = at;
    if (keyOf(want)) while (found && !alike(found, want)) found = found.nextSibling;
    if (found && alike(found, want)) {
      if (found !== at) old.insertBefore(found, at); else at = at.nextSibling;
      morph(found, want);
    } else old.insertBefore(want, at);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

function show(id, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  morphChildren($(id), fresh.content);
  tellTimes();
  pointAgain();
}

// ---- times

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds)), two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${two(Math.floor(s % 3600 / 60))}m`;
  return `${Math.floor(s / 86400)}d${two(Math.floor(s % 86400 / 3600))}h`;
}

const coarse = (seconds) => seconds < 60 ? "just now" : `${span(seconds).replace(/m\d\ds$/, "m")} ago`;

// What writes a time is made once: that takes longer than the writing, and every second writes all of them.
const writer = (options) => {
  let made;
  return (at) => (made ??= new Intl.DateTimeFormat([], { ...options, hourCycle: options.hour && "h23" })).format(at * 1000);
};
const tick = writer({ hour: "2-digit", minute: "2-digit" });
const day = writer({ weekday: "short", day: "numeric" });
const date = writer({ day: "numeric", month: "short" });
const exact = writer({ hour: "2-digit", minute: "2-digit", second: "2-digit" });

function clock(at) {
  const today = new Date(at * 1000).toDateString() === new Date().toDateString();
  return today ? exact(at) : `${date(at)} ${exact(at).slice(0, 5)}`;
}

function tellTimes() {
  const now = Date.now() / 1000;
  for (const each of document.querySelectorAll("time")) {
    const { since, until, ago, clock: at, time, day: written } = each.dataset;
    const text = time ? tick(time) : written ? day(written) : since ? span(now - since) : until ? (until > now ? `in ${span(until - now + 1)}` : "now") : ago ? coarse(now - ago) : clock(at);
    if (each.textContent !== text) each.textContent = text;
  }
}

// ---- the line to the server

let lost = 0;

// The line brings every section again, at the cost of a second painting: not before the first. A hidden tab paints none.
const painted = (then) => document.hidden ? then() : requestAnimationFrame(() => setTimeout(then));

function listen() {
  const source = new EventSource("/events");
  for (const id of ["head", "tiers", "now", "jobs", "batches", "nodes", "why", "use", "bench"])
    source.addEventListener(id, (event) => shown(id, JSON.parse(event.data)));
  source.onopen = () => { lost = 0; tellLine(); };
  source.onerror = () => {
    if (!lost) setTimeout(tellLine, 1000); // not at once: a page that is left loses its line too, and still may be slow to go
    lost ||= Date.now() / 1000;
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

function shown(id, html) {
  const minute = () => document.querySelector("[data-minute]")?.dataset.minute, before = minute();
  if ($(id)) show(id, html);
  if (id === "nodes") hear();
  if (id !== "tiers") return;
  hear();
  if (chosen() && minute() !== before) redraw();
}

function tellLine() {
  $("line").hidden = !lost;
  $("line").textContent = lost ? `Not live since ${clock(lost)}: the page's process does not answer. Trying again.` : "";
}

// ---- what a screen reader hears: a service that came to another state, at most once in five seconds

const SETTLED = /^(healthy|degraded|stopped|crashed|draining$|down$)/;
const words = new Map();
let waiting = 0;

function hear() {
  if (waiting) return;
  const news = [];
  for (const { dataset: { key, word, name } } of document.querySelectorAll("[data-word]")) {
    const before = words.get(key);
    if (before === word) continue;
    if (before !== undefined && !SETTLED.test(word)) continue;
    words.set(key, word);
    if (before !== undefined) news.push(`${name}: ${word}`);
  }
  if (!news.length) return;
  $("heard").textContent = `${news.join(". ")}.`;
  waiting = setTimeout(() => { waiting = 0; hear(); }, 5000);
}

// ---- charts: how far back, on one scale, and the value under the pointer

const view = { range: "hour", shared: false };
const chosen = () => view.shared || view.range !== "hour";

async function redraw() {
  const path = document.body.dataset.charts ?? "/charts";
  const answer = await fetch(`${path}/${view.range}${view.shared ? "?scale=shared" : ""}`);
  if (!answer.ok) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = await answer.text();
  for (const figure of fresh.content.querySelectorAll("[data-chart]")) {
    const old = document.querySelector(`[data-chart="${CSS.escape(figure.dataset.chart)}"]`);
    if (!old) continue;
    sameAttributes(old, figure);
    morphChildren(old, figure);
  }
  tellTimes();
  pointAgain();
}

function choose(button) {
  if ("scale" in button.dataset) view.shared = !view.shared; else view.range = button.dataset.range;
  for (const each of document.querySelectorAll("[data-range], [data-scale]"))
    each.setAttribute("aria-pressed", "scale" in each.dataset ? view.shared : each.dataset.range === view.range);
  redraw();
}

const pointed = new Map(); // chart -> the time that is pointed at, which stays while the chart moves on

function pointAgain() {
  for (const [chart, time] of pointed) {
    const figure = document.querySelector(`[data-chart="${CSS.escape(chart)}"]`);
    if (!figure) pointed.delete(chart);
    else point(figure.querySelector(".plot"), Math.round((time - figure.dataset.from) / figure.dataset.step));
  }
}

function point(plot, index) {
  const figure = plot.closest("figure"), values = figure.dataset.values.split(","), last = values.length - 1;
  const at = Math.min(last, Math.max(0, index)), value = values[at], { from, step, unit } = figure.dataset;
  const time = Number(from) + at * step, when = step < 3600 ? tick(time) : `${day(time)} ${tick(time)}`;
  const text = `${when}  ${value === "" ? "no data" : `${value} ${unit}`}`;
  pointed.set(figure.dataset.chart, time);
  figure.querySelector(".at").textContent = text;
  const cursor = plot.querySelector(".cursor");
  for (const name of ["x1", "x2"]) cursor.setAttribute(name, `${100 * at / last}%`);
  cursor.classList.add("on");
  plot.setAttribute("aria-valuenow", at);
  plot.setAttribute("aria-valuetext", text);
}

function unpoint(plot) {
  pointed.delete(plot.closest("figure").dataset.chart);
  const at = plot.closest("figure").querySelector(".at");
  at.textContent = at.dataset.idle;
  plot.querySelector(".cursor").classList.remove("on");
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot");
  for (const other of document.querySelectorAll(".plot"))
    if (other !== plot && other !== document.activeElement && other.querySelector(".cursor.on")) unpoint(other);
  if (!plot) return;
  const box = plot.getBoundingClientRect(), last = plot.getAttribute("aria-valuemax");
  point(plot, Math.round((event.clientX - box.left) / box.width * last));
});

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot");
  if (!plot) return;
  const now = Number(plot.getAttribute("aria-valuenow")), last = Number(plot.getAttribute("aria-valuemax"));
  const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - 10, PageUp: now + 10, Home: 0, End: last }[event.key];
  if (event.key === "Escape") unpoint(plot);
  if (to === undefined) return;
  event.preventDefault();
  point(plot, to);
});

document.addEventListener("focusout", (event) => { if (event.target.matches?.(".plot")) unpoint(event.target); });

// ---- actions

let quiet;

function say(text) {
  $("said").textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => { $("said").textContent = ""; }, 6000);
}

async function post(button) {
  button.disabled = true;
  try {
    const answer = await fetch(button.dataset.post, { method: "POST", headers: { "x-mlxq-token": token } });
    say((await answer.json()).message);
  } catch {
    say("The page's server does not respond.");
  } finally {
    button.disabled = false;
  }
}

function ask(button) {
  const dialog = $("ask"), sure = dialog.querySelector("[data-sure]");
  $("ask-text").textContent = button.dataset.ask;
  sure.textContent = button.dataset.sure;
  sure.onclick = () => { dialog.close(); post(button); };
  dialog.querySelector("[data-close]").onclick = () => dialog.close();
  dialog.showModal();
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText($(button.dataset.copy).textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren($(button.dataset.copy));
    say("Selected; press Ctrl-C or Cmd-C to copy.");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.copy) copy(button);
  else if (button?.dataset.ask) ask(button);
  else if (button?.dataset.post) post(button);
  else if (button && ("range" in button.dataset || "scale" in button.dataset)) choose(button);
});

document.addEventListener("toggle", async (event) => {
  const details = event.target;
  if (!details.open || !details.dataset.load) return;
  const answer = await fetch(details.dataset.load);
  details.querySelector("[data-keep]").innerHTML = answer.ok ? await answer.text() : "The job no longer exists.";
  tellTimes();
}, true);

// ---- the page of one service, and its log

const MOST_LINES = 2000;

async function refresh() {
  const part = document.querySelector("[data-part]"), answer = await fetch(part.dataset.part);
  if (answer.ok) show(part.id, await answer.text());
}

function matches(line) {
  const wanted = $("log-filter").value.toLowerCase();
  return !wanted || line.textContent.toLowerCase().includes(wanted);
}

function follow() {
  const log = $("log"), source = new EventSource(log.dataset.log);
  source.addEventListener("lines", (event) => {
    for (const text of JSON.parse(event.data)) {
      const line = document.createElement("div");
      line.textContent = text || " ";
      line.hidden = !matches(line);
      log.append(line);
    }
    while (log.childElementCount > MOST_LINES) log.firstChild.remove();
    if ($("log-follow").checked) log.scrollTop = log.scrollHeight;
  });
  source.onopen = () => log.replaceChildren();
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) $("log-note").textContent = "There is no such log yet."; };
  $("log-filter").addEventListener("input", () => { for (const line of log.children) line.hidden = !matches(line); });
}

tellTimes();
setInterval(tellTimes, 1000);
if ($("tiers")) { hear(); painted(listen); }
if (document.querySelector("[data-part]")) setInterval(() => { if (!document.hidden) refresh(); }, 5000);
if ($("log")) follow();
