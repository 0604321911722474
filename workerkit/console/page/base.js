// Elements and texts. What comes from outside becomes text nodes, never HTML.

// ---- Elements ----

// Control characters and marks that change the direction of text are shown, not obeyed.
const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
export const safe = (text) => String(text ?? "").replace(HIDDEN,
  (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

// An element. Attributes: functions `on…` are listeners, booleans are properties, null is left out.
export function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") element.className = value;
    else if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, safe(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(safe(child));
  }
  return element;
}

// ---- Pages as functions of their data ----

// What an element shall be; `draw` changes the existing one.
export const h = (tag, attributes, ...children) => ({ tag, attributes: attributes || {}, children });

const SVG = new Set(["svg", "g", "path", "line"]);
const drawn = new WeakMap();

function change(entry, wanted) {
  const { node, attributes } = entry;
  for (const name of Object.keys(attributes)) if (!(name in wanted)) wanted[name] = null;
  for (const [name, value] of Object.entries(wanted)) {
    if (attributes[name] === value || name === "key") continue;
    if (typeof value === "function" || typeof value === "boolean") node[name] = value;
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name === "value") { if (node.tagName !== "INPUT" || document.activeElement !== node) node.value = value; }
    else if (value === null || value === undefined) node.removeAttribute(name);
    else node.setAttribute(name, safe(value));
  }
  entry.attributes = wanted;
}

// Make the children of an element what they shall be, and keep those that are the same: by their
// attribute `key`, or else by their place.
export function draw(parent, children) {
  const before = drawn.get(parent) || new Map();
  const after = new Map();
  const focused = document.activeElement;
  children.flat(9).forEach((child, index) => {
    if (child === null || child === undefined || child === false || child === "") return;
    const { tag = "", attributes = {}, children: inner } = child;
    let key = `${tag} ${attributes.key ?? index}`;
    while (after.has(key)) key += "+";
    const entry = before.get(key) || { attributes: {}, node: !tag ? document.createTextNode("")
      : SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag) };
    after.set(key, entry);
    if (tag) {
      draw(entry.node, inner);
      change(entry, attributes);
    } else if (entry.node.data !== safe(child)) entry.node.data = safe(child);
  });
  for (const [key, { node }] of before) if (!after.has(key)) node.remove();
  let next = parent.firstChild;
  for (const { node } of after.values()) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
  drawn.set(parent, after);
  if (focused !== document.activeElement && focused?.isConnected) focused.focus();
}

// ---- Texts for numbers ----

let skew = 0; // of the server's clock, in milliseconds
export const setClock = (time) => { skew = Date.parse(time) - Date.now() || 0; };
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const two = (value, unit, size, smaller) => {
  const rest = Math.floor((value % size) / (size / 60));
  return `${Math.floor(value / size)} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
};

export const format = {
  number: (value) => !isNumber(value) ? "–" : value < 1e6 ? whole.format(value) : short.format(value),
  rate: (value) => !isNumber(value) ? "–"
    : value >= 100 || value === 0 ? `${format.number(Math.round(value))}/s` : `${value.toPrecision(2)}/s`,
  seconds: (value) => {
    if (!isNumber(value)) return "–";
    if (value < 0.001) return value === 0 ? "0 s" : "<1 ms";
    if (value < 1) return `${Math.round(value * 1000)} ms`;
    if (value < 60) return `${value < 10 ? Number(value.toFixed(1)) : Math.round(value)} s`;
    if (value < 3600) return two(value, "min", 60, "s");
    if (value < 86400) return two(value, "h", 3600, "min");
    return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
  },
  bytes: (value) => {
    if (!isNumber(value)) return "–";
    const step = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
    return `${Number((value / 1000 ** step).toPrecision(3))} ${["B", "kB", "MB", "GB", "TB"][step]}`;
  },
  // Seconds from a time until now; negative in the future.
  since: (time) => (Date.now() + skew - Date.parse(time)) / 1000,
  ago: (time) => {
    const passed = format.since(time);
    if (!isNumber(passed)) return "–";
    if (Math.abs(passed) < 1) return "now";
    const text = format.seconds(Math.floor(Math.abs(passed))).split(" ").slice(0, 2).join(" ");
    return passed < 0 ? `in ${text}` : `${text} ago`;
  },
  time: (time) => {
    const date = new Date(time);
    return Number.isNaN(date.getTime()) ? "–" : date.toLocaleString("sv");
  },
};
