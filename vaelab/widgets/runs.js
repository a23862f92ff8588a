/* RunExplorer: recorded runs along one knob. See runs.py, which sends the traits named here.
   The slider picks a label; a label without a run can be trained where a kernel answers. */

const TRAITS = ["label", "runs", "asked", "training", "problem"];
const TO_RECORD = "not recorded: run this chapter to train it";
const PATIENCE = 4000;   // ms after which a silent kernel is told of
const STYLE = `
.vaelab-slider .vr-figure { flex: 1 1 20rem; min-width: 0; margin: 0; align-self: flex-start; }
.vaelab-slider .vr-figure svg { display: block; width: 100%; height: auto; overflow: hidden; }
.vaelab-slider .vr-figure text { fill: currentColor; font: 12px sans-serif; font-variant-numeric: tabular-nums; }
.vr-slider .vs-controls { align-self: flex-start; }
.vaelab-slider.vr-slider .vs-controls .vs-range {   /* stronger than other sliders' rules */
  grid-template: "name value" auto "bar bar" auto / auto minmax(0, 1fr); gap: 0.25rem 0.375rem;
}
.vaelab-slider.vr-slider .vs-controls .vs-range label { grid-area: name; font: inherit; }
.vaelab-slider.vr-slider .vs-controls .vs-range output { grid-area: value; text-align: left; font-weight: 600; }
.vaelab-slider.vr-slider .vs-controls .vs-range input {
  grid-area: bar; background: linear-gradient(var(--vs-control), var(--vs-control)) center / 100% 2px no-repeat;
}
.vaelab-slider .vr-stops {
  display: flex; justify-content: space-between; height: 1.5rem; margin-top: 0.375rem; padding: 0 0.625rem;
  font-size: 0.75rem;
}
.vaelab-slider .vr-stop { position: relative; width: 0; }
.vaelab-slider .vr-stop::before {
  content: ""; position: absolute; left: -0.25rem; width: 0.5rem; height: 0.5rem;
  border: 1.5px solid var(--vs-control); border-radius: 50%;
}
.vaelab-slider .vr-recorded::before { background: var(--vs-control); }
.vaelab-slider .vr-stop span { position: absolute; top: 0.5rem; transform: translateX(-50%); white-space: nowrap; }
.vaelab-slider .vr-stop:first-child span { transform: none; left: -0.625rem; }
.vaelab-slider .vr-stop:last-child:not(:first-child) span { transform: none; right: -0.625rem; }
.vaelab-slider .vr-ask {
  display: flex; align-items: center; justify-content: space-between; gap: 0.75rem; min-height: 2rem;
}
.vaelab-slider .vr-state { margin: 0; min-width: 0; font-size: 0.875rem; overflow-wrap: anywhere; }
.vaelab-slider .vr-button { flex: none; }
.vaelab-slider .vr-button:disabled { opacity: 0.6; cursor: default; }
.vaelab-slider .vr-legend {
  display: flex; flex-wrap: wrap; gap: 0.125rem 1rem; margin: 0; padding: 0; list-style: none;
}
.vaelab-slider .vr-legend li { display: flex; align-items: center; gap: 0.375rem; margin: 0; font-size: 0.875rem; }
.vaelab-slider .vr-legend svg { flex: none; width: 44px; height: 12px; }
.vaelab-slider .vr-numbers { width: 100%; margin: 0; border-collapse: collapse; font-size: 0.875rem; color: inherit; }
.vaelab-slider .vr-numbers th, .vaelab-slider .vr-numbers td {
  padding: 0.1875rem 0; border: 0; border-top: 1px solid var(--vs-line); background: none; color: inherit;
  text-align: left; font-weight: 400;
}
.vaelab-slider table.vr-numbers.vr-numbers { display: table; }   /* the book's theme makes tables blocks */
.vaelab-slider .vr-numbers.vr-numbers td { padding-left: 0.75rem; text-align: right; font-variant-numeric: tabular-nums; }
.vaelab-slider .vr-pictures { flex: 1 0 100%; max-width: 100%; }
.vaelab-slider .vr-pictures p { margin: 0 0 0.25rem; font-size: 0.875rem; }
.vaelab-slider .vr-row {
  display: grid; grid-template-columns: repeat(var(--vs-columns), minmax(0, 5rem)); gap: 0.375rem;
}
.vaelab-slider .vr-row canvas { border: 1px solid var(--vs-line); border-radius: 0.25rem; }
.vaelab-slider .vr-row canvas.vr-colour { filter: none; }   /* dark pages invert ink, not colour */
@container (max-width: 30rem) {
  .vaelab-slider .vr-row { grid-template-columns: repeat(var(--vs-narrow), minmax(0, 5rem)); }
}
`;

// ---------------------------------------------------------------- runs

/** Little-endian float32, from a view of bytes that may begin anywhere. */
function decodeFloat32(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/** A run as Python packed it, its lines and numbers by name. */
function openRun({ x, curves, numbers, pictures, shape, mark }) {
  return {
    x: decodeFloat32(x), curves: new Map(curves.map(([name, line]) => [name, decodeFloat32(line)])),
    numbers: new Map(numbers), pictures: shape.length ? cutPictures(pictures, shape) : [], mark,
  };
}

/** Each picture's bytes, row by row: of its ink, or, in colour, three planes, red, green and blue. */
function cutPictures(view, shape) {
  const [height, width] = shape.slice(-2), colour = shape.length === 4, size = (colour ? 3 : 1) * height * width;
  return Array.from({ length: shape[0] }, (_, i) => ({ height, width, colour,
    bytes: new Uint8Array(view.buffer, view.byteOffset + i * size, size) }));
}

/** All names that any run has, in order of appearance. */
function allNames(runs, part) {
  return [...new Set(runs.flatMap((run) => [...run[part].keys()]))];
}

/** Every run that is recorded, opened; and what all of them together need of the figure. */
function openRuns(model) {
  const saved = model.get("runs"), labels = model.get("labels").filter((label) => label in saved);
  const byLabel = new Map(labels.map((label) => [label, openRun(saved[label])])), runs = [...byLabel.values()];
  const heights = runs.flatMap((run) => [...run.curves.values()].map(spanOf(model.get("log_y"))));
  return {
    byLabel, lines: allNames(runs, "curves"), rows: allNames(runs, "numbers"),
    x: linearAxis(joined(runs.map((run) => spanOf(false)(run.x))), 4),
    y: model.get("log_y") ? logAxis(joined(heights)) : linearAxis(withRoom(joined(heights)), 5),
  };
}

// ---------------------------------------------------------------- axes

/** numbers -> the least and the largest that can be drawn. */
function spanOf(positive) {
  return (numbers) => {
    let low = Infinity, high = -Infinity;
    for (const n of numbers) if (Number.isFinite(n) && (n > 0 || !positive)) {
      low = Math.min(low, n);
      high = Math.max(high, n);
    }
    return [low, high];
  };
}

/** The span of several, not empty, with some length. */
function joined(spans) {
  const low = Math.min(...spans.map(([a]) => a)), high = Math.max(...spans.map(([, b]) => b));
  if (!(low <= high)) return [1, 10];   // nothing to draw
  return low < high ? [low, high] : [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
}

/** To zero where it is near, and else a little beyond the ends, so that no line runs along the frame. */
function withRoom([low, high]) {
  const room = 0.04 * (high - low);
  return [low >= 0 && low < 0.5 * high ? 0 : low - room, high <= 0 && high > 0.5 * low ? 0 : high + room];
}

/** About count round numbers, and how far along the axis a value is, from 0 to 1. */
function linearAxis([low, high], count) {
  const rough = (high - low) / count, decade = 10 ** Math.floor(Math.log10(rough));
  const step = decade * [1, 2, 2.5, 5, 10].find((factor) => factor * decade >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / decade === 2.5 && decade < 10 ? 1 : 0));
  return { ticks: ticks.map((value) => [value, shortNumber(value, Math.min(digits, 6))]),
    at: (value) => (value - low) / (high - low) };
}

/** Powers of ten; what is not positive lies at 0, the axis' floor. */
function logAxis([least, high]) {
  const low = Math.max(least, high * 1e-9), a = Math.log10(low), b = Math.log10(high), room = 0.04 * (b - a);
  const every = Math.ceil((b - a) / 6), ticks = [];
  for (let power = Math.ceil(a - room); power <= b + room; power++) if (power % every === 0) ticks.push(power);
  const named = ticks.map((power) => [10 ** power, powerName(power)]);
  const ends = [low, high].map((value) => [value, shortNumber(value, Math.max(0, 1 - Math.floor(Math.log10(value))))]);
  return { ticks: named.length > 1 ? named : ends,
    at: (value) => (value > 0 ? Math.max(0, (Math.log10(value) - a + room) / (b - a + 2 * room)) : 0) };
}

function powerName(power) {
  if (power >= -3 && power <= 3) return formatNumber(10 ** power, Math.max(0, -power));
  return "10" + raised(power);
}

/** A whole number as an exponent. */
function raised(power) {
  return [...String(power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? "⁻").join("");
}

/** An axis' number: thousands as k, millions as M. */
function shortNumber(value, digits) {
  const [unit, name] = Math.abs(value) >= 1e6 ? [1e6, "M"] : Math.abs(value) >= 1e4 ? [1e3, "k"] : [1, ""];
  const text = unit > 1 ? String(Number((value / unit).toPrecision(4))) : value.toFixed(digits);
  return text.replace("-", "\u2212") + name;
}

/** A table's number: four digits that count, or two decimals; a dash where none was recorded. */
function tableNumber(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return formatNumber(value, 0);
  if (Math.abs(value) < 1e-3) {
    const [mantissa, power] = value.toExponential(2).split("e");
    return `${mantissa.replace("-", "\u2212")}·10${raised(power)}`;
  }
  return formatNumber(value, Math.max(2, 3 - Math.floor(Math.log10(Math.abs(value)))));
}

// ---------------------------------------------------------------- picture

const WIDTH = 360, HEIGHT = 244, LEFT = 42, RIGHT = 352, TOP = 34, FLOOR = 200;
// Okabe and Ito's colours, which stay apart without colour vision; dashes and markers tell the lines apart, too.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "currentColor"];
const DASHES = ["none", "7 3", "2 2.5", "9 3 2 3", "4 2"];
const MARKERS = [   // disc, square, triangle, diamond, triangle on its tip, plus
  "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "m-3-3h6v6h-6z", "m0-4l4 7h-8z", "m0-4.5l4 4.5l-4 4.5l-4-4.5z",
  "m0 4l4-7h-8z", "m-1.2-4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
];

/** The i-th line's look: a stroke, and markers on it. Returns {stroke, marks}, paths without a shape yet. */
function lineLook(i) {
  const colour = COLOURS[i % COLOURS.length];
  const stroke = svgNode("path", { fill: "none", stroke: colour, "stroke-width": 2, "stroke-linejoin": "round",
    "stroke-dasharray": DASHES[i % DASHES.length], class: "vr-line" });
  return { stroke, marks: svgNode("path", { fill: colour, class: "vr-marks" }), shape: MARKERS[i % MARKERS.length] };
}

const toX = (axis, value) => LEFT + (RIGHT - LEFT) * axis.at(value);
const toY = (axis, value) => FLOOR - (FLOOR - TOP) * axis.at(value);

/** Two axes with their ticks, as nodes; gridlines are faint. */
function drawAxes({ x, y }) {
  const line = (x1, x2, y1, y2, stroke) => svgNode("line", { x1, x2, y1, y2, stroke });
  const text = (x, y, anchor, content) => svgNode("text", { x, y, "text-anchor": anchor }, content);
  const rows = y.ticks.map(([value, name]) => [toY(y, value), name]);
  const columns = x.ticks.map(([value, name]) => [toX(x, value), name]);
  return [
    ...rows.map(([at]) => line(LEFT, RIGHT, at, at, "var(--vs-line)")),
    ...rows.map(([at, name]) => text(LEFT - 6, at + 4, "end", name)),
    ...columns.map(([at]) => line(at, at, FLOOR, FLOOR + 4, "var(--vs-control)")),
    ...columns.map(([at, name]) => text(at, FLOOR + 17, at > RIGHT - 14 ? "end" : "middle", name)),
    svgNode("path", { d: `M${LEFT} ${TOP}V${FLOOR}H${RIGHT}`, fill: "none", stroke: "var(--vs-control)" }),
  ];
}

/** A line's path; it breaks where a number is missing. */
function strokePath(xs, ys, axes) {
  let path = "", pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (Number.isFinite(ys[i])) path += `${pen}${toX(axes.x, xs[i]).toFixed(1)} ${toY(axes.y, ys[i]).toFixed(1)}`;
    pen = Number.isFinite(ys[i]) ? "L" : "M";
  }
  return path;
}

/** Five markers on a line, elsewhere than on its neighbours. */
function markPath(xs, ys, axes, shape, i, count) {
  const share = Array.from({ length: 5 }, (_, m) => (m + (i + 0.5) / count) / 5);
  const places = [...new Set(share.map((part) => Math.round(part * (xs.length - 1))))];
  return places.filter((at) => Number.isFinite(ys[at]))
    .map((at) => `M${toX(axes.x, xs[at]).toFixed(1)} ${toY(axes.y, ys[at]).toFixed(1)}${shape}`).join("");
}

/** The vertical line at a run's mark, with its text on the side that has room. Returns {nodes, set}. */
function markLine(text) {
  const line = svgNode("line", { class: "vr-mark", y1: TOP - 4, y2: FLOOR, stroke: "currentColor",
    "stroke-dasharray": "3 3" });
  const name = svgNode("text", { y: TOP - 8 }, text);
  const set = (x) => {
    [line, name].forEach((node) => { node.style.display = x === null ? "none" : ""; });
    if (x === null) return;
    const left = x > (LEFT + RIGHT) / 2;
    for (const [key, value] of Object.entries({ x1: x, x2: x })) line.setAttribute(key, value);
    name.setAttribute("x", left ? x + 3 : x - 3);
    name.setAttribute("text-anchor", left ? "end" : "start");
  };
  return { nodes: [line, name], set };
}

/** The plot. Returns {root, open, set}: open draws the frame for all runs, set the lines of one or of none. */
function linePlot(model) {
  const axes = svgNode("g", {}), lines = svgNode("g", {}), mark = markLine(model.get("mark_label"));
  const empty = svgNode("text", { x: (LEFT + RIGHT) / 2, "text-anchor": "middle" });
  const root = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, axes, ...mark.nodes, lines, empty,
    svgNode("text", { x: 2, y: 12 }, model.get("y_label")),
    svgNode("text", { x: RIGHT, y: FLOOR + 36, "text-anchor": "end" }, model.get("x_label")));
  let looks = [];
  const open = (all) => {
    axes.replaceChildren(...drawAxes(all));
    const middle = Math.floor(all.y.ticks.length / 2), [below, above] = all.y.ticks.slice(middle - 1, middle + 1);
    empty.setAttribute("y", (toY(all.y, below[0]) + toY(all.y, above[0])) / 2 + 4);   // between two gridlines
    looks = all.lines.map((_, i) => lineLook(i));
    lines.replaceChildren(...looks.flatMap(({ stroke, marks }) => [stroke, marks]));
  };
  const set = (all, run, note) => {
    looks.forEach(({ stroke, marks, shape }, i) => {
      const ys = run && run.curves.get(all.lines[i]);
      stroke.setAttribute("d", ys ? strokePath(run.x, ys, all) : "");
      marks.setAttribute("d", ys ? markPath(run.x, ys, all, shape, i, looks.length) : "");
    });
    const place = run && run.mark !== null ? all.x.at(run.mark) : -1;
    mark.set(place >= 0 && place <= 1 ? LEFT + (RIGHT - LEFT) * place : null);
    empty.textContent = run ? "" : note;
  };
  return { root, open, set };
}

// ---------------------------------------------------------------- beside and below the plot

/** What each line is. Returns {root, open}. */
function legend() {
  const root = element("ul", { className: "vr-legend" });
  const open = ({ lines }) => root.replaceChildren(...lines.map((name, i) => {
    const { stroke, marks, shape } = lineLook(i);
    stroke.setAttribute("d", "M0 6H44");
    marks.setAttribute("d", `M22 6${shape}`);
    const swatch = svgNode("svg", { viewBox: "0 0 44 12", "aria-hidden": "true" }, stroke, marks);
    return element("li", {}, swatch, name);
  }));
  return { root, open };
}

/** The numbers of the run. Returns {root, open, set}. */
function numberTable() {
  const body = element("tbody"), root = element("table", { className: "vr-numbers" }, body);
  root.setAttribute("aria-label", "Numbers of this run");
  let cells = new Map();
  const open = ({ rows }) => {
    cells = new Map(rows.map((name) => [name, element("td")]));
    body.replaceChildren(...rows.map((name) =>
      element("tr", {}, element("th", { scope: "row" }, name), cells.get(name))));
    root.hidden = !rows.length;
  };
  const set = (run) => cells.forEach((cell, name) => { cell.textContent = tableNumber(run && run.numbers.get(name)); });
  return { root, open, set };
}

/** Draw one picture on its canvas. Ink takes the page's colour, and red, green and blue stay what they are. */
function drawPicture(canvas, { height, width, colour, bytes }, description) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.classList.toggle("vr-colour", colour);
  if (!colour) return drawInk(canvas, Float32Array.from(bytes, (byte) => byte / 255), description);
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), size = height * width;
  for (let i = 0; i < size; i++) {
    for (let plane = 0; plane < 3; plane++) image.data[4 * i + plane] = bytes[plane * size + i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", description);
}

/** What a picture is called: by its row, too, where the rows are the author's. */
function pictureName(title, i, count, columns) {
  if (!columns) return `${title}, ${i + 1} of ${count}`;
  const row = Math.floor(i / columns) + 1, rows = Math.ceil(count / columns);
  return `${title}, row ${row} of ${rows}, ${i % columns + 1} of ${Math.min(columns, count - (row - 1) * columns)}`;
}

/** The pictures of the run, in rows. Returns {root, open, set}. */
function pictureRow(model) {
  const row = element("div", { className: "vr-row" }), title = model.get("picture_label");
  const columns = model.get("columns");
  const root = element("div", { className: "vr-pictures" }, element("p", {}, title), row);
  const open = ({ byLabel }) => {
    root.style.display = [...byLabel.values()].some((run) => run.pictures.length) ? "" : "none";
  };
  const set = (run) => {
    const pictures = run ? run.pictures : [];
    root.style.visibility = pictures.length ? "" : "hidden";   // its place stays: nothing below may jump
    if (!pictures.length) return;
    row.style.setProperty("--vs-columns", columns || Math.min(pictures.length, 10));
    row.style.setProperty("--vs-narrow", columns || Math.min(pictures.length, 5));
    while (row.children.length > pictures.length) row.lastChild.remove();
    while (row.children.length < pictures.length) row.append(pictureCanvas(1));
    pictures.forEach((picture, i) =>
      drawPicture(row.children[i], picture, pictureName(title, i, pictures.length, columns)));
  };
  return { root, open, set };
}

/** The positions under the slider: full where a run is recorded. All have a label if there is room, else the ends. */
function stops(labels) {
  const all = labels.join("").length <= 26;
  const nodes = labels.map((label, i) => {
    const named = all || i === 0 || i === labels.length - 1;
    return element("div", { className: "vr-stop" }, element("span", {}, named ? label : ""));
  });
  const root = element("div", { className: "vr-stops" }, ...nodes);
  root.setAttribute("aria-hidden", "true");   // the slider says it
  const set = (recorded) => nodes.forEach((node, i) => node.classList.toggle("vr-recorded", recorded.has(labels[i])));
  return { root, set };
}

/** The slider over all labels. Returns {root, set}. */
function knobSlider(model, change) {
  const labels = model.get("labels"), row = stops(labels);
  const onInput = (i) => change({ label: labels[i] });
  const slider = rangeSlider({ label: model.get("knob"), min: 0, max: labels.length - 1, step: 1, onInput });
  const [input, output] = ["input", "output"].map((tag) => slider.root.querySelector(tag));
  const set = ({ byLabel }) => {
    const label = model.get("label");
    slider.set(labels.indexOf(label));
    output.value = label;
    input.setAttribute("aria-valuetext", byLabel.has(label) ? label : `${label}, not recorded`);
    row.set(byLabel);
  };
  return { root: element("div", {}, slider.root, row.root), set };
}

/** In the rendered page the host's model says that it is not live. A live one can be deaf, so the button waits. */
const canAsk = (model) => model.live !== false && model.get("can_train");

/** What can be said of the picked label. */
function stateOf(model, recorded, silent) {
  const label = model.get("label"), training = model.get("training");
  if (canAsk(model) && training) return `training ${training} …`;
  if (canAsk(model) && model.get("problem")) return model.get("problem");
  if (recorded) return "recorded";
  if (!canAsk(model)) return TO_RECORD;
  if (model.get("asked") !== label) return "not trained yet";
  return silent ? "no answer yet: the kernel is busy, or this chapter’s cells have not run" : "asking the kernel …";
}

/** A line on the state of the picked label, and the button that asks the kernel; nothing where all is recorded.
    Returns {root, set}. */
function trainer(model, change, ask) {
  let silent = false, timer;
  const text = element("p", { className: "vr-state" });
  text.setAttribute("role", "status");
  const button = pushButton("Train this point", () => {
    silent = false;
    change({ asked: model.get("label") });
    clearTimeout(timer);
    timer = setTimeout(() => { silent = true; ask(); }, PATIENCE);
  });
  button.classList.add("vr-button");
  const root = element("div", { className: "vr-ask" }, text);
  const set = ({ byLabel }) => {
    const recorded = byLabel.has(model.get("label"));
    text.textContent = stateOf(model, recorded, silent);
    root.style.display = byLabel.size === model.get("labels").length && !model.get("problem") ? "none" : "";
    if (recorded || !canAsk(model)) button.remove();   // not merely hidden: a page without a kernel has no use for it
    else if (!button.isConnected) root.append(button);
    button.disabled = Boolean(model.get("training"));
  };
  return { root, set };
}

function describe(model, run) {
  const start = `${model.get("knob")} ${model.get("label")}`;
  if (!run) return `${start}: nothing recorded`;
  const ends = [...run.curves].map(([name, line]) => `${name} ends at ${tableNumber(lastNumber(line))}`);
  return `${start}; ${model.get("y_label")}: ${ends.join(", ")}`;
}

function lastNumber(line) {
  return Array.from(line).reverse().find(Number.isFinite);
}

/** Put the figure into el. Returns {open, update}: open reads the runs, update shows the picked one. */
function build(model, el, ask) {
  const change = changer(model);
  const plot = linePlot(model), key = legend(), table = numberTable(), pictures = pictureRow(model);
  const knob = knobSlider(model, change), training = trainer(model, change, ask);
  const root = openSlider(el, model.get("alt"));
  root.classList.add("vr-slider");   // other sliders on the page keep their style
  root.append(
    element("style", { textContent: STYLE }),
    element("div", { className: "vr-figure" }, plot.root),
    element("div", { className: "vs-controls" }, knob.root, training.root, key.root, table.root),
    pictures.root);
  let all;
  const open = () => {
    all = openRuns(model);
    [plot, key, table, pictures].forEach((part) => part.open(all));
  };
  const update = () => {
    const run = all.byLabel.get(model.get("label"));
    knob.set(all);
    plot.set(all, run, canAsk(model) ? "not trained yet" : "not recorded");
    table.set(run);
    pictures.set(run);
    training.set(all);
    plot.root.setAttribute("aria-label", describe(model, run));
  };
  return { open, update };
}

function render({ model, el }) {
  const ask = oncePerFrame(() => figure.update());
  const figure = build(model, el, ask);
  const reopen = () => { figure.open(); ask(); };
  const events = TRAITS.map((name) => [`change:${name}`, name === "runs" ? reopen : ask]);
  events.forEach(([event, react]) => model.on(event, react));
  figure.open();
  figure.update();
  return () => events.forEach(([event, react]) => model.off(event, react));
}

export default { render };
