/* LatentExplorer: a trained decoder, run in the browser. See latent.py, which sends the traits named here.
   Every control sets a trait of the model, and every change of a trait asks for a redraw: also when Python sets it. */

const LIMIT = 3;   // three standard deviations of the prior N(0, I)
const STEP = 0.1;

/** The decoders by their names; each maps [z, onehot(label)] to pixels in [0, 1]. */
function openDecoders(model) {
  const widths = model.get("widths");
  const numbers = decodeFloat16(model.get("weights"));
  const size = perceptronSize(widths);
  return new Map(model.get("choices").map((name, i) =>
    [name, perceptron(widths, numbers.subarray(i * size, (i + 1) * size))]));
}

function decode(forward, z, label, numClasses) {
  const input = new Float32Array(z.length + numClasses);
  input.set(z);
  input[z.length + label] = 1;
  return forward(input);
}

/** z with a subscript, counted from one as in the text; axis counts from zero as in Python. */
function coordinateName(axis) {
  return [element("i", {}, "z"), element("sub", {}, String(axis + 1))];
}

/** The two sliders. Returns [{root, set}, …], set taking the whole code. */
function coordinateSliders(model, change) {
  return model.get("axes").map((axis) => {
    const slider = rangeSlider({
      label: coordinateName(axis), min: -LIMIT, max: LIMIT, step: STEP,
      onInput: (value) => change("z", model.get("z").map((old, i) => (i === axis ? value : old))),
    });
    return { root: slider.root, set: (z) => slider.set(z[axis]) };
  });
}

function choicePicker(model, change) {
  const picker = radioGroup({
    legend: model.get("choice_label"),
    options: model.get("choices").map((name) => ({ value: name, face: name })),
    onChange: (name) => change("choice", name),
  });
  picker.root.hidden = model.get("choices").length < 2;
  return picker;
}

/** All classes at the same code; each picture is the button that picks its class. */
function classPicker(model, change, side) {
  const names = model.get("class_names");
  const canvases = names.map(() => pictureCanvas(side));
  canvases.forEach((canvas) => canvas.setAttribute("aria-hidden", "true"));   // the radio button has the name
  const picker = radioGroup({
    legend: ["One code ", element("i", {}, "z"), ", every class"],
    className: "vs-strip",
    options: names.map((name, label) => ({ value: label, face: [canvases[label], element("span", {}, name)] })),
    onChange: (label) => change("label", Number(label)),
  });
  picker.root.style.setProperty("--vs-columns", Math.min(names.length, 10));
  return { ...picker, canvases };
}

function styleButtons(model, change, say) {
  const normal = gaussian(1), axes = model.get("axes");
  const buttons = [pushButton("Reset", () => {
    change("z", model.get("z").map(() => 0));
    say("All coordinates are zero again.");
  })];
  if (model.get("z").length > axes.length) buttons.unshift(pushButton("New style", () => {
    change("z", model.get("z").map((old, i) => (axes.includes(i) ? old : normal())));
    say("The other coordinates were drawn afresh.");
  }));
  return element("div", { className: "vs-buttons" }, ...buttons);
}

function describe(model) {
  const z = model.get("z");
  const place = model.get("axes").map((axis) => `z${axis + 1} = ${formatNumber(z[axis])}`).join(", ");
  const choice = model.get("choices").length > 1 ? `; ${model.get("choice_label")}: ${model.get("choice")}` : "";
  return `Class ${model.get("class_names")[model.get("label")]} at ${place}${choice}`;
}

/** Draw all classes at the model's code, and the picked one large. */
function drawAll(model, decoders, picture, canvases) {
  const forward = decoders.get(model.get("choice"));
  canvases.forEach((canvas, label) => {
    const pixels = decode(forward, model.get("z"), label, canvases.length);
    drawInk(canvas, pixels);
    if (label === model.get("label")) drawInk(picture, pixels, describe(model));
  });
}

/** Put the figure into el. Returns a function that brings it up to date with the model. */
function build(model, el) {
  const change = (name, value) => { model.set(name, value); model.save_changes(); };
  const side = Math.sqrt(model.get("widths").at(-1));
  const picture = pictureCanvas(side), decoders = openDecoders(model), { root: status, say } = announcer();
  const choices = choicePicker(model, change), classes = classPicker(model, change, side);
  const sliders = coordinateSliders(model, change);
  openSlider(el, model.get("alt")).append(
    element("div", { className: "vs-figure" }, picture),
    element("div", { className: "vs-controls" },
      choices.root, ...sliders.map((slider) => slider.root), styleButtons(model, change, say), status),
    classes.root);
  return () => {
    choices.set(model.get("choice"));
    classes.set(model.get("label"));
    sliders.forEach((slider) => slider.set(model.get("z")));
    drawAll(model, decoders, picture, classes.canvases);
  };
}

function render({ model, el }) {
  return redrawOnChange(model, ["z", "label", "choice"], build(model, el));
}

export default { render };
