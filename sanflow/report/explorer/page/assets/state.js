// The state of the view, kept in the address, so that a view can be bookmarked and sent.
"use strict";

const DEFAULTS = {
  dataset: "", // "" is all
  category: "",
  kind: "", // "", "good", "any", or "is:<name>"
  outcome: "",
  experiment: "0", // place in the list of experiments
  other: "1",
  seed: "", // "" is the first
  sort: "mistakes",
  picture: "image",
  threshold: "", // "" is the best F1 of each category
  image: "", // "<category number>/<image number>" of the open image
  outlines: "on",
};

let state = { ...DEFAULTS };

/** The state as the last part of an address; an empty one would scroll to the top of the page. */
function addressOf(values) {
  const changed = Object.entries(values).filter(([name, value]) => value !== DEFAULTS[name]);
  return `#${new URLSearchParams(changed)}` + (changed.length ? "" : "all");
}

/** Read the state from the address. Unknown names are ignored. */
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) if (given.has(name)) state[name] = given.get(name);
  if (Number.isNaN(Number(state.threshold))) state.threshold = "";
}

/** Change the state and the address with it. */
function setState(changes) {
  Object.assign(state, changes);
  // Not a new entry of the history for each step of a slider. replaceState is not allowed for files in every browser.
  if (location.hash !== addressOf(state)) location.replace(addressOf(state));
}
