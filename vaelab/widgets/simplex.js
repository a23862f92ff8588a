/* SimplexExplorer: Gumbel-softmax draws of three classes on their triangle, computed in the browser. See simplex.py,
   which sends the traits named here. Every control sets a trait, and every change of a trait asks for a redraw: also
   from Python. */

const TRAITS = ["logits", "temperature", "hard"];
const REACH = 1.3, STEEPEST = 4;   // the temperature's slider holds its decimal logarithm, a logit's the logit
const STYLE = `
.vx-slider { --vx-0: #0072b2; --vx-1: #d55e00; --vx-2: #008a63; }
html[data-theme="dark"] .vx-slider, body[data-jp-theme-light="false"] .vx-slider, [theme="dark"] .vx-slider {
  --vx-0: #56b4e9; --vx-1: #ee8a3c; --vx-2: #2fc79a;
}
.vx-slider .vx-figure { flex: 1 1 18rem; min-width: 0; margin: 0; }
.vx-slider .vx-figure svg { display: block; width: 100%; height: auto; overflow: hidden; }
.vx-slider .vx-figure path { fill: none; }
.vx-slider .vx-figure text { fill: currentColor; font: 13px sans-serif; }
.vaelab-slider.vx-slider .vs-controls .vs-range { grid-template-columns: 6.75rem minmax(0, 1fr) 2.75rem; }
.vaelab-slider.vx-slider .vs-controls .vs-range label {
  overflow: hidden; text-overflow: ellipsis; font: inherit; font-size: 0.875rem;
}
.vx-slider .vx-logits > div { display: grid; gap: 0.125rem; }
.vaelab-slider.vx-slider .vs-controls .vs-face { padding: 0.25rem 0.5rem; }
.vaelab-slider.vx-slider table.vx-table {
  display: table; width: 100%; margin: 0; border: 0; border-collapse: collapse; font-size: 0.875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; color: inherit; background: none;
}
.vaelab-slider.vx-slider .vx-table :is(th, td) {
  padding: 0.1875rem 0.25rem; border: 0; border-bottom: 1px solid var(--vs-line); background: none; color: inherit;
  text-align: right; vertical-align: bottom; font-weight: 400; overflow-wrap: anywhere;
}
.vaelab-slider.vx-slider .vx-table th:first-child { text-align: left; padding-left: 0; }
.vaelab-slider.vx-slider .vx-table tr { background: none; }
.vx-slider .vx-swatch {
  display: inline-block; width: 0.625rem; height: 0.625rem; margin-right: 0.375rem; border-radius: 50%;
  forced-color-adjust: none;
}
.vaelab-slider.vx-slider p.vx-note { margin: 0.5rem 0 0; font-size: 0.8125rem; line-height: 1.4; }
`;

// ---------------------------------------------------------------- numbers

/** Little-endian float32 (a DataView, or any view of bytes) to rows of three numbers. */
function decodeRows(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const at = (i) => view.getFloat32(4 * i, true);
  return Array.from({ length: view.byteLength / 12 }, (_, n) => [at(3 * n), at(3 * n + 1), at(3 * n + 2)]);
}

/** The position of the largest number; the first of equals. */
function argmax(numbers) {
  return numbers.indexOf(Math.max(...numbers));
}

/** softmax(numbers / temperature), the largest moved to 0 first. */
function softmax(numbers, temperature = 1) {
  const most = Math.max(...numbers);
  const odds = numbers.map((number) => Math.exp((number - most) / temperature));
  const total = odds.reduce((sum, odd) => sum + odd, 0);
  return odds.map((odd) => odd / total);
}

/** Every draw's soft point and class, the exact probabilities, the share of each class, the mean largest entry. */
function drawAll(noise, { logits, temperature }) {
  const noisy = noise.map((g) => g.map((gk, k) => logits[k] + gk));
  const soft = noisy.map((numbers) => softmax(numbers, temperature));
  const classes = noisy.map(argmax);   // of the noisy logits: in a hot sample several may round to one number
  const share = logits.map((_, k) => classes.filter((c) => c === k).length / noise.length);
  const largest = soft.reduce((sum, y) => sum + Math.max(...y), 0) / noise.length;
  return { soft, classes, share, largest, probabilities: softmax(logits) };
}

/** A temperature, to a digit that a step of the slider changes. */
function formatTemperature(temperature) {
  return formatNumber(temperature, temperature < 9.95 ? 2 : 1);
}

// ---------------------------------------------------------------- picture

const WIDTH = 360, HEIGHT = 336;
const CORNERS = [[34, 294], [326, 294], [180, 294 - 292 * Math.sqrt(0.75)]];
const LABELS = [{ x: 8, y: 329, "text-anchor": "start" }, { x: 352, y: 329, "text-anchor": "end" },
  { x: 180, y: 15, "text-anchor": "middle" }];

/** A point of the simplex as "x y" in the picture. */
function place(y) {
  const along = (axis) => y.reduce((sum, yk, k) => sum + yk * CORNERS[k][axis], 0).toFixed(1);
  return `${along(0)} ${along(1)}`;
}

/** The triangle, divided into what is nearest to each corner. */
function frame() {
  const middle = (a, b) => place([0, 1, 2].map((k) => (k === a || k === b ? 0.5 : 0)));
  const centre = place([1 / 3, 1 / 3, 1 / 3]);
  const borders = [[0, 1], [1, 2], [2, 0]].map(([a, b]) => `M${centre}L${middle(a, b)}`).join("");
  return [
    svgNode("path", { d: borders, stroke: "var(--vs-control)", "stroke-dasharray": "2 5" }),
    svgNode("path", { d: `M${CORNERS.join("L")}Z`, stroke: "var(--vs-control)" }),
  ];
}

/** The triangle with, for each class, the draws whose largest entry it is. Returns {nodes, draw}. */
function simplexPlot(names) {
  const colour = (k) => `var(--vx-${k})`;
  const labels = names.map((name, k) => svgNode("text", LABELS[k], name));
  const layers = names.map((_, k) => ({   // a path of lines of no length with round ends: many dots, one node
    lines: svgNode("path", { class: "vx-lines", stroke: colour(k), "stroke-width": 0.75, "stroke-opacity": 0.35 }),
    dots: svgNode("path", { class: "vx-dots", stroke: colour(k), "stroke-linecap": "round" }),
    disc: svgNode("circle", { class: "vx-disc", cx: CORNERS[k][0], cy: CORNERS[k][1], fill: colour(k) }),
  }));
  const all = (part) => layers.map((layer) => layer[part]);
  const draw = ({ hard }, { soft, classes, share }) => layers.forEach(({ lines, dots, disc }, k) => {
    const places = soft.filter((_, n) => classes[n] === k).map(place);
    dots.setAttribute("d", places.map((at) => `M${at}h0`).join(""));
    setAll(dots, { "stroke-width": hard ? 2.5 : 5, "stroke-opacity": hard ? 0.6 : 0.7 });
    lines.setAttribute("d", hard ? places.map((at) => `M${at}L${CORNERS[k].join(" ")}`).join("") : "");
    disc.setAttribute("r", hard ? (20 * Math.sqrt(share[k])).toFixed(1) : 0);   // its area is the number of draws
  });
  return { nodes: [...frame(), ...all("lines"), ...all("dots"), ...all("disc"), ...labels], draw };
}

// ---------------------------------------------------------------- read-outs and controls

/** A row for each class: exact probability, share of the draws. Below, what does change with the temperature.
    Returns {root, set}. */
function readOuts(names) {
  const cell = (name) => element("td", { className: `vx-${name}` });
  const head = (text, scope) => Object.assign(element("th", { scope }), { textContent: text });
  const cells = names.map(() => ({ probability: cell("probability"), share: cell("share") }));
  const rows = names.map((name, k) => {
    const swatch = element("span", { className: "vx-swatch" });
    swatch.style.background = `var(--vx-${k})`;
    const label = element("th", { scope: "row" }, swatch, name);
    return element("tr", {}, label, cells[k].probability, cells[k].share);
  });
  const table = element("table", { className: "vx-table" },
    element("thead", {}, element("tr", {}, head("", "col"), head("probability", "col"),
      head("share of draws", "col"))), element("tbody", {}, ...rows));
  const largest = element("b", { className: "vx-largest" });
  const note = element("p", { className: "vx-note" });
  note.append("Share: the draws whose largest entry it is. The temperature does not change it, only how large that " +
    "entry is in a soft draw: ", largest, " on average.");
  const set = ({ probabilities, share, largest: mean }) => {
    cells.forEach((row, k) => {
      row.probability.textContent = formatNumber(probabilities[k], 3);
      row.share.textContent = formatNumber(share[k], 3);
    });
    largest.textContent = formatNumber(mean, 3);
  };
  return { root: element("div", { className: "vx-numbers" }, table, note), set };
}

function temperatureSlider(model, change) {
  const onInput = (power) => change({ temperature: 10 ** power });
  const label = ["temperature ", element("i", {}, "τ")];
  const slider = rangeSlider({ label, min: -REACH, max: REACH, step: 0.02, onInput });
  const input = slider.root.querySelector("input"), output = slider.root.querySelector("output");
  input.setAttribute("aria-label", "temperature");
  const set = () => {
    const temperature = model.get("temperature");
    slider.set(Math.log10(temperature));
    output.value = formatTemperature(temperature);   // not its logarithm
    input.setAttribute("aria-valuetext", output.value);
  };
  return { root: slider.root, set };
}

function valuePicker(model, change) {
  const options = [{ value: false, face: "soft" }, { value: true, face: "hard (straight-through)" }];
  const onChange = (picked) => change({ hard: picked === "true" });
  const picker = radioGroup({ legend: "Draws", options, onChange });
  return { root: picker.root, set: () => picker.set(model.get("hard")) };
}

function logitSliders(model, change) {
  const put = (k, value) => change({ logits: model.get("logits").map((old, j) => (j === k ? value : old)) });
  const sliders = model.get("names").map((name, k) => {
    const onInput = (value) => put(k, value);
    const slider = rangeSlider({ label: name, min: -STEEPEST, max: STEEPEST, step: 0.1, onInput });
    slider.root.querySelector("input").setAttribute("aria-label", `logit of ${name}`);
    return slider;
  });
  const root = element("fieldset", { className: "vx-logits" }, element("legend", {}, "Logits"),
    element("div", {}, ...sliders.map((slider) => slider.root)));
  return { root, set: () => sliders.forEach((slider, k) => slider.set(model.get("logits")[k])) };
}

function describe(names, { temperature, hard }, { classes, share, largest, probabilities }) {
  const parts = names.map((name, k) => `${name}: probability ${formatNumber(probabilities[k], 3)}, largest in ` +
    `${formatNumber(share[k], 3)} of the draws`);
  return `${classes.length} draws at temperature ${formatTemperature(temperature)}, ` +
    `${hard ? "each on the corner of its class, with a line to its soft twin" : "soft"}. ${parts.join("; ")}. ` +
    `Mean largest entry of a soft draw ${formatNumber(largest, 3)}.`;
}

/** Put the figure into el. Returns a function that brings it up to date with the model. */
function build(model, el) {
  const change = changer(model);
  const names = model.get("names"), noise = decodeRows(model.get("noise"));
  const plot = simplexPlot(names), readouts = readOuts(names);
  const picture = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...plot.nodes);
  const controls = [temperatureSlider, valuePicker, logitSliders].map((make) => make(model, change));
  const root = openSlider(el, model.get("alt"));
  root.classList.add("vx-slider");   // other sliders on the page keep their style
  root.append(
    element("style", { textContent: STYLE }),
    element("div", { className: "vx-figure" }, picture),
    element("div", { className: "vs-controls" }, ...controls.map((control) => control.root), readouts.root));
  return () => {
    const setting = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const drawn = drawAll(noise, setting);
    controls.forEach((control) => control.set());
    plot.draw(setting, drawn);
    readouts.set(drawn);
    picture.setAttribute("aria-label", describe(names, setting, drawn));
  };
}

function render({ model, el }) {
  return redrawOnChange(model, TRAITS, build(model, el));
}

export default { render };
