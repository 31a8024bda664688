// The hidden state through time: each column is a time, each row a unit, and below the columns
// the length of the whole state and how strongly the image's first state is still felt.

import { make, makeSvg } from "./element.js";
import { decimal } from "./number.js";
import { isEnd, shownWord } from "./words.js";

const COLUMN = 64;
const LEFT = 96;
const TOP = 44;
const HEAT = 300; // pixels of height of the heat map
const CHART = 74;
const GAP = 40;

// `choose(place)` chooses the word of a column.
export function showState(panel, answer, place, choose) {
  const { units, values, norms, influence } = answer.trace.state;
  const labels = ["image", ...answer.words.map((word) => (isEnd(word) ? "■" : shownWord(word)))];
  const width = LEFT + COLUMN * values.length + 12;
  const height = TOP + HEAT + 2 * (CHART + GAP) + 12;
  const drawing = makeSvg("svg", { class: "state", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(answer) });
  const largest = Math.max(1e-9, ...values.flat().map(Math.abs));
  drawing.append(
    ...columns(labels, height, place, choose),
    makeSvg("image", { class: "heat", href: heat(values, largest), x: LEFT, y: TOP, width: COLUMN * values.length, height: HEAT, preserveAspectRatio: "none" }),
    makeSvg("text", { class: "axis", x: LEFT - 10, y: TOP + 10, "text-anchor": "end" }, "moves most"),
    makeSvg("text", { class: "axis", x: LEFT - 10, y: TOP + HEAT / 2, "text-anchor": "end" }, `${units.length} units`),
    makeSvg("text", { class: "axis", x: LEFT - 10, y: TOP + HEAT, "text-anchor": "end" }, "moves least"),
    ...chart(norms, TOP + HEAT + GAP, "‖H‖", "size of the state", 0),
    ...chart(influence, TOP + HEAT + GAP + CHART + GAP, "‖∂/∂H₀‖", "influence of the image", 1),
  );
  const readout = make("p", { class: "readout", role: "status" }, "Point at the map to read a unit. Choose a column to choose its word.");
  drawing.addEventListener("mousemove", (event) => {
    const text = readUnit(drawing, event, answer.trace.state, labels);
    if (text) readout.textContent = text;
  });
  panel.replaceChildren(
    make("p", { class: "note" }, "The picture enters once, as the first state H₀ (left column). Each word then changes the state. Rows are units, those that move most on top. Below: the length of the state, and the gradient of each word's log-probability with respect to H₀: how far the picture is still felt."),
    make("p", { class: "legend" }, make("span", {}, `−${decimal(largest, 1)}`), make("span", { class: "ramp state", "aria-hidden": true }), make("span", {}, decimal(largest, 1))),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The hidden state through time" }, drawing),
    readout,
    asTable(answer, labels),
  );
}

export function markColumn(panel, place) {
  for (const column of panel.querySelectorAll(".column")) {
    column.classList.toggle("chosen", Number(column.dataset.time) === place + 1);
  }
}

function columns(labels, height, place, choose) {
  return labels.map((label, time) => {
    const shown = [...label].length > 8 ? `${[...label].slice(0, 7).join("")}…` : label;
    const group = makeSvg("g", { class: `column${time && time === place + 1 ? " chosen" : ""}`, "data-time": time },
      makeSvg("rect", { x: LEFT + time * COLUMN, y: 4, width: COLUMN, height: height - 8, rx: 4 }),
      makeSvg("text", { class: "label", x: LEFT + (time + 0.5) * COLUMN, y: 22, "text-anchor": "middle" }, shown),
      makeSvg("text", { class: "tick", x: LEFT + (time + 0.5) * COLUMN, y: 37, "text-anchor": "middle" }, time ? `H${time}` : "H0"),
    );
    if (time) group.addEventListener("click", () => choose(time - 1));
    return group;
  });
}

// One pixel for each value, stretched by the SVG: thousands of rectangles would be slow.
function heat(values, largest) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [values.length, values[0].length];
  const pixels = new ImageData(canvas.width, canvas.height);
  values.forEach((row, x) => row.forEach((value, y) => {
    const share = Math.min(1, Math.abs(value) / largest);
    const [red, green, blue] = value < 0 ? [24, 108, 196] : [214, 96, 22];
    pixels.data.set([red, green, blue, 255 * share], 4 * (y * canvas.width + x));
  }));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

// Bars below the columns; `first` is the time of the first value.
function chart(values, top, symbol, title, first) {
  const largest = Math.max(1e-12, ...values);
  const bars = values.flatMap((value, i) => {
    const height = (CHART * value) / largest;
    const x = LEFT + (i + first) * COLUMN;
    return [
      makeSvg("rect", { class: "bar", x: x + 12, y: top + CHART - height, width: COLUMN - 24, height, rx: 2 }),
      makeSvg("text", { class: "tick", x: x + COLUMN / 2, y: top + CHART - height - 4, "text-anchor": "middle" }, short(value)),
    ];
  });
  const right = LEFT + COLUMN * (values.length + first);
  return [
    makeSvg("line", { class: "grid", x1: LEFT, x2: right, y1: top + CHART, y2: top + CHART }),
    makeSvg("text", { class: "label", x: LEFT - 10, y: top + CHART - 24, "text-anchor": "end" }, symbol),
    ...wrapped(title, LEFT - 10, top + CHART - 9),
    ...bars,
  ];
}

function wrapped(title, x, y) {
  const at = title.lastIndexOf(" of ");
  const lines = [title.slice(0, at), title.slice(at + 1)];
  return lines.map((line, i) => makeSvg("text", { class: "axis", x, y: y + 13 * i, "text-anchor": "end" }, line));
}

const short = (value) => (value >= 100 ? value.toFixed(0) : value >= 0.01 || value === 0 ? value.toPrecision(2) : value.toExponential(0));

function readUnit(drawing, event, state, labels) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
  const time = Math.floor((at.x - LEFT) / COLUMN);
  const row = Math.floor(((at.y - TOP) / HEAT) * state.units.length);
  const value = state.values[time]?.[row];
  if (value === undefined) return "";
  const move = time ? value - state.values[time - 1][row] : 0;
  const moved = time ? `, ${move < 0 ? "down" : "up"} by ${decimal(Math.abs(move))}` : "";
  return `Unit ${state.units[row]} ${time ? `gives “${labels[time]}”` : "from the image"}: ${decimal(value)}${moved}.`;
}

function inWords(answer) {
  const { units, norms, influence } = answer.trace.state;
  const strongest = influence.indexOf(Math.max(...influence));
  const word = answer.words[strongest];
  return `Heat map of ${units.length} units over ${norms.length} times. The size of the state goes from ${decimal(norms[0])} to ${decimal(norms.at(-1))}. The image is felt most in “${shownWord(word)}”.`;
}

function asTable(answer, labels) {
  const { norms, influence } = answer.trace.state;
  const rows = norms.map((norm, time) => make("tr", {},
    make("td", {}, `H${time}`), make("td", { dir: "auto" }, labels[time]),
    make("td", { class: "number" }, decimal(norm)),
    make("td", { class: "number" }, time ? short(influence[time - 1]) : ""),
  ));
  const heads = ["State", "Word", "Size ‖H‖", "Influence of H₀"];
  return make("details", {}, make("summary", {}, "The numbers as a table"),
    make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", class: i > 1 ? "number" : "" }, head)))), make("tbody", {}, ...rows)));
}
