// The n best captions with their scores; the first is the one that was chosen.

import { make } from "./element.js";
import { decimal } from "./number.js";
import { isEnd } from "./words.js";

export function showBest(panel, answer, settings) {
  const rows = answer.n_best;
  const beam = settings.search === "beam";
  const about = beam
    ? `The search ranks captions by score = log-probability ÷ length^${settings.length_penalty}; the end counts as a word. The highest score is chosen.${settings.neighbours > 0 ? " The score includes votes: captions of similar training pictures speak for a caption that is like them." : ""}`
    : "Captions drawn at random, best first: a probable word is drawn more often.";
  panel.replaceChildren(
    make("p", { class: "note" }, about),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The best captions" }, make("table", { class: "best" },
      make("thead", {}, make("tr", {}, ...["Rank", "Caption", "Score", "Compared", "Log-probability", "Words"].map(
        (title, i) => make("th", { scope: "col", class: i > 1 ? "number" : "" }, make("span", { class: title === "Rank" || title === "Compared" ? "unseen" : "" }, title))))),
      make("tbody", {}, ...rows.map((row, i) => bestRow(row, i, rows))),
    )),
  );
}

function bestRow(row, place, rows) {
  const length = row.words?.filter((word) => !isEnd(word)).length ?? row.caption.split(/\s+/).filter(Boolean).length;
  return make("tr", place ? {} : { class: "chosen", "aria-current": true },
    make("td", { class: "rank" }, place ? `${place + 1}` : make("span", { class: "badge" }, "chosen")),
    make("td", { dir: "auto", class: "sentence" }, ...differing(row.caption, rows[0].caption, place)),
    make("td", { class: "number" }, decimal(row.score)),
    make("td", { class: "bars" }, scoreBar(row, rows)),
    make("td", { class: "number" }, decimal(row.log_prob)),
    make("td", { class: "number" }, `${length}`),
  );
}

// What a caption shares with the best one from its start on is greyed.
function differing(caption, best, place) {
  if (!caption) return ["(no words)"];
  if (!place) return [caption];
  const [words, others] = [caption.split(" "), best.split(" ")];
  let same = 0;
  while (same < words.length && words[same] === others[same]) same++;
  const start = words.slice(0, same).join(" ");
  return [make("span", { class: "same" }, start), same ? " " : "", words.slice(same).join(" ")];
}

// Long for the best, short for the worst; a bar says by eye how close the scores are.
function scoreBar(row, rows) {
  const scores = rows.map((each) => each.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const share = high > low ? 0.15 + (0.85 * (row.score - low)) / (high - low) : 1;
  return make("span", { class: "score-bar", "--chance": share, "aria-hidden": true });
}
