// The caption as a row of words, each shaded by how unsure the model was.

import { byId, focusOnly, make, moveByArrows } from "./element.js";
import { percent } from "./number.js";

export const isEnd = (word) => word.end === true;

// -> for each word what stands before it in the caption: a space mostly, nothing before a comma.
export function gaps(caption, words) {
  let at = 0;
  return words.map((word) => {
    const found = word.text ? caption.toLowerCase().indexOf(word.text.toLowerCase(), at) : -1;
    if (found < 0) return " ";
    const gap = caption.slice(at, found);
    at = found + word.text.length;
    return gap;
  });
}

// -> the text before a word, as the caption has it.
export function textBefore(caption, words, place) {
  const before = gaps(caption, words);
  const parts = words.slice(0, place).map((word, i) => (isEnd(word) ? "" : before[i] + word.text));
  return parts.join("");
}

// -> the text before a word and another one in its place, as the server's `start` takes it.
export function textWith(caption, words, place, other) {
  // Characters and pieces of words close up; "not" in the place of "n't" does not.
  const closeUp = gaps(caption, words)[place] === "" && !/['’]/.test(words[place].text);
  return `${textBefore(caption, words, place)}${closeUp ? "" : " "}${other}`.trim();
}

// -> a word as it is shown: some models write spaces.
export const shownWord = (word) => (isEnd(word) ? "end" : word.text.trim() || "␣");

// Shows a caption. Words up to `kept` were there before, so they do not arrive anew.
export function showWords(answer, kept, choose) {
  const row = byId("words");
  const before = gaps(answer.caption, answer.words);
  const nodes = answer.words.flatMap((word, place) => {
    const fresh = place >= kept;
    const button = make(
      "button",
      {
        type: "button",
        class: `word${isEnd(word) ? " end" : ""}${fresh ? " fresh" : ""}`,
        "aria-pressed": false,
        tabindex: place ? -1 : 0,
        "--doubt": 1 - Math.exp(word.log_prob),
        "--wait": place - kept,
        onclick: () => choose(place),
      },
      make("span", { class: "text" }, shownWord(word)),
      make("span", { class: "chance", dir: "ltr" }, percent(word.log_prob)),
    );
    return [before[place], button];
  });
  row.replaceChildren(...nodes);
  row.hidden = false;
}

export function markWord(place) {
  const all = [...byId("words").querySelectorAll(".word")];
  all.forEach((word, i) => word.setAttribute("aria-pressed", i === place));
  if (all.length) focusOnly(all, all[Math.max(0, place)]);
}

// Arrows move the focus; once a word is chosen, the choice follows.
export function startWords(follow) {
  const row = byId("words");
  moveByArrows(row, ".word", (word) => follow([...row.querySelectorAll(".word")].indexOf(word)));
}
