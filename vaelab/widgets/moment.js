/* MomentExplorer: batch normalisation of a VAE's posterior, computed in the browser. See moment.py, which sends the
   traits named here. Every control sets a trait, and every change of a trait asks for a redraw: also from Python. */

const TRAITS = ["tau", "theta", "gamma", "latents", "version", "variance", "codes"];
const VERSIONS = {   // the name of each, which sliders it has, and what its mean KL is called
  su: { face: "Su: μ and σ", moved: ["tau", "theta", "latents"], kl: "least mean KL, both scales" },
  paper: { face: "paper: μ alone, γ fixed", moved: ["gamma", "variance", "latents"], kl: "mean KL if all σ are alike" },
  logvar: { face: "log-variance normalised (wrong)", moved: ["tau", "theta", "latents"], kl: "mean KL" },
};
const CODES = { gaussian: "spread like a Gaussian", clusters: "two clusters" };
const RANGES = {
  tau: { label: "τ", name: "tau", min: 0.05, max: 0.95, step: 0.01 },
  theta: { label: "θ", name: "theta", min: -6, max: 6, step: 0.1 },
  gamma: { label: "γ", name: "gamma", min: 0.1, max: 1.5, step: 0.01 },
  variance: { label: "E[σ²]", name: "mean posterior variance", min: 0.01, max: 1, step: 0.01 },
  latents: { label: "latents n", name: "number of latents", min: 1, max: 64, step: 1 },
};
const STYLE = `
.vm-slider .vm-figure { flex: 1 1 18rem; min-width: 0; margin: 0; align-self: flex-start; }
.vm-slider .vm-figure svg { display: block; width: 100%; height: auto; overflow: hidden; }
.vm-slider .vm-figure text { fill: currentColor; font: 12.5px sans-serif; font-variant-numeric: tabular-nums; }
.vm-slider .vs-controls { align-self: flex-start; }
.vaelab-slider.vm-slider .vs-controls .vs-range { grid-template-columns: 4.5rem minmax(0, 1fr) 2.75rem; }
.vaelab-slider.vm-slider .vs-controls .vs-range label { font: inherit; }
.vaelab-slider.vm-slider .vs-controls .vs-face { padding: 0.25rem 0.5rem; white-space: normal; }
.vm-slider .vm-moved { display: grid; gap: 0.25rem; }
.vaelab-slider.vm-slider .vm-sums {
  display: grid; grid-template-columns: 1fr 1fr; gap: 0.375rem 0.75rem; margin: 0.5rem 0 0;
}
.vaelab-slider.vm-slider .vm-sums > div { min-width: 0; }
.vaelab-slider.vm-slider .vm-sums :is(dt, dd) { margin: 0; font-weight: 400; line-height: 1.3; }
.vaelab-slider.vm-slider .vm-sums dt { font-size: 0.8125rem; }
.vaelab-slider.vm-slider .vm-sums dd { font-variant-numeric: tabular-nums; }
.vaelab-slider.vm-slider p.vm-note { margin: 0.5rem 0 0; font-size: 0.8125rem; line-height: 1.4; min-height: 4.2em; }
`;

// ---------------------------------------------------------------- numbers

/** log(1 + exp(x)), which is −log sigmoid(−x), without overflow. */
function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** The scales, the moments of one coordinate, and the nats of all n: `moments` in moment.py, with its reasons. */
function moments({ version, tau, theta, gamma, variance, latents: n }) {
  const paper = version === "paper", logScale = Math.log1p(-tau) - softplus(theta);   // log gamma_sigma²
  const signal = paper ? gamma ** 2 : tau + (1 - tau) * Math.exp(-softplus(-theta));   // E[mu²]
  const logVariance = { su: logScale, paper: Math.log(variance), logvar: Math.exp(logScale) / 2 }[version];
  const noise = Math.exp(logVariance), aggregate = signal + noise;
  const meanLog = version === "logvar" ? 0 : logVariance;   // E[log sigma²]
  return {
    gamma_mu: Math.sqrt(signal), gamma_sigma: paper ? null : Math.exp(logScale / 2),
    variance: noise, aggregate,
    floor: n / 2 * signal, kl: n / 2 * (aggregate - meanLog - 1),
    information: n / 2 * (Math.log(aggregate) - logVariance),
  };
}

/** mu and sigma of every Gaussian in the mixture. */
function posteriors({ version, codes }, units, { gamma_mu, gamma_sigma, variance }) {
  const mu = units[codes].map((unit) => gamma_mu * unit);
  const one = (unit) => version === "logvar" ? Math.exp(gamma_sigma * unit / 2) : Math.sqrt(variance);
  const sigma = units.logvar.map(one);
  return { mu, sigma };
}

function normalDensity(z, mu, sigma) {
  return Math.exp(-0.5 * ((z - mu) / sigma) ** 2) / (Math.sqrt(2 * Math.PI) * sigma);
}

/** The aggregate posterior's density at z. */
function mixtureDensity(z, { mu, sigma }) {
  let total = 0;
  for (let i = 0; i < mu.length; i++) total += normalDensity(z, mu[i], sigma[i]);
  return total / mu.length;
}

// ---------------------------------------------------------------- picture

const WIDTH = 360, HEIGHT = 326, LEFT = 30, RIGHT = 354, REACH = 5;
const TOP = 34, FOOT = 196, LOWER_TOP = 234, LOWER_FOOT = 292;   // of the aggregate, and of single posteriors
const SINGLES = [4, 13, 22, 31, 41, 50, 59];   // which are shown
const GRID = Array.from({ length: 601 }, (_, i) => REACH * (i - 300) / 300);
const LINES = {
  aggregate: { stroke: "var(--vs-accent)", "stroke-width": 2, fill: "var(--vs-tint)" },
  prior: { stroke: "currentColor", "stroke-width": 1.75, "stroke-dasharray": "5 4", fill: "none" },
};
const onAxis = (z) => LEFT + (RIGHT - LEFT) * (z + REACH) / (2 * REACH);

/** Points (z, height) as a path, a height of limit being as high as top. */
function curve(zs, heights, [top, foot], limit) {
  const at = (z, i) => `${onAxis(z).toFixed(1)} ${(foot - (foot - top) * heights[i] / limit).toFixed(1)}`;
  return `M${zs.map(at).join("L")}`;
}

/** The key, the axes, and the titles: all that never moves. */
function momentFrame() {
  const key = (name, text, x) => [svgNode("line", { ...LINES[name], x1: x, x2: x + 24, y1: 13, y2: 13 }),
    svgNode("text", { x: x + 30, y: 17 }, text)];
  const line = (y) => svgNode("line", { x1: LEFT, x2: RIGHT, y1: y, y2: y, stroke: "var(--vs-control)" });
  const ticks = [-4, -2, 0, 2, 4].flatMap((z) => [
    ...[FOOT, LOWER_FOOT].map((y) => svgNode("line",
      { x1: onAxis(z), x2: onAxis(z), y1: y, y2: y - 4, stroke: "var(--vs-control)" })),
    svgNode("text", { x: onAxis(z), y: LOWER_FOOT + 26, "text-anchor": "middle" }, formatNumber(z, 0))]);
  const limit = svgNode("line", { x1: LEFT, x2: LEFT + 4, y1: TOP, y2: TOP, stroke: "var(--vs-control)" });
  return [limit, ...key("aggregate", "aggregate posterior", 4), ...key("prior", "prior N(0, 1)", 208),
    line(FOOT), line(LOWER_FOOT), ...ticks,
    svgNode("text", { x: 4, y: FOOT + 26 }, "Seven of the 64 posteriors, and every mean"),
    svgNode("text", { x: RIGHT, y: LOWER_FOOT + 26, "text-anchor": "end", "font-style": "italic" }, "z")];
}

/** The mixture with the prior, single posteriors below. Returns {nodes, draw}. */
function momentPlot() {
  const paths = Object.fromEntries(["aggregate", "prior"].map((name) =>
    [name, svgNode("path", { ...LINES[name], class: `vm-${name}`, "stroke-linejoin": "round" })]));
  const thin = { stroke: "var(--vs-text)", "stroke-width": 1, fill: "none" };
  const singles = SINGLES.map(() => svgNode("path", { ...thin, class: "vm-single" }));
  const rug = svgNode("path", { ...thin, "stroke-width": 0.75, class: "vm-rug" });
  const label = svgNode("text", { x: LEFT - 4, y: TOP + 4, "text-anchor": "end", class: "vm-limit" });
  const draw = (mixture) => {
    // The means are points of the grid too, so that no narrow peak falls between two of its own.
    const zs = [...GRID, ...mixture.mu].sort((a, b) => a - b), heights = zs.map((z) => mixtureDensity(z, mixture));
    const limit = axisLimit(Math.max(...heights)), panel = [TOP, FOOT];
    label.textContent = formatNumber(limit, limit < 1 ? 1 : 0);
    paths.aggregate.setAttribute("d", curve(zs, heights, panel, limit));
    paths.prior.setAttribute("d", curve(GRID, GRID.map((z) => normalDensity(z, 0, 1)), panel, limit));
    drawSingles(singles, mixture);
    rug.setAttribute("d", mixture.mu.map((m) => `M${onAxis(m).toFixed(1)} ${LOWER_FOOT + 2}v6`).join(""));
  };
  return { nodes: [...momentFrame(), label, ...Object.values(paths), ...singles, rug], draw };
}

/** The end of the height's axis, which should not move at every step. */
function axisLimit(peak) {
  let limit = 0.5;
  while (limit < peak) limit *= 2;
  return limit;
}

/** On one scale: the narrowest of all 64 would reach the top. */
function drawSingles(nodes, { mu, sigma }) {
  const limit = normalDensity(0, 0, Math.min(...sigma));
  SINGLES.forEach((i, k) => {
    const zs = Array.from({ length: 61 }, (_, j) => mu[i] + sigma[i] * (j - 30) / 7.5)
      .filter((z) => Math.abs(z) <= REACH);
    const heights = zs.map((z) => normalDensity(z, mu[i], sigma[i]));
    nodes[k].setAttribute("d", curve(zs, heights, [LOWER_TOP, LOWER_FOOT], limit));
  });
}

// ---------------------------------------------------------------- read-outs and controls

const DIGITS = { gamma_mu: 3, gamma_sigma: 3, variance: 4, aggregate: 3, floor: 2, kl: 2, information: 2 };

/** All numbers as text, the last three in nats. */
function written(numbers) {
  const texts = Object.entries(DIGITS).map(([name, digits]) =>
    [name, numbers[name] === null ? "free" : formatNumber(numbers[name], digits) + (digits === 2 ? " nats" : "")]);
  return Object.fromEntries(texts);
}

/** The numbers under the figure, and what they mean in words. Returns {root, set}. */
function readOuts() {
  const sub = (index) => element("sub", {}, index);
  const names = {
    gamma_mu: ["γ", sub("μ")], gamma_sigma: ["γ", sub("σ")],
    variance: ["mean variance E[σ²]"], aggregate: ["aggregate variance, γ", sub("μ"), "² + E[σ²]"],
    floor: ["least mean KL, from μ alone"], kl: [""],
    information: ["a Gaussian channel carries"],
  };
  const heads = {}, cells = {};
  const boxes = Object.entries(names).map(([name, text]) => {
    heads[name] = element("dt", {}, ...text);
    cells[name] = element("dd", { className: `vm-${name}` });
    return element("div", {}, heads[name], cells[name]);
  });
  const note = element("p", { className: "vm-note" });
  const set = (version, numbers) => {
    for (const [name, text] of Object.entries(written(numbers))) cells[name].textContent = text;
    heads.kl.textContent = VERSIONS[version].kl;
    note.textContent = verdict(version, numbers);
  };
  return { root: element("div", {}, element("dl", { className: "vm-sums" }, ...boxes), note), set };
}

function verdict(version, { aggregate }) {
  if (version === "su") return "Mean 0 and variance 1, the prior’s, wherever the sliders stand. Only these two " +
    "moments match: the shape need not.";
  const width = `${formatNumber(aggregate, 2)} against 1`;
  if (Math.abs(aggregate - 1) < 0.005) return "Here the variance is the prior’s; nothing keeps it there.";
  return aggregate > 1
    ? `Wider than the prior, ${width}: many codes lie where the prior seldom draws.`
    : `Narrower than the prior, ${width}: many draws from the prior fall where there are no codes.`;
}

function versionPicker(model, change) {
  const options = Object.entries(VERSIONS).map(([value, { face }]) => ({ value, face }));
  const picker = radioGroup({ legend: "Version", options, onChange: (version) => change({ version }) });
  return { root: picker.root, set: () => picker.set(model.get("version")) };
}

function codesPicker(model, change) {
  const options = Object.entries(CODES).map(([value, face]) => ({ value, face }));
  const picker = radioGroup({ legend: "Codes μ", options, onChange: (codes) => change({ codes }) });
  return { root: picker.root, set: () => picker.set(model.get("codes")) };
}

/** The sliders that the picked version has. */
function scaleSliders(model, change) {
  const sliders = Object.fromEntries(Object.entries(RANGES).map(([trait, { name, ...range }]) => {
    const slider = rangeSlider({ ...range, onInput: (value) => change({ [trait]: value }) });
    slider.root.querySelector("input").setAttribute("aria-label", name);
    return [trait, slider];
  }));
  const rows = element("div", { className: "vm-moved" }), root = element("fieldset", {}, rows);
  root.setAttribute("aria-label", "Scales and number of latents");
  let shown;
  const set = () => {
    const version = model.get("version");
    // Only when it changes: a slider put back into the page would lose the keyboard.
    if (version !== shown) rows.replaceChildren(...VERSIONS[version].moved.map((trait) => sliders[trait].root));
    shown = version;
    for (const [trait, slider] of Object.entries(sliders)) slider.set(model.get(trait));
  };
  return { root, set };
}

function describe({ version, codes, latents }, numbers) {
  const text = written(numbers), { face, kl } = VERSIONS[version];
  return `${face}; codes: ${CODES[codes]}. γ of μ ${text.gamma_mu}, γ of σ ${text.gamma_sigma}, mean variance of ` +
    `the posteriors ${text.variance}. The aggregate posterior has mean 0 and variance ${text.aggregate}; the prior, ` +
    `drawn over it, 0 and 1. Latents: ${latents}. Least mean KL, from μ alone: ${text.floor}; ${kl}: ${text.kl}; ` +
    `a Gaussian channel carries ${text.information}. ${verdict(version, numbers)}`;
}

/** Put the figure into el. Returns a function that brings it up to date with the model. */
function build(model, el) {
  const change = changer(model);
  const units = model.get("units"), plot = momentPlot(), readouts = readOuts(), { root: status, say } = announcer();
  const picture = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...plot.nodes);
  const controls = [versionPicker, scaleSliders, codesPicker].map((make) => make(model, change));
  const reset = pushButton("Reset", () => {
    change(model.get("start"));
    say("Everything is as it was at the start.");
  });
  const root = openSlider(el, model.get("alt"));
  root.classList.add("vm-slider");   // other sliders on the page keep their style
  root.append(
    element("style", { textContent: STYLE }),
    element("div", { className: "vm-figure" }, picture, readouts.root),
    element("div", { className: "vs-controls" },
      ...controls.map((control) => control.root), element("div", { className: "vs-buttons" }, reset), status));
  return () => {
    const setting = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const numbers = moments(setting);
    controls.forEach((control) => control.set());
    plot.draw(posteriors(setting, units, numbers));
    readouts.set(setting.version, numbers);
    picture.setAttribute("aria-label", describe(setting, numbers));
  };
}

function render({ model, el }) {
  return redrawOnChange(model, TRAITS, build(model, el));
}

export default { render };
