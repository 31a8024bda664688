// The page of `captioner explain`: one caption, whose words open. Nothing is asked of a server.

import { showBeam } from "./beam.js";
import { byId } from "./element.js";
import { drawMap, scaleOf, seenBox } from "./map.js";
import { markColumn, showState } from "./state.js";
import { showWord } from "./word.js";
import { markWord, showWords, startWords } from "./words.js";

const answers = JSON.parse(byId("data").textContent); // one for each source of maps
const written = JSON.parse(document.getElementById("trace")?.textContent ?? "null");
const now = { answer: answers[0], chosen: -1 };

function choose(place) {
  now.chosen = place === now.chosen ? -1 : place;
  byId("announce").textContent = showChosen();
}

function showChosen() {
  markWord(now.chosen);
  drawOverlay();
  if (written) markColumn(byId("state"), now.chosen);
  return showWord(now.answer, now.chosen, "there");
}

function drawOverlay() {
  const canvas = byId("map");
  const image = byId("image");
  const map = now.answer.words[now.chosen]?.map;
  canvas.hidden = !map;
  if (!map || !image.naturalWidth) return;
  const sharp = Math.min(2, window.devicePixelRatio);
  canvas.width = image.clientWidth * sharp;
  canvas.height = image.clientHeight * sharp;
  const box = seenBox(now.answer, canvas.width, canvas.height);
  drawMap(canvas.getContext("2d"), map, scaleOf(now.answer), box);
}

// The word that the image did most for.
function mostOf(answer) {
  const sums = answer.words.map((word) => word.map.flat().reduce((sum, value) => sum + value, 0));
  return sums.indexOf(Math.max(...sums));
}

showWords(now.answer, now.answer.words.length, choose);
startWords((place) => now.chosen >= 0 && place !== now.chosen && choose(place));
new ResizeObserver(drawOverlay).observe(byId("image"));
byId("image").decode().then(drawOverlay, () => {});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && now.chosen >= 0) choose(now.chosen);
});
document.querySelector("[name=source]")?.closest("fieldset").addEventListener("change", (event) => {
  now.answer = answers[Number(event.target.value)];
  byId("announce").textContent = showChosen();
});
for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;
if (written) {
  showBeam(byId("beam"), written.trace.beam, written.settings);
  showState(byId("state"), { words: now.answer.words, trace: written.trace }, -1, choose);
}
choose(mostOf(now.answer));
