// The desk of dead letters: queues, groups, search, one dead letter, replays and deletions.

const PAGE = 50;
const MOST_KEYS = 1000; // that a request may have
const FEW = 5; // groups that are shown at first
const AGES = { "": "any age", 3600: "last hour", 86400: "last 24 hours", 604800: "last 7 days", range: "from … to …" };
const FIELDS = { text: "Text of the error", message_id: "Message id", header: "Header", consumer: "Consumer", error: "Error class" };
const ACTIVE = ["running", "undoable"];
const TONES = { running: "starting", done: "ready", stopped: "waiting", undoable: "paused" };
const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const asTime = (text) => { const date = new Date(text); return Number.isNaN(date.getTime()) ? null : date.toISOString(); };

// The whole body of a dead letter as text; null if it is no text or too large. Its `text` may be cut.
function textOf({ base64 }) {
  if (base64 === null) return null;
  try {
    const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch { return null; }
}

// What is wrong with a text as JSON; empty if it is valid.
function faultOf(text) {
  try { JSON.parse(text); return ""; } catch (error) { return error.message; }
}

// Two texts as [the same before, what differs, the same behind].
function difference(old, now) {
  const most = Math.min(old.length, now.length);
  let start = 0;
  let end = 0;
  while (start < most && old[start] === now[start]) start += 1;
  while (end < most - start && old[old.length - 1 - end] === now[now.length - 1 - end]) end += 1;
  return [old, now].map((text) => [text.slice(0, start), text.slice(start, text.length - end), text.slice(text.length - end)]);
}

// The copy of a text. A page without TLS has no `navigator.clipboard`.
async function copy(text, inside) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  inside.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser does not allow to copy.");
  return undefined;
}

export function mount(root, context) {
  const { api, me, el, h, draw, confirmDialog, toast, format, safe } = context;
  const { number, ago, time, bytes } = format;
  const state = { queues: null, queue: null, filter: {}, age: "", group: null, groups: null, letters: [], next: null,
    searched: 0, count: 0, chosen: new Set(), all: false, jobs: [], problem: "", silent: "", loading: false, last: -1,
    every: false, changed: false };
  const search = {}; // what is typed
  const dialogs = new Set();
  let params = context.params;
  let stopped = false;
  let asked = 0;
  let opening = 0;
  let ticks = 0;
  let busy = false;

  const plural = (count, word = "dead letter") => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  const refOf = ({ queue, connection, vhost }) => ({ queue, connection, vhost });
  const isSame = (one, other) => one && other && ["queue", "connection", "vhost"].every((name) => one[name] === other[name]);
  const filterOf = () => {
    const filter = { ...state.filter };
    if (state.age > 0) filter.since = asTime(Date.now() - 1000 * state.age);
    if (state.group) filter.group = state.group;
    return Object.fromEntries(Object.entries(filter).filter(([, value]) => value));
  };
  const isFiltered = () => Object.keys(filterOf()).length > 0;
  // What an operator selects or reads now does not change under their hands.
  const isFree = () => !state.chosen.size && !state.all && !document.querySelector("dialog[open]");
  const failed = (error) => { if (!stopped && error.name !== "AbortError") { state.problem = error.message; show(); } };

  // The number of all that match; null as long as that is unknown.
  function matched() {
    if (!isFiltered()) return state.count;
    const { groups, group } = state;
    if (!groups) return null;
    if (group) return groups.groups.find((each) => each.id === group)?.count ?? 0;
    return groups.groups.reduce((sum, each) => sum + each.count, groups.others);
  }

  // ---- Loading ----

  async function loadQueues() {
    try {
      state.queues = (await api.get("dead-letters")).sort((a, b) => (b.count ?? 0) - (a.count ?? 0));
      const wanted = params.get("queue");
      const found = state.queues.find((each) => each.queue === wanted
        && [null, each.connection].includes(params.get("connection")) && [null, each.vhost].includes(params.get("vhost")));
      await choose(found || (wanted ? null : state.queues.find((each) => each.count) || state.queues[0] || null));
      await loadJobs();
    } catch (error) { failed(error); }
  }

  async function choose(queue) {
    Object.assign(state, { queue, group: null, groups: null, every: false });
    await reload();
  }

  async function reload() {
    const turn = ++asked;
    Object.assign(state, { letters: [], next: null, searched: 0, problem: "", loading: Boolean(state.queue), all: false, last: -1, changed: false });
    state.chosen.clear();
    show();
    if (!state.queue) return;
    try {
      await read(turn);
      if (turn !== asked) return;
      const { group, ...others } = filterOf();
      const groups = await api.get("dead-letters/groups", { ...refOf(state.queue), ...others });
      if (turn === asked) state.groups = groups;
    } catch (error) { if (turn === asked) failed(error); }
    if (turn === asked) { state.loading = false; show(); }
  }

  // One page; where it has no match, the next ones too.
  async function read(turn) {
    const before = state.letters.length;
    for (let pages = 0; pages < 5 && state.letters.length === before && !(pages && state.next === null); pages += 1) {
      const page = await api.get("dead-letters/page",
        { ...refOf(state.queue), ...filterOf(), position: state.next ?? 0, limit: PAGE });
      if (turn !== asked || stopped) return;
      state.letters.push(...page.letters);
      Object.assign(state, { next: page.next, searched: state.searched + page.scanned, count: page.count });
      show();
    }
  }

  async function more() {
    const turn = asked;
    if (state.loading) return;
    state.loading = true;
    show();
    try { await read(turn); } catch (error) { if (turn === asked) failed(error); }
    if (turn === asked) { state.loading = false; show(); }
  }

  async function loadJobs() {
    const before = new Map(state.jobs.map((each) => [each.id, each.state]));
    const jobs = await api.get("jobs");
    if (stopped) return;
    state.jobs = jobs;
    state.silent = "";
    const moved = jobs.filter((each) => (before.get(each.id) ?? each.state) !== each.state);
    const ended = moved.filter((each) => !ACTIVE.includes(each.state));
    if (ended.length) toast(ended.map((each) => `${each.kind}: ${each.text}`).join("; "), { bad: ended.some((each) => ["failed", "stopped"].includes(each.state)) });
    state.changed ||= moved.some((each) => each.queue.queue === state.queue?.queue);
    if (state.changed && isFree()) await reload(); else show();
  }

  // ---- Acting ----

  const keysOf = () => [...state.chosen].map((index) => state.letters[index].key);
  const selection = () => (!state.all ? { keys: keysOf() } : isFiltered() ? { filter: filterOf() } : { everything: true });
  const amount = () => (state.all ? matched() : state.chosen.size);
  const named = (count) => (count === null ? "all dead letters that match" : plural(count));

  async function start(path, queue, body) {
    const job = await api.post(`dead-letters/${path}`, { queue: refOf(queue), ...body });
    state.jobs = [job, ...state.jobs.filter((each) => each.id !== job.id)];
    state.chosen.clear();
    state.all = false;
    loadJobs().catch(failed);
    return job;
  }

  // Wait until the job of an edit has replayed it, as only then it is known whether that is possible.
  async function sent(job) {
    let now = job;
    while (!stopped && !now.done && now.state === "running") {
      await new Promise((resolve) => { setTimeout(resolve, 200); });
      now = await api.get(`jobs/${encodeURIComponent(job.id)}`);
    }
    if (now.state === "failed") throw new Error(now.text);
  }

  const field = (label, attributes) => { const input = el("input", attributes); return [el("label", {}, label, input), input]; };

  function open(dialog) {
    dialogs.add(dialog);
    dialog.addEventListener("close", () => {
      dialogs.delete(dialog);
      dialog.remove();
      if (!stopped && isFree() && state.changed) reload();
    });
    document.body.append(dialog);
    dialog.showModal();
    return dialog;
  }

  // A dialog with a form. It stays open, with the reason, until `submit` does not fail. `submit`
  // returns false if the form is to stay.
  function form(title, action, content, submit, { cancel = "Cancel", isChanged = () => false } = {}) {
    return new Promise((resolve) => {
      const note = el("p", { class: "red", role: "alert" });
      const ok = el("button", { class: "main" }, action);
      const leave = async () => {
        if (!isChanged() || await confirmDialog({ title: "Discard the changes?", text: "What you have changed is lost.", action: "Discard" })) dialog.close();
      };
      const dialog = open(el("dialog", { "aria-label": title, class: "letter-form", oncancel: (event) => {
        if (event.target === dialog && isChanged()) { event.preventDefault(); leave(); }
      } }, el("form", { onsubmit: async (event) => {
        event.preventDefault();
        note.textContent = "";
        ok.disabled = true;
        try { if (await submit() !== false) dialog.close("ok"); } catch (error) { note.textContent = safe(error.message); }
        ok.disabled = false;
      } }, el("h2", {}, title), content, note, el("div", { class: "buttons" },
        el("button", { type: "button", onclick: leave }, cancel), ok))));
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"));
    });
  }

  function pace() {
    const [rate, rateInput] = field("Messages per second", { type: "number", min: "0.1", step: "any", placeholder: "no limit" });
    const [wait, waitInput] = field("Seconds to wait for failures", { type: "number", min: "0", max: "600", step: "any", value: "2", required: true });
    return [el("div", { class: "two" }, rate, wait), () => ({ rate: Number(rateInput.value) || null, wait: Number(waitInput.value) })];
  }

  async function replay(given = selection(), count = amount()) {
    const { queue } = state;
    const [fields, values] = pace();
    const steps = [1, 11, 111].filter((each) => each < (count ?? Infinity)).length;
    const text = ["They return to ", el("b", {}, queue.queue), count === 1 ? "." : `: first ${["1", "1, then 10", "1, then 10, then 100"][Math.max(0, steps - 1)]}${steps > 2 ? ", then 1,000 at a time" : " and then the rest"}.`,
      " After each step the job waits, and stops if one of them failed again."];
    await form(`Replay ${named(count)}?`, "Replay", [el("p", {}, text), fields], () => start("replay", queue, { selection: given, ...values() }));
  }

  async function remove(given = selection(), count = amount()) {
    const { queue } = state;
    if (!count) return void toast(count === 0 ? "No dead letter matches." : "The number of those that match is not known yet.");
    const text = [`They are removed from the dead letters of ${queue.queue}. This can be undone for a minute. If more match by then, none is deleted.`];
    if (await confirmDialog({ title: `Delete ${plural(count)}?`, text, action: "Delete", typed: String(count) })) {
      await start("delete", queue, { selection: given, confirm: count }).catch((error) => toast(`Not done: ${error.message}`, { bad: true }));
    }
    return undefined;
  }

  // The rows of headers in the form, and a function that returns what was changed.
  function headerFields(letter) {
    const rows = el("div", { class: "header-rows" });
    const known = Object.entries(letter.headers).filter(([name]) => !name.startsWith("x-workerkit-") && name !== "x-death");
    const lines = new Map();
    const add = (name = null, value = "") => {
      const title = el("input", { "aria-label": "Header name", placeholder: "name", maxlength: "255" });
      const input = el("input", { "aria-label": name === null ? "Header value" : `Value of ${name}`, placeholder: "value" });
      input.value = shown(value);
      const line = el("div", {}, name === null ? title : el("code", {}, name), input, el("button", { type: "button", class: "icon",
        "aria-label": `Remove header ${name ?? ""}`, onclick: () => { lines.delete(line); line.remove(); rows.dispatchEvent(new Event("input", { bubbles: true })); } }, "×"));
      // An input changes some texts itself, as those of several lines.
      lines.set(line, { name, title, input, value, before: input.value });
      rows.append(line);
      return title;
    };
    known.forEach(([name, value]) => add(name, value));
    const changes = () => {
      const headers = Object.create(null);
      const kept = new Set();
      for (const { name, title, input, value, before } of lines.values()) {
        if (name !== null) {
          kept.add(name);
          if (input.value === before) continue;
          if (typeof value !== "string" && faultOf(input.value)) throw new Error(`The header ${name} was no text: its new value should be JSON.`);
          headers[name] = typeof value === "string" ? input.value : JSON.parse(input.value);
          if (headers[name] === null) throw new Error(`The header ${name} cannot become null: remove it.`);
        } else if (title.value) headers[title.value] = input.value;
      }
      for (const [name] of known) if (!kept.has(name) && !(name in headers)) headers[name] = null;
      return headers;
    };
    return [[rows, el("button", { type: "button", class: "small", onclick: () => add().focus() }, "Add header")], changes];
  }

  async function edit(letter) {
    const { queue } = state;
    const text = textOf(letter);
    const isJson = text !== null && !faultOf(text);
    const body = el("textarea", { rows: "12", spellcheck: "false", disabled: text === null });
    body.value = text ?? "";
    const before = body.value; // with other ends of lines
    const validity = el("small", { role: "status" });
    const [type, typeInput] = field("Content type", { maxlength: "255" });
    typeInput.value = letter.content_type ?? "";
    const typeBefore = typeInput.value;
    const [headers, changedHeaders] = headerFields(letter);
    const newBody = () => (text.includes("\r\n") ? body.value.replaceAll("\n", "\r\n") : body.value);
    const changes = () => {
      const made = {};
      if (body.value !== before) made.body = newBody();
      const found = changedHeaders();
      if (Object.keys(found).length) made.headers = found;
      if (typeInput.value !== typeBefore) made.content_type = typeInput.value;
      return made;
    };
    const isChanged = () => { try { return Object.keys(changes()).length > 0; } catch { return true; } };
    const check = () => {
      const fault = text === null ? "" : faultOf(body.value);
      validity.className = fault && isJson ? "amber" : "soft";
      validity.textContent = text === null ? "The body is no text or too large, so it stays as it is."
        : [fault ? safe(`Not JSON: ${fault}`) : "Valid JSON", body.value === before ? "unchanged" : "changed",
          safe(body.value) !== body.value && "has characters that are not visible here"].filter(Boolean).join(" · ");
    };
    body.addEventListener("input", check);
    check();
    const indent = isJson && letter.pretty !== null && !letter.truncated && el("button", { type: "button", class: "small", onclick: () => {
      if (body.value === before) body.value = letter.pretty;
      check();
    } }, "Indent");
    const content = [el("label", {}, "Body", body), el("div", { class: "tools" }, validity, indent), type, el("div", {}, "Headers"), headers];
    await form("Edit and replay", "Review", content, async () => {
      const made = changes();
      if (!Object.keys(made).length) throw new Error("Nothing was changed.");
      const [fields, values] = pace();
      return form("Replay this?", "Replay", [review(letter, text, made), fields],
        async () => sent(await start("replay", queue, { selection: { keys: [letter.key] }, edit: made, ...values() })), { cancel: "Back" });
    }, { isChanged });
  }

  // What an edit changes.
  function review(letter, text, { body, headers = {}, content_type: type }) {
    const mark = ([head, middle, tail], tag) => el("pre", { class: tag, tabindex: "0" }, head.length > 2000 ? `… ${head.slice(-2000)}` : head,
      middle && el(tag, {}, middle), tail.length > 2000 ? `${tail.slice(0, 2000)} …` : tail);
    const [old, now] = body === undefined ? [] : difference(text, body);
    const line = (name, was, value) => [el("dt", {}, el("code", {}, name)), el("dd", {}, was !== undefined && el("del", {}, shown(was)), " ", value !== null && el("ins", {}, shown(value)))];
    return [body !== undefined && el("div", { class: "two" }, el("div", {}, "Before", mark(old, "del")), el("div", {}, "After", mark(now, "ins"))),
      el("dl", { class: "pairs" }, type !== undefined && line("content type", letter.content_type ?? undefined, type),
        Object.entries(headers).map(([name, value]) => line(name, Object.hasOwn(letter.headers, name) ? letter.headers[name] : undefined, value))),
      el("p", { class: "soft" }, "The original is kept in headers of the message.")];
  }

  async function act(job, action) {
    try { await api.post(`jobs/${encodeURIComponent(job.id)}/${action}`, {}); } catch (error) { toast(error.message, { bad: true }); }
    await loadJobs().catch(failed);
  }

  // ---- One dead letter ----

  // Lines of a traceback; those of the application stand out.
  function traceback(text) {
    let kind = "";
    return text.split("\n").map((line) => {
      if (/^\s*File "/.test(line)) kind = /-packages|[\\/]lib[\\/]python|[\\/]workerkit[\\/]|File "</.test(line) ? "" : "own";
      else if (/^\S/.test(line)) kind = /^(Traceback|The above|During) /.test(line) ? "" : "raised";
      return el("span", { class: kind }, line, "\n");
    });
  }

  async function look(index) {
    const letter = state.letters[index];
    const turn = ++opening;
    let found;
    try {
      found = await api.get("dead-letters/letter", { ...refOf(state.queue), key: letter.key, position: letter.position });
    } catch (error) { return stopped ? undefined : void toast(error.message, { bad: true }); }
    if (stopped || turn !== opening) return undefined;
    const { model } = found;
    const whole = textOf(found);
    const pre = (text, label) => el("pre", { tabindex: "0", "aria-label": label }, text === "" ? "(empty)" : text);
    const pairs = (values) => el("dl", { class: "pairs" }, Object.entries(values).map(([name, value]) =>
      [el("dt", {}, el("code", {}, name)), el("dd", {}, shown(value))]));
    // name: what is shown, what is copied
    const tabs = {
      Body: [() => pre(found.pretty ?? found.text ?? "The body is no text: see Hex.", "Body"), whole ?? found.text],
      Text: found.text !== null && [() => pre(found.text, "Text"), whole ?? found.text],
      Hex: [() => pre(found.hex, "Hex"), found.hex],
      Model: [() => el("div", {}, el("p", {}, model.type ? ["as ", el("code", {}, model.type)] : "", model.problem && ` ${model.problem}`),
        model.errors.length ? el("ul", { class: "red" }, model.errors.map((each) => el("li", {}, each))) : model.value !== null && pre(model.value, "Model")),
      model.errors.join("\n") || model.value],
      Headers: [() => [pairs(found.headers), el("h2", {}, "Properties"), pairs({ ...found.properties, exchange: found.exchange, routing_key: found.routing_key })],
        JSON.stringify({ headers: found.headers, properties: found.properties }, null, 2)],
      Traceback: found.traceback && [() => el("pre", { tabindex: "0", class: "trace", "aria-label": "Traceback" }, traceback(found.traceback)), found.traceback],
      Original: found.original !== null && [() => pre(found.original, "Original"), found.original],
    };
    const names = Object.keys(tabs).filter((each) => tabs[each]);
    const panel = el("div", { role: "tabpanel", id: "letter-panel" });
    const select = (name) => {
      panel.replaceChildren(...[tabs[name][0]()].flat());
      panel.setAttribute("aria-label", name);
      for (const each of list.children) {
        each.setAttribute("aria-selected", String(each.textContent === name));
        each.tabIndex = each.textContent === name ? 0 : -1;
      }
      const text = tabs[name][1];
      copying.textContent = name === "Body" || name === "Text" ? "Copy body" : `Copy ${name.toLowerCase()}`;
      copying.disabled = !text;
      copying.onclick = () => copy(text, dialog).then(() => { copying.textContent = "Copied"; }, (error) => toast(error.message, { bad: true }));
    };
    const list = el("div", { role: "tablist", class: "tabs", onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = list.children[(names.indexOf(event.target.textContent) + step + names.length) % names.length];
      next.focus();
      select(next.textContent);
    } }, names.map((name) => el("button", { role: "tab", type: "button", "aria-controls": "letter-panel", onclick: () => select(name) }, name)));
    const then = (run) => () => { dialog.close(); run(); };
    const button = (label, role, run, kind = "") => el("button", { class: kind, disabled: Boolean(me.forbids(role)), title: me.forbids(role) || null, onclick: then(run) }, label);
    const step = (label, sign, at) => el("button", { class: "icon", "aria-label": label, title: label, disabled: !state.letters[at], onclick: then(() => look(at)) }, sign);
    const copying = el("button", {});
    const one = { keys: [found.key] };
    const dialog = el("dialog", { class: "letter", "aria-label": `Dead letter ${found.message_id || found.key}` },
      el("div", { class: "tools" }, el("h2", {}, found.message_id || "without id"), el("span", { class: "actions" }, step("Previous", "↑", index - 1), step("Next", "↓", index + 1))),
      el("p", { class: "why" }, el("b", { class: "red" }, found.error || "unknown"), " ", el("code", {}, found.place), " ", found.reason || ""),
      el("p", { class: "soft" }, [found.consumer, found.failed_at && time(found.failed_at), found.attempt && `attempt ${found.attempt}`,
        found.replays && `replayed ${plural(found.replays, "time")}`, bytes(found.size), found.truncated && "only the beginning is shown"].filter(Boolean).join(" · ")),
      list, panel, el("div", { class: "buttons" }, copying, button("Delete", "admin", () => remove(one, 1)),
        button("Edit and replay", "admin", () => edit(found)), button("Replay", "operate", () => replay(one, 1), "main"), el("button", { onclick: () => dialog.close() }, "Close")));
    select(model.errors.length ? "Model" : "Body");
    // Where the focus returns to.
    [...root.querySelectorAll("[data-row]")][index]?.focus();
    open(dialog);
    list.querySelector("[aria-selected=true]").focus();
    return undefined;
  }

  // ---- Drawing ----

  function submit(event) {
    event?.preventDefault();
    state.filter = Object.fromEntries(Object.keys(FIELDS).map((name) => [name, (search[name] || "").trim()]));
    if (state.age === "range") for (const name of ["since", "until"]) state.filter[name] = asTime(search[name] || "");
    state.group = null;
    reload();
  }

  function clear() {
    for (const name of Object.keys(search)) delete search[name];
    state.age = "";
    submit();
  }

  function searchForm() {
    const typed = (name) => ({ key: name, value: search[name] || "", oninput: (event) => { search[name] = event.target.value; } });
    return h("form", { class: "filters", key: "filters", role: "search", onsubmit: submit },
      Object.entries(FIELDS).map(([name, label]) => h("input", { ...typed(name), type: "search", "aria-label": label,
        maxlength: name === "text" || name === "header" ? "1000" : "255", placeholder: name === "header" ? "Header=value" : label })),
      h("select", { key: "age", "aria-label": "Age", value: state.age, onchange: (event) => { state.age = event.target.value; if (state.age !== "range") submit(); else show(); } },
        Object.entries(AGES).map(([value, label]) => h("option", { key: value || "any", value }, label))),
      state.age === "range" && ["since", "until"].map((name) => h("input", { ...typed(name), type: "datetime-local", step: "1", "aria-label": name === "since" ? "Failed since" : "Failed until" })),
      h("button", { key: "go", class: "main" }, "Search"),
      isFiltered() && h("button", { key: "clear", type: "button", onclick: clear }, "Clear"));
  }

  function bars(counts) {
    const most = Math.max(1, ...counts);
    return h("span", { class: "bars", "aria-hidden": "true" }, counts.map((each, index) => h("i", { key: index, "--part": each / most })));
  }

  const cell = (label, kind, ...content) => h("td", { class: kind, "data-label": label, role: "cell" }, content);
  const heads = (...names) => h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name))));
  const error = (each) => [h("b", { class: "red" }, each.error || "unknown"), " ", h("code", {}, each.place), " "];

  function groupTable() {
    const { groups, group, every } = state;
    if (!groups?.groups.length) return false;
    const listed = every ? groups.groups : groups.groups.filter((each, index) => index < FEW || each.id === group);
    return h("section", { class: "panel", key: "groups" }, h("h2", {}, "Groups"), h("table", { "aria-label": "Groups" }, heads("Error", "Consumer", "Number", "Over time", "First", "Last"),
      h("tbody", {}, listed.map((each) => h("tr", { key: each.id, class: group === each.id ? "chosen" : "" },
        cell("", "wide", h("button", { class: "plain", "aria-pressed": String(group === each.id), onclick: () => {
          state.group = group === each.id ? null : each.id;
          reload();
        } }, error(each)), h("small", {}, each.reason)),
        cell("Consumer", "", each.consumer || "–"), cell("Number", "num", number(each.count)),
        cell("Over time", "", bars(each.counts)), cell("First", "", each.first ? ago(each.first) : "–"), cell("Last", "", each.last ? ago(each.last) : "–"))))),
    listed.length < groups.groups.length && h("button", { class: "small", onclick: () => { state.every = true; show(); } }, `Show all ${number(groups.groups.length)} groups`),
    groups.others > 0 && h("p", { class: "soft" }, `${plural(groups.others)} in other groups.`),
    groups.scanned < groups.count && h("p", { class: "soft" }, `${number(groups.scanned)} of ${number(groups.count)} were read in time.`));
  }

  const tool = (label, role, run, kind = "") => {
    const isTooMany = !state.all && state.chosen.size > MOST_KEYS;
    const reason = me.forbids(role) || (isTooMany ? `At most ${number(MOST_KEYS)} single ones at a time: select all that match.` : "");
    return h("button", { key: label, class: kind, title: reason || null, disabled: Boolean(reason) || !(state.all || state.chosen.size), onclick: () => run() }, label);
  };

  function check(index, event) {
    const { letters, chosen } = state;
    if (state.all) letters.forEach((_, each) => chosen.add(each)); // all but this one
    const [from, to] = event.shiftKey && state.last >= 0 ? [Math.min(state.last, index), Math.max(state.last, index)] : [index, index];
    const isOn = !chosen.has(index);
    for (let each = from; each <= to; each += 1) { if (isOn) chosen.add(each); else chosen.delete(each); }
    Object.assign(state, { last: index, all: false });
    show();
  }

  function checkAll(isOn) {
    Object.assign(state, { all: false, chosen: new Set(isOn ? state.letters.keys() : []) });
    show();
  }

  function letterRow(each, index) {
    const isOn = state.all || state.chosen.has(index);
    return h("tr", { key: `${each.key} ${index}`, class: isOn ? "chosen" : "" },
      cell("", "box", h("input", { type: "checkbox", checked: isOn, "aria-label": `Select ${each.message_id || each.key}`, onclick: (event) => check(index, event) })),
      cell("Message", "first", h("a", { href: location.hash, "data-row": each.key, onclick: (event) => { event.preventDefault(); look(index); },
        onkeydown: (event) => { if (event.key === " ") { event.preventDefault(); check(index, event); } } }, each.message_id || "without id"),
      h("small", { title: each.failed_at ? time(each.failed_at) : null }, each.failed_at ? ago(each.failed_at) : "–")),
      cell("Error", "wide", error(each), h("span", { class: "reason" }, each.reason), h("small", { class: "mono" }, each.excerpt)),
      cell("Attempts", "num", number(each.attempt), each.replays ? h("small", {}, `replayed ${number(each.replays)}×`) : ""),
      cell("Size", "num", bytes(each.size)));
  }

  function letterTable() {
    const { letters, chosen, all, loading, next, searched, count } = state;
    const isWhole = letters.length > 0 && (all || chosen.size === letters.length);
    const total = matched();
    return h("section", { class: "panel", key: "letters", "aria-busy": String(loading) },
      h("div", { class: "tools" }, h("h2", {}, plural(count)), h("span", { class: "soft", role: "status" },
        loading ? `reading … ${searched ? `${number(searched)} of ${number(count)}` : ""}` : isFiltered() ? `${number(total === null || next === null ? letters.length : total)} match in ${number(total === null ? searched : Math.max(searched, state.groups.scanned))} searched` : ""),
      h("label", { class: "set" }, h("input", { type: "checkbox", checked: all, "aria-label": isFiltered() ? "Select all that match" : "Select all", onclick: () => { state.all = !all; chosen.clear(); show(); } }),
        `all ${total === null ? "" : number(total)}${isFiltered() ? " that match" : ""}`),
      h("span", { class: "soft" }, all ? "all selected" : `${number(chosen.size)} selected`),
      h("span", { class: "actions" }, tool("Replay", "operate", replay, "main"), tool("Delete", "admin", remove))),
      state.changed && h("p", { class: "note" }, "The queue has changed. ", h("button", { class: "small", onclick: reload }, "Read it again")),
      letters.length ? h("table", { "aria-label": "Dead letters", key: "table" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("input", { type: "checkbox", checked: isWhole,
        indeterminate: chosen.size > 0 && !isWhole, "aria-label": "Select all shown", onclick: () => checkAll(!isWhole) })), ["Message", "Error", "Attempts", "Size"].map((each) => h("th", { scope: "col", class: each === "Attempts" || each === "Size" ? "num" : "" }, each)))),
      h("tbody", {}, letters.map(letterRow))) : h("p", { class: "empty" }, loading ? "Reading the queue …" : isFiltered() ? (next === null ? "No dead letter matches." : `None of the first ${number(searched)} matches.`) : "No dead letters."),
      next !== null && h("p", { class: "buttons" }, h("span", { class: "soft" }, `${number(letters.length)} shown`), h("button", { disabled: loading, onclick: more }, letters.length ? "Load more" : "Search on")));
  }

  function jobTable() {
    const isOld = (each) => each.ended && format.since(each.ended) > 300;
    const button = (job, label, action, role) => h("button", { class: "small", disabled: Boolean(me.forbids(role)), title: me.forbids(role) || null, onclick: () => act(job, action) }, label);
    const table = (label, jobs) => h("table", { "aria-label": label }, heads("Job", "State", "Progress", ""), h("tbody", {}, jobs.map((each) => h("tr", { key: each.id },
      cell("Job", "first", `${each.kind} of ${each.queue.queue}`, h("small", {}, `${each.user} · ${ago(each.started)}`)),
      cell("State", "", h("span", { class: "state", "data-state": TONES[each.state] || each.state }, each.state)),
      cell("Progress", "wide", `${number(each.done)} of ${each.total === null ? "…" : number(each.total)}`,
        each.failed_again ? h("b", { class: "red" }, ` · ${number(each.failed_again)} failed again`) : "", h("small", {}, each.text),
        each.state === "running" && h("i", { class: "meter", "--part": String(each.total ? Math.min(1, each.done / each.total) : 0) })),
      cell("", "act", each.state === "running" && button(each, "Stop", "stop", "operate"),
        each.state === "undoable" && button(each, `Undo (${Math.max(0, Math.ceil(-format.since(each.undo_until)))} s)`, "undo", "admin"))))));
    const now = state.jobs.filter((each) => !isOld(each));
    const old = state.jobs.filter(isOld).slice(0, 30);
    return state.jobs.length > 0 && h("section", { class: "panel", key: "jobs" }, h("h2", {}, "Jobs"), now.length > 0 && table("Jobs", now),
      old.length > 0 && h("details", { key: "old" }, h("summary", {}, `${plural(old.length, "earlier job")}`), table("Earlier jobs", old)));
  }

  function show() {
    if (stopped) return;
    const { queue, queues } = state;
    const wanted = params.get("queue");
    const problem = state.problem || queue?.problem || state.silent;
    draw(root, [h("div", { class: "columns desk", key: "desk" },
      h("aside", { key: "queues", "aria-label": "Queues" }, h("div", {}, h("h2", {}, "Queues"), (queues || []).map((each) => h("button", {
        key: [each.connection, each.vhost, each.queue].join(" "), class: "chip", "aria-pressed": String(isSame(each, queue)),
        title: each.problem || [each.queue, each.consumers.join(", "), each.broker].filter(Boolean).join(" · "), onclick: () => {
          const link = `#/dead-letters?${new URLSearchParams(refOf(each))}`;
          if (link === location.hash) choose(each); else location.hash = link;
        } }, h("span", {}, each.queue), h("b", {}, each.problem ? "!" : number(each.count)))))),
      h("div", { class: "middle", key: "middle" }, queue ? h("h1", { key: "title" }, queue.queue, h("small", {}, safe(queue.consumers.join(", ")))) : h("p", { class: "empty", key: "title" },
        !queues ? "Reading the queues …" : wanted ? `There is no queue ${wanted} here.` : "No consumer has a queue for dead letters."),
      problem && h("p", { class: "red", role: "alert", key: "problem" }, problem),
      queue && [searchForm(), jobTable(), groupTable(), letterTable()]))]);
  }

  const timer = setInterval(async () => {
    ticks += 1;
    const isActive = state.jobs.some((each) => ACTIVE.includes(each.state));
    if (document.hidden || busy || !(isActive || ticks % 5 === 0)) return;
    busy = true;
    try { await loadJobs(); } catch (fault) { if (!stopped) { state.silent = fault.message; show(); } }
    busy = false;
  }, 1000);
  show();
  loadQueues();
  return {
    update(fleet) {
      const rows = fleet.consumers.flatMap((each) => each.queues);
      for (const each of state.queues || []) {
        const found = rows.find((row) => row.name === each.queue && row.connection === each.connection && row.vhost === each.vhost);
        if (found && found.dead !== null) each.count = found.dead;
      }
      show();
    },
    route(changed) { params = changed; loadQueues(); },
    unmount() {
      stopped = true;
      clearInterval(timer);
      for (const each of dialogs) each.remove();
    },
  };
}
