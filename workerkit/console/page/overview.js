// The overview, one consumer, the processes and the audit records.
import { draw, format, h } from "./base.js";
import { chart, spark } from "./charts.js";

const { number, rate, seconds, bytes, ago, time, since } = format;
const link = (name) => `#/consumers/${encodeURIComponent(name)}`;
const total = (rows, name) => (rows.some((row) => row[name] !== null) ? rows.reduce((all, row) => all + (row[name] ?? 0), 0) : null);
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const place = (process) => `${process.host}:${process.pid}${process.number ? ` #${process.number}` : ""}`;
const placeOf = (fleet, id) => { const found = fleet.processes.find((each) => each.id === id); return found ? place(found) : id; };
const dots = (...parts) => parts.filter(Boolean).join(" · ");
const percent = (part, all) => (part && all ? `${Number((100 * part / all).toPrecision(2))} %` : "");

// ---- Cells ----

const two = (first, second, kind) => [h("span", { class: kind }, first), h("small", { title: second || null }, second)];
const state = (word, why) => [h("span", { class: "state", "data-state": word }, word),
  h("small", { title: why || null }, why === word ? "" : why)];
const load = ({ in_flight: now, concurrency }) => [concurrency === null ? number(now) : `${number(now)} / ${number(concurrency)}`,
  concurrency > 0 && h("span", { class: now >= concurrency ? "meter full" : "meter", "--part": Math.min(1, now / concurrency) })];
const series = (kind, values, now) => h("span", { class: "series" }, spark(kind, values), h("span", {}, now));
const dead = (queues) => {
  const count = total(queues, "dead");
  const most = queues.reduce((best, each) => (each.dead > best.dead ? each : best), { dead: 0 });
  return count ? h("a", { class: "red", href: `#/dead-letters?${new URLSearchParams({ queue: most.name })}` }, number(count))
    : h("span", { class: "soft" }, number(count));
};

// A table. Columns: [title, cell(row), kind, by(row) to sort]; `keep` has the order that was chosen.
function table(label, columns, rows, { key, empty = "", keep = {}, redraw, open }) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const by = columns.find(([title]) => title === keep.sort)?.[3];
  const sorted = by ? [...rows].sort((a, b) => (keep.down ? -1 : 1) * (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0)) : rows;
  const sort = (title, kind) => {
    Object.assign(keep, keep.sort === title ? { down: !keep.down } : { sort: title, down: kind.startsWith("num") });
    redraw();
  };
  return h("table", { role: "table", "aria-label": label }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
    columns.map(([title, , kind, order]) => h("th", { role: "columnheader", scope: "col", class: kind,
      "aria-sort": order && keep.sort === title ? (keep.down ? "descending" : "ascending") : null },
    order ? h("button", { class: "sort", onclick: () => sort(title, kind) }, title) : title)))),
  h("tbody", { role: "rowgroup" }, sorted.map((row) => h("tr", { role: "row", key: key(row),
    onclick: open ? (event) => event.target.closest("a, button") || open(row) : null },
  columns.map(([title, cell, kind]) => h("td", { role: "cell", class: kind, "data-label": title }, cell(row)))))));
}
const panel = (title, ...content) => h("section", { class: "panel", key: title }, h("h2", {}, title), content);

// ---- Numbers at the top ----

export function header(fleet) {
  const { totals, consumers, processes } = fleet;
  const space = total(consumers, "concurrency");
  const silent = fleet.asked - fleet.answered;
  draw(document.getElementById("numbers"), [
    ["handled", totals.handled, rate(totals.rate)],
    ["failed", totals.failed, percent(totals.failed, totals.handled), "amber"],
    ["retried", totals.retried, percent(totals.retried, totals.handled)],
    ["dead", totals.dead, totals.letters === null ? "" : `${number(totals.letters)} in queues`, "red"],
    ["in flight", totals.in_flight, space ? `of ${number(space)}` : ""],
    ["waiting", totals.waiting, totals.waiting === null ? "unknown" : "in queues"],
    ["processes", totals.processes, silent ? `${fleet.answered} of ${fleet.asked} answer` : "all answer", silent && "red"],
  ].map(([name, value, more, kind]) => h("div", { title: value >= 1e6 ? `${value} ${name}` : null },
    h("span", {}, name), h("b", { class: value && kind || null }, number(value)), h("small", {}, more))));
  const off = processes.length > 0 && !processes.some((each) => each.has_metrics);
  draw(document.getElementById("problems"), [...fleet.problems,
    off && "Metrics are off, so all counts are 0: install workerkit[metrics] and set METRICS__ENABLED=true."].filter(Boolean).map((each) => h("p", {}, each)));
}

// ---- Commands ----

async function command({ api, toast }, what, body) {
  try {
    const report = await api.post("commands", body);
    const failed = report.results.filter((each) => !each.ok);
    toast(`${what}: ${report.text}`, { bad: failed.length > 0 || report.answered < report.asked,
      details: failed.map((each) => `${each.host ? `${each.host}:${each.pid}` : each.process}: ${each.text}`) });
  } catch (error) {
    toast(`${what}: ${error.message}`, { bad: true });
  }
}

function button(context, label, role, run) {
  const reason = context.me.forbids(role);
  return h("button", { class: "small", key: label, disabled: Boolean(reason), title: reason || null, onclick: async (event) => {
    const node = event.currentTarget;
    node.disabled = true;
    await run();
    node.disabled = false;
  } }, label);
}
const act = (context, label, action, consumer, more) => button(context, label, "operate",
  () => command(context, `${label} ${consumer}`, { action, consumer, ...more }));
const alive = (row) => row.processes.filter((each) => each.state !== "silent").length;
const actions = (context, row) => h("span", { class: "actions" }, row.abilities.includes("run") && act(context, "Run", "run", row.name),
  row.abilities.includes("pause") && (row.paused < alive(row)
    ? act(context, "Pause", "pause", row.name) : act(context, "Resume", "resume", row.name)));

// ---- Tables ----

const why = (row) => row.reason && row.reason !== row.state ? row.reason
  : row.paused && row.paused < alive(row) ? `paused in ${row.paused} of ${alive(row)}` : "";
function waiting({ task, queues, streams, routes }) {
  if (task) return task.next ? ago(task.next) : "–";
  if (queues.length) return two(number(total(queues, "ready")), queues.length > 1 && plural(queues.length, "queue"));
  const ages = streams.map((each) => each.age ?? -1);
  if (ages.length) return two(Math.max(...ages) < 0 ? "no event" : `${seconds(Math.max(...ages))} old`, plural(ages.length, "stream"));
  return routes.length ? plural(routes.length, "route") : "–";
}
const consumersTable = (context, rows) => table("Consumers", [
  ["Consumer", (row) => [h("span", { class: "name" }, h("a", { href: link(row.name), "data-row": row.name }, row.name),
    h("span", { class: "kind" }, row.kind)), h("small", { title: row.source }, row.source)], "first", (row) => row.name],
  ["State", (row) => state(row.state, why(row)), "", (row) => row.state],
  ["In flight", load, "num", (row) => row.in_flight],
  ["Rate", (row) => series("blue", row.rates, rate(row.rate)), "num", (row) => row.rate],
  ["p95", (row) => series("violet", row.p95s, seconds(row.p95)), "num", (row) => row.p95 ?? -1],
  ["Failed", (row) => two(number(row.failed), percent(row.failed, row.handled)), "num", (row) => row.failed],
  ["Retried", (row) => two(number(row.retried), row.attempts > 1 && `${row.attempts} attempts`), "num more", (row) => row.retried],
  ["Waiting", waiting, "num", (row) => total(row.queues, "ready") ?? -1],
  ["Dead", (row) => dead(row.queues), "num", (row) => total(row.queues, "dead") ?? -1],
  ["", (row) => actions(context, row), "act"],
], rows, { key: (row) => row.name, empty: "No consumer matches.", keep: context.keep, redraw: context.redraw,
  open: (row) => { location.hash = link(row.name); } });

const failuresTable = (rows) => table("Last failures", [
  ["When", (row) => h("span", { title: time(row.time) }, ago(row.time))],
  ["Consumer", (row) => [h("a", { href: link(row.consumer) }, row.consumer), h("small", { title: row.source }, row.source)]],
  ["Error", (row) => [h("span", {}, h("b", { class: "red" }, row.error), " ", h("code", {}, row.place)), h("small", { title: row.text }, row.text)], "wide"],
  ["Action", (row) => two(row.action, `attempt ${row.attempt}`)],
  ["Delivery, trace", (row) => two(row.delivery || "–", row.trace_id), "ids"],
], rows, { key: (row) => [row.time, row.consumer, row.delivery, row.attempt].join(" "), empty: "Nothing has failed." });

const LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"];
function level(context, row) {
  const reason = context.me.forbids("admin");
  return h("select", { "aria-label": `Log level of ${place(row)}`, disabled: Boolean(reason), title: reason || null, value: row.log_level,
    onchange: (event) => command(context, `Log level ${event.target.value}`, { action: "log_level", value: event.target.value, processes: [row.id] }) },
  [...new Set([...LEVELS, row.log_level])].map((each) => h("option", { key: each }, each)));
}
const drain = (context, row) => button(context, row.draining ? "Undrain" : "Drain", "admin", async () => {
  if (!row.draining && !await context.confirmDialog({ title: `Drain ${place(row)}?`, action: "Drain",
    text: "It receives nothing new, and its handlers finish. Other processes go on." })) return;
  await command(context, `${row.draining ? "Undrain" : "Drain"} ${place(row)}`, { action: row.draining ? "undrain" : "drain", processes: [row.id] });
});
const processesTable = (context, rows) => table("Processes", [
  ["Process", (row) => two(place(row), dots(row.version && `workerkit ${row.version}`, row.python && `Python ${row.python}`)), "first"],
  ["State", (row) => (row.responding ? state(row.draining ? "draining" : row.state, row.reasons.join("; "))
    : state("silent", `no answer for ${seconds(Math.floor(row.silent))}`))],
  ["Uptime", (row) => h("span", { title: `since ${time(row.started)}` }, seconds(Math.max(0, Math.floor(since(row.started))))), "num"],
  ["Memory", (row) => bytes(row.memory), "num"],
  ["Loop lag", (row) => seconds(row.lag), "num"],
  ["In flight", (row) => two(number(row.in_flight), plural(row.consumers, "consumer")), "num"],
  ["Log level", (row) => level(context, row)],
  ["", (row) => drain(context, row), "act"],
], rows, { key: (row) => row.id, empty: "No process answers." });

const connectionsTable = (rows, ...before) => table("Connections", [...before,
  ["Connection", (row) => two(row.name, dots(row.role, row.vhost)), "first"],
  ["State", (row) => state(row.connected ? "connected" : "lost", row.reason)],
  ["Opened", (row) => number(row.opened), "num"],
  ["Lost", (row) => number(row.lost), "num"],
  ["Failed attempts", (row) => number(row.failed), "num"],
], rows, { key: (row) => [row.process, row.name, row.role, row.vhost].join(" "), empty: "No connections." });

// The connections of all processes with the same name and role, as one row.
const together = (connections) => [...Map.groupBy(connections, (each) => `${each.name} ${each.role} ${each.vhost}`).values()].map((all) => {
  const lost = all.filter((each) => !each.connected);
  return { ...all[0], process: "", connected: !lost.length, opened: total(all, "opened"), lost: total(all, "lost"), failed: total(all, "failed"),
    reason: lost.length ? dots(`${all.length - lost.length} of ${all.length} connected`, lost[0].reason) : plural(all.length, "process").replace("sss", "sses") };
});

// ---- The overview ----

// What stays when the page of a consumer is opened and closed.
const keep = { q: "", state: "", kind: "", opened: "", active: -1, completes: false };
const hash = () => {
  const query = new URLSearchParams(["q", "state", "kind"].filter((name) => keep[name]).map((name) => [name, keep[name]]));
  return `#/${query.size ? `?${query}` : ""}`;
};
const words = (row) => [[row.name, "consumer"], [row.kind, "kind"], ...row.queues.map((each) => [each.name, "queue"]),
  ...row.streams.map((each) => [each.source, "stream"]), ...row.routes.map((each) => [each.route, "route"])];

function mountOverview(root, context) {
  let fleet = null;
  Object.assign(context, { keep, redraw: () => show({}) });
  const links = Object.entries(context.me.links).filter(([address]) => /^https?:$/.test(new URL(address, document.baseURI).protocol));
  const show = (change) => {
    Object.assign(keep, change);
    if (location.hash !== hash()) history.replaceState(null, "", hash());
    if (fleet) draw(root, page());
  };
  const read = (params) => show({ q: params.get("q") || "", state: params.get("state") || "", kind: params.get("kind") || "" });

  const chips = (name) => [h("h2", {}, name), h("div", { role: "group", "aria-label": name },
    [...Map.groupBy(fleet.consumers, (row) => row[name])].map(([value, rows]) => h("button", { class: "chip", key: value,
      "aria-pressed": String(keep[name] === value), onclick: () => show({ [name]: keep[name] === value ? "" : value }) },
    h("span", name === "state" ? { class: "state", "data-state": value } : {}, value), h("b", {}, number(rows.length)))))];

  function search() {
    const part = keep.q.trim().toLowerCase();
    const found = !keep.completes || !part ? [] : [...new Map(fleet.consumers.flatMap(words).map((each) => [each.join(" "), each])).values()]
      .filter(([word]) => word.toLowerCase().includes(part) && word.toLowerCase() !== part).slice(0, 8);
    const active = Math.min(keep.active, found.length - 1);
    const choose = (input, q) => { input.value = q; show({ q, completes: false, active: -1 }); };
    const onkeydown = (event) => {
      const [input, step] = [event.currentTarget, { ArrowDown: 1, ArrowUp: -1 }[event.key]];
      if (step && found.length) show({ active: Math.max(-1, Math.min(found.length - 1, active + step)) });
      else if (event.key === "Enter" && active >= 0) choose(input, found[active][0]);
      else if (event.key === "Enter" || step > 0) { show({ completes: false }); root.querySelector("[data-row]")?.focus(); }
      else if (event.key !== "Escape") return;
      else if (found.length) show({ completes: false });
      else if (keep.q) choose(input, "");
      else input.blur();
      event.preventDefault();
    };
    return h("div", { class: "search" }, h("input", { type: "search", role: "combobox", placeholder: "Search name, kind, queue", value: keep.q,
      "aria-label": "Search consumers", "aria-controls": "found", "aria-expanded": String(found.length > 0), "aria-autocomplete": "list",
      "aria-activedescendant": active < 0 ? null : `found-${active}`, autocomplete: "off", spellcheck: "false", maxlength: 200, onkeydown,
      oninput: (event) => show({ q: event.currentTarget.value, completes: true, active: -1 }), onblur: () => show({ completes: false }) }),
    h("kbd", { "aria-hidden": "true" }, "/"), h("div", { id: "found", role: "listbox", "aria-label": "Completions", hidden: !found.length },
      found.map(([word, what], index) => h("div", { role: "option", id: `found-${index}`, "aria-selected": String(index === active),
        onpointerdown: (event) => { event.preventDefault(); choose(root.querySelector("input"), word); } }, h("span", {}, word), h("small", {}, what)))));
  }

  function page() {
    const { totals, consumers } = fleet;
    const part = keep.q.trim().toLowerCase();
    const rows = consumers.filter((row) => (!keep.state || row.state === keep.state) && (!keep.kind || row.kind === keep.kind)
      && (!part || words(row).some(([word]) => word.toLowerCase().includes(part))));
    return [h("h1", { class: "hidden" }, "Overview"), h("div", { class: "columns" },
      h("aside", {}, chips("state"), chips("kind"), links.length > 0 && [h("h2", {}, "Pages"),
        h("div", {}, links.map(([address, title]) => h("a", { href: address, title }, address)))]),
      h("div", { class: "middle" }, chart("Throughput", [["handled", "blue", totals.rates], ["failed", "red", totals.failures]], fleet.interval, rate),
        h("section", { class: "panel" }, h("div", { class: "tools" }, h("h2", {}, "Consumers"), h("span", { class: "soft", role: "status" },
          rows.length === consumers.length ? number(rows.length) : `${rows.length} of ${consumers.length}`), search()),
        consumers.length ? consumersTable(context, rows)
          : h("p", { class: "empty" }, "No consumers yet: declare one in the package of the application, and start it again."))),
      h("div", { class: "right" }, panel("Last failures", failuresTable(fleet.failures.slice(0, 8))),
        panel("Processes", processesTable(context, fleet.processes)), panel("Connections", connectionsTable(together(fleet.connections)))))];
  }

  if (context.params.size || !keep.opened) read(context.params);
  return { route: read, unmount() {}, update(now) {
    fleet = now;
    show({});
    if (keep.opened) [...root.querySelectorAll("[data-row]")].find((each) => each.dataset.row === keep.opened)?.focus();
    keep.opened = "";
  } };
}

// ---- One consumer ----

// Changes of a consumer, in all processes or in one.
function changes(context, row, fleet) {
  const scope = () => document.getElementById("scope").value;
  const processes = () => (scope() ? { processes: [scope()] } : {});
  const can = (ability) => row.abilities.includes(ability);
  const simple = (label, action) => button(context, label, "operate", () => command(context, `${label} ${row.name}`,
    { action, consumer: row.name, ...processes() }));
  const reason = context.me.forbids("operate");
  const set = (ability) => h("form", { class: "set", key: ability, onsubmit: (event) => {
    event.preventDefault();
    command(context, `Set ${ability} of ${row.name}`, { action: ability, consumer: row.name,
      value: event.target.elements[0].valueAsNumber, ...processes() });
  } }, h("label", {}, ability, h("input", { type: "number", min: 1, max: 65535, required: true, disabled: Boolean(reason),
    value: row.processes[0]?.[ability] ?? "" })), h("button", { class: "small", disabled: Boolean(reason), title: reason || null }, "Set"));
  return panel("Change", h("div", { class: "tools" }, h("select", { id: "scope", "aria-label": "Processes" }, h("option", { value: "" }, "all processes"),
    row.processes.map((each) => h("option", { value: each.process, key: each.process }, placeOf(fleet, each.process)))),
  can("pause") && [simple("Pause", "pause"), simple("Resume", "resume")], can("run") && simple("Run", "run"),
  can("concurrency") && set("concurrency"), can("prefetch") && set("prefetch")), h("p", { class: "soft" }, "A change lasts until the process ends."));
}

function mountConsumer(root, context) {
  const name = context.argument;
  const code = (text) => h("span", { class: "mono" }, text);
  keep.opened = name;

  function page(row, fleet) {
    const part = (title, columns, rows, key) => rows.length > 0 && panel(title, table(title, columns, rows, { key }));
    const failures = fleet.failures.filter((each) => each.consumer === name);
    return [h("div", { class: "facts" }, ["handled", "failed", "retried", "dead", "attempts"].map((each) =>
      h("div", {}, h("span", {}, each), h("b", {}, number(row[each])))), h("div", {}, h("span", {}, "in flight"), h("b", {}, load(row)[0]))),
    h("div", { class: "pair" }, chart("Rate", [["deliveries", "blue", row.rates]], fleet.interval, rate),
      chart("Duration", [["p95", "violet", row.p95s]], fleet.interval, seconds)),
    row.abilities.length > 0 && changes(context, row, fleet),
    row.task && part("Task", [["Schedule", (task) => two(task.schedule, task.role), "first"],
      ["Last run", (task) => (task.last ? state(task.last_ok === false ? "failed" : "succeeded", ago(task.last)) : "none yet")],
      ["Duration", (task) => seconds(task.last_seconds), "num"],
      ["Next run", (task) => (task.next ? two(ago(task.next), time(task.next)) : "–"), "num"]], [row.task], () => "task"),
    part("Queues", [["Queue", (each) => two(each.name, dots(each.connection, each.vhost, each.broker)), "first"],
      ["Waiting", (each) => number(each.ready), "num"], ["Dead letters", (each) => dead([each]), "num"],
      ["Queue for dead letters", (each) => each.dead_letters || "none"]], row.queues, (each) => each.connection + each.vhost + each.name),
    part("Streams", [["Stream", (each) => each.source, "first"], ["State", (each) => state(each.state)],
      ["Last event", (each) => (each.age === null ? "none yet" : `${seconds(each.age)} ago`), "num"],
      ["Cursor", (each) => code(each.cursor ?? "–")]], row.streams, (each) => each.source),
    part("Routes", [["Route", (each) => code(`${each.method} ${each.route}`), "first"], ["Rate", (each) => rate(each.rate), "num"],
      ["p95", (each) => seconds(each.p95), "num"], ["Requests", (each) => number(each.requests), "num"],
      ["Errors", (each) => number(each.errors), "num"]], row.routes, (each) => `${each.method} ${each.route}`),
    part("Processes", [["Process", (each) => placeOf(fleet, each.process), "first"], ["State", (each) => state(each.state, each.reason)],
      ["In flight", load, "num"], ["Prefetch", (each) => number(each.prefetch), "num"],
      ["", (each) => row.abilities.includes("pause") && h("span", { class: "actions" }, act(context, each.paused ? "Resume" : "Pause",
        each.paused ? "resume" : "pause", name, { processes: [each.process] })), "act"]], row.processes, (each) => each.process),
    failures.length > 0 && panel("Last failures", failuresTable(failures))];
  }
  return { close: () => { location.hash = hash(); }, unmount() {}, update(fleet) {
    const row = fleet.consumers.find((each) => each.name === name);
    draw(root, [h("div", { class: "page" }, h("a", { href: hash() }, "← Consumers"),
      h("h1", {}, name, " ", row && [h("span", { class: "kind" }, row.kind), h("span", { class: "state", "data-state": row.state }, row.state),
        h("small", {}, dots(row.source, why(row)))]), row ? page(row, fleet) : h("p", { class: "empty" }, `No process has a consumer ${name}.`))]);
  } };
}

// ---- Processes and audit records ----

const mountProcesses = (root, context) => ({ unmount() {}, update(fleet) {
  draw(root, [h("div", { class: "page" }, h("h1", {}, "Processes"), panel("Processes", processesTable(context, fleet.processes)),
    panel("Connections", connectionsTable(fleet.connections, ["Process", (row) => placeOf(fleet, row.process)])))]);
} });

function mountAudit(root, { api }) {
  let read = 0;
  let records = null;
  const update = async () => {
    if (Date.now() - read < 5000) return;
    read = Date.now();
    let problem = "";
    try { records = await api.get("audit"); } catch (error) { problem = error.message; }
    draw(root, [h("div", { class: "page" }, h("h1", {}, "Audit"), h("p", { class: "red", role: "alert" }, problem),
      records && panel("What operators have done", table("Audit records", [
        ["When", (row) => two(ago(row.time), time(row.time))], ["Who", (row) => two(row.user, dots(row.role, row.address))],
        ["Action", (row) => row.action], ["Target", (row) => row.target], ["Result", (row) => row.result, "wide"],
      ], records, { key: JSON.stringify, empty: "Nothing has been changed." })))]);
  };
  update();
  return { update, unmount() {} };
}

const PAGES = { consumers: mountConsumer, processes: mountProcesses, audit: mountAudit };
export const mount = (root, context) => (PAGES[context.name] || mountOverview)(root, context);
