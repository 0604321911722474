// Sparklines and the chart.
import { draw, format, h } from "./base.js";

const WIDTH = 1000;
const HEIGHT = 160;
const largest = (values) => values.reduce((most, value) => Math.max(most, value || 0), 0);

// The line and the area below it. The newest value is at the right; there is a gap for each null.
function paths(values, top, height, places) {
  let [line, area, from] = ["", "", null];
  const x = (index) => Math.round(WIDTH * 10 * (1 - (values.length - 1 - index) / (places - 1))) / 10;
  [...values, null].forEach((value, index) => {
    if (value === null) {
      if (from !== null) area += `L${x(index - 1)} ${height}L${x(from)} ${height}Z`;
      from = null;
      return;
    }
    const step = `${from === null ? "M" : "L"}${x(index)} ${Math.round(10 * (height - 1 - Math.min(1, value / top) * (height - 3))) / 10}`;
    line += step;
    area += step;
    from ??= index;
  });
  return [h("path", { class: "area", d: area }), h("path", { class: "line", d: line })];
}
const picture = (kind, height, ...content) => h("svg", { class: kind, viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none",
  "aria-hidden": "true" }, content);

// A line as high as a line of text; the number beside it says the same.
export function spark(kind, values) {
  const last = values.slice(-60);
  return picture(`spark ${kind}`, 24, paths(last, largest(last) * 1.05 || 1, 24, Math.max(30, last.length)));
}

// A round number that is not less than the value.
function roundTop(value) {
  if (!(value > 0)) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].find((each) => each * size >= value * 0.999) * size;
}

// The chart that the pointer is at, and where, from 0 to 1.
let pointer = {};

// A chart of series: [name, kind, values]; `write` returns a value as text.
export function chart(title, series, interval, write) {
  const places = Math.max(60, ...series.map(([, , values]) => values.length));
  const top = roundTop(Math.max(...series.map(([, , values]) => largest(values))));
  const ago = (steps) => (steps ? `${format.seconds(Math.round(steps * interval))} ago` : "now");
  const inside = () => {
    const steps = pointer.title === title ? Math.round((1 - pointer.at) * (places - 1)) : 0;
    const x = WIDTH * (1 - steps / (places - 1));
    return [h("figcaption", {}, h("h2", {}, title), h("span", { class: "legend" }, steps > 0 && h("span", { key: "at" }, ago(steps)),
      series.map(([name, kind, values]) => h("span", { class: kind, key: name }, h("i"), `${name} `, h("b", {}, write(values.at(-1 - steps))))))),
    h("div", { class: "scale" }, [top, top / 2, 0].map((value) => h("span", {}, write(value)))),
    h("div", { class: "plot", onpointermove: at, onpointerleave: at }, picture("", HEIGHT,
      [0.5, 40, 80, 120, HEIGHT - 0.5].map((y) => h("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y })),
      series.map(([, kind, values]) => h("g", { class: kind }, paths(values, top, HEIGHT, places))),
      steps > 0 && h("line", { class: "cursor", x1: x, x2: x, y1: 0, y2: HEIGHT }))),
    h("div", { class: "times" }, [places - 1, (places - 1) / 2, 0].map((step) => h("span", {}, ago(step))))];
  };
  function at(event) {
    const box = event.currentTarget.getBoundingClientRect();
    pointer = event.type === "pointermove" ? { title, at: Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) } : {};
    draw(event.currentTarget.closest("figure"), inside());
  }
  return h("figure", { class: "chart panel", key: title }, inside());
}
