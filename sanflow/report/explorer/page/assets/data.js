// The data beside the page, loaded when it is asked for. A page that was opened from the disk may not read files, but it
// may load scripts; each of them calls receive(name, value).
"use strict";

const waiting = new Map(); // name -> function that takes the value
const loaded = new Map(); // name -> promise of the value

function receive(name, value) {
  waiting.get(name)(value);
}

/** The value of data/<name>.js, loaded once. */
function load(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onerror = () => reject(new Error(
        `Expected the file data/${name}.js beside this page, but it cannot be read. Copy the whole folder of the ` +
        "explorer, or write it again: sanflow explore."));
      document.head.append(script);
    }));
  }
  return loaded.get(name);
}

/** A new element with its text; names from the data are only ever shown as text. */
function element(tag, text = "", properties = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  return Object.assign(made, properties);
}

const SVG = "http://www.w3.org/2000/svg";

/** An outline over a picture: the path's square of 1,000 x 1,000 is stretched over it. */
function outline(path, kind) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "outline");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  line.setAttribute("class", kind);
  svg.append(line);
  return svg;
}

/** A score or threshold as a reader wants it: three digits that count. */
function shown(number) {
  return Number.isFinite(number) ? String(Number(number.toPrecision(3))) : "above every score";
}
