// The shell of the console: requests, dialogs, the live stream and the routes.
import { draw, el, format, h, safe, setClock } from "./base.js";
import * as overview from "./overview.js";

const find = (id) => document.getElementById(id);

// ---- Requests ----

const BASE = new URL("api/v1/", document.baseURI);
const TOKEN = "workerkit-token";

export class ApiError extends Error {
  constructor(status, text, problem = {}, wait = null) {
    super(text);
    Object.assign(this, { status, problem, wait });
  }
}

async function send(url, token, options) {
  const headers = { Accept: "application/json", ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(url, { cache: "no-store", redirect: "error", ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const wait = response.status === 429 ? Number(response.headers.get("Retry-After")) || 30 : null;
  let text = problem.detail || problem.title || `The server answered ${response.status}.`;
  if (wait) text = `Too many requests: try again in ${format.seconds(wait)}.`;
  throw new ApiError(response.status, text, problem, wait);
}

async function request(path, params, options = {}) {
  const url = new URL(path.replace(/^\/?(api\/v1\/)?/, ""), BASE);
  for (const [name, value] of Object.entries(params || {})) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    try {
      return await send(url, token, options);
    } catch (error) {
      if (error.status !== 401) throw error;
      await login(token);
    }
  }
}

// Paths are relative to /api/v1/: `api.get("dead-letters/page", { queue })`.
export const api = {
  get: async (path, params, signal) => (await request(path, params, { signal })).json(),
  post: async (path, body) => (await request(path, null, {
    method: "POST", body: JSON.stringify(body ?? {}), headers: { "Content-Type": "application/json" },
  })).json(),
};

// ---- Dialogs and messages ----

function openDialog(title, ...content) {
  const dialog = el("dialog", { "aria-label": title }, el("h2", {}, title), content);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// Ask before something is done. With `typed`, that text has to be typed first.
export const confirmDialog = ({ title, text, action, typed }) => new Promise((resolve) => {
  const ok = el("button", { class: "main danger", disabled: Boolean(typed) }, action);
  const input = typed && el("input", { autocomplete: "off", spellcheck: "false", "aria-label": `Type ${typed}`,
    oninput: () => { ok.disabled = input.value !== String(typed); } });
  const dialog = openDialog(title, el("form", { method: "dialog", onsubmit: (event) => {
    event.preventDefault();
    dialog.close(ok.disabled ? "" : "ok");
  } }, el("p", {}, text), typed && el("label", {}, "Type ", el("b", {}, typed), " to confirm", input),
  el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), ok)));
  dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"));
});

// Show a message for some seconds; with details, until it is closed.
export function toast(text, { details = [], bad = false } = {}) {
  const box = el("div", { class: bad ? "toast bad" : "toast" }, el("div", {}, el("b", {}, text),
    details.length > 0 && el("ul", {}, details.map((each) => el("li", {}, each)))),
  el("button", { class: "icon", "aria-label": "Close", onclick: () => box.remove() }, "×"));
  const area = find("toasts");
  area.append(box);
  while (area.children.length > 4) area.firstChild.remove();
  if (!bad) setTimeout(() => box.remove(), 6000);
}

let asking = null;
function login(refused) {
  if (sessionStorage.getItem(TOKEN) !== refused) return Promise.resolve();
  asking ??= askForToken(refused).finally(() => { asking = null; });
  return asking;
}

const askForToken = (refused) => new Promise((resolve) => {
  const input = el("input", { type: "password", name: "token", autocomplete: "current-password", required: true });
  const note = el("p", { class: "bad", role: "alert" }, refused ? "The token is no longer accepted." : "");
  const ok = el("button", { class: "main" }, "Log in");
  const submit = async (event) => {
    event.preventDefault();
    ok.disabled = true;
    note.textContent = "";
    const token = input.value.trim();
    let wait = 0;
    try {
      // What no header can carry is no token.
      if (!/^[\x21-\x7e]+$/.test(token)) throw new ApiError(401, "");
      await send(new URL("me", BASE), token, {});
      sessionStorage.setItem(TOKEN, token);
      dialog.remove();
      return resolve();
    } catch (error) {
      note.textContent = error.status === 401 ? "This token is not accepted." : safe(error.message);
      wait = error.wait || 0;
      input.select();
    }
    setTimeout(() => { ok.disabled = false; }, wait * 1000);
  };
  const dialog = el("dialog", { class: "login", "aria-label": "Log in" }, el("form", { onsubmit: submit },
    el("h2", {}, "Log in"), el("p", { class: "soft" }, "The token of this console (OPS__TOKEN). It is kept in this tab only."),
    el("input", { autocomplete: "username", hidden: true }), el("label", {}, "Token", input), note, el("div", { class: "buttons" }, ok)));
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.isConnected && dialog.showModal());
  dialog.showModal();
});

// ---- The live stream ----

const live = { fleet: null, last: Date.now(), held: false, abort: null, wake: () => {} };
const isPaused = () => live.held || document.hidden;

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/);
      if (!lines.includes("event: fleet")) continue;
      yield JSON.parse(lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n"));
    }
  }
}

async function follow() {
  for (let wait = 500; ;) {
    if (!isPaused()) {
      live.abort = new AbortController();
      try {
        const response = await request("live", null, { signal: live.abort.signal, headers: { Accept: "text/event-stream" } });
        for await (const fleet of events(response.body)) {
          receive(fleet);
          wait = 500;
        }
      } catch (error) {
        live.reason = error.status ? error.message : "";
        if (error.wait) wait = error.wait * 1000;
      }
      live.abort.abort();
      live.broken = true;
    }
    showLive();
    await new Promise((resolve) => {
      const timer = isPaused() ? 0 : setTimeout(resolve, wait * (0.7 + Math.random() * 0.6));
      live.wake = () => { clearTimeout(timer); resolve(); };
    });
    wait = Math.min(wait * 2, 15000);
  }
}

function receive(fleet) {
  setClock(fleet.time);
  Object.assign(live, { fleet, last: Date.now(), reason: "", broken: false });
  showLive();
  overview.header(fleet);
  shell.view?.update(fleet);
}

function showLive() {
  const silent = (Date.now() - live.last) / 1000;
  if (silent > Math.max(6, 3 * (live.fleet?.interval || 2)) && !isPaused()) live.abort?.abort();
  const state = isPaused() ? "paused" : live.broken || !live.fleet ? "reconnecting" : "live";
  const button = find("live");
  if (button.dataset.state !== state) {
    button.dataset.state = state;
    button.lastChild.textContent = state;
    button.title = state === "paused" ? "Continue" : "Pause the updates of this page";
  }
  document.body.classList.toggle("stale", state === "reconnecting" && silent > 3 && Boolean(live.fleet));
  const text = state === "reconnecting" && silent >= 3
    ? [`no answer for ${format.seconds(Math.floor(silent))}`, live.reason].filter(Boolean).join(" · ") : "";
  if (find("silent").textContent !== text) find("silent").textContent = text;
}

function continueOrPause() {
  if (isPaused()) live.abort?.abort();
  else live.last = Math.max(live.last, Date.now() - 3000);
  live.wake();
  showLive();
}

// ---- Routes ----

// A view is a module with `mount(root, context)`, which returns { update(fleet), unmount() }, and
// `route(params)` if it needs no new start when only the parameters change.
const VIEWS = {
  "": { title: "Overview", load: () => overview },
  consumers: { title: "Consumer", load: () => overview },
  processes: { title: "Processes", load: () => overview },
  audit: { title: "Audit", load: () => overview },
  "dead-letters": { title: "Dead letters", load: async () => {
    await new Promise((resolve) => {
      if (find("letters-style")) return resolve();
      document.head.append(el("link", { id: "letters-style", rel: "stylesheet", href: "console/letters.css",
        onload: resolve, onerror: resolve }));
    });
    return import("./letters.js");
  } },
};
const shell = { view: null, path: null, me: null };

async function show() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const params = new URLSearchParams(query);
  if (path === shell.path && shell.view?.route) return shell.view.route(params);
  const name = path.split("/", 1)[0];
  const view = VIEWS[name] || VIEWS[""];
  shell.view?.unmount();
  Object.assign(shell, { view: null, path });
  const root = el("div");
  find("main").replaceChildren(root);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${name === "consumers" ? "" : name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const argument = decodeURIComponent(path.slice(name.length + 1));
  document.title = `${argument ? safe(argument) : view.title} · ${safe(shell.me.app)}`;
  const module = await view.load();
  if (shell.path !== path) return undefined;
  const context = { api, me: shell.me, el, h, draw, confirmDialog, toast, format, safe, params, name, argument };
  shell.view = module.mount(root, context);
  if (live.fleet) shell.view.update(live.fleet);
  return undefined;
}

// ---- Start ----

const THEMES = { auto: "◐", light: "☀", dark: "☾" };
const KEPT = "workerkit-docs-theme";
const storage = (call) => { try { return call(localStorage); } catch { return null; } };
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("theme").textContent = THEMES[theme];
  find("theme").setAttribute("aria-label", `Theme: ${theme}`);
  find("theme").title = `Theme: ${theme}`;
}

const KEYS = { "/": "search", "↓ ↑": "move through rows", Enter: "open", Escape: "close, clear the search",
  "?": "these keys" };
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog")) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  const rows = [...document.querySelectorAll("main [data-row]")].filter((each) => each.offsetParent);
  if (event.key === "/" && !typing) document.querySelector("main input[type=search]")?.focus();
  else if (event.key === "?" && !typing) showKeys();
  else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !typing && rows.length) {
    const now = rows.indexOf(event.target.closest("[data-row]"));
    const next = now < 0 ? 0 : now + (event.key === "ArrowDown" ? 1 : -1);
    rows[Math.max(0, Math.min(rows.length - 1, next))].focus();
  } else if (event.key === "Escape" && !typing && shell.view?.close) shell.view.close();
  else return;
  event.preventDefault();
}

function showKeys() {
  const dialog = openDialog("Keys", el("dl", { class: "pairs" }, Object.entries(KEYS).map(([key, text]) =>
    [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)])),
  el("div", { class: "buttons" }, el("button", { class: "main", onclick: () => dialog.close() }, "Close")));
}

// Why the operator may not do what needs a role; empty if it is allowed.
function forbids(role) {
  const roles = ["view", "operate", "admin"];
  if (role !== "view" && this.mode === "read") return "The console is read-only: OPS__CONSOLE=read.";
  const missing = roles.indexOf(role) > roles.indexOf(this.operator.role);
  return missing ? `This needs the role ${role}; yours is ${this.operator.role}.` : "";
}

async function start() {
  const kept = storage((each) => each.getItem(KEPT));
  setTheme(Object.hasOwn(THEMES, kept) ? kept : "auto");
  find("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
    storage((each) => each.setItem(KEPT, document.documentElement.dataset.theme));
  });
  find("keys").addEventListener("click", showKeys);
  find("live").addEventListener("click", () => { live.held = !live.held; continueOrPause(); });
  document.addEventListener("visibilitychange", continueOrPause);
  addEventListener("online", () => live.wake());
  document.addEventListener("keydown", onKey);
  setInterval(() => document.hidden || showLive(), 1000);
  for (let wait = 500; !shell.me; wait = Math.min(wait * 2, 15000)) {
    try {
      shell.me = { ...await api.get("me"), forbids };
    } catch (error) {
      live.reason = error.message;
      showLive();
      await new Promise((resolve) => { setTimeout(resolve, error.wait ? error.wait * 1000 : wait); });
    }
  }
  const { app, operator } = shell.me;
  find("app").textContent = safe(app);
  find("who").textContent = safe(operator.user === operator.role ? operator.role : `${operator.user} · ${operator.role}`);
  if (sessionStorage.getItem(TOKEN)) {
    find("logout").hidden = false;
    find("logout").addEventListener("click", () => { sessionStorage.removeItem(TOKEN); location.reload(); });
  }
  addEventListener("hashchange", show);
  await show();
  await follow();
}

start();
