/* BalanceExplorer: KL balancing of latent groups, computed in the browser. See balance.py, which sends the traits named
   here. Every control sets a trait, and every change of a trait asks for a redraw: also from Python. */

const TRAITS = ["kl", "sizes", "divide", "strength", "through", "floor"];
const HIGHEST = 30, SIZES = [16, 64, 256];
const TINY = 2 ** -511;   // the root of the smallest normal number, as in balance.py
const DIVISORS = {
  nothing: "nothing", size: "size", scale: "size ÷ groups of that size", typo: "× size (the paper’s typo)",
};
const PAID_COLOUR = "#d55e00";
const STYLE = `
.vaelab-slider .vk-figure { flex: 1 1 18rem; min-width: 0; margin: 0; align-self: flex-start; }
.vaelab-slider .vk-figure svg { display: block; width: 100%; height: auto; overflow: hidden; }
.vaelab-slider .vk-figure text { fill: currentColor; font: 12px sans-serif; font-variant-numeric: tabular-nums; }
.vaelab-slider .vk-figure .vk-title { font-size: 12.5px; font-weight: 600; }
.vaelab-slider .vk-figure .vk-narrow { font-size: 9.5px; }
.vk-slider .vs-controls { align-self: flex-start; }
.vaelab-slider .vk-sums { display: grid; grid-template-columns: 1fr 1fr; gap: 0.375rem 0.75rem; margin: 0.5rem 0 0; }
.vaelab-slider .vk-sums dt, .vaelab-slider .vk-sums dd { margin: 0; font-weight: 400; line-height: 1.3; }
.vaelab-slider .vk-sums dt { font-size: 0.8125rem; }
.vaelab-slider .vk-sums dd { font-variant-numeric: tabular-nums; }
.vaelab-slider .vk-groups > div { display: grid; gap: 0.25rem; }
.vaelab-slider .vk-group {
  display: grid; grid-template-columns: minmax(0, 1fr) 4.25rem; align-items: center; gap: 0.5rem;
}
.vaelab-slider.vk-slider .vk-group .vs-range { grid-template-columns: 1.75rem minmax(0, 1fr) 2.5rem; }
.vaelab-slider .vk-heads { font-size: 0.8125rem; }
.vaelab-slider .vk-size {
  height: 1.75rem; width: 100%; margin: 0; padding: 0 0.25rem; font: inherit; color: inherit; color-scheme: inherit;
  background: transparent; border: 1px solid var(--vs-control); border-radius: 0.375rem;
}
.vaelab-slider .vk-size option { color: #000; background: #fff; }
.vaelab-slider .vk-size:focus-visible { outline: 3px solid var(--vs-accent); outline-offset: 2px; }
.vaelab-slider.vk-slider .vk-strength .vs-range { grid-template-columns: 4.5rem minmax(0, 1fr) 2.5rem; }
.vaelab-slider .vk-strength .vs-range label { font: inherit; }
.vk-slider .vs-controls .vs-face { padding: 0.25rem 0.5rem; }
`;

// ---------------------------------------------------------------- numbers

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const mean = (numbers) => sum(numbers) / numbers.length;

/** The model's state as plain values. */
function readSetting(model) {
  return Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
}

/** What each K is divided by, with mean 1. */
function effectiveSizes({ sizes, divide }) {
  const alike = (size) => sizes.filter((other) => other === size).length;
  const rule = { nothing: () => 1, size: (s) => s, scale: (s) => s / alike(s), typo: (s) => 1 / s }[divide];
  const a = sizes.map(rule), middle = mean(a);
  return a.map((size) => size / middle);
}

/** Coefficients, the price of one more nat in each group, what each group pays, and the sums. */
function balance(setting) {
  const { kl, strength, through, floor } = setting, a = effectiveSizes(setting);
  const most = Math.max(...kl, TINY * TINY), w = kl.map((k) => k / most);   // only ratios matter
  const lift = floor * mean(w) + TINY;
  const shares = w.map((wi, i) => (wi + lift) / a[i]), middle = mean(shares);   // never all zero
  const gamma = shares.map((share) => 1 + strength * (share / middle - 1));
  const paid = gamma.map((coefficient, i) => coefficient * kl[i]);
  const slope = through ? slopes(w, a, shares, floor) : w.map(() => 0);
  const price = gamma.map((coefficient, i) => coefficient + strength * slope[i]);
  return { gamma, price, paid, plain: sum(kl), balanced: sum(paid) };
}

/** sum_j K_j dgamma_j/dK_i at strength 1: what the gradient through gamma adds. Gamma sees ratios of K alone, so w, in
    any unit, stands for K; the clamp at zero has its derivative from above. */
function slopes(w, a, shares, floor) {
  const count = w.length, middle = mean(shares);
  const lifted = floor / count * sum(w.map((wi, i) => wi / a[i]));
  const inverse = floor / count * sum(a.map((size) => 1 / size));
  const bill = sum(w.map((wi, i) => wi * shares[i])) / middle;
  return w.map((wi, i) => (wi / a[i] + lifted - bill * (1 / a[i] + inverse) / count) / middle);
}

/** K in proportion to the effective sizes, less the floor: the KL whose coefficients are all 1, of the same total, or
    of as much as fits the sliders. */
function allEqual(setting) {
  const { kl, floor } = setting, total = sum(kl) || kl.length;
  const even = effectiveSizes(setting).map((size) => Math.max(0, (1 + floor) * size - floor));
  const unit = Math.min(total / sum(even), HIGHEST / Math.max(...even));
  return even.map((k) => k * unit);
}

/** The group with the least KL that has any, from 0; −1 where none has. */
function weakest(kl) {
  const left = kl.filter((k) => k > 0);
  return left.length ? kl.indexOf(Math.min(...left)) : -1;
}

// ---------------------------------------------------------------- picture

const WIDTH = 360, HEIGHT = 410, LEFT = 34, RIGHT = 358;
const PANELS = { gamma: [36, 106], price: [152, 250], pays: [302, 372] };   // top and foot of each

/** A round number that is no less than value: the end of an axis, which should not move at every step. */
function roundLimit(value, least) {
  for (let decade = 1; ; decade *= 10)
    for (const step of [1, 2, 3, 4, 6]) if (decade * step >= Math.max(value, least) - 1e-9) return decade * step;
}

/** A panel's title and axis. Returns {nodes, draw}; draw(text, at, ticks, line), ticks being values, and line the one
    from which the bars start. */
function panelFrame([top]) {
  const title = svgNode("text", { x: 2, y: top - 20, class: "vk-title" }), marks = svgNode("g", {});
  const tick = (y, across) => svgNode("line", { x1: LEFT, x2: across ? RIGHT : LEFT + 5, y1: y, y2: y,
    stroke: "var(--vs-control)" });
  const draw = (text, at, ticks, line) => {
    title.textContent = text;
    marks.replaceChildren(...ticks.flatMap((value) => [tick(at(value), value === line),
      svgNode("text", { x: LEFT - 5, y: at(value) + 4, "text-anchor": "end" }, formatNumber(value, 0))]));
  };
  return { nodes: [title, marks], draw };
}

/** The bars and texts of one group. Returns {nodes, parts}. */
function groupBars(i, count) {
  const column = (RIGHT - LEFT) / count, middle = LEFT + column * (i + 0.5), narrow = count > 6 ? " vk-narrow" : "";
  const wide = Math.min(30, 0.55 * column), half = Math.min(18, 0.4 * column);
  const bar = (name, x, width, look = {}) => svgNode("rect", { class: `vk-${name}`, x, width, ...look });
  const centred = { x: middle, "text-anchor": "middle" };
  const text = (name, look = {}) => svgNode("text", { class: `vk-${name}`, ...centred, ...look });
  const parts = {
    gamma: bar("gamma", middle - wide / 2, wide, { stroke: "var(--vs-accent)" }), gammaText: text("gamma-text"),
    price: bar("price", middle - wide / 2, wide), priceText: text("price-text"),
    paidA: text(`paid${narrow}`), paidB: text(`paid${narrow}`),
    kl: bar("kl", middle - half, half - 1, { fill: "var(--vs-control)" }),
    pays: bar("pays", middle + 1, half - 1, { fill: "var(--vs-accent)" }),
    paysText: text("pays-text", { x: middle + half / 2 }),
    name: text("name", { y: 390 }), size: text("of-size", { y: 406 }),
  };
  return { nodes: Object.values(parts), parts };
}

/** The three panels for count groups. Returns {nodes, draw}. */
function barPlot(count) {
  const frames = Object.fromEntries(Object.entries(PANELS).map(([name, span]) => [name, panelFrame(span)]));
  const groups = Array.from({ length: count }, (_, i) => groupBars(i, count));
  const hatch = svgNode("pattern", { id: uniqueName(), width: 6, height: 6, patternUnits: "userSpaceOnUse",
    patternTransform: "rotate(45)" }, svgNode("rect", { width: 3.5, height: 6, fill: PAID_COLOUR }));
  const sizeHead = svgNode("text", { x: LEFT - 5, y: 406, "text-anchor": "end" }, "size");
  const nodes = [svgNode("defs", {}, hatch), sizeHead, ...Object.values(frames).flatMap((frame) => frame.nodes),
    ...groups.flatMap((group) => group.nodes)];
  const draw = (setting, numbers) => {
    drawGammas(frames.gamma, groups, numbers.gamma);
    drawPrices(frames.price, groups, numbers.price, setting, `url(#${hatch.id})`);
    drawBills(frames.pays, groups, setting, numbers.paid);
  };
  return { nodes, draw };
}

/** value -> y on a panel from low (its foot) to high (its top). */
function scale([top, foot], low, high) {
  return (value) => foot - (foot - top) * (value - low) / (high - low);
}

function setBar(node, from, to, attributes = {}) {
  const height = Math.max(0.75, Math.abs(from - to));   // a bar of nothing is still a line
  setAll(node, { y: Math.min(from, to).toFixed(1), height: height.toFixed(1), ...attributes });
}

function setText(node, y, text) {
  setAll(node, { y });
  node.textContent = text;
}

/** Bars that start at 1: up and full for who pays more than without balancing, down and pale for who pays less. */
function drawGammas(frame, groups, gamma) {
  const high = roundLimit(Math.max(...gamma), 2), at = scale(PANELS.gamma, 0, high);
  frame.draw("coefficient γ", at, at(0) - at(1) < 11 ? [1, high] : [0, 1, high], 1);
  groups.forEach(({ parts }, i) => {
    const more = gamma[i] >= 1;
    setBar(parts.gamma, at(1), at(gamma[i]), { fill: more ? "var(--vs-accent)" : "var(--vs-tint)" });
    setText(parts.gammaText, at(Math.max(1, gamma[i])) - 4, formatNumber(gamma[i], 2));
  });
}

/** Bars that start at 0; where the gradient flows through γ, zero stays in the middle, whatever the prices. */
function drawPrices(frame, groups, price, { through }, hatch) {
  const high = roundLimit(Math.max(...price.map(Math.abs)), 2), at = scale(PANELS.price, through ? -high : 0, high);
  frame.draw(`price of one more nat: ${through ? "γ and what flows through it" : "γ alone"}`,
    at, through ? [-high, 0, high] : [0, 1, high], 0);
  groups.forEach(({ parts }, i) => {
    const paid = price[i] < 0, end = at(price[i]);
    setBar(parts.price, at(0), end, { fill: paid ? hatch : "var(--vs-accent)" });
    setText(parts.priceText, end + (paid ? 13 : -4), formatNumber(price[i], Math.abs(price[i]) < 10 ? 2 : 1));
    setText(parts.paidA, at(0) - 17, paid ? "paid" : "");
    setText(parts.paidB, at(0) - 5, paid ? "to grow" : "");
  });
}

function drawBills(frame, groups, { kl, sizes }, paid) {
  const high = roundLimit(Math.max(...kl, ...paid), 10), at = scale(PANELS.pays, 0, high);
  frame.draw("K (grey) and what the group pays, γK, nats", at, [0, high], 0);
  groups.forEach(({ parts }, i) => {
    setBar(parts.kl, at(0), at(kl[i]));
    setBar(parts.pays, at(0), at(paid[i]));
    setText(parts.paysText, at(paid[i]) - 4, formatNumber(paid[i], 1));
    parts.name.textContent = `K${subscript(i)}`;
    parts.size.textContent = String(sizes[i]);
  });
}

const subscript = (i) => "₁₂₃₄₅₆₇₈"[i];

// ---------------------------------------------------------------- read-outs and controls

/** The sums under the figure. Returns {root, set}. */
function sums() {
  const cells = { total: "Σγ", plain: "plain ΣK", balanced: "balanced ΣγK", ratio: "balanced / plain" };
  const cell = (name) => element("dd", { className: `vk-${name}` });
  const values = Object.fromEntries(Object.keys(cells).map((name) => [name, cell(name)]));
  const boxes = Object.entries(cells).map(([name, text]) => element("div", {}, element("dt", {}, text), values[name]));
  const set = ({ gamma, plain, balanced }) => {
    values.total.textContent = formatNumber(sum(gamma), 3);
    values.plain.textContent = formatNumber(plain, 2);
    values.balanced.textContent = formatNumber(balanced, 2);
    values.ratio.textContent = plain > 0 ? formatNumber(balanced / plain, 3) : "–";
  };
  return { root: element("dl", { className: "vk-sums" }, ...boxes), set };
}

/** A list of sizes to pick from; a size that Python set joins it. Returns {root, set}. */
function sizePicker(i, onChange) {
  const root = control("select", { className: "vk-size" });
  root.setAttribute("aria-label", `size of group ${i + 1}`);
  SIZES.forEach((size) => root.add(new Option(size, size)));
  root.addEventListener("change", () => onChange(Number(root.value)));
  const set = (size) => {
    if (![...root.options].some((option) => Number(option.value) === size)) root.add(new Option(size, size));
    root.value = String(size);
  };
  return { root, set };
}

/** A row for every group: its KL and its size. Returns {root, set}. */
function groupRows(model, change) {
  const put = (name, i, value) => change({ [name]: model.get(name).map((old, j) => (j === i ? value : old)) });
  const rows = model.get("kl").map((_, i) => {
    const slider = rangeSlider({ label: [element("i", {}, "K"), element("sub", {}, String(i + 1))],
      min: 0, max: HIGHEST, step: 0.1, onInput: (value) => put("kl", i, value) });
    slider.root.querySelector("input").setAttribute("aria-label", `KL of group ${i + 1}, nats`);
    return { slider, picker: sizePicker(i, (size) => put("sizes", i, size)) };
  });
  const heads = element("div", { className: "vk-group vk-heads" },
    element("span", {}, "KL of each group, nats"), element("span", {}, "size"));
  heads.setAttribute("aria-hidden", "true");   // each control has its own name
  const root = element("fieldset", { className: "vk-groups" }, element("div", {}, heads,
    ...rows.map(({ slider, picker }) => element("div", { className: "vk-group" }, slider.root, picker.root))));
  root.setAttribute("aria-label", "Latent groups");
  const set = () => rows.forEach(({ slider, picker }, i) => {
    slider.set(model.get("kl")[i]);
    picker.set(model.get("sizes")[i]);
  });
  return { root, set };
}

function divisorPicker(model, change) {
  const options = Object.entries(DIVISORS).map(([value, face]) => ({ value, face }));
  const picker = radioGroup({ legend: "Divide K by", options, onChange: (divide) => change({ divide }) });
  return { root: picker.root, set: () => picker.set(model.get("divide")) };
}

function gradientPicker(model, change) {
  const options = [{ value: false, face: "stopped" }, { value: true, face: "let through" }];
  const onChange = (picked) => change({ through: picked === "true" });
  const picker = radioGroup({ legend: "Gradient through γ", options, onChange });
  return { root: picker.root, set: () => picker.set(model.get("through")) };
}

function strengthSlider(model, change) {
  const onInput = (strength) => change({ strength });
  const slider = rangeSlider({ label: "strength", min: 0, max: 1, step: 0.05, onInput });
  const root = element("div", { className: "vk-strength" }, slider.root);
  return { root, set: () => slider.set(model.get("strength")) };
}

function buttons(model, change, say) {
  return element("div", { className: "vs-buttons" },
    pushButton("All equal", () => {
      change({ kl: allEqual(readSetting(model)) });
      say("Every group has its share: all coefficients are 1.");
    }),
    pushButton("Collapse one", () => {
      const at = weakest(model.get("kl"));
      if (at < 0) return say("No group has any KL left.");
      change({ kl: model.get("kl").map((k, i) => (i === at ? 0 : k)) });
      const { price } = balance(readSetting(model));
      say(`Group ${at + 1} has no KL now; its next nat costs ${formatNumber(price[at], 2)}.`);
    }));
}

function describe({ kl }, { gamma, price, plain, balanced }) {
  const groups = kl.map((k, i) => `group ${i + 1}: K ${formatNumber(k)}, γ ${formatNumber(gamma[i], 2)}, ` +
    `one more nat costs ${formatNumber(price[i], 2)}${price[i] < 0 ? ", so it is paid to grow" : ""}`);
  return `${groups.join("; ")}. Plain sum ${formatNumber(plain)}, balanced ${formatNumber(balanced)}.`;
}

/** Put the figure into el. Returns a function that brings it up to date with the model. */
function build(model, el) {
  const change = changer(model);
  const plot = barPlot(model.get("kl").length), readouts = sums(), { root: status, say } = announcer();
  const picture = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...plot.nodes);
  const controls = [groupRows, divisorPicker, gradientPicker, strengthSlider].map((make) => make(model, change));
  const root = openSlider(el, model.get("alt"));
  root.classList.add("vk-slider");   // other sliders on the page keep their style
  root.append(
    element("style", { textContent: STYLE }),
    element("div", { className: "vk-figure" }, picture, readouts.root),
    element("div", { className: "vs-controls" },
      ...controls.map((control) => control.root), buttons(model, change, say), status));
  return () => {
    const setting = readSetting(model), numbers = balance(setting);
    controls.forEach((control) => control.set());
    plot.draw(setting, numbers);
    readouts.set(numbers);
    picture.setAttribute("aria-label", describe(setting, numbers));
  };
}

function render({ model, el }) {
  return redrawOnChange(model, TRAITS, build(model, el));
}

export default { render };
