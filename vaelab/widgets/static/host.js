/* The widget host of VAE Lab: runs the book's sliders in the rendered page, without a kernel and without a network.

   A notebook saves its widgets as JSON, and the book's builder copies that JSON into the page: one
     <script type="application/vnd.jupyter.widget-view+json">{"model_id": …}</script>     where a widget was shown,
     <script type="application/vnd.jupyter.widget-state+json">{"state": {…}}</script>     once a page.
   The usual reader of these scripts is Jupyter's html-manager: 3.6 MB, and require.js from another host.
   Every slider of this book is an anywidget, which carries its own ES module in its state ("_esm").
   So the page needs only what follows: give each module a model and an element.
   It is a classic script, not a module, because Chromium loads no module files from file:// pages. */
(function () {
  "use strict";

  const VIEW = "application/vnd.jupyter.widget-view+json";
  const STATE = "application/vnd.jupyter.widget-state+json";
  const NEEDS_KERNEL = "This widget needs a running kernel: open the chapter in Jupyter or Colab.";

  /** Binary parts of a state travel as base64; Jupyter hands them to widgets as DataViews. */
  function decodeBase64(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new DataView(bytes.buffer);
  }

  function restoreBuffers(saved) {
    for (const { data, path } of saved.buffers || []) {
      const owner = path.slice(0, -1).reduce((part, key) => part[key], saved.state);
      owner[path[path.length - 1]] = decodeBase64(data);
    }
    return saved.state;
  }

  /** Equal as Backbone sees it: by content, so that setting what is there already tells nobody. */
  function same(a, b) {
    if (a === b) return true;
    const plain = (x) => typeof x === "object" && x !== null && !ArrayBuffer.isView(x);
    return plain(a) && plain(b) && JSON.stringify(a) === JSON.stringify(b);
  }

  /** What a widget's module may ask of its model: the part of Backbone's Model that anywidget promises. */
  class Model {
    constructor(state) {
      this.state = state;
      this.listeners = [];
      this.live = false;   // only here: a slider that would ask the kernel for something reads that there is none
    }
    get(name) { return this.state[name]; }
    set(name, value) {
      const entries = Object.entries(typeof name === "object" ? name : { [name]: value });
      const changed = entries.filter(([key, next]) => !same(this.state[key], next));
      for (const [key, next] of changed) this.state[key] = next;
      for (const [key, next] of changed) this.fire("change:" + key, next);
      if (changed.length) this.fire("change");
    }
    fire(event, ...values) {
      for (const [name, callback] of [...this.listeners]) if (name === event) callback(this, ...values);
    }
    on(events, callback) { for (const name of events.split(/\s+/)) this.listeners.push([name, callback]); }
    off(events, callback) {
      const names = events ? events.split(/\s+/) : null;
      this.listeners = this.listeners.filter(([name, known]) =>
        (names && !names.includes(name)) || (callback && known !== callback));
    }
    save_changes() {}   // nobody listens: there is no kernel behind the page
    send() {}
  }

  /** Do something once for each key, and remember its result. */
  function once(action) {
    const results = new Map();
    return (key) => results.has(key) ? results.get(key) : results.set(key, action(key)).get(key);
  }

  const addStyle = once((css) => {
    document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  });

  /** A module from its text. Its default export may be the widget, or a function that makes the widget. */
  const loadWidget = once(async (esm) => {
    const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
    const module = await import(url);
    URL.revokeObjectURL(url);
    const widget = module.default || module;
    return typeof widget === "function" ? widget() : widget;
  });

  function readStates() {
    const scripts = document.querySelectorAll(`script[type="${STATE}"]`);
    return Object.assign({}, ...Array.from(scripts, (script) => JSON.parse(script.textContent).state));
  }

  /** An anywidget that carries its module's text. (A module behind an address would need another host.) */
  function runsHere(saved) {
    const esm = saved && saved.model_module === "anywidget" && saved.state._esm;
    return Boolean(esm) && !/^https?:/.test(esm);
  }

  async function start(saved) {
    const model = new Model(restoreBuffers(saved));
    if (model.get("_css")) addStyle(model.get("_css"));
    const widget = await loadWidget(model.get("_esm"));
    const signal = new AbortController().signal;   // never aborted: a page's widgets live as long as the page
    if (widget.initialize) await widget.initialize({ model, signal });
    return { model, widget, signal };
  }

  function note(el, text) {
    el.replaceChildren(Object.assign(document.createElement("p"), { className: "vaelab-host-note", textContent: text }));
  }

  async function show(script, states, startOnce) {
    const el = document.createElement("div");
    script.after(el);
    const id = JSON.parse(script.textContent).model_id;
    if (!runsHere(states[id])) return note(el, NEEDS_KERNEL);
    try {
      const { model, widget, signal } = await startOnce(id);
      if (widget.render) await widget.render({ model, el, signal });
    } catch (error) {
      console.error(error);
      note(el, `This widget could not start: ${error.message || error}`);
    }
  }

  function showAll() {
    // A view is marked when it is taken, so that a page which loads this script twice shows nothing twice.
    const views = document.querySelectorAll(`script[type="${VIEW}"]:not([data-shown])`);
    if (!views.length) return;
    const states = readStates();
    const startOnce = once((id) => start(states[id]));   // two views of one model share it
    for (const script of views) {
      script.dataset.shown = "";
      show(script, states, startOnce);
    }
  }

  // The state comes after the views in the page, so wait until all of it has been read.
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", showAll);
  else showAll();
})();
