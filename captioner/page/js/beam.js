// The beam as a tree over time: each column is a step, the best sentence so far on top.

import { focusOnly, make, makeSvg } from "./element.js";
import { decimal, percent } from "./number.js";
import { shownWord } from "./words.js";

const COLUMN = 132;
const ROW = 34;
const TOP = 34;
const LEFT = 74;
const BOX = 104;
const LONGEST = 12; // letters of a word in its box

// Of a wide beam, the best of each step are enough to see the tree.
const KEPT = 6;
const CUT = 3;

// `writeOn(text)` starts the caption with a text, if a server can; `all`: draws every sentence.
export function showBeam(panel, beam, settings, writeOn = null, all = false) {
  const every = link(beam);
  const nodes = layOut(all ? every : best(every, beam));
  const steps = beam.steps.length;
  const readout = make("p", { class: "readout", role: "status" }, `Point at a word to read its numbers.${writeOn ? " Choose it to write on from there." : ""}`);
  const drawing = draw(nodes, steps, (node) => { readout.replaceChildren(...describe(node)); }, writeOn);
  const slider = make("input", { type: "range", min: 1, max: steps, value: steps, id: "beam-step" });
  const told = make("output", { for: "beam-step" }, `${steps} of ${steps}`);
  slider.addEventListener("input", () => {
    told.textContent = `${slider.value} of ${steps}`;
    for (const part of drawing.querySelectorAll("[data-step]")) {
      part.classList.toggle("later", Number(part.dataset.step) > Number(slider.value));
    }
  });
  panel.replaceChildren(
    make("p", { class: "note" }, explain(settings)),
    make("div", { class: "steps" }, make("label", { for: "beam-step" }, "Steps"), slider, told,
      nodes.size < every.size || all ? make("button", { type: "button", class: "small", onclick: () => showBeam(panel, beam, settings, writeOn, !all) }, all ? "Show the best only" : `Show all ${every.size}`) : null),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The beam, from left to right" }, drawing),
    readout,
    asTable(nodes, steps),
  );
}

function explain({ search, beam_size: size }) {
  if (search === "sample") return "Each step draws a word at random; the greyed ones could have been drawn. The thick line is the chosen caption; a square ends a sentence.";
  return `At each step the ${size} best sentences so far live on; the greyed ones were cut. Within a step the best stands on top. The thick line is the chosen caption; a square ends a sentence.`;
}

// -> Map from id to a node with its step and its parent node; each step best first.
function link(beam) {
  const chosen = new Set(beam.chosen);
  const nodes = new Map();
  beam.steps.forEach((step, i) => {
    for (const node of [...step].sort((a, b) => b.score - a.score)) {
      const parent = nodes.get(node.parent);
      nodes.set(node.id, { ...node, parent, step: i + 1, chosen: chosen.has(node.id) });
    }
  });
  return nodes;
}

// -> the best of each step and what leads to them.
function best(nodes, beam) {
  const wanted = new Set();
  for (let step = 1; step <= beam.steps.length; step++) {
    const here = [...nodes.values()].filter((node) => node.step === step);
    const kept = here.filter((node) => node.kept).slice(0, KEPT);
    const cut = here.filter((node) => !node.kept).slice(0, CUT);
    for (const node of [...kept, ...cut, ...here.filter((each) => each.chosen)]) {
      for (let each = node; each; each = each.parent) wanted.add(each.id);
    }
  }
  return new Map([...nodes].filter(([id]) => wanted.has(id)));
}

// Gives each node its place: the step is the column, the rank within the step the row.
function layOut(nodes) {
  const rows = new Map();
  for (const node of nodes.values()) {
    const row = rows.get(node.step) ?? 0;
    rows.set(node.step, row + 1);
    Object.assign(node, { row, x: LEFT + (node.step - 1) * COLUMN, y: TOP + row * ROW });
  }
  return nodes;
}

function draw(nodes, steps, read, writeOn) {
  const all = [...nodes.values()];
  const height = TOP + ROW * (1 + Math.max(...all.map((node) => node.row))) + 4;
  const width = LEFT + COLUMN * steps;
  const middle = TOP + ROW / 2 - 4;
  const drawing = makeSvg("svg", { class: "beam", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Sentences that the search looked at" });
  for (let step = 1; step <= steps; step++) {
    drawing.append(makeSvg("text", { class: "tick", x: LEFT + (step - 1) * COLUMN + BOX / 2, y: 14, "text-anchor": "middle", "data-step": step }, `step ${step}`));
  }
  drawing.append(makeSvg("text", { class: "root", x: 4, y: middle + 4 }, "start"));
  // The chosen way is drawn last, over the others.
  const order = (node) => node.chosen * 2 + node.kept;
  for (const node of [...all].sort((a, b) => order(a) - order(b))) {
    const from = node.parent ? { x: node.parent.x + BOX, y: node.parent.y + ROW / 2 - 4 } : { x: 44, y: middle };
    const to = { x: node.x, y: node.y + ROW / 2 - 4 };
    const bend = Math.max(10, (to.x - from.x) / 2);
    drawing.append(makeSvg("path", { class: kind(node), "data-step": node.step, d: `M${from.x} ${from.y}C${from.x + bend} ${from.y} ${to.x - bend} ${to.y} ${to.x} ${to.y}` }));
  }
  drawing.append(...all.map((node) => box(node, read, writeOn)));
  const buttons = [...drawing.querySelectorAll("[role=button]")];
  focusOnly(buttons, buttons[0]);
  moveInTree(drawing, nodes);
  return drawing;
}

const kind = (node) => (node.chosen ? "chosen" : node.kept ? "kept" : "cut");

function box(node, read, writeOn) {
  const text = node.finished ? "■ end" : shownWord(node);
  const shown = [...text].length > LONGEST ? `${[...text].slice(0, LONGEST - 1).join("")}…` : text;
  const button = makeSvg("rect", { x: node.x, y: node.y, width: BOX, height: ROW - 8, rx: 6, role: "button", "data-id": node.id, "aria-label": spoken(node) });
  const group = makeSvg("g", { class: `node ${kind(node)}`, "data-step": node.step }, button,
    makeSvg("text", { "aria-hidden": true, x: node.x + 9, y: node.y + 17.5 }, shown),
    makeSvg("text", { "aria-hidden": true, class: "chance", x: node.x + BOX - 8, y: node.y + 17, "text-anchor": "end" }, shown.length > 8 ? "" : percent(node.log_prob)),
  );
  const act = () => (writeOn ? writeOn(node.caption) : read(node));
  for (const event of ["focus", "mouseenter"]) button.addEventListener(event, () => read(node));
  button.addEventListener("click", act);
  button.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  });
  return group;
}

const fate = (node) => (node.chosen ? "on the way to the chosen caption" : node.kept ? (node.finished ? "finished, not chosen" : "kept") : "cut");

function spoken(node) {
  return `Step ${node.step}: ${node.caption}${node.finished ? ", end" : ""}, ${percent(node.log_prob)}, score ${decimal(node.score)}, ${fate(node)}`;
}

function describe(node) {
  return [
    make("strong", { dir: "auto" }, node.caption + (node.finished ? " ■" : "")),
    ` — last word ${percent(node.log_prob)}, score ${decimal(node.score)}, ${fate(node)}.`,
  ];
}

// Left goes to the parent, right to the best child, up and down within a step.
function moveInTree(drawing, nodes) {
  drawing.addEventListener("keydown", (event) => {
    const node = nodes.get(Number(event.target.dataset?.id));
    if (!node) return;
    const at = (step, row) => [...nodes.values()].find((each) => each.step === step && each.row === row);
    const child = () => [...nodes.values()].filter((each) => each.parent === node).sort((a, b) => a.row - b.row)[0];
    const moves = { ArrowLeft: () => node.parent, ArrowRight: child,
      ArrowUp: () => at(node.step, node.row - 1), ArrowDown: () => at(node.step, node.row + 1) };
    const next = moves[event.key]?.();
    if (!(event.key in moves)) return;
    event.preventDefault();
    if (!next) return;
    const buttons = [...drawing.querySelectorAll("[role=button]")];
    const button = buttons.find((each) => Number(each.dataset.id) === next.id);
    focusOnly(buttons, button);
    button.focus();
  });
}

function asTable(nodes, steps) {
  const rows = [...nodes.values()].map((node) => make("tr", { class: node.chosen ? "chosen" : "" },
    make("td", {}, `${node.step}`),
    make("td", { dir: "auto" }, node.caption + (node.finished ? " ■" : "")),
    make("td", { class: "number" }, percent(node.log_prob)),
    make("td", { class: "number" }, decimal(node.score)),
    make("td", {}, node.chosen ? "chosen" : node.kept ? "kept" : "cut"),
  ));
  const heads = ["Step", "Sentence so far", "Last word", "Score", "Fate"];
  return make("details", {}, make("summary", {}, `The ${rows.length} sentences of ${steps} steps as a table`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The beam as a table" },
      make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", class: i === 2 || i === 3 ? "number" : "" }, head)))),
        make("tbody", {}, ...rows))));
}
