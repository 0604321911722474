// The desk of dead letters: queues, groups, search, one dead letter, replays and deletions.

const PAGE = 50;
const AGES = { "": "any age", 3600: "last hour", 86400: "last 24 hours", 604800: "last 7 days" };
const FIELDS = { text: "Text of the error", message_id: "Message id", header: "Header", consumer: "Consumer", error: "Error class" };
const ACTIVE = ["running", "undoable"];

export function mount(root, context) {
  const { api, me, el, h, draw, confirmDialog, toast, format, safe } = context;
  const { number, ago, time, bytes } = format;
  const state = { queues: null, queue: null, filter: {}, age: "", group: null, groups: null, letters: [], next: null,
    searched: 0, count: 0, chosen: new Map(), all: false, jobs: [], problem: "", loading: false, last: -1 };
  let params = context.params;
  let stopped = false;
  let asked = 0;

  const plural = (count, word = "dead letter") => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  const refOf = ({ queue, connection, vhost }) => ({ queue, connection, vhost });
  const isSame = (one, other) => one && other && ["queue", "connection", "vhost"].every((name) => one[name] === other[name]);
  const filterOf = () => {
    const filter = Object.fromEntries(Object.entries(state.filter).filter(([, value]) => value));
    if (state.age) filter.since = new Date(Date.now() - 1000 * state.age).toISOString();
    if (state.group) filter.group = state.group;
    return filter;
  };
  const isFiltered = () => Object.keys(filterOf()).length > 0;
  const failed = (error) => { if (!stopped && error.name !== "AbortError") { state.problem = error.message; show(); } };

  // ---- Loading ----

  async function loadQueues() {
    try {
      state.queues = (await api.get("dead-letters")).sort((a, b) => (b.count ?? 0) - (a.count ?? 0));
      const wanted = params.get("queue");
      const found = state.queues.find((each) => each.queue === wanted
        && [null, each.connection].includes(params.get("connection")) && [null, each.vhost].includes(params.get("vhost")));
      await choose(found || state.queues.find((each) => each.count) || state.queues[0] || null);
      await loadJobs();
    } catch (error) { failed(error); }
  }

  async function choose(queue) {
    Object.assign(state, { queue, group: null, groups: null });
    await reload();
  }

  async function reload() {
    const turn = ++asked;
    Object.assign(state, { letters: [], next: null, searched: 0, problem: "", loading: Boolean(state.queue), all: false, last: -1 });
    state.chosen.clear();
    show();
    if (!state.queue) return;
    try {
      const filter = filterOf();
      await more(turn);
      if (turn !== asked) return;
      const { group, ...others } = filter;
      const groups = await api.get("dead-letters/groups", { ...refOf(state.queue), ...others });
      if (turn === asked) state.groups = groups;
    } catch (error) { failed(error); }
    if (turn === asked) { state.loading = false; show(); }
  }

  async function more(turn = asked) {
    const page = await api.get("dead-letters/page",
      { ...refOf(state.queue), ...filterOf(), position: state.next ?? 0, limit: PAGE });
    if (turn !== asked || stopped) return;
    state.letters.push(...page.letters);
    Object.assign(state, { next: page.next, searched: state.searched + page.scanned, count: page.count });
    show();
  }

  async function loadJobs() {
    const before = state.jobs.filter((each) => ACTIVE.includes(each.state)).map((each) => each.id);
    state.jobs = await api.get("jobs");
    const ended = state.jobs.filter((each) => before.includes(each.id) && !ACTIVE.includes(each.state));
    if (ended.length) {
      toast(ended.map((each) => `${each.kind}: ${each.text}`).join("; "), { bad: ended.some((each) => ["failed", "stopped"].includes(each.state)) });
      await reload();
    } else show();
  }

  // ---- Acting ----

  const selection = () => (state.all ? (isFiltered() ? { filter: filterOf() } : { everything: true }) : { keys: [...state.chosen.keys()] });
  const selected = () => (state.all ? null : state.chosen.size);
  const what = (keys) => (keys ? plural(keys.length) : state.all
    ? (isFiltered() ? "all dead letters that match" : `all ${plural(state.count)}`) : plural(state.chosen.size));

  async function start(path, body) {
    try {
      await api.post(`dead-letters/${path}`, { queue: refOf(state.queue), ...body });
      state.chosen.clear();
      state.all = false;
      await loadJobs();
    } catch (error) { toast(`Not done: ${error.message}`, { bad: true }); }
  }

  const field = (label, attributes) => { const input = el("input", attributes); return [el("label", {}, label, input), input]; };

  function form(title, action, content, kind = "main") {
    return new Promise((resolve) => {
      const ok = el("button", { class: kind }, action);
      const dialog = el("dialog", { "aria-label": title, class: "letter-form" }, el("form", { method: "dialog", onsubmit: (event) => {
        event.preventDefault();
        dialog.close("ok");
      } }, el("h2", {}, title), content, el("div", { class: "buttons" },
        el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), ok)));
      dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "ok"); });
      document.body.append(dialog);
      dialog.showModal();
    });
  }

  async function replay(keys) {
    const [rate, rateInput] = field("Messages per second", { type: "number", min: "0.1", step: "any", placeholder: "no limit" });
    const [wait, waitInput] = field("Seconds to wait for failures", { type: "number", min: "0", max: "600", step: "any", value: "2", required: true });
    const text = "They return to the queue where they failed: first 1, then 10, 100, 1,000 and so on. After each step the job waits, and stops if one of them failed again.";
    if (!await form(`Replay ${what(keys)}?`, "Replay", [el("p", {}, text), rate, wait])) return;
    await start("replay", { selection: keys ? { keys } : selection(), rate: Number(rateInput.value) || null, wait: Number(waitInput.value) });
  }

  async function remove(keys) {
    let count = keys ? keys.length : selected();
    if (count === null) {
      count = isFiltered() ? state.groups?.groups.filter((each) => !state.group || each.id === state.group).reduce((all, each) => all + each.count, 0) : state.count;
    }
    if (!count) return;
    const text = "The job can be undone for a minute. If more match by then, none is deleted.";
    if (await confirmDialog({ title: `Delete ${plural(count)}?`, text, action: "Delete", typed: String(count) }))
      await start("delete", { selection: keys ? { keys } : selection(), confirm: count });
  }

  async function edit(letter) {
    const body = el("textarea", { rows: "14", spellcheck: "false", "aria-label": "Body" });
    body.value = letter.text ?? "";
    const validity = el("small", { role: "status" });
    const [type, typeInput] = field("Content type", { value: letter.content_type || "" });
    const check = () => {
      let note = "The body is JSON.";
      try { JSON.parse(body.value); } catch (error) { note = `The body is not JSON: ${error.message}`; }
      validity.textContent = `${note} ${body.value === letter.text ? "It is unchanged." : "It differs from the original."}`;
    };
    body.addEventListener("input", check);
    check();
    const own = Object.entries(letter.headers).filter(([name]) => !name.startsWith("x-workerkit-") && name !== "x-death");
    const rows = el("div", { class: "header-rows" });
    const row = (name = "", value = "") => {
      const line = el("div", {}, el("input", { value: name, "aria-label": "Header name", placeholder: "name" }),
        el("input", { value: typeof value === "string" ? value : JSON.stringify(value), "aria-label": "Header value", placeholder: "value" }),
        el("button", { type: "button", class: "icon", "aria-label": `Remove header ${name}`, onclick: () => line.remove() }, "×"));
      rows.append(line);
    };
    own.forEach(([name, value]) => row(name, value));
    const content = [el("label", {}, "Body", body), validity, type, el("div", {}, "Headers"), rows,
      el("button", { type: "button", class: "small", onclick: () => row() }, "Add header")];
    if (!await form("Edit and replay", "Review", content)) return;
    const headers = {};
    const before = Object.fromEntries(own);
    for (const line of rows.children) {
      const [name, value] = [...line.querySelectorAll("input")].map((each) => each.value);
      if (!name) continue;
      const old = before[name];
      const kept = typeof old !== "string" && old !== undefined && value === JSON.stringify(old);
      if (!kept && value !== old) headers[name] = value;
      delete before[name];
    }
    for (const name of Object.keys(before)) headers[name] = null;
    const changes = { ...(body.value !== letter.text && { body: body.value }), ...(Object.keys(headers).length && { headers }),
      ...(typeInput.value !== (letter.content_type || "") && { content_type: typeInput.value }) };
    if (!Object.keys(changes).length) return void toast("Nothing was changed.");
    const lines = [changes.body !== undefined && el("div", { class: "diff" }, el("pre", { class: "old" }, letter.text ?? ""), el("pre", { class: "new" }, changes.body)),
      Object.entries(headers).map(([name, value]) => el("p", {}, el("code", {}, name), value === null ? " is removed" : ` becomes ${value}`)),
      changes.content_type !== undefined && el("p", {}, `content type becomes ${changes.content_type}`),
      el("p", { class: "soft" }, "The original is kept in headers of the message.")];
    if (await form("Replay this?", "Replay", lines)) await start("replay", { selection: { keys: [letter.key] }, edit: changes });
  }

  async function act(job, action) {
    try { await api.post(`jobs/${job.id}/${action}`, {}); } catch (error) { toast(error.message, { bad: true }); }
    await loadJobs().catch(failed);
  }

  // ---- One dead letter ----

  async function open(letter) {
    let found;
    try {
      found = await api.get("dead-letters/letter", { ...refOf(state.queue), key: letter.key, position: letter.position });
    } catch (error) { return void toast(error.message, { bad: true }); }
    const model = found.model;
    const pre = (text, label) => el("pre", { tabindex: "0", "aria-label": label }, text === "" ? "(empty)" : text);
    const pairs = (values) => el("dl", { class: "pairs" }, Object.entries(values).map(([name, value]) =>
      [el("dt", {}, el("code", {}, name)), el("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]));
    const trace = (found.traceback || "").split("\n").map((line) => el("span", {
      class: /File "/.test(line) && !/-packages|\/lib\/python|workerkit\//.test(line) ? "own" : "" }, line, "\n"));
    const tabs = {
      Body: () => pre(found.pretty ?? found.text ?? "The body is no text: see Hex.", "Body"),
      Text: found.text !== null && (() => pre(found.text, "Text")),
      Hex: () => pre(found.hex, "Hex"),
      Model: () => el("div", {}, el("p", {}, model.type ? ["as ", el("code", {}, model.type)] : "", model.problem && ` ${model.problem}`),
        model.errors.length ? el("ul", { class: "red" }, model.errors.map((each) => el("li", {}, each))) : model.value !== null && pre(model.value, "Model")),
      Headers: () => [pairs(found.headers), el("h2", {}, "Properties"), pairs({ ...found.properties, exchange: found.exchange, routing_key: found.routing_key })],
      Traceback: found.traceback && (() => el("pre", { tabindex: "0", class: "trace", "aria-label": "Traceback" }, trace)),
      Original: found.original !== null && (() => pre(found.original, "Original")),
    };
    const panel = el("div", { role: "tabpanel" });
    const list = el("div", { role: "tablist", class: "tabs" });
    const select = (name) => {
      panel.replaceChildren(...[tabs[name]()].flat());
      for (const each of list.children) each.setAttribute("aria-selected", String(each.textContent === name));
    };
    for (const name of Object.keys(tabs).filter((each) => tabs[each]))
      list.append(el("button", { role: "tab", type: "button", onclick: () => select(name) }, name));
    const button = (label, role, run, kind = "") => el("button", { class: kind, disabled: Boolean(me.forbids(role)), title: me.forbids(role) || null,
      onclick: () => { dialog.close(); run(); } }, label);
    const copy = el("button", { onclick: async () => {
      await navigator.clipboard?.writeText(found.text ?? found.base64 ?? "");
      copy.textContent = "Copied";
    } }, "Copy body");
    const dialog = el("dialog", { class: "letter", "aria-label": `Dead letter ${found.message_id || found.key}` },
      el("h2", {}, found.message_id || "without id"),
      el("p", {}, el("b", { class: "red" }, found.error || "unknown"), " ", el("code", {}, found.place), " ", found.reason || ""),
      el("p", { class: "soft" }, [found.consumer, found.failed_at && time(found.failed_at), found.attempt && `attempt ${found.attempt}`,
        found.replays && `replayed ${plural(found.replays, "time")}`, bytes(found.size), found.truncated && "shortened"].filter(Boolean).join(" · ")),
      list, panel, el("div", { class: "buttons" }, copy, button("Delete", "admin", () => remove([found.key])),
        found.text !== null && found.base64 !== null && button("Edit and replay", "admin", () => edit(found)),
        button("Replay", "operate", () => replay([found.key]), "main"), el("button", { onclick: () => dialog.close() }, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    select(model.errors.length ? "Model" : "Body");
    dialog.showModal();
    return undefined;
  }

  // ---- Drawing ----

  const search = {};
  function searchForm() {
    return h("form", { class: "filters", key: "filters", role: "search", onsubmit: (event) => {
      event.preventDefault();
      for (const name of Object.keys(FIELDS)) state.filter[name] = search[name] || "";
      state.group = null;
      reload();
    } }, Object.entries(FIELDS).map(([name, label]) => h("input", { key: name, type: "search", "aria-label": label,
      placeholder: name === "header" ? "Header: name=value" : label, oninput: (event) => { search[name] = event.target.value.trim(); } })),
    h("select", { key: "age", "aria-label": "Age", value: state.age, onchange: (event) => { state.age = event.target.value; reload(); } },
      Object.entries(AGES).map(([value, label]) => h("option", { key: value || "any", value }, label))),
    h("button", { key: "go", class: "main" }, "Search"));
  }

  function bars(counts) {
    const most = Math.max(1, ...counts);
    return h("span", { class: "bars", "aria-hidden": "true" }, counts.map((each, index) => h("i", { key: index, "--part": each / most })));
  }

  const cell = (label, kind, ...content) => h("td", { class: kind, "data-label": label, role: "cell" }, content);
  const heads = (...names) => h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name))));

  const groupTable = () => state.groups && state.groups.groups.length > 0 && h("section", { class: "panel", key: "groups" },
    h("h2", {}, `Groups`), h("table", { "aria-label": "Groups" }, heads("Error", "Consumer", "Number", "Over time", "Last"),
      h("tbody", {}, state.groups.groups.slice(0, 20).map((each) => h("tr", { key: each.id, class: state.group === each.id ? "chosen" : "" },
        cell("", "wide", h("button", { class: "plain", "aria-pressed": String(state.group === each.id), onclick: () => {
          state.group = state.group === each.id ? null : each.id;
          reload();
        } }, h("b", { class: "red" }, each.error || "unknown"), " ", h("code", {}, each.place)), h("small", {}, each.reason)),
        cell("Consumer", "", each.consumer || "–"), cell("Number", "num", number(each.count)),
        cell("Over time", "", bars(each.counts)), cell("Last", "", each.last ? ago(each.last) : "–"))))),
    state.groups.scanned < state.groups.count && h("p", { class: "soft" }, `${number(state.groups.scanned)} of ${number(state.groups.count)} were read in time.`));

  const forbidden = (role) => me.forbids(role);
  const tool = (label, role, run, kind = "") => h("button", { key: label, class: kind, title: forbidden(role) || null,
    disabled: Boolean(forbidden(role)) || !(state.all || state.chosen.size), onclick: run }, label);

  function check(letter, index, event) {
    const [from, to] = event.shiftKey && state.last >= 0 ? [Math.min(state.last, index), Math.max(state.last, index)] : [index, index];
    const isOn = !state.chosen.has(letter.key);
    for (const each of state.letters.slice(from, to + 1)) { if (isOn) state.chosen.set(each.key, each); else state.chosen.delete(each.key); }
    state.last = index;
    state.all = false;
    show();
  }

  const letterTable = () => h("section", { class: "panel", key: "letters" },
    h("div", { class: "tools" }, h("h2", {}, plural(state.count)), h("span", { class: "soft", role: "status" },
      state.loading ? "reading …" : isFiltered() ? `${number(state.letters.length)} match in ${number(state.searched)} searched` : ""),
    h("label", { class: "set" }, h("input", { type: "checkbox", checked: state.letters.length > 0 && state.chosen.size === state.letters.length, "aria-label": "Select all shown",
      onclick: () => {
        if (state.chosen.size === state.letters.length) state.chosen.clear();
        else state.letters.forEach((each) => state.chosen.set(each.key, each));
        state.all = false;
        show();
      } }), "shown"),
    h("label", { class: "set" }, h("input", { type: "checkbox", checked: state.all, "aria-label": isFiltered() ? "Select all that match" : "Select all",
      onclick: () => { state.all = !state.all; show(); } }), isFiltered() ? "all that match" : "all"),
    h("span", { class: "soft" }, state.all ? "all selected" : `${number(state.chosen.size)} selected`),
    h("span", { class: "actions" }, tool("Replay", "operate", () => replay(), "main"), tool("Delete", "admin", () => remove()))),
    state.letters.length ? h("table", { "aria-label": "Dead letters", key: "table" }, heads("", "Message", "Error", "Failed", "Attempts", "Size"),
      h("tbody", {}, state.letters.map((each, index) => h("tr", { key: `${each.key} ${index}` },
        cell("", "", h("input", { type: "checkbox", checked: state.all || state.chosen.has(each.key), "aria-label": `Select ${each.message_id || each.key}`,
          onclick: (event) => check(each, index, event) })),
        cell("Message", "first", h("a", { href: "#", "data-row": each.key, onclick: (event) => { event.preventDefault(); open(each); },
          onkeydown: (event) => { if (event.key === " ") { event.preventDefault(); check(each, index, event); } } }, each.message_id || "without id"), h("small", {}, each.excerpt)),
        cell("Error", "wide", h("b", { class: "red" }, each.error || "unknown"), " ", h("code", {}, each.place), h("small", {}, each.reason)),
        cell("Failed", "", h("span", { title: each.failed_at ? time(each.failed_at) : null }, each.failed_at ? ago(each.failed_at) : "–")),
        cell("Attempts", "num", number(each.attempt), each.replays ? h("small", {}, `replayed ${each.replays}×`) : ""),
        cell("Size", "num", bytes(each.size)))))) : h("p", { class: "empty" }, state.loading ? "Reading the queue …" : isFiltered() ? "No dead letter matches." : "No dead letters."),
    state.next !== null && h("p", { class: "buttons" }, h("button", { onclick: () => more().catch(failed) }, "Load more")));

  const jobTable = () => state.jobs.length > 0 && h("section", { class: "panel", key: "jobs" }, h("h2", {}, "Jobs"), h("table", { "aria-label": "Jobs" },
    heads("Job", "State", "Progress", ""), h("tbody", {}, state.jobs.slice(0, 8).map((each) => h("tr", { key: each.id },
      cell("Job", "first", `${each.kind} of ${each.queue.queue}`, h("small", {}, `${each.user} · ${ago(each.started)}`)),
      cell("State", "", h("span", { class: "state", "data-state": { running: "starting", done: "ready", stopped: "waiting", undoable: "paused" }[each.state] || each.state }, each.state)),
      cell("Progress", "wide", `${number(each.done)} of ${each.total === null ? "…" : number(each.total)}`,
        each.failed_again ? h("b", { class: "red" }, ` · ${number(each.failed_again)} failed again`) : "", h("small", {}, each.text)),
      cell("", "act", each.state === "running" && h("button", { class: "small", onclick: () => act(each, "stop") }, "Stop"),
        each.state === "undoable" && h("button", { class: "small", disabled: Boolean(forbidden("admin")), onclick: () => act(each, "undo") },
          `Undo (${Math.max(0, Math.ceil(-format.since(each.undo_until)))} s)`)))))));

  function show() {
    if (stopped) return;
    const { queue, queues } = state;
    draw(root, [h("div", { class: "columns desk", key: "desk" },
      h("aside", { key: "queues", "aria-label": "Queues" }, h("div", {}, h("h2", {}, "Queues"), (queues || []).map((each) => h("button", {
        key: [each.connection, each.vhost, each.queue].join(" "), class: "chip", "aria-pressed": String(isSame(each, queue)),
        title: each.problem || each.broker, onclick: () => choose(each) }, h("span", {}, each.queue), h("b", {}, each.problem ? "!" : number(each.count)))))),
      h("div", { class: "middle", key: "middle" }, queue ? h("h1", { key: "title" }, queue.queue, h("small", {}, safe(queue.consumers.join(", ")))) : h("p", { class: "empty", key: "title" },
        queues ? "No consumer has a queue for dead letters." : "Reading the queues …"),
      (state.problem || queue?.problem) && h("p", { class: "red", role: "alert", key: "problem" }, state.problem || queue.problem),
      queue && [searchForm(), jobTable(), groupTable(), letterTable()]))]);
  }

  const timer = setInterval(() => {
    if (document.hidden) return;
    if (state.jobs.some((each) => ACTIVE.includes(each.state))) loadJobs().catch(failed);
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
    unmount() { stopped = true; clearInterval(timer); },
  };
}
