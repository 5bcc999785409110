// Numbers from scores: thresholds, counts, ranks. Nothing here touches the page.
"use strict";

/** Precision and recall of `score >= threshold`, with the four counts; null where nothing can be divided by. */
function count(items) {
  const counts = { found: 0, missed: 0, alarm: 0, passed: 0 };
  for (const item of items) counts[outcomeOf(item)] += 1;
  const flagged = counts.found + counts.alarm, defective = counts.found + counts.missed;
  return {
    ...counts,
    precision: flagged ? counts.found / flagged : null,
    recall: defective ? counts.found / defective : null,
  };
}

/** What became of an image: found, missed, alarm (a good image that is flagged) or passed. */
function outcomeOf({ defective, score, threshold }) {
  const flagged = score >= threshold;
  if (defective) return flagged ? "found" : "missed";
  return flagged ? "alarm" : "passed";
}

/** The threshold of the best F1, the highest where several reach it; Infinity if there is no defect. */
function bestThreshold(scores, labels) {
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
  const positives = labels.filter((label) => label === 1).length;
  let best = 0, threshold = Infinity, found = 0;
  order.forEach((i, place) => {
    found += labels[i];
    if (place + 1 < order.length && scores[order[place + 1]] === scores[i]) return; // equal scores go together
    const f1 = (2 * found) / (place + 1 + positives);
    if (f1 > best + 1e-12) [best, threshold] = [f1, scores[i]];
  });
  return threshold;
}

/** Rank of each score, from 0 for the lowest; equal scores share the mean of their ranks. */
function ranksOf(scores) {
  const order = scores.map((_, i) => i).sort((a, b) => scores[a] - scores[b]);
  const ranks = new Array(scores.length);
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end + 1 < order.length && scores[order[end + 1]] === scores[order[start]]) end += 1;
    for (let k = start; k <= end; k += 1) ranks[order[k]] = (start + end) / 2;
    start = end + 1;
  }
  return ranks;
}

/** The thresholds that differ in what they flag: every distinct score, and one above all. */
function operatingPoints(scores) {
  return [...new Set(scores)].sort((a, b) => a - b).concat(Infinity);
}
