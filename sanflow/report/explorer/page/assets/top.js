// The top of the page: what was run, the headline table, what is missing, how to cite.
"use strict";

function showTop(benchmark) {
  document.title = `${benchmark.name}: results`;
  document.getElementById("title").textContent = benchmark.title;
  const facts = document.getElementById("facts");
  for (const [name, lines] of benchmark.facts) {
    const pair = element("div");
    pair.append(element("dt", name), ...lines.map((line) => element("dd", line)));
    facts.append(pair);
  }
  showTable(benchmark.table, document.getElementById("headline"));
  const remarks = document.getElementById("remarks");
  if (!benchmark.missing.length && !benchmark.warnings.length) {
    remarks.append(element("p", "✓ Nothing is missing, and no run gave a warning."));
  }
  showList("Missing", benchmark.missing, remarks);
  showList("Warnings", benchmark.warnings, remarks);
  document.getElementById("cite").append(...benchmark.cite.map((text) => element("li", text)));
}

function showList(name, texts, place) {
  if (!texts.length) return;
  const details = element("details", "", { open: texts.length <= 3, className: "remark" });
  const list = element("ul");
  list.append(...texts.map((text) => element("li", text)));
  details.append(element("summary", `⚠ ${name}: ${texts.length}`), list);
  place.append(details);
}

function showTable(table, place) {
  place.append(element("h2", table.title), element("p", table.caption));
  for (const section of table.sections) {
    const made = element("table");
    made.append(element("caption", section.heading));
    const header = element("tr");
    section.header.forEach((name, column) =>
      header.append(element("th", name, { scope: "col", className: column < section.textColumns ? "words" : "" })));
    const head = element("thead"), body = element("tbody");
    head.append(header);
    for (const row of section.rows) {
      const line = element("tr");
      row.forEach((cell, column) => {
        const holder = element("td", "", { className: column < section.textColumns ? "words" : "" });
        holder.append(element(cell.best ? "strong" : "span", cell.text));
        line.append(holder);
      });
      body.append(line);
    }
    made.append(head, body);
    const scroll = element("div", "", { className: "scroll", tabIndex: 0 });
    scroll.append(made);
    place.append(scroll);
  }
  for (const note of table.notes) place.append(element("p", note, { className: "note" }));
}
