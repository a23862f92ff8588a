/* The slider kit of VAE Lab: what every slider shares.
   Python puts this text before a slider's own module, so these are plain functions, and nothing is imported. */

/** A name no other element has; sliders of several kinds, each with its own kit, may share a page. */
function uniqueName() {
  return "vs-" + Math.random().toString(36).slice(2);
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** An element that takes the keyboard. Without this mark, which JupyterLab looks for on the very element that has
    the focus, it takes arrow keys for itself and walks to the next cell. */
function control(tag, properties) {
  const node = element(tag, properties);
  node.setAttribute("data-lm-suppress-shortcuts", "true");
  return node;
}

/** Prepare the element that Jupyter (or the page's host) hands to a slider. */
function openSlider(el, description) {
  const root = element("div", { className: "vaelab-slider" });
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", description);
  el.replaceChildren(root);
  return root;
}

// ---------------------------------------------------------------- numbers

/** Little-endian float16 (a DataView, or any view of bytes) to a Float32Array. */
function decodeFloat16(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const power = Float32Array.from({ length: 32 }, (_, e) => 2 ** (e - 25));   // of the last mantissa bit
  const numbers = new Float32Array(view.byteLength >> 1);
  for (let i = 0; i < numbers.length; i++) {
    const half = view.getUint16(2 * i, true);
    const exponent = (half >> 10) & 31, mantissa = half & 1023;
    const size = exponent ? (1024 + mantissa) * power[exponent] : mantissa * power[1];   // else: subnormal
    numbers[i] = half & 0x8000 ? -size : size;
  }
  return numbers;
}

/** How many numbers the weights and biases of a perceptron with these layer widths are. */
function perceptronSize(widths) {
  return widths.slice(1).reduce((sum, width, i) => sum + (widths[i] + 1) * width, 0);
}

/** A multi-layer perceptron: ReLU in the hidden layers, a sigmoid at the end.
    numbers: for each layer its weights, input by output, then its biases.
    The function returned reuses its arrays: read its result before you call it again. */
function perceptron(widths, numbers) {
  let at = 0;
  const take = (count) => numbers.subarray(at, (at += count));
  const layers = widths.slice(1).map((width, i) => ({
    weights: take(widths[i] * width), biases: take(width), out: new Float32Array(width),
  }));
  return function forward(input) {
    let x = input;
    layers.forEach((layer, i) => {
      applyLayer(x, layer, i === layers.length - 1 ? sigmoid : relu);
      x = layer.out;
    });
    return x;
  };
}

function relu(x) { return x > 0 ? x : 0; }

function sigmoid(x) { return 1 / (1 + Math.exp(-x)); }

function applyLayer(x, { weights, biases, out }, activation) {
  const width = out.length;
  out.set(biases);
  for (let i = 0; i < x.length; i++) {
    const xi = x[i];
    if (xi === 0) continue;   // half of a ReLU layer, and all but one entry of a one-hot label
    for (let j = 0, w = i * width; j < width; j++, w++) out[j] += xi * weights[w];
  }
  for (let j = 0; j < width; j++) out[j] = activation(out[j]);
}

/** Numbers from N(0, 1), the same ones for the same seed: mulberry32, then Box and Muller. */
function gaussian(seed) {
  let state = seed >>> 0;
  const uniform = () => {   // in (0, 1]
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 1) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

// --------------------------------------------------------------- controls

/** A number as a reader expects it: with a minus sign, not a hyphen. */
function formatNumber(value, digits = 1) {
  return value.toFixed(digits).replace("-", "\u2212");
}

/** A labelled range slider; label: text or nodes. Returns {root, set}. */
function rangeSlider({ label, min, max, step, onInput }) {
  const id = uniqueName();
  const digits = Math.max(0, Math.ceil(-Math.log10(step)));
  const input = control("input", { type: "range", id, min, max, step });   // min before any value: it would clamp
  const output = element("output", { htmlFor: id });
  output.setAttribute("aria-live", "off");   // the slider itself announces its value
  input.addEventListener("input", () => onInput(input.valueAsNumber));
  const name = element("label", { htmlFor: id }, ...[label].flat());
  const set = (value) => {
    input.value = value;
    output.value = formatNumber(value, digits);
  };
  return { root: element("div", { className: "vs-range" }, name, input, output), set };
}

/** One of several: native radio buttons behind any faces. options: [{value, face}], a face being text or nodes.
    Returns {root, set}. */
function radioGroup({ legend, options, className = "vs-segments", onChange }) {
  const name = uniqueName();
  const inputs = options.map(({ value }) => control("input", { type: "radio", name, value }));
  const faces = options.map(({ face }) => element("span", { className: "vs-face" }, ...[face].flat()));
  const labels = inputs.map((input, i) => element("label", { className: "vs-option" }, input, faces[i]));
  const root = element("fieldset", { className },
    element("legend", {}, ...[legend].flat()), element("div", { className: "vs-options" }, ...labels));
  root.addEventListener("change", (event) => onChange(event.target.value));
  const set = (value) => inputs.forEach((input) => { input.checked = input.value === String(value); });
  return { root, set };
}

function pushButton(text, onClick) {
  const button = control("button", { type: "button", className: "vs-button", textContent: text });
  button.addEventListener("click", onClick);
  return button;
}

/** Tells screen readers, politely and once the reader pauses, what a button did. Returns {root, say}. */
function announcer() {
  const root = element("p", { className: "vs-hidden" });
  root.setAttribute("role", "status");
  let timer;
  const say = (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => { root.textContent = text; }, 300);
  };
  return { root, say };
}

// --------------------------------------------------------------- pictures

/** Set many attributes of one node. */
function setAll(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

/** An SVG element, which needs its namespace. */
function svgNode(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAll(node, attributes);
  node.append(...children);
  return node;
}

/** Call draw at most once a frame, however often it is asked for. */
function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
}

/** A function that sets traits of the model, {name: value}, and tells Python. */
function changer(model) {
  return (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
}

/** Draw now, and once a frame whenever one of these traits has changed. Returns what ends it. */
function redrawOnChange(model, traits, draw) {
  const ask = oncePerFrame(draw), events = traits.map((name) => `change:${name}`);
  events.forEach((event) => model.on(event, ask));
  draw();
  return () => events.forEach((event) => model.off(event, ask));
}

function pictureCanvas(side) {
  const canvas = element("canvas", { width: side, height: side, className: "vs-picture" });
  canvas.setAttribute("role", "img");
  return canvas;
}

/** Draw pixels in [0, 1], row by row, as ink on the page: 0 is no ink.
    Ink is black and its amount is the alpha channel; the style sheet inverts it where pages are dark. */
function drawInk(canvas, pixels, description) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < pixels.length; i++) image.data[4 * i + 3] = 255 * pixels[i];
  context.putImageData(image, 0, 0);
  if (description) canvas.setAttribute("aria-label", description);
}
