// The images as a grid, in portions: the next portion is added when the end of the last one comes into view.
"use strict";

const PORTION = 120;

let listed = []; // the items that pass the filters, in their order
let drawn = 0;

/** Every image of the loaded categories as an item, judged by the chosen run. */
function itemsOf(categories) {
  const items = [];
  for (const { number, category, data } of categories) {
    const run = runOf(data, state.experiment, state.seed);
    if (!run) continue;
    const threshold = state.threshold === "" ? bestThreshold(run.scores, data.labels) : Number(state.threshold);
    const second = runOf(data, state.other, state.seed);
    const ranks = ranksOf(run.scores), others = second && second !== run ? ranksOf(second.scores) : null;
    data.files.forEach((file, i) => items.push({
      category: number, dataset: category.dataset, place: category.name, i, file,
      kind: data.kinds[i], defective: data.labels[i] === 1, score: run.scores[i], overlap: run.overlaps[i], threshold,
      map: data.runs.indexOf(run), difference: others ? (ranks[i] - others[i]) / Math.max(1, ranks.length - 1) : null,
    }));
  }
  return items;
}

/** The run of an experiment: of this seed, else of its first one. */
function runOf(data, experiment, seed) {
  const own = data.runs.filter((run) => String(run.experiment) === experiment);
  return own.find((run) => String(run.seed) === seed) ?? own[0];
}

function ofKind(item) {
  if (state.kind === "") return true;
  if (state.kind === "good") return !item.defective;
  return item.defective && (state.kind === "any" || state.kind === `is:${item.kind}`);
}

function ordered(items) {
  // Items without the value that is sorted by come last.
  const by = (value) => items.map((item) => [value(item), item])
    .sort(([a], [b]) => (a === null) - (b === null) || a - b).map(([, item]) => item);
  const severity = { missed: 0, alarm: 1, found: 2, passed: 3 };
  // The worst mistakes come first, and of what is right that which is nearest to the threshold.
  const margin = (item) => Math.abs(item.score - item.threshold) * (severity[outcomeOf(item)] < 2 ? -1 : 1);
  switch (state.sort) {
    case "mistakes": return items.map((item) => [severity[outcomeOf(item)], margin(item), item])
      .sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, , item]) => item);
    case "highest": return by((item) => -item.score);
    case "lowest": return by((item) => item.score);
    case "disagreement": return by((item) => (item.difference === null ? null : -Math.abs(item.difference)));
    case "least-overlap": return by((item) => item.overlap);
    case "most-overlap": return by((item) => (item.overlap === null ? null : -item.overlap));
    default: return items;
  }
}

function showGrid(items) {
  listed = items;
  drawn = 0;
  field("grid").replaceChildren();
  field("listing").textContent = items.length
    ? `${items.length} image${items.length === 1 ? "" : "s"}, ${SORTS[state.sort]}.`
    : "No image passes these filters.";
  showMore();
}

function showMore() {
  field("grid").append(...listed.slice(drawn, drawn + PORTION).map((item, k) => cellOf(item, drawn + k)));
  drawn = Math.min(drawn + PORTION, listed.length);
  field("more").hidden = drawn >= listed.length;
}

function cellOf(item, position) {
  const outcome = outcomeOf(item), { mark, name } = OUTCOMES[outcome];
  const button = element("button", "", { type: "button", className: `cell ${outcome}` });
  button.dataset.image = `${item.category}/${item.i}`;
  const picture = element("img", "", { loading: "lazy", alt: "", width: 128, height: 128 });
  picture.src = state.picture === "map"
    ? `maps/${item.category}/${item.map}/${item.i}.webp` : `images/${item.category}/${item.i}-small.webp`;
  picture.className = state.picture === "map" ? "map" : "";
  const texts = [
    element("span", `${mark} ${name}`, { className: "badge" }),
    element("span", `${item.place} · ${item.kind}`, { className: "kind", title: item.file }),
    element("span", `score ${shown(item.score)}`),
  ];
  if (state.sort.endsWith("overlap") && item.overlap !== null) texts.push(element("span", `overlap ${item.overlap.toFixed(2)}`));
  if (state.sort === "disagreement" && item.difference !== null) {
    const direction = item.difference < 0 ? "lower" : "higher";
    texts.push(element("span", `ranked ${Math.round(Math.abs(100 * item.difference))} % ${direction}`));
  }
  button.append(picture, ...texts);
  button.onclick = () => openViewer(position);
  const holder = element("li");
  holder.append(button);
  return holder;
}
