"use strict";
// What both pages use: elements, schemas and examples. Texts of a document are inserted as text
// nodes, never as HTML, and no text becomes a link.
let api = {};

const make = (tag, options, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element[name] = value;
    else if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return element;
};
const find = (id) => document.getElementById(id);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const own = (object, name) => (isObject(object) && Object.hasOwn(object, name) ? object[name] : undefined);
const entries = (object) => Object.entries(isObject(object) ? object : {});
const list = (value) => (Array.isArray(value) ? value : []);
const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// Paragraphs of a description, with `code` and **bold** of Markdown.
const prose = (text) => !text ? [] : String(text).trim().split(/\n\s*\n/).map((part) =>
  make("p", {}, part.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((piece) => piece.startsWith("`") && piece.length > 1
    ? make("code", {}, piece.slice(1, -1)) : piece.startsWith("**") ? make("b", {}, piece.slice(2, -2)) : piece)));

const copy = (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without TLS, browsers have that for localhost only.
  const area = make("textarea", {}, text);
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
};
const copyButton = (label, text) => {
  const button = make("button", { type: "button", class: "small", onclick: async () => {
    await copy(text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  } }, label);
  return button;
};

// ---- Schemas ----
const parts = (reference) => String(reference).replace(/^#\//, "").split("/")
  .map((part) => decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~"));
const pointed = (reference) => parts(reference).reduce(own, api);
const nameOf = (reference) => parts(reference).pop();

// The schema that a reference leads to; what stands beside the reference counts as well.
const resolved = (schema) => {
  let found = isObject(schema) ? schema : {};
  for (let hops = 0; hops < 20; hops++) {
    const only = Object.keys(found).length && list(found.allOf).length === 1 ? found.allOf[0] : null;
    const target = found.$ref ? pointed(found.$ref) || {} : only;
    if (!target) break;
    const { $ref, allOf, ...beside } = found;
    found = { ...target, ...beside };
  }
  return found;
};
const alternatives = (schema) => list(schema.anyOf || schema.oneOf);

const typeText = (schema, depth = 0) => {
  if (schema === true || !isObject(schema) || depth > 6) return "anything";
  if (schema.$ref) return nameOf(schema.$ref);
  if (list(schema.allOf).length === 1) return typeText(schema.allOf[0], depth + 1);
  if (alternatives(schema).length)
    return [...new Set(alternatives(schema).map((each) => typeText(each, depth + 1)))].join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum && !schema.type) return "one of";
  const type = Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type;
  if (type === "array") {
    const items = Array.isArray(schema.items) ? schema.items : list(schema.prefixItems);
    if (items.length) return "[" + items.map((each) => typeText(each, depth + 1)).join(", ") + "]";
    return "list of " + typeText(schema.items || {}, depth + 1);
  }
  if (type === "object" && isObject(schema.additionalProperties) && !schema.properties)
    return "map of " + typeText(schema.additionalProperties, depth + 1);
  return (type || "anything") + (schema.format ? ` (${schema.format})` : "");
};

const LIMITS = {
  minimum: "≥ ", exclusiveMinimum: "> ", maximum: "≤ ", exclusiveMaximum: "< ",
  multipleOf: "multiple of ", minLength: "min. length ", maxLength: "max. length ",
  minItems: "min. items ", maxItems: "max. items ", pattern: "pattern ", default: "default ",
};
const limits = (schema) => {
  const found = [schema, ...alternatives(schema)].flatMap((each) => entries(LIMITS)
    .filter(([name]) => own(each, name) !== undefined && each[name] !== null)
    .map(([name, text]) => text + shown(each[name])));
  const values = list(resolved(schema).enum);
  if (values.length) found.push(values.slice(0, 50).map(shown).join(" | ") + (values.length > 50 ? " | …" : ""));
  if (schema.readOnly) found.push("read only");
  if (schema.deprecated) found.push("deprecated");
  return [...new Set(found)].join(", ");
};

// The schemas below one, each with a label: of properties, of items, of alternatives.
const below = (schema, depth = 0) => {
  const full = resolved(schema);
  const required = list(full.required);
  const found = entries(full.properties).map(([name, each]) =>
    ({ label: name, schema: each, required: required.includes(name), code: true }));
  if (isObject(full.additionalProperties) && Object.keys(full.additionalProperties).length)
    found.push({ label: "any other name", schema: full.additionalProperties });
  const items = Array.isArray(full.items) ? full.items : list(full.prefixItems);
  if (items.length) found.push(...items.map((each, at) => ({ label: `item ${at + 1}`, schema: each })));
  else if (isObject(full.items) && depth < 5) found.push(...below(full.items, depth + 1));
  const choices = [...alternatives(full), ...(list(full.allOf).length > 1 ? full.allOf : [])];
  const complex = choices.filter((each) => hasParts(each));
  if (complex.length === 1 && choices.length <= 2 && depth < 5) return [...found, ...below(complex[0], depth + 1)];
  found.push(...complex.map((each) => ({ label: typeText(each), schema: each })));
  return found;
};
const hasParts = (schema, seen = new Set()) => {
  const full = resolved(schema), key = schema.$ref || schema;
  if (seen.has(key)) return false;
  seen.add(key);
  const inner = [full.additionalProperties, full.items, full.prefixItems, alternatives(full)].flat();
  return entries(full.properties).length > 0 || list(full.allOf).length > 1
    || inner.some((each) => isObject(each) && hasParts(each, seen));
};

const field = ({ label, schema, required, code, note }) => {
  const full = resolved(schema);
  return make("div", {},
    make("dt", {}, code ? make("code", {}, label) : label),
    make("dd", {}, make("span", { class: "type mono" }, typeText(schema)),
      required && make("span", { class: "limits bad" }, "required"),
      note && make("span", { class: "limits" }, note),
      make("span", { class: "limits" }, limits(isObject(schema) ? { ...full, ...schema } : full)),
      prose(full.description), hasParts(schema) && nested(schema)));
};
const fields = (rows) => make("dl", { class: "fields" }, rows.map(field));

// A part that is filled when it is opened, so that recursive and huge schemas cost nothing before.
const lazy = (classes, summary, fill) => {
  const element = make("details", { class: classes, ontoggle: () => {
    if (element.open && element.childElementCount === 1) element.append(...[fill()].flat(Infinity).filter(Boolean));
  } }, make("summary", {}, summary));
  return element;
};
const nested = (schema) => lazy("nested", "Fields", () => fields(below(schema)));

const schemaView = (schema) => [
  make("p", {}, make("span", { class: "type mono" }, typeText(schema)),
    make("span", { class: "limits" }, limits(resolved(schema)))),
  ...prose(resolved(schema).description),
  hasParts(schema) && fields(below(schema)),
];

const FORMATS = {
  "date-time": "2026-01-31T12:00:00Z", date: "2026-01-31", time: "12:00:00", duration: "PT1H",
  uuid: "3fa85f64-5717-4562-b3fc-2c963f66afa6", email: "user@example.com", uri: "urn:example",
  ipv4: "192.0.2.1", ipv6: "2001:db8::1",
};
// An example of a schema. A reference inside itself and a huge schema end the recursion.
const example = (schema, inside = [], budget = { left: 400 }) => {
  if (!isObject(schema) || budget.left-- < 0) return null;
  if (schema.$ref && inside.includes(schema.$ref)) return null;
  const within = schema.$ref ? [...inside, schema.$ref] : inside;
  const target = list(schema.allOf).length === 1 ? schema.allOf[0].$ref : null;
  if (target && within.includes(target)) return null;
  const path = target ? [...within, target] : within;
  const full = resolved(schema);
  for (const name of ["example", "const", "default"]) if (own(full, name) !== undefined && full[name] !== null) return full[name];
  if (list(full.examples).length) return full.examples[0];
  if (list(full.enum).length) return full.enum[0];
  const choices = alternatives(full);
  if (choices.length) {
    const [first] = [...choices.filter((each) => each.type !== "null" && !inside.includes(each.$ref)), {}];
    return example(first, path, budget);
  }
  if (list(full.allOf).length) return Object.assign({}, ...full.allOf.map((each) => example(each, path, budget)));
  const type = Array.isArray(full.type) ? full.type.find((each) => each !== "null") : full.type;
  if (type === "object" || full.properties) {
    const found = {};
    for (const [name, each] of entries(full.properties)) {
      if (each.readOnly) continue;
      const value = example(each, path, budget);
      if (value !== null || list(full.required).includes(name)) found[name] = value;
    }
    return found;
  }
  if (type === "array") {
    const items = Array.isArray(full.items) ? full.items : list(full.prefixItems);
    if (items.length) return items.map((each) => example(each, path, budget));
    const item = example(full.items || {}, path, budget);
    return item === null ? [] : Array(Math.min(full.minItems || 1, 3)).fill(item);
  }
  if (type === "integer" || type === "number") return numberIn(full);
  if (type === "boolean") return true;
  if (type === "null" || type === undefined) return null;
  const text = own(FORMATS, full.format) || "string";
  return full.minLength > text.length ? text.padEnd(Math.min(full.minLength, 1000), "g") : text.slice(0, full.maxLength ?? 99);
};
const numberIn = (schema) => {
  const step = schema.multipleOf || 1;
  const least = schema.minimum ?? (schema.exclusiveMinimum !== undefined ? schema.exclusiveMinimum + step : undefined);
  const most = schema.maximum ?? (schema.exclusiveMaximum !== undefined ? schema.exclusiveMaximum - step : undefined);
  return Math.ceil((least ?? Math.min(1, most ?? 1)) / step) * step;
};

// JSON with indentation and colours. Its tokens are kept as they are: a number of 20 digits too.
const TOKENS = /("(?:\\.|[^"\\])*")(\s*:)?|(-?\d[\d.eE+-]*|true|false|null)|([{}[\],])/g;
const jsonView = (text) => {
  try { JSON.parse(text); } catch { return [text]; }
  if (text.length > 200000) return [text];
  const found = [];
  let depth = 0, before = "";
  const line = () => "\n" + "  ".repeat(Math.min(depth, 40));
  for (const [, string, colon, plain, mark] of text.matchAll(TOKENS)) {
    const closes = mark === "}" || mark === "]";
    const empty = closes && (before === "{" || before === "[");
    if (closes && depth--) found.push(empty ? "" : line());
    else if (before === "{" || before === "[" || before === ",") found.push(line());
    if (mark) found.push(mark);
    else if (string) found.push(make("span", { class: colon ? "key" : "string" }, string), colon ? ": " : "");
    else found.push(make("span", { class: "number" }, plain));
    if (mark === "{" || mark === "[") depth++;
    before = mark || "value";
  }
  return found;
};
const codeBlock = (label, ...content) => make("pre", { tabindex: "0", "aria-label": label }, content);
const exampleView = (schema, open = false) => {
  const view = lazy("nested", "Example", () => {
    const text = JSON.stringify(example(schema), null, 2);
    return [codeBlock("Example", jsonView(text)), make("div", { class: "row" }, copyButton("Copy", () => text))];
  });
  view.open = open;
  return view;
};

// ---- The page ----
const THEMES = ["auto", "light", "dark"];
const setTheme = (theme) => {
  document.documentElement.dataset.theme = theme;
  find("theme").textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme];
  find("theme").setAttribute("aria-label", `Theme: ${theme}`);
};
const storage = (call) => { try { return call(window.localStorage); } catch { return null; } };
const initialTheme = storage((kept) => kept.getItem("workerkit-docs-theme"));
setTheme(THEMES.includes(initialTheme) ? initialTheme : "auto");
find("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  setTheme(next);
  storage((kept) => kept.setItem("workerkit-docs-theme", next));
});

// What the search filters: cards with their links, in groups.
const groups = [];
const ids = new Set(["main", "nav", "name", "search", "theme", "authorize", "count"]);
const uniqueId = (wanted) => {
  let id = wanted;
  for (let number = 2; ids.has(id); number++) id = `${wanted}-${number}`;
  ids.add(id);
  return id;
};
const group = (title, description) => {
  const id = uniqueId(`group-${title}`);
  const heading = make("section", { "aria-labelledby": id }, make("h2", { id }, title), ...prose(description));
  const link = make("b", {}, title);
  find("main").append(heading);
  find("nav").append(link);
  const added = { title, heading, link, cards: [] };
  groups.push(added);
  return added;
};
const card = (within, { id, verb, title, text, words, marks, label }, fill) => {
  const name = uniqueId(id);
  const badge = () => verb && make("span", { class: `verb ${verb.toLowerCase()}` }, verb.toUpperCase());
  const element = lazy("card", "", fill);
  element.id = name;
  element.firstChild.append(...[badge(), make("code", {}, title), text && make("span", { class: "text soft" }, text),
    ...list(marks).map((mark) => mark && make("span", { class: "tag" }, mark))].filter(Boolean));
  element.addEventListener("toggle", () => {
    if (element.open && location.hash !== "#" + encodeURIComponent(name)) history.replaceState(null, "", "#" + encodeURIComponent(name));
  });
  const link = make("a", { href: "#" + encodeURIComponent(name) }, !label && badge(), make("span", {}, label || text || title));
  link.addEventListener("click", () => show(name));
  within.heading.append(element);
  find("nav").append(link);
  within.cards.push({ element, link, words: [id, verb, title, text, words, within.title].join(" ").toLowerCase() });
};
const show = (id) => {
  const element = find(id);
  if (!element || !element.classList.contains("card")) return;
  element.open = true;
  element.scrollIntoView();
  element.firstChild.focus({ preventScroll: true });
};
const showHash = () => {
  try { show(decodeURIComponent(location.hash.slice(1))); } catch { /* It is no id of this page. */ }
};
const search = () => {
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { heading, link, cards } of groups) {
    let any = false;
    for (const each of cards) {
      const hit = words.every((word) => each.words.includes(word));
      each.element.hidden = each.link.hidden = !hit;
      any ||= hit;
      count += hit;
    }
    heading.hidden = link.hidden = !any && words.length > 0;
  }
  find("count").textContent = words.length ? `${count} found` : "";
};
find("search").addEventListener("input", search);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
    event.preventDefault();
    find("search").focus();
  }
});
window.addEventListener("hashchange", showHash);

const head = (links) => {
  const { title, version, description } = isObject(api.info) ? api.info : {};
  document.title = find("name").textContent = String(title || "API");
  find("main").prepend(make("h1", {}, String(title || "API"), " ", make("small", { class: "tag" }, String(version ?? ""))),
    ...prose(description), make("p", { class: "soft" }, links));
};
const drawTypes = () => {
  const named = entries(own(api.components, "schemas"));
  const within = named.length && group("Types");
  for (const [name, schema] of named)
    card(within, { id: `type-${name}`, title: name, words: schema.description }, () =>
      make("div", { class: "inside two" }, make("div", {}, schemaView(schema)), make("div", {}, exampleView(schema, true))));
};
const load = async (url, draw) => {
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`status ${response.status}`);
    api = await response.json();
    draw();
    showHash();
  } catch (error) {
    find("main").append(make("p", { class: "bad", role: "alert" }, `${url} cannot be displayed: ${error.message}`));
  }
};
