// The form above the images: which of them are shown, who judges them, the threshold, and the counts that follow.
"use strict";

const OUTCOMES = {
  missed: { mark: "✕", name: "missed defect" },
  alarm: { mark: "▲", name: "false alarm" },
  found: { mark: "✓", name: "found defect" },
  passed: { mark: "○", name: "passed good" },
};
const SORTS = {
  mistakes: "mistakes first",
  listed: "as in the data set",
  highest: "highest score first",
  lowest: "lowest score first",
  disagreement: "largest disagreement first",
  "least-overlap": "least overlap first",
  "most-overlap": "most overlap first",
};
const field = (name) => document.getElementById(name);

let points = [Infinity]; // thresholds that the slider steps through

/** Fill a select; a value that is not offered falls back to the first. */
function fill(name, options) {
  const select = field(name);
  select.replaceChildren(...options.map(([value, text]) => element("option", text, { value })));
  if (!options.some(([value]) => value === state[name])) state[name] = options[0][0];
  select.value = state[name];
  select.disabled = options.length < 2;
}

function fillPlaces(benchmark) {
  const datasets = [...new Set(benchmark.categories.map((category) => category.dataset))];
  fill("dataset", datasets.length > 1 ? [["", "all"], ...datasets.map((name) => [name, name])] : [["", datasets[0]]]);
  const here = benchmark.categories.filter((category) => !state.dataset || category.dataset === state.dataset);
  const names = [...new Set(here.map((category) => category.name))];
  fill("category", names.length > 1 ? [["", "all"], ...names.map((name) => [name, name])] : [["", names[0]]]);
}

/** Fill the other selects from the loaded categories. */
function fillChoices(benchmark, categories) {
  const kinds = new Set();
  const seeds = new Set();
  for (const { data } of categories) {
    data.kinds.forEach((kind, i) => data.labels[i] && kinds.add(kind));
    data.runs.filter((run) => String(run.experiment) === state.experiment).forEach((run) => seeds.add(run.seed));
  }
  const experiments = benchmark.experiments.map((label, number) => [String(number), label]);
  fill("experiment", experiments);
  fill("seed", [...seeds].sort((a, b) => a - b).map((seed) => [String(seed), String(seed)]).concat(
    seeds.size ? [] : [["", "no run"]]));
  fill("kind", [["", "all"], ["good", "good"], ["any", "any defect"],
    ...[...kinds].sort().map((kind) => [`is:${kind}`, kind])]);
  fill("outcome", [["", "all"], ...Object.entries(OUTCOMES).map(([key, { mark, name }]) => [key, `${mark} ${name}`])]);
  const several = experiments.length > 1;
  fill("sort", Object.entries(SORTS).filter(([key]) => several || key !== "disagreement"));
  const others = experiments.filter(([number]) => number !== state.experiment);
  fill("other", others.length ? others : [["", "–"]]);
  field("other-label").hidden = state.sort !== "disagreement";
  field("picture").value = state.picture;
}

function showThreshold(items, categories) {
  points = operatingPoints(items.map((item) => item.score));
  const slider = field("slider");
  const one = state.threshold === "" && categories.length > 1 ? null : items.length ? items[0].threshold : Infinity;
  const pooled = () => bestThreshold(items.map((item) => item.score), items.map((item) => Number(item.defective)));
  const shownAt = one === null ? pooled() : one;
  const place = points.findIndex((point) => point >= shownAt);
  slider.max = points.length - 1;
  slider.value = place;
  slider.disabled = !items.length;
  const text = one === null ? "each category at its own best F1"
    : state.threshold === "" ? `${shown(one)} (best F1)` : shown(one);
  field("threshold-text").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  slider.classList.toggle("idle", one === null);
  field("best").disabled = state.threshold === "";
  field("best").textContent = categories.length > 1 ? "Back to the best F1 of each category" : "Back to the best F1";
}

function showCounts(items) {
  const counts = count(items);
  const place = field("counts");
  const tiles = Object.entries(OUTCOMES).map(([key, { mark, name }]) => {
    const plural = counts[key] === 1 || key === "passed" ? name : `${name}s`;
    const tile = element("span", "", { className: `tile ${key}` });
    tile.dataset.count = key;
    tile.append(element("b", `${mark} ${counts[key]}`), ` ${plural}`);
    return tile;
  });
  const percent = (value) => (value === null ? "n/a" : `${(100 * value).toFixed(1)} %`);
  for (const [name, meaning] of [["precision", "of what is flagged is defective"], ["recall", "of the defects are found"]]) {
    const tile = element("span", "", { className: "tile" });
    tile.dataset.count = name;
    tile.append(element("b", percent(counts[name])), ` ${name}`, element("small", ` (${meaning})`));
    tiles.push(tile);
  }
  place.replaceChildren(...tiles);
}
