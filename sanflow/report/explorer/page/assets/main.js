// From the state to the page: load what is needed, filter, sort, show.
"use strict";

// Every 16th colour of matplotlib's "inferno", which grows brighter all the way: for print and colour-blind readers.
const COLOURS = [
  [0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110],
  [138, 34, 106], [163, 44, 97], [188, 55, 84], [208, 69, 69], [227, 89, 51], [241, 113, 31],
  [249, 140, 10], [252, 170, 15], [249, 201, 50], [242, 232, 101], [252, 255, 164],
];

let turn = 0; // number of the last refresh: an older one that is still loading gives way

async function refresh() {
  const mine = ++turn;
  const benchmark = await load("benchmark");
  fillPlaces(benchmark);
  const wanted = benchmark.categories.map((category, number) => ({ category, number })).filter(({ category }) =>
    (!state.dataset || category.dataset === state.dataset) && (!state.category || category.name === state.category));
  const data = await Promise.all(wanted.map(({ number }) => load(`category-${number}`)));
  if (mine !== turn) return;
  const categories = wanted.map((entry, k) => ({ ...entry, data: data[k] }));
  fillChoices(benchmark, categories);
  const items = itemsOf(categories).filter(ofKind);
  showThreshold(items, categories);
  showCounts(items);
  showGrid(ordered(items.filter((item) => !state.outcome || outcomeOf(item) === state.outcome)));
}

/** Bring the page to what the address says. */
async function follow() {
  readAddress();
  await refresh();
  const [number, i] = state.image.split("/").map(Number);
  const { categories } = await load("benchmark");
  if (state.image && Number.isInteger(i) && number in categories) await showImage(number, i);
  else if (field("viewer").open) field("viewer").close();
}

function report(error) {
  field("listing").textContent = `⚠ ${error.message}`;
}

function change(changes) {
  setState(changes);
  refresh().catch(report);
}

function prepareControls() {
  for (const name of ["dataset", "category", "kind", "outcome", "experiment", "other", "seed", "sort", "picture"]) {
    // Another data set has other categories, and other images another range of scores.
    const also = { dataset: { category: "", kind: "" }, category: { kind: "" } }[name] ?? {};
    const scores = ["dataset", "category", "experiment", "seed"].includes(name) ? { threshold: "" } : {};
    field(name).onchange = () => change({ ...also, ...scores, [name]: field(name).value });
  }
  let frame = 0; // a slider fires more often than the page can be drawn
  field("slider").oninput = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => change({ threshold: String(points[Number(field("slider").value)]) }));
  };
  field("best").onclick = () => change({ threshold: "" });
  field("controls").onsubmit = (event) => event.preventDefault();
  field("more").onclick = showMore;
  new IntersectionObserver(([entry]) => entry.isIntersecting && showMore(), { rootMargin: "600px" }).observe(field("more"));
  field("skip").onclick = (event) => {
    event.preventDefault(); // the address is the state's
    field("images").focus();
  };
}

function prepareColours() {
  const tables = [0, 1, 2].map((channel) => COLOURS.map((colour) => (colour[channel] / 255).toFixed(3)).join(" "));
  document.querySelectorAll("#map-colours feComponentTransfer > *").forEach((part, channel) =>
    part.setAttribute("tableValues", tables[channel]));
  field("colours").style.background = `linear-gradient(90deg, ${COLOURS.map((colour) => `rgb(${colour})`).join()})`;
}

prepareColours();
prepareControls();
prepareViewer();
window.addEventListener("hashchange", () => {
  if (location.hash !== addressOf(state)) follow().catch(report); // someone else changed it: a link, the back button
});
load("benchmark").then(showTop).then(follow).catch(report);
