/* MomentumExplorer: Batch KLD with a moving average, computed in the browser. See momentum.py, which sends the traits
   named here. Every control sets a trait, and every change of a trait asks for a redraw: also from Python. */

const TRAITS = ["momentum", "batch_size", "drift", "rho", "as_written", "seed"];
const STEPS = 200;
const RANGES = {
  momentum: { label: "momentum m", name: "momentum m", min: 0, max: 0.99, step: 0.01 },
  batch_size: { label: "batch N", name: "batch size N", min: 8, max: 256, step: 8 },
  drift: { label: "drift a", name: "drift a of the mean", min: 0, max: 2, step: 0.05 },
  rho: { label: "clip share ρ", name: "clip share rho, of the variance", min: 0, max: 0.95, step: 0.05 },
};
const STYLE = `
.vo-slider .vo-figure { flex: 1 1 20rem; min-width: 0; margin: 0; align-self: flex-start; }
.vo-slider .vo-figure svg { display: block; width: 100%; height: auto; overflow: hidden; }
.vo-slider .vo-figure text { fill: currentColor; font: 12.5px sans-serif; font-variant-numeric: tabular-nums; }
.vo-slider .vs-controls { align-self: flex-start; }
.vaelab-slider.vo-slider .vs-controls .vs-range { grid-template-columns: 6.5rem minmax(0, 1fr) 2.75rem; }
.vaelab-slider.vo-slider .vs-controls .vs-range label { font: inherit; }
.vo-slider .vo-scales { display: grid; gap: 0.25rem; }
.vaelab-slider.vo-slider .vo-sums {
  display: grid; grid-template-columns: 1fr 1fr; gap: 0.375rem 0.75rem; margin: 0.5rem 0 0;
}
.vaelab-slider.vo-slider .vo-sums > div { min-width: 0; }
.vaelab-slider.vo-slider .vo-sums :is(dt, dd) { margin: 0; font-weight: 400; line-height: 1.3; }
.vaelab-slider.vo-slider .vo-sums dt { font-size: 0.8125rem; }
.vaelab-slider.vo-slider .vo-sums dd { font-variant-numeric: tabular-nums; }
.vaelab-slider.vo-slider p.vo-note { flex: 1 0 100%; margin: 0; font-size: 0.875rem; line-height: 1.45; }
`;

// ---------------------------------------------------------------- numbers

/** The draws of one seed, in momentum.py's order: the batches' offsets, then one code of every batch after another.
    Returns size -> {between, mean, variance}, each (200,): the offsets, and the moments of the first size codes. */
function opener(seed) {
  const normal = gaussian(seed), row = () => new Float64Array(STEPS), between = row().map(normal);
  const sums = [row()], squares = [row()];   // of the first k codes of each batch
  const extend = () => {
    const sum = sums.at(-1).slice(), square = squares.at(-1).slice();
    for (let t = 0; t < STEPS; t++) {   // a plain loop: there are 51,200 codes where batches are largest
      const e = normal();
      sum[t] += e;
      square[t] += e * e;
    }
    sums.push(sum);
    squares.push(square);
  };
  return (size) => {
    while (sums.length <= size) extend();
    const mean = sums[size].map((total) => total / size);
    const variance = squares[size].map((total, t) => (total - sums[size][t] * mean[t]) / (size - 1));
    return { between, mean, variance };
  };
}

/** A function that opens a seed's draws, and keeps the last one's. */
function opened() {
  let last, moments;
  return (seed) => {
    if (seed !== last) [last, moments] = [seed, opener(seed)];
    return moments;
  };
}

function klToPrior(mean, variance) {
  return 0.5 * (mean * mean + variance - 1 - Math.log(variance));
}

/** log x − digamma(x), by its series far out and by recurrence nearer. */
function digammaGap(x) {
  if (x < 12) return digammaGap(x + 1) - Math.log1p(1 / x) + 1 / x;
  const y = 1 / (x * x);
  return 1 / (2 * x) + y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))));
}

/** The mean of K, of n independent codes of the prior. */
function kBias(n) {
  return 0.5 * (1 / n + digammaGap((n - 1) / 2));
}

function movingAverage(x, m, start) {
  let value = start;
  return x.map((next) => (value = m * value + (1 - m) * next));
}

/** Part 7's: the batches' means and variances averaged, from the prior's. */
function asWritten(mean, variance, { momentum: m }) {
  const M = movingAverage(mean, m, 0), V = movingAverage(variance, m, 1);
  return { mean: M, variance: V, kl: M.map((at, t) => klToPrior(at, V[t])) };
}

/** Raw moments averaged, the start corrected, the bias removed: see `stream` in momentum.py. */
function corrected(mean, variance, { momentum: m, batch_size: N }) {
  const raw = mean.map((at, t) => at * at + (N - 1) / N * variance[t]);
  const left = mean.map((_, t) => m ** (t + 1)), fill = (x) => x.map((at, t) => at / (1 - left[t]));
  const n = left.map((l) => N * (1 + m) / (1 - m) * (1 - l) / (1 + l));
  const M = fill(movingAverage(mean, m, 0)), square = fill(movingAverage(raw, m, 0));
  const V = square.map((at, t) => (at - M[t] * M[t]) * n[t] / (n[t] - 1));
  return { mean: M, variance: V, kl: M.map((at, t) => klToPrior(at, V[t]) - kBias(n[t])) };
}

/** All curves: `stream` in momentum.py. */
function streamOf(setting, draws) {
  const { drift, rho, as_written } = setting, drawn = draws(setting.batch_size);
  const true_mean = Float64Array.from({ length: STEPS }, (_, t) => drift * Math.cos(2 * Math.PI * t / STEPS));
  const one = Math.sqrt(rho), other = Math.sqrt(1 - rho);
  const batch_mean = true_mean.map((at, t) => at + one * drawn.between[t] + other * drawn.mean[t]);
  const variance = drawn.variance.map((at) => (1 - rho) * at);
  const moving = (as_written ? asWritten : corrected)(batch_mean, variance, setting);
  const batch_kl = batch_mean.map((at, t) => klToPrior(at, variance[t]));
  return { batch_mean, batch_kl, ...moving, true_mean, true_kl: true_mean.map((at) => at * at / 2) };
}

/** All that is read out: `MomentumExplorer.numbers` in momentum.py. */
function numbersOf({ momentum: m, batch_size: N, drift, rho, as_written }, { kl, true_kl }) {
  const effective = N * (1 + m) / (1 - m), angle = 2 * Math.PI / STEPS, half = kl.subarray(STEPS / 2);
  const missed = half.reduce((sum, at, i) => sum + (at - true_kl[STEPS / 2 + i]) ** 2, 0);
  return {
    effective, independent: effective / (1 + (N - 1) * rho), bias: kBias(effective),
    excess: -Math.log1p(-rho) / 2, gradient: as_written ? 1 - m : 1, memory: 1 / (1 - m), lag: m / (1 - m),
    trail: drift * m * 2 * Math.sin(angle / 2) / Math.hypot(1 - m * Math.cos(angle), m * Math.sin(angle)),
    final: kl[STEPS - 1], error: Math.sqrt(missed / half.length),
  };
}

// ---------------------------------------------------------------- picture

const WIDTH = 360, HEIGHT = 436, LEFT = 36, RIGHT = 346;
const PANELS = { kl: [58, 252], mean: [292, 410] };   // top and foot of each
const LINES = {
  dots: { stroke: "var(--vs-text)", "stroke-width": 3, "stroke-linecap": "round", "stroke-opacity": 0.4, fill: "none" },
  true: { stroke: "currentColor", "stroke-width": 1.75, "stroke-dasharray": "5 4", fill: "none" },
  moving: { stroke: "var(--vs-accent)", "stroke-width": 2.25, fill: "none" },
};
const atStep = (t) => LEFT + (RIGHT - LEFT) * t / (STEPS - 1);

/** value -> y on a panel from low (its foot) to high (its top). */
function scale([top, foot], low, high) {
  return (value) => foot - (foot - top) * (value - low) / (high - low);
}

/** A round number that is no less than value: the end of an axis, which should not move at every step. */
function roundLimit(value, least) {
  for (let decade = 0.01; ; decade *= 10)
    for (const step of [1, 2, 3, 4, 6]) if (decade * step >= Math.max(value, least) - 1e-9) return decade * step;
}

/** The key, the axes, and the titles: all that never moves. */
function momentumFrame() {
  const key = (name, text, x, length = 24) => [svgNode("path", { ...LINES[name], d: `M${x} 13h${length}` }),
    svgNode("text", { x: x + length + 8, y: 17 }, text)];
  const line = { stroke: "var(--vs-control)" }, foot = PANELS.mean[1];
  const sides = Object.values(PANELS).map(([top, bottom]) =>
    svgNode("line", { ...line, x1: LEFT, x2: LEFT, y1: top, y2: bottom }));
  const ticks = [0, 50, 100, 150, 200].flatMap((step) => [
    svgNode("line", { ...line, x1: atStep(step - 1), x2: atStep(step - 1), y1: foot, y2: foot + 4 }),
    svgNode("text", { x: atStep(step - 1), y: foot + 18, "text-anchor": "middle" }, String(step))]).slice(2);
  return [...key("dots", "one batch", 6, 0), ...key("moving", "moving average", 94), ...key("true", "population", 240),
    ...sides, ...ticks, svgNode("text", { x: LEFT, y: foot + 18 }, "step")];
}

/** A panel's title, the ends of its axis, its dots and its two curves. Returns {nodes, draw}. */
function panelPlot(name, title) {
  const [top, foot] = PANELS[name];
  const paths = Object.fromEntries(["dots", "true", "moving"].map((kind) =>
    [kind, svgNode("path", { ...LINES[kind], class: `vo-${name}-${kind}`, "stroke-linejoin": "round" })]));
  const zero = svgNode("line", { x1: LEFT, x2: RIGHT, stroke: "var(--vs-control)" });
  const beyond = svgNode("path", { fill: "var(--vs-text)", class: `vo-${name}-beyond` });   // dots above the axis
  const head = svgNode("text", { x: 2, y: top - 14 });
  const labels = ["high", "zero", "low"].map((end) =>
    svgNode("text", { x: LEFT - 5, "text-anchor": "end", class: `vo-${name}-${end}` }));
  const draw = (curves, low, high) => {
    const at = scale(PANELS[name], low, high), place = (y, t) => `${atStep(t).toFixed(1)} ${at(y).toFixed(1)}`;
    const join = (ys, between) => Array.from(ys, place).join(between);
    const above = Array.from(curves.dots, (y, t) => (y > high ? t : -1)).filter((t) => t >= 0);
    paths.dots.setAttribute("d", Array.from(curves.dots, (y, t) => (y > high ? "" : `M${place(y, t)}h0`)).join(""));
    beyond.setAttribute("d", above.map((t) => `M${(atStep(t) - 3).toFixed(1)} ${top}h6l-3 -6z`).join(""));
    head.textContent = title + (above.length ? `; ▴ ${above.length} above` : "");
    for (const kind of ["true", "moving"]) paths[kind].setAttribute("d", `M${join(curves[kind], "L")}`);
    setAll(zero, { y1: at(0), y2: at(0) });
    [high, 0, low].forEach((value, i) => {
      const hidden = i === 2 && at(0) > foot - 12;   // it would lie on the zero
      labels[i].setAttribute("y", at(value) + 4);
      labels[i].textContent = hidden ? "" : formatNumber(value, value && Math.abs(value) < 0.1 ? 2 : 1);
    });
  };
  return { nodes: [head, zero, ...labels, ...Object.values(paths), beyond], draw };
}

/** K above, the mean below. Returns {nodes, draw}. */
function momentumPlot() {
  const kl = panelPlot("kl", "K, nats per latent dimension"), mean = panelPlot("mean", "mean of the codes");
  const draw = ({ batch_kl, kl: moving, true_kl, batch_mean, mean: M, true_mean }) => {
    const most = batch_kl.slice().sort()[0.95 * STEPS - 1];   // single batches scatter far
    const high = roundLimit(Math.max(most, ...moving, ...true_kl), 0.05);
    const low = -high / 10 * Math.ceil(Math.max(0, -10 * Math.min(...moving) / high));   // corrected K may be negative
    kl.draw({ dots: batch_kl, moving, true: true_kl }, low, high);
    const reach = roundLimit(Math.max(...[batch_mean, M, true_mean].flatMap((x) => Array.from(x, Math.abs))), 0.05);
    mean.draw({ dots: batch_mean, moving: M, true: true_mean }, -reach, reach);
  };
  return { nodes: [...momentumFrame(), ...kl.nodes, ...mean.nodes], draw };
}

// ---------------------------------------------------------------- read-outs and controls

/** A number of codes, which need not be whole. */
function countOf(codes) {
  return formatNumber(codes, codes < 100 ? 1 : 0).replace(/\.0$/, "");
}

/** All numbers as text. */
function written({ effective, independent, bias, excess, gradient, memory, lag, final, error }) {
  return {
    effective: `${countOf(effective)} codes`, independent: `${countOf(independent)} codes`,
    bias: `${formatNumber(bias, 5)} nats`, excess: `${formatNumber(excess, 3)} nats`,
    gradient: `${formatNumber(100 * gradient, 0)}%`,
    memory: `${formatNumber(memory, 1)} and ${formatNumber(lag, 1)} steps`,
    final: `${formatNumber(final, 3)} nats`, error: `${formatNumber(error, 3)} nats`,
  };
}

/** A text whose formulas stay on one line. */
function unbroken(text) {
  return text.replace(/ ([+−]) /g, "\u00a0$1\u00a0").replace("½ ", "½\u00a0");
}

/** The numbers beside the figure. Returns {root, set}. */
function readOuts() {
  const names = {
    effective: "effective batch N(1 + m)/(1 − m)", independent: "worth, as independent codes",
    bias: "bias of K at the effective batch", excess: "excess of single batches −½ log(1 − ρ)",
    gradient: "share of the gradient that flows", memory: "memory 1/(1 − m), lag m/(1 − m)",
    final: "", error: "error of K, RMS over steps 101 to 200",
  };
  const heads = {}, cells = {};
  const boxes = Object.entries(names).map(([name, text]) => {
    heads[name] = element("dt", {}, unbroken(text));
    cells[name] = element("dd", { className: `vo-${name}` });
    return element("div", {}, heads[name], cells[name]);
  });
  const set = (texts, truth) => {
    heads.final.textContent = `K at the last step (population: ${formatNumber(truth, 3)})`;
    for (const [name, text] of Object.entries(texts)) cells[name].textContent = text;
  };
  return { root: element("dl", { className: "vo-sums" }, ...boxes), set };
}

/** What the present setting shows, in words: the gradient, the start, the clips, the lag, the noise. */
function verdict(setting, numbers, track) {
  return [aboutGradient, aboutStart, aboutClips, aboutLag, aboutNoise]
    .map((tell) => tell(setting, numbers, track)).filter(Boolean).join(" ");
}

function aboutGradient({ momentum: m, as_written }) {
  if (m === 0) return "Without momentum each batch stands by itself, and all of its gradient flows.";
  if (!as_written) return "The value is the moving average’s, the gradient the whole batch’s.";
  const times = formatNumber(1 / (1 - m), m < 0.1 ? 2 : m < 0.9 ? 1 : 0).replace(/\.0$/, "");
  return `${m < 0.5 ? "" : "Only "}${formatNumber(100 * (1 - m), 0)}% of the gradient flows: for the same pull, ` +
    `β must be ${times} times as large.`;
}

function aboutStart({ momentum: m, drift, as_written }, { memory }) {
  if (m < 0.5 || drift < 0.25) return "";
  return as_written
    ? `The average starts from the prior’s moments, so for some ${formatNumber(memory, 0)} steps K says too little.`
    : "The averages are divided by the weight collected so far, so K starts where the batches are.";
}

function aboutClips({ momentum: m, rho, as_written }, { excess, memory }, { variance }) {
  if (rho < 0.05) return "";
  const last = formatNumber(variance[STEPS - 1], 2);
  if (m === 0) return `A batch from a few clips is narrower than the data, and sits off to one side: its K is ` +
    `${formatNumber(excess, 2)} nats too high on average.`;
  if (as_written) return "Batches from a few clips are narrower than the data. Averaging their variances keeps that: " +
    `${last} at the last step, where the population has 1. This alone makes K too high, however long the memory.`;
  return m < 0.5   // of rho it then sees less than two thirds, 2 m / (1 + m)
    ? `A memory of ${formatNumber(memory, 1)} steps sees little of how the batches’ means differ: the variance is ` +
      `${last} at the last step, and the population’s is 1.`
    : `The raw moments count how the batches’ means differ: the variance is ${last} at the last step, and the ` +
      "population’s is 1.";
}

function aboutLag({ momentum: m, as_written }, { lag, trail }) {
  if (m === 0 || trail < 0.1) return "";
  const steps = formatNumber(lag, lag < 10 ? 1 : 0), far = formatNumber(trail, 2);
  const counted = as_written || trail < 0.3 ? "" : ", and what it has moved meanwhile counts as variance";
  return `What is averaged is ${steps} steps old in the long run: it trails the population by up to ${far}${counted}.`;
}

function aboutNoise({ rho, as_written }, { independent, bias }) {
  const count = countOf(independent);
  if (independent < 100) return `K is as noisy as from only ${count} independent codes.`;
  const biased = as_written && rho < 0.05 && bias >= 0.002;   // with rho, `bias` is not that of these codes
  const raised = biased ? `, which alone makes it ${formatNumber(bias, 3)} nats too high` : "";
  return `K is as noisy as from ${count} independent codes${raised}.`;
}

function versionPicker(model, change) {
  const options = [{ value: true, face: "as written" }, { value: false, face: "corrected" }];
  const onChange = (picked) => change({ as_written: picked === "true" });
  const picker = radioGroup({ legend: "Moving average", options, onChange });
  return { root: picker.root, set: () => picker.set(model.get("as_written")) };
}

function streamSliders(model, change) {
  const sliders = Object.entries(RANGES).map(([trait, { name, ...range }]) => {
    const slider = rangeSlider({ ...range, onInput: (value) => change({ [trait]: value }) });
    slider.root.querySelector("input").setAttribute("aria-label", name);
    return [trait, slider];
  });
  const rows = sliders.map(([, slider]) => slider.root);
  const root = element("fieldset", {}, element("div", { className: "vo-scales" }, ...rows));
  root.setAttribute("aria-label", "Average and stream");
  return { root, set: () => sliders.forEach(([trait, slider]) => slider.set(model.get(trait))) };
}

function buttons(model, change, say) {
  return element("div", { className: "vs-buttons" },
    pushButton("New draw", () => {
      change({ seed: (model.get("seed") + 1) >>> 0 });
      say(`All codes are drawn afresh: draw ${model.get("seed")}.`);
    }),
    pushButton("Reset", () => {
      change(model.get("start"));
      say("Everything is as it was at the start.");
    }));
}

function describe({ as_written, momentum, batch_size, drift, rho, seed }, text, truth, note) {
  const version = as_written ? "As written" : "Corrected";
  return `${version}, momentum ${formatNumber(momentum, 2)}, batches of ${batch_size}, drift ` +
    `${formatNumber(drift, 2)}, clip share ${formatNumber(rho, 2)}, draw ${seed}. K of the moving average is ` +
    `${text.final} at the last step, the population’s ${formatNumber(truth, 3)}; its error over the second half is ` +
    `${text.error}. ${note}`;
}

/** Put the figure into el. Returns a function that brings it up to date with the model. */
function build(model, el) {
  const change = changer(model), draws = opened();
  const plot = momentumPlot(), readouts = readOuts(), { root: status, say } = announcer();
  const note = element("p", { className: "vo-note" });
  const picture = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...plot.nodes);
  const controls = [versionPicker, streamSliders].map((make) => make(model, change));
  const root = openSlider(el, model.get("alt"));
  root.classList.add("vo-slider");   // other sliders on the page keep their style
  root.append(
    element("style", { textContent: STYLE }),
    element("div", { className: "vo-figure" }, picture),
    element("div", { className: "vs-controls" },
      ...controls.map((control) => control.root), buttons(model, change, say), readouts.root, status), note);
  return () => {
    const setting = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const track = streamOf(setting, draws(setting.seed)), numbers = numbersOf(setting, track);
    const text = written(numbers), truth = track.true_kl[STEPS - 1];
    controls.forEach((control) => control.set());
    plot.draw(track);
    readouts.set(text, truth);
    note.textContent = verdict(setting, numbers, track);
    picture.setAttribute("aria-label", describe(setting, text, truth, note.textContent));
  };
}

function render({ model, el }) {
  return redrawOnChange(model, TRAITS, build(model, el));
}

export default { render };
