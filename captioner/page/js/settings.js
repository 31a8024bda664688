// How to caption: the form, and the query that the server understands.

import { byId } from "./element.js";

const NUMBERS = ["beam_size", "length_penalty", "temperature", "min_length"];
const OWN = { n_best: 5, words: 5 };

// Fills the form with a model's own settings.
export function fillSettings({ decoding, attention }) {
  const form = byId("settings-form");
  form.elements.search.value = decoding.search;
  for (const name of NUMBERS) form.elements[name].value = decoding[name];
  for (const [name, value] of Object.entries(OWN)) form.elements[name].value = value;
  form.elements.start.value = decoding.start ?? "";
  form.elements.forbid.value = (decoding.forbid ?? []).join(" ");
  form.elements.maps.value = "attention";
  byId("maps-choice").hidden = !attention;
  showSearch();
}

// -> the settings as the form has them.
export function readSettings() {
  const form = byId("settings-form");
  const settings = { search: form.elements.search.value, start: form.elements.start.value.trim(), maps: form.elements.maps.value };
  for (const name of [...NUMBERS, ...Object.keys(OWN)]) settings[name] = form.elements[name].value;
  settings.forbid = form.elements.forbid.value.split(/[\s,;]+/).filter(Boolean);
  return settings;
}

export function setStart(text) {
  byId("start").value = text;
}

// -> URLSearchParams of POST /v1/caption: what differs from the model's own settings, and of
// these what the search uses. A search refuses the others.
export function toQuery(settings, model) {
  const query = new URLSearchParams();
  const own = model?.decoding ?? {};
  if (model && !model.default) query.set("model", model.name);
  const used = settings.search === "beam" ? ["beam_size", "length_penalty"] : ["temperature"];
  for (const name of ["search", ...used, "min_length", "start"]) {
    if (String(own[name] ?? "") !== settings[name]) query.set(name, settings[name]);
  }
  for (const word of settings.forbid) query.append("forbid", word);
  // A beam of 3 sentences finds 3 captions at most.
  const most = settings.search === "beam" ? Number(settings.beam_size) : Infinity;
  query.set("n_best", Math.min(Number(settings.n_best), most));
  query.set("words", settings.words);
  return query;
}

// Only the settings of the chosen search are shown.
export function showSearch() {
  const form = byId("settings-form");
  const beam = form.elements.search.value === "beam";
  for (const setting of form.querySelectorAll(".for-beam")) setting.hidden = !beam;
  for (const setting of form.querySelectorAll(".for-sample")) setting.hidden = beam;
}

// The same request for a shell, to copy.
export function showRequest(query) {
  const address = new URL("v1/caption", location.href);
  byId("request").textContent = `curl --data-binary @photo.jpg \\\n  '${address}?${String(query).replaceAll("'", "%27")}'`;
}
