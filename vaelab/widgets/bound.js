/* BoundExplorer: the evidence lower bound of one observation, computed in the browser. See bound.py, which sends the
   traits named here. Every control sets a trait, and every change of a trait asks for a redraw: also from Python. */

const EDGE = 9, POINTS = 1801;   // quadrature over z, and over (z − mu) / sigma: as in bound.py
const RANGES = {
  mu: { label: ["mean ", "μ"], name: "mean μ of q", min: -3, max: 3, step: 0.05 },
  log_sigma: { label: ["log ", "σ"], name: "log σ of q", min: -3, max: 1, step: 0.05 },
  x: { label: ["data ", "x"], name: "data x", min: -3, max: 3, step: 0.1 },
  s: { label: ["noise ", "s"], name: "noise s", min: 0.2, max: 3, step: 0.1 },
};
const STYLE = `
.vaelab-slider .vb-figure { flex: 1 1 18rem; min-width: 0; margin: 0; }
.vaelab-slider .vb-figure svg { display: block; width: 100%; height: auto; overflow: hidden; }
.vaelab-slider .vb-figure text { fill: currentColor; font: 12.5px sans-serif; }
.vaelab-slider .vb-sums { display: grid; grid-template-columns: 7.25rem 1fr 1fr; gap: 0.375rem 0.75rem; margin: 0.5rem 0 0; }
.vaelab-slider .vb-sums > div { min-width: 0; padding-left: 0.375rem; border-left: 3px solid transparent; }
.vaelab-slider .vb-sums dt, .vaelab-slider .vb-sums dd { margin: 0; font-weight: 400; line-height: 1.3; }
.vaelab-slider .vb-sums dt { font-size: 0.8125rem; }
.vaelab-slider .vb-sums dd { font-variant-numeric: tabular-nums; }
.vaelab-slider .vs-controls .vs-range { grid-template-columns: 4.25rem minmax(0, 1fr) 2.75rem; }
.vaelab-slider .vs-controls .vs-face { padding: 0.25rem 0.5rem; white-space: nowrap; }
`;
const GAP_COLOUR = "#d55e00";

// ---------------------------------------------------------------- numbers

/** The model's state as plain numbers: {x, s, mu, log_sigma, sigma, w, b}. */
function readSetting(model) {
  const [w, b] = model.get("decoders")[model.get("decoder")];
  const setting = { w, b };
  for (const name of Object.keys(RANGES)) setting[name] = model.get(name);
  return { ...setting, sigma: Math.exp(setting.log_sigma) };
}

/** log p(x, z) = log N(x; f(z), s²) + log N(z; 0, 1). */
function logJoint(z, { x, s, w, b }) {
  const error = (x - w * z - b * z * z) / s;
  return -0.5 * (error * error + z * z) - Math.log(2 * Math.PI * s);
}

/** log ∫ p(x, z) dz: a sum over a fine grid, its largest term taken out. */
function logEvidence(setting) {
  const width = 2 * EDGE / (POINTS - 1);
  const logs = Array.from({ length: POINTS }, (_, i) => logJoint(-EDGE + i * width, setting));
  const largest = Math.max(...logs);
  return largest + Math.log(width * logs.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}

/** KL( q || p(z | x) ) by its definition. */
function gapToPosterior(setting, logPx) {
  const width = 2 * EDGE / (POINTS - 1), { mu, sigma, log_sigma } = setting;
  let sum = 0;
  for (let i = 0; i < POINTS; i++) {
    const t = -EDGE + i * width;
    const logQ = -0.5 * t * t - 0.5 * Math.log(2 * Math.PI) - log_sigma;
    sum += Math.exp(logQ) * (logQ - logJoint(mu + sigma * t, setting) + logPx);
  }
  return Math.max(0, sum * sigma * width);   // rounding may leave −1e-16
}

/** The two halves of the bound, in closed form: E_q log p(x | z) and KL( q || p(z) ). */
function halves({ x, s, w, b, mu, sigma, log_sigma }) {
  const v = sigma * sigma, slope = w + 2 * b * mu;
  const error = (x - w * mu - b * (mu * mu + v)) ** 2 + slope * slope * v + 2 * b * b * v * v;   // E_q (x − f(z))²
  return {
    reconstruction: -0.5 * Math.log(2 * Math.PI * s * s) - error / (2 * s * s),
    kl: 0.5 * (Math.expm1(2 * log_sigma) - 2 * log_sigma + mu * mu),
  };
}

function boundNumbers(setting) {
  const log_px = logEvidence(setting), { reconstruction, kl } = halves(setting);
  return { log_px, gap: gapToPosterior(setting, log_px), reconstruction, kl, elbo: reconstruction - kl };
}

/** The variance of q that is best for a mean: the positive root of a quadratic. */
function bestVariance(mu, { x, s, w, b }) {
  const A = 6 * b * b / (s * s), slope = w + 2 * b * mu;
  const B = 1 + (slope * slope - 2 * b * (x - w * mu - b * mu * mu)) / (s * s);
  const root = Math.sqrt(B * B + 4 * A);
  return B > 0 ? 2 / (B + root) : (root - B) / (2 * A);
}

/** The q with the highest bound: {mu, log_sigma}. A coarse search over the mean, then finer ones around its best. */
function bestQ(setting) {
  let best = { elbo: -Infinity, mu: 0 };
  for (let step = 0.05, from = -4, to = 4; step > 1e-9; step /= 10, from = best.mu - 12 * step, to = best.mu + 12 * step)
    for (let mu = from; mu <= to; mu += step) {
      const log_sigma = 0.5 * Math.log(bestVariance(mu, setting));
      const { reconstruction, kl } = halves({ ...setting, mu, log_sigma, sigma: Math.exp(log_sigma) });
      if (reconstruction - kl > best.elbo) best = { elbo: reconstruction - kl, mu, log_sigma };
    }
  return { mu: best.mu, log_sigma: best.log_sigma };
}

// ---------------------------------------------------------------- picture

const WIDTH = 360, LEFT = 8, RIGHT = 352, TOP = 30, FLOOR = 176, REACH = 4;   // z runs from −REACH to REACH

const onAxis = (z) => LEFT + (RIGHT - LEFT) * (z + REACH) / (2 * REACH);
const LINES = {
  prior: { stroke: "currentColor", "stroke-width": 1.5, "stroke-dasharray": "2 4", fill: "none" },
  posterior: { stroke: "currentColor", "stroke-width": 2.25, fill: "none" },
  q: { stroke: "var(--vs-accent)", "stroke-width": 2.25, fill: "var(--vs-tint)" },
};

/** A key of three samples, the axis of z, and three paths. Returns {nodes, paths}. */
function densityPlot() {
  const paths = {}, nodes = [];
  [["q", "q(z)", 8], ["posterior", "p(z | x)", 92], ["prior", "prior p(z)", 206]].forEach(([name, text, x]) => {
    paths[name] = svgNode("path", { ...LINES[name], "stroke-linejoin": "round", class: `vb-${name}` });
    nodes.push(paths[name], svgNode("line", { ...LINES[name], x1: x, x2: x + 24, y1: 13, y2: 13 }),
      svgNode("text", { x: x + 30, y: 17 }, text));
  });
  nodes.push(svgNode("line", { x1: LEFT, x2: RIGHT, y1: FLOOR, y2: FLOOR, stroke: "var(--vs-control)" }));
  for (let z = -3; z <= 3; z++) nodes.push(svgNode("text", { x: onAxis(z), y: FLOOR + 16, "text-anchor": "middle" },
    formatNumber(z, 0)));
  nodes.push(svgNode("text", { x: RIGHT, y: FLOOR + 16, "text-anchor": "end", "font-style": "italic" }, "z"));
  return { nodes, paths };
}

function drawDensities(paths, setting, logPx) {
  const grid = Array.from({ length: 241 }, (_, i) => -REACH + i * REACH / 120);
  const normal = (z, mu, sigma) => Math.exp(-0.5 * ((z - mu) / sigma) ** 2) / (sigma * Math.sqrt(2 * Math.PI));
  const heights = {
    prior: grid.map((z) => normal(z, 0, 1)),
    posterior: grid.map((z) => Math.exp(logJoint(z, setting) - logPx)),
    q: grid.map((z) => normal(z, setting.mu, setting.sigma)),
  };
  const top = 1.25 * Math.max(...heights.prior, ...heights.posterior);   // not q's: the others stay where they are
  for (const [name, path] of Object.entries(paths)) {
    const points = heights[name].map((height, i) =>
      `${onAxis(grid[i]).toFixed(1)} ${Math.max(TOP, FLOOR - (FLOOR - TOP) * height / top).toFixed(1)}`);
    path.setAttribute("d", `M${points.join("L")}`);
  }
}

/** Two bars that end at the bound: from log p(x) the gap, from the reconstruction the KL. */
function ladder() {
  const bar = (y, fill) => svgNode("rect", { y, height: 14, fill });
  const tick = (y) => svgNode("line", { y1: y - 4, y2: y + 18, stroke: "currentColor", "stroke-width": 2 });
  const name = (y, text, anchor = "start") => svgNode("text", { y, "text-anchor": anchor }, text);
  const parts = {
    gap: bar(216, GAP_COLOUR), kl: bar(246, "var(--vs-accent)"), atEvidence: tick(216), atReconstruction: tick(246),
    atBound: svgNode("line", { y1: 206, y2: 270, stroke: "currentColor", "stroke-width": 2.25 }),
    bound: name(286, "ELBO", "middle"), evidence: name(228, "log p(x)"), reconstruction: name(258, "reconstruction"),
  };
  return { nodes: Object.values(parts), parts };
}

const BAR_END = 252;   // right of it there is room for the longest name

/** The scale depends on x, s and f alone: whoever moves q sees the bound move, not the scale. */
function drawLadder(parts, { s }, numbers) {
  const highest = Math.max(-0.5 * Math.log(2 * Math.PI * s * s), numbers.log_px);   // of any reconstruction
  const low = numbers.log_px - Math.max(3, highest - numbers.log_px);
  const at = (value) => Math.max(LEFT, LEFT + (BAR_END - LEFT) * (value - low) / (highest - low));
  const bound = at(numbers.elbo);
  setAll(parts.atBound, { x1: bound, x2: bound, "stroke-dasharray": numbers.elbo < low ? "3 3" : "none" });   // off the scale
  setAll(parts.bound, { x: Math.max(bound, LEFT + 17) });
  for (const [bar, tick, name, value] of [[parts.gap, parts.atEvidence, parts.evidence, numbers.log_px],
    [parts.kl, parts.atReconstruction, parts.reconstruction, numbers.reconstruction]]) {
    setAll(bar, { x: bound, width: Math.max(0, at(value) - bound) });
    setAll(tick, { x1: at(value), x2: at(value) });
    setAll(name, { x: at(value) + 7 });
  }
}

// ---------------------------------------------------------------- read-outs and controls

/** Both sums, a line each: evidence − gap = bound, reconstruction − KL = bound. Returns {root, set}. */
function sums() {
  const cells = [["log_px", "log p(x)"], ["gap", "− gap", GAP_COLOUR], ["elbo", "= ELBO"],
    ["reconstruction", "reconstruction"], ["kl", "− KL", "var(--vs-accent)"], ["elbo", "= ELBO"]];
  const values = cells.map(([name]) => element("dd", { className: `vb-${name}` }));
  const boxes = cells.map(([, text, colour], i) => {
    const box = element("div", {}, element("dt", {}, text), values[i]);
    if (colour) box.style.borderColor = colour;
    return box;
  });
  const set = (numbers) => cells.forEach(([name], i) => {
    const value = Math.abs(numbers[name]) < 5e-4 ? 0 : numbers[name];   // no minus before 0.000
    values[i].textContent = formatNumber(value, 3);
  });
  return { root: element("dl", { className: "vb-sums" }, ...boxes), set };
}

function settingSliders(model, change) {
  return Object.entries(RANGES).map(([trait, { label: [word, symbol], name, min, max, step }]) => {
    const label = [word, element("i", {}, symbol)];
    const slider = rangeSlider({ label, min, max, step, onInput: (value) => change({ [trait]: value }) });
    slider.root.querySelector("input").setAttribute("aria-label", name);
    return { root: slider.root, set: () => slider.set(model.get(trait)) };
  });
}

function decoderPicker(model, change) {
  const names = Object.keys(model.get("decoders"));
  const options = names.map((name) => ({ value: name, face: name }));
  const picker = radioGroup({ legend: "Decoder", options, onChange: (name) => change({ decoder: name }) });
  picker.root.hidden = names.length < 2;
  return { root: picker.root, set: () => picker.set(model.get("decoder")) };
}

function buttons(model, change, say) {
  return element("div", { className: "vs-buttons" },
    pushButton("Best q", () => {
      change(bestQ(readSetting(model)));
      const { elbo, gap } = boundNumbers(readSetting(model));
      say(`The best q: ELBO ${formatNumber(elbo, 3)}, gap ${formatNumber(gap, 3)}.`);
    }),
    pushButton("q = prior", () => {
      change({ mu: 0, log_sigma: 0 });
      say("q is the prior: the code says nothing.");
    }));
}

function describeBound({ mu, sigma }, { log_px, elbo, gap }) {
  return `q has mean ${formatNumber(mu, 2)} and standard deviation ${formatNumber(sigma, 2)}; ` +
    `log p(x) is ${formatNumber(log_px, 3)}, the bound ${formatNumber(elbo, 3)}, the gap ${formatNumber(gap, 3)}`;
}

/** Put the figure into el. Returns a function that brings it up to date with the model. */
function build(model, el) {
  const change = changer(model);
  const densities = densityPlot(), bars = ladder(), readouts = sums(), { root: status, say } = announcer();
  const picture = svgNode("svg", { viewBox: `0 0 ${WIDTH} 292`, role: "img" }, ...densities.nodes, ...bars.nodes);
  const controls = [decoderPicker(model, change), ...settingSliders(model, change)];
  openSlider(el, model.get("alt")).append(
    element("style", { textContent: STYLE }),
    element("div", { className: "vb-figure" }, picture, readouts.root),
    element("div", { className: "vs-controls" },
      ...controls.map((control) => control.root), buttons(model, change, say), status));
  return () => {
    const setting = readSetting(model), numbers = boundNumbers(setting);
    controls.forEach((control) => control.set());
    drawDensities(densities.paths, setting, numbers.log_px);
    drawLadder(bars.parts, setting, numbers);
    readouts.set(numbers);
    picture.setAttribute("aria-label", describeBound(setting, numbers));
  };
}

function render({ model, el }) {
  return redrawOnChange(model, [...Object.keys(RANGES), "decoder"], build(model, el));
}

export default { render };
