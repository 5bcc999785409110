// The dialog: one image, its ground truth and the maps of all experiments side by side.
"use strict";

const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

let position = -1; // of the open image among the listed ones; -1 if it is not among them
let view = { zoom: 1, x: 0.5, y: 0.5 }; // centre of the visible part, in shares of the picture

function openViewer(at) {
  const item = listed[at];
  showImage(item.category, item.i);
}

/** Open an image of any category, whether or not it passes the filters. */
async function showImage(number, i) {
  const name = `${number}/${i}`;
  setState({ image: name });
  position = listed.findIndex((item) => item.category === number && item.i === i);
  const [benchmark, data, outlines] = await Promise.all(
    ["benchmark", `category-${number}`, `outlines-${number}`].map(load));
  if (state.image !== name || i >= data.files.length) return; // closed or stepped on while it was loading
  const category = benchmark.categories[number];
  field("viewer-title").textContent = `${category.dataset} / ${category.name}: ${data.kinds[i]}`;
  field("viewer-facts").textContent = `${data.files[i]} · ${data.sizes[i].join(" x ")} pixels` +
    (position < 0 ? " · not among the listed images" : ` · image ${position + 1} of ${listed.length} listed`);
  field("previous").disabled = position <= 0;
  field("next").disabled = position < 0 || position + 1 >= listed.length;
  field("panels").replaceChildren(...panelsOf(benchmark, number, data, outlines, i));
  view = { zoom: 1, x: 0.5, y: 0.5 };
  showView();
  if (!field("viewer").open) field("viewer").showModal();
}

function panelsOf(benchmark, number, data, outlines, i) {
  const defective = data.labels[i] === 1;
  const shape = `${data.sizes[i][0]} / ${data.sizes[i][1]}`;
  const photograph = () => element("img", "", { src: `images/${number}/${i}.webp`, alt: "Photograph", draggable: false });
  const truth = outline(outlines.truth[i], "mask");
  const chosen = runOf(data, state.experiment, state.seed);
  const judge = benchmark.experiments[state.experiment];
  const overImage = [photograph(), outline(outlines.truth[i], "truth")];
  if (chosen) overImage.push(outline(outlines.runs[data.runs.indexOf(chosen)][i], "predicted"));
  const panels = [
    panel("Image", shape, overImage, `${defective ? data.kinds[i] : "good"}, with the outline of ${judge}`),
    panel("Ground truth", shape, [truth], outlines.truth[i] ? "white: defective" : "no defect is marked", "black"),
  ];
  benchmark.experiments.forEach((label, experiment) => {
    const run = runOf(data, String(experiment), state.seed);
    if (!run) {
      panels.push(panel(label, shape, [], "no run on this category", "empty"));
      return;
    }
    const k = data.runs.indexOf(run);
    const map = element("img", "", { src: `maps/${number}/${k}/${i}.webp`, className: "map", draggable: false });
    map.alt = `Anomaly map of ${label}`;
    const lines = [outline(outlines.truth[i], "truth"), outline(outlines.runs[k][i], "predicted")];
    panels.push(panel(label, shape, [map, ...lines], captionOf(run, data, i, String(experiment))));
  });
  return panels;
}

/** What an experiment says of an image. The slider's threshold is for the chosen experiment alone. */
function captionOf(run, data, i, experiment) {
  const own = experiment === state.experiment && state.threshold !== "";
  const threshold = own ? Number(state.threshold) : bestThreshold(run.scores, data.labels);
  const outcome = outcomeOf({ defective: data.labels[i] === 1, score: run.scores[i], threshold });
  const higher = run.scores.filter((score) => score > run.scores[i]).length;
  const parts = [
    `${OUTCOMES[outcome].mark} ${OUTCOMES[outcome].name}`,
    `score ${shown(run.scores[i])}, threshold ${shown(threshold)}${own ? " (slider)" : " (best F1)"}`,
    `rank ${higher + 1} of ${run.scores.length} in this category`,
  ];
  if (run.overlaps[i] !== null) parts.push(`overlap ${run.overlaps[i].toFixed(2)}`);
  return parts.concat(`seed ${run.seed}`).join(" · ");
}

function panel(name, shape, layers, caption, look = "") {
  const figure = element("figure"), frame = element("div", "", { className: `frame ${look}` });
  const inner = element("div", "", { className: "inner" });
  frame.style.aspectRatio = shape;
  inner.append(...layers);
  frame.append(inner);
  const text = element("figcaption");
  text.append(element("b", name), element("span", caption));
  figure.append(frame, text);
  return figure;
}

function step(by) {
  if (position < 0 || position + by < 0 || position + by >= listed.length) return;
  openViewer(position + by);
}

/** Zoom and part of the picture, in all panels at once. */
function showView() {
  const half = 0.5 / view.zoom;
  view.x = Math.min(1 - half, Math.max(half, view.x));
  view.y = Math.min(1 - half, Math.max(half, view.y));
  const shift = (centre) => `${100 * (0.5 - centre) * view.zoom}%`;
  for (const inner of document.querySelectorAll("#panels .inner")) {
    inner.style.transform = `translate(${shift(view.x)}, ${shift(view.y)}) scale(${view.zoom})`;
  }
  field("zoom-text").textContent = `${Math.round(100 * view.zoom)} %`;
  field("zoom-in").disabled = view.zoom === ZOOMS.at(-1);
  field("zoom-out").disabled = view.zoom === 1;
  field("outlines").checked = state.outlines === "on";
  field("viewer").classList.toggle("plain", state.outlines !== "on");
  field("viewer").classList.toggle("enlarged", view.zoom > 1);
}

function zoom(by) {
  const at = Math.min(ZOOMS.length - 1, Math.max(0, ZOOMS.indexOf(view.zoom) + by));
  view.zoom = ZOOMS[at];
  showView();
}

function toggleOutlines() {
  setState({ outlines: state.outlines === "on" ? "off" : "on" });
  showView();
}

function prepareViewer() {
  const viewer = field("viewer");
  field("previous").onclick = () => step(-1);
  field("next").onclick = () => step(1);
  field("zoom-in").onclick = () => zoom(1);
  field("zoom-out").onclick = () => zoom(-1);
  field("outlines").onchange = toggleOutlines;
  field("close").onclick = () => viewer.close();
  viewer.addEventListener("close", () => {
    const name = state.image;
    setState({ image: "" });
    [...document.querySelectorAll(".cell")].find((cell) => cell.dataset.image === name)?.focus();
  });
  // Of the document, because a button that holds the focus loses it when the last image disables it.
  document.addEventListener("keydown", (event) => {
    if (!viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move && event.shiftKey) {
      view.x += (0.1 * move[0]) / view.zoom;
      view.y += (0.1 * move[1]) / view.zoom;
      showView();
    } else if (move && move[0]) step(move[0]);
    else if (event.key === "+" || event.key === "=") zoom(1);
    else if (event.key === "-") zoom(-1);
    else if (event.key === "0") zoom(-ZOOMS.length);
    else if (event.key === "o") toggleOutlines();
    else return;
    event.preventDefault();
  });
  field("panels").addEventListener("pointermove", (event) => {
    const frame = event.target.closest(".frame");
    if (!frame || event.buttons !== 1) return;
    view.x -= event.movementX / frame.clientWidth / view.zoom;
    view.y -= event.movementY / frame.clientHeight / view.zoom;
    showView();
  });
  field("panels").addEventListener("dblclick", () => zoom(view.zoom === 1 ? 2 : -ZOOMS.length));
}
