// Takes the result away: as text, as JSON, as a picture with the map.

import { download } from "./element.js";
import { drawMap, scaleOf, seenBox } from "./map.js";
import { percent } from "./number.js";
import { isEnd } from "./words.js";

const WIDEST = 1600; // pixels of a saved picture
const BACK = "#fbfaf8";
const INK = "#1c1b19";
const QUIET = "#65615a";

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain http from another machine, browsers have only the old way.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

const stem = (name) => name.replace(/\.[^.]*$/, "") || "picture";

export function saveJson(answer, name) {
  const text = JSON.stringify({ file_name: name, ...answer }, null, 2) + "\n";
  download(new Blob([text], { type: "application/json" }), `${stem(name)}.json`);
}

// The picture with the map of the chosen word, and the caption below.
export async function savePicture(image, answer, place, name) {
  const scale = Math.min(1, WIDEST / image.naturalWidth);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale].map(Math.round);
  const size = Math.max(14, Math.round(width / 26));
  const picture = canvasOf(width, height);
  const context = picture.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const map = answer.words[place]?.map;
  if (map) drawMap(context, map, scaleOf(answer), seenBox(answer, width, height));
  const lines = wrap(context, answer.caption, size, width - 2 * size);
  const word = answer.words[place];
  const told = word ? `${isEnd(word) ? "end of the sentence" : word.text}: ${percent(word.log_prob)}` : "";
  const page = canvasOf(width, height + Math.round(size * (1.4 * lines.length + (told ? 2.6 : 1.4))));
  const paper = page.getContext("2d");
  paper.fillStyle = BACK;
  paper.fillRect(0, 0, page.width, page.height);
  paper.drawImage(picture, 0, 0);
  paper.textAlign = "center";
  write(paper, lines, size, height + 1.6 * size, INK, "600");
  write(paper, [told], size * 0.75, height + size * (1.4 * lines.length + 1.6), QUIET, "400");
  const blob = await new Promise((resolve) => page.toBlob(resolve, "image/png"));
  download(blob, `${stem(name)}-${word && !isEnd(word) ? word.text : "caption"}.png`);
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function wrap(context, text, size, width) {
  context.font = `600 ${size}px Georgia, serif`;
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width <= width || !lines.at(-1)) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function write(context, lines, size, top, colour, weight) {
  context.font = `${weight} ${size}px ${weight === "600" ? "Georgia, serif" : "system-ui, sans-serif"}`;
  context.fillStyle = colour;
  lines.forEach((line, i) => context.fillText(line, context.canvas.width / 2, top + 1.4 * size * i));
}
