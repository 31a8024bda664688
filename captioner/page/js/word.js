// What is known of the chosen word: its probability, its map in words, and what came close.

import { byId, make } from "./element.js";
import { where } from "./map.js";
import { decimal, percent } from "./number.js";
import { isEnd, shownWord, textBefore, textWith } from "./words.js";

const SOURCES = {
  attention: "The map shows where the model's attention lay.",
  gradient: "Orange places made this word more probable, blue ones less.",
  occlusion: "Orange: covered here, the word gets less probable. Blue: more probable.",
};
const BLIND = 0.95; // attention beside the picture, from which on its map says nothing

// `maps`: "none", "waiting" or "there". `writeOn(text)` starts the caption with a text.
export function showWord(answer, place, maps, writeOn) {
  const panel = byId("word");
  if (place < 0) {
    const hint = "Choose a word to see where it came from and what came close.";
    panel.replaceChildren(make("p", { class: "hint" }, hint));
    return "";
  }
  const word = answer.words[place];
  const before = textBefore(answer.caption, answer.words, place);
  const title = isEnd(word) ? "End of the sentence" : shownWord(word);
  const told = mapInWords(answer, word, maps);
  panel.replaceChildren(
    make("h3", { dir: "auto" }, title, " ", make("small", { dir: "ltr" }, percent(word.log_prob))),
    make("p", { class: "note" }, ...given(before)),
    ...told.map((sentence) => make("p", { class: "note" }, sentence)),
    alternatives(word, writeOn && ((text) => writeOn(textWith(answer.caption, answer.words, place, text)))),
  );
  return `${title}, ${percent(word.log_prob)}. ${maps === "there" ? where(word.map) : ""}`;
}

function given(before) {
  if (!before) return ["Its probability as the first word, given the picture."];
  return ["Its probability, given the picture and ", make("q", { dir: "auto" }, before), "."];
}

function mapInWords(answer, word, maps) {
  if (maps === "waiting") return ["The map is on its way …"];
  if (!word.map) return [answer.no_maps ?? "There is no map of this word."];
  const about = `${where(word.map)} ${SOURCES[answer.map_source] ?? ""}`;
  if (answer.map_source === "gradient") return [about, added(word.map)];
  if (word.sentinel === undefined) return [about];
  const looked = percent(Math.log(1 - word.sentinel));
  if (word.sentinel > BLIND) return [`For this word it hardly looks at the picture: with ${looked} of its attention.`];
  return [about, `For this word it looks at the picture with ${looked} of its attention.`];
}

// What all places together did for the word.
function added(map) {
  const nats = map.flat().reduce((sum, value) => sum + value, 0);
  const share = `${nats < 0 ? "" : "+"}${decimal(nats)} nats`;
  if (Math.abs(nats) < 0.1) return `The average picture gives it almost the same probability (${share}).`;
  const times = Math.exp(Math.abs(nats));
  const factor = times < 10 ? times.toFixed(1) : Math.round(times).toLocaleString("en");
  const [more, than] = nats < 0 ? ["less", "than"] : ["as", "as"];
  return `The picture makes it ${factor} times ${more} probable ${than} the average picture does (${share}).`;
}

// The word itself is one of the bars: a beam does not always take the most probable word. Without
// `take`, no other word can be chosen.
function alternatives(word, take) {
  const all = [{ ...word, chosen: true }, ...(word.alternatives ?? [])];
  all.sort((a, b) => b.log_prob - a.log_prob);
  const rows = all.map((each) => {
    const text = isEnd(each) || !each.text ? "end of the sentence" : shownWord(each);
    const open = take && !each.chosen && !isEnd(each) && each.text !== ""; // no start can ask for the end
    const content = [
      make("span", { class: "bar", "--chance": Math.exp(each.log_prob), "aria-hidden": true }),
      open && make("span", { class: "unseen" }, "Write on with "),
      make("span", { class: "text", dir: "auto" }, text),
      make("span", { class: "chance" }, percent(each.log_prob)),
    ];
    if (each.chosen) return make("li", { class: "row chosen", "aria-current": true }, ...content);
    if (!open) return make("li", { class: "row" }, ...content);
    return make("li", {}, make("button", { type: "button", class: "row", onclick: () => take(each.text) }, ...content));
  });
  if (rows.length < 2) return undefined;
  return make("div", { class: "alternatives" },
    make("h4", {}, "What could have stood here"),
    make("ol", {}, ...rows),
    take && make("p", { class: "hint" }, "Take another word, and the model writes on from there."));
}
