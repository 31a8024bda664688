// The page: a picture comes in, the server captions it, and every view shows the answer.

import { showBeam } from "./beam.js";
import { showBest } from "./best.js";
import { byId, make } from "./element.js";
import { drawMap, scaleOf, seenBox } from "./map.js";
import { readPicture } from "./picture.js";
import { copyText, saveJson, savePicture } from "./save.js";
import { askCaption, askModels, setToken } from "./server.js";
import { fillSettings, readSettings, setStart, showRequest, showSearch, toQuery } from "./settings.js";
import { listenForPictures } from "./sources.js";
import { markColumn, showState } from "./state.js";
import { startTabs } from "./tabs.js";
import { startTheme } from "./theme.js";
import { showWord } from "./word.js";
import { markWord, showWords, startWords, textBefore } from "./words.js";

// What the page knows. `chosen` is the place of the chosen word, -1 for none; `maps` says whether
// the second, slower answer with maps and trace is "none", "waiting" or "there".
const now = { picture: null, answer: null, settings: null, chosen: -1, maps: "none", models: [] };
let running = null; // AbortController of the request that runs
let playing = 0; // the timer of the next word, 0 if none
const BEAT = 900; // milliseconds for which each word is shown

// ---- a picture, and its caption ----

// `file`: a File, or a promise of one.
async function take(file) {
  stop();
  const { signal } = (running = new AbortController());
  const picture = await Promise.resolve(file).then(readPicture).catch((error) => {
    if (!signal.aborted) complain(error.message);
  });
  if (!picture || signal.aborted) return;
  setStart("");
  // A picture that only the server may be able to read takes the last one's place once it did.
  if (picture.url) show(picture);
  await write(0, picture);
}

// Asks for the caption first, which is fast, then for maps and trace. The first `kept` words stay.
async function write(kept, picture = now.picture) {
  // `start` writes as soon as the models' own settings are there.
  if (!picture || !now.models.length || !settingsAreValid()) return;
  stop();
  const signal = (running = new AbortController()).signal;
  now.settings = readSettings();
  const query = toQuery(now.settings, model());
  showRequest(query);
  complain("");
  wait(true);
  try {
    const answer = await askCaption(picture.body, query, signal);
    if (picture !== now.picture) show(picture);
    Object.assign(now, { answer, chosen: -1, maps: "waiting" });
    showAnswer(kept);
    wait(false);
    await lookInside(query, signal);
  } catch (error) {
    if (signal.aborted) return;
    wait(false);
    if (now.maps === "waiting") now.maps = "none";
    showInside();
    const refused = error.status >= 400 && error.status < 500 && error.status !== 408;
    const again = refused ? null : () => write(kept, picture); // it would be refused again
    complain(sentenceOf(error, picture), again, error.needsToken);
  }
}

// -> a plain sentence: the server names its fields.
function sentenceOf({ message, status }, { name }) {
  if (!status) return message;
  const text = message.replace(/^image: /, `“${name}”: `);
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function settingsAreValid() {
  const form = byId("settings-form");
  if (!form.checkValidity()) byId("tab-settings").click(); // else nobody would see what is wrong
  return form.reportValidity();
}

async function lookInside(query, signal) {
  const more = new URLSearchParams(query);
  more.set("maps", model()?.attention ? now.settings.maps : "true");
  more.set("trace", "true");
  const answer = await askCaption(now.picture.body, more, signal).catch((error) => {
    // Some CNNs have no places, so there are no maps; there is a trace all the same.
    if (error.status !== 400 && error.status !== 422) throw error;
    more.delete("maps");
    const noMaps = (rest) => ({ ...rest, no_maps: `There is no map: ${error.message}` });
    return askCaption(now.picture.body, more, signal).then(noMaps);
  });
  const same = answer.caption === now.answer.caption && answer.words.length === now.answer.words.length;
  Object.assign(now, { answer, maps: "there", chosen: same ? now.chosen : -1 });
  if (!same) showAnswer(answer.words.length);
  else showChosen();
  showInside();
}

function stop() {
  endPlay();
  running?.abort();
  wait(false);
}

// ---- showing it ----

function show(picture) {
  if (now.picture?.url) URL.revokeObjectURL(now.picture.url);
  now.picture = picture;
  const { url, name, width, height } = picture;
  const image = byId("image");
  if (url) image.src = url;
  byId("picture").style.setProperty("--ratio", width / height);
  image.alt = `Your picture, ${name}`;
  byId("picture").hidden = !url;
  byId("invitation").hidden = Boolean(url);
  byId("invitation").querySelector(".big").textContent = url ? "" : name;
  byId("frame").classList.toggle("empty", !url);
  document.body.classList.add("started");
  forget();
}

// The words and maps of one picture are never shown beside another.
function forget() {
  Object.assign(now, { answer: null, chosen: -1, maps: "none" });
  for (const id of ["words", "result", "legend", "forced", "map"]) byId(id).hidden = true;
  byId("frame").classList.remove("waiting-map");
  showInside();
}

function showAnswer(kept) {
  const { answer, settings } = now;
  byId("guide").hidden = true;
  byId("result").hidden = false;
  byId("legend").hidden = false;
  showWords(answer, kept, choose);
  byId("image").alt = answer.caption || "Your picture";
  byId("forced").hidden = !settings.start;
  byId("forced").firstElementChild.replaceChildren("You chose the first words: ", make("q", { dir: "auto" }, settings.start));
  const blank = answer.status === "blank" ? " The picture is of one colour only, so the caption says nothing about it." : "";
  announce(`Caption: ${answer.caption || "no words"}.${blank}`);
  if (blank) complain(blank.trim());
  showChosen();
  showInside();
}

function choose(place) {
  now.chosen = place === now.chosen ? -1 : place;
  announce(showChosen());
}

function showChosen() {
  markWord(now.chosen);
  markColumn(byId("state"), now.chosen);
  drawOverlay();
  return showWord(now.answer, now.chosen, now.maps, writeOn);
}

function drawOverlay() {
  const canvas = byId("map");
  const image = byId("image");
  const map = now.answer?.words[now.chosen]?.map;
  canvas.hidden = !map;
  byId("frame").classList.toggle("waiting-map", now.chosen >= 0 && now.maps === "waiting");
  if (!map || !image.naturalWidth) return;
  const sharp = Math.min(2, window.devicePixelRatio);
  canvas.width = image.clientWidth * sharp;
  canvas.height = image.clientHeight * sharp;
  drawMap(canvas.getContext("2d"), map, scaleOf(now.answer), seenBox(now.answer, canvas.width, canvas.height));
}

function showInside() {
  const { answer, settings, maps } = now;
  const missing = !answer ? "There is no caption of this picture yet."
    : maps === "waiting" ? "On its way …" : "The server sent no trace of this caption.";
  for (const name of [...(answer ? [] : ["best"]), ...(answer?.trace ? [] : ["beam", "state"])]) {
    byId(name).replaceChildren(make("p", { class: "note" }, missing));
  }
  if (answer) showBest(byId("best"), answer, { ...model()?.decoding, ...settings });
  if (!answer?.trace) return;
  showBeam(byId("beam"), answer.trace.beam, settings, writeOn);
  showState(byId("state"), answer, now.chosen, choose);
}

function wait(on) {
  const caption = byId("caption");
  caption.setAttribute("aria-busy", on);
  caption.classList.toggle("busy", on);
  byId("guide").hidden = on || Boolean(now.answer);
  if (on) announce("The model is writing.");
}

function announce(text) {
  byId("announce").textContent = text;
}

// One plain sentence beside the picture, which stays; `again` adds a button.
function complain(sentence, again, needsToken = false) {
  const place = byId("trouble");
  const button = again && make("button", { type: "button", class: "small", onclick: again }, "Try again");
  place.replaceChildren(...(sentence ? [make("p", {}, sentence), ...(button ? [button] : [])] : []));
  byId("token-form").hidden = !needsToken;
  if (needsToken) byId("token").focus();
}

// ---- writing on from a word ----

function writeOn(text) {
  setStart(text);
  // The words that both sentences share do not arrive anew.
  const { caption, words } = now.answer;
  let kept = 0;
  while (kept < words.length && text.startsWith(textBefore(caption, words, kept + 1))) kept++;
  write(kept);
  byId("caption").scrollIntoView({ block: "nearest" });
  byId("caption").focus({ preventScroll: true });
}

// ---- play ----

// Chooses one word after the other, as the model wrote them.
function play() {
  const stopped = () => !playing || !now.answer;
  if (playing) return endPlay();
  let place = 0;
  const step = () => {
    if (stopped() || place >= now.answer.words.length) return endPlay();
    now.chosen = -1;
    choose(place++);
    playing = setTimeout(step, BEAT);
  };
  byId("play").textContent = "Stop";
  playing = setTimeout(step);
}

function endPlay() {
  clearTimeout(playing);
  playing = 0;
  byId("play").textContent = "Play the words";
}

// ---- models ----

const model = () => now.models.find((each) => each.name === byId("model").value);

async function loadModels() {
  now.models = await askModels();
  const select = byId("model");
  select.replaceChildren(...now.models.map((model) => make("option", { value: model.name, selected: model.default }, model.name)));
  byId("model-choice").hidden = now.models.length < 2;
  useModel();
}

function useModel() {
  if (model()) fillSettings(model());
  showRequest(toQuery(readSettings(), model()));
}

// ---- events ----

function listen() {
  listenForPictures(take, complain);
  startWords((place) => now.chosen >= 0 && place !== now.chosen && choose(place));
  startTabs(document.querySelector("[role=tablist]"), () => {});
  startTheme(byId("theme"));
  new ResizeObserver(drawOverlay).observe(byId("image"));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && now.chosen >= 0) choose(now.chosen);
  });
  byId("model").addEventListener("change", () => { useModel(); write(0); });
  byId("free").addEventListener("click", () => { setStart(""); write(0); });
  const form = byId("settings-form");
  form.addEventListener("submit", (event) => { event.preventDefault(); write(0); });
  form.addEventListener("reset", (event) => { event.preventDefault(); useModel(); write(0); });
  form.addEventListener("input", () => { showSearch(); showRequest(toQuery(readSettings(), model())); });
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(byId("token").value);
    byId("token").value = "";
    complain("");
    start();
  });
  byId("copy").addEventListener("click", async () => {
    await copyText(now.answer.caption);
    announce("Copied.");
    byId("copy").textContent = "Copied";
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 2000);
  });
  byId("play").addEventListener("click", play);
  byId("json").addEventListener("click", () => saveJson(now.answer, now.picture.name));
  byId("save").addEventListener("click", () => {
    if (now.picture.url) savePicture(byId("image"), now.answer, now.chosen, now.picture.name);
    else complain("This browser cannot show the picture, so it cannot save it.");
  });
}

async function start() {
  try {
    await loadModels();
    if (now.picture) await write(0);
  } catch (error) {
    complain(error.message, error.needsToken ? null : start, error.needsToken);
  }
}

listen();
start();
