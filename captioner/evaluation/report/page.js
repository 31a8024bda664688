"use strict";
// Captions and file names are set as text, never as HTML.
(() => {
  const BATCH = 60; // cards added at a time
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const [query, where, sort, order, open] = ["query", "where", "sort", "order", "open"].map(get);
  const [cards, more, count, theme] = ["cards", "more", "count", "theme"].map(get);
  const flags = [...document.querySelectorAll("input[name=flag]")];
  const THEMES = ["system", "light", "dark"];
  const decimals = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  const number = (value) => (value === null ? "–" : decimals.format(value));

  // ---- search and sort ----

  // In scripts without spaces, each character with its marks is a word.
  const SINGLE = /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Thai}\p{sc=Laoo}\p{sc=Khmr}\p{sc=Mymr}ー]\p{M}*/gu;
  const words = (text) => ` ${text.toLowerCase().replace(SINGLE, " $& ").split(/[^\p{L}\p{M}\p{N}<>'-]+/u).filter(Boolean).join(" ")} `;
  const haystacks = {
    caption: (row) => words(row.captions[0][0]),
    references: (row) => words(row.references.join(" ")),
    name: (row) => row.name.toLowerCase(),
  };
  const sortKeys = { log_prob: (row) => row.captions[0][1] };
  data.keys.forEach((key, i) => {
    sortKeys[key] = (row) => row.scores[i];
    sort.append(new Option(data.scores[i], key));
  });
  sort.append(new Option("log-probability", "log_prob"));

  function needles() {
    const terms = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (where.value === "name") return terms;
    return terms.map((term) => (term.endsWith("*") ? words(term).trimEnd() : words(term)));
  }

  function chosenRows() {
    const wanted = flags.filter((flag) => flag.checked).map((flag) => flag.value);
    const sought = needles();
    const text = haystacks[where.value];
    const rows = data.rows.filter((row) => {
      if (!wanted.every((flag) => row.flags.includes(flag))) return false;
      if (!sought.length) return true;
      const hay = text(row);
      return sought.every((needle) => hay.includes(needle));
    });
    const key = sortKeys[sort.value];
    if (!key) return rows;
    const sign = order.value === "best" ? -1 : 1;
    return rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null); // undefined comes last
      return sign * (x - y) || a.index - b.index;
    });
  }

  // ---- cards ----

  const element = (tag, text, css) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (css) node.className = css;
    return node;
  };

  function makeCard(row, position, total) {
    const card = get("card").content.cloneNode(true).firstElementChild;
    const part = (selector) => card.querySelector(selector);
    const title = part("h3");
    fillWords(title, row);
    title.id = `caption-${row.index}`;
    card.dataset.index = row.index;
    card.setAttribute("aria-labelledby", title.id);
    card.setAttribute("aria-posinset", position + 1);
    card.setAttribute("aria-setsize", total);
    part(".picture").dataset.index = row.index;
    part(".name").textContent = row.name;
    for (const flag of row.flags) part(".flags").append(element("li", data.flags[flag], flag));
    part(".flags").hidden = !row.flags.length;
    data.scores.forEach((name, i) => {
      const pair = element("div", undefined, data.keys[i] === sort.value ? "sorted" : "");
      pair.append(element("dt", name), element("dd", number(row.scores[i])));
      part(".per-image").append(pair);
    });
    fillReferences(part(".references"), row);
    fillBest(part(".n-best"), row);
    return card;
  }

  function fillWords(title, row) {
    if (!row.captions[0][0] || !row.words.length) {
      title.textContent = row.captions[0][0] || "(empty caption)";
      return;
    }
    for (const [gap, text, level, hints] of row.words) {
      const word = element("span", text, `word ${level}${text ? "" : " end"}`);
      const tip = element("span", undefined, "tip");
      tip.append(...hints.map((hint) => element("span", hint)));
      for (const line of tip.children) line.dir = "auto";
      word.append(tip);
      word.tabIndex = -1; // only those of the focused card are tab stops
      if (row.maps) openMap(word, row);
      title.append(gap, word);
    }
  }

  // ---- maps: where a word came from, over the card's picture ----

  function openMap(word, row) {
    const toggle = () => showMap(word, row, word.getAttribute("aria-pressed") !== "true");
    word.setAttribute("role", "button");
    word.setAttribute("aria-pressed", "false");
    word.addEventListener("click", toggle);
    word.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }

  function showMap(word, row, on) {
    const card = word.closest(".card");
    const words = [...card.querySelectorAll("h3 .word")];
    for (const each of words) each.setAttribute("aria-pressed", String(on && each === word));
    const frame = card.querySelector(".picture");
    const image = frame.querySelector("img");
    frame.querySelector("canvas")?.remove();
    if (!on || !image?.naturalWidth) return;
    const canvas = element("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const [step, height, width, bytes] = row.maps;
    const steps = Int8Array.from(atob(bytes), (byte) => byte.charCodeAt(0));
    const first = words.indexOf(word) * height * width;
    const map = Array.from({ length: height }, (_, y) =>
      Array.from(steps.subarray(first + y * width, first + (y + 1) * width), (value) => value * step),
    );
    const box = module_map.seenBox({ image: { seen: row.seen } }, canvas.width, canvas.height);
    module_map.drawMap(canvas.getContext("2d"), map, 127 * step, box); // one scale for all words
    frame.append(canvas);
  }

  function fillReferences(details, row) {
    const many = row.references.length;
    details.open = open.checked;
    details.querySelector("summary").textContent = `${many} reference${many === 1 ? "" : "s"}`;
    for (const text of row.references) {
      const item = element("li", text);
      item.dir = "auto";
      details.querySelector("ul").append(item);
    }
  }

  function fillBest(details, row) {
    details.open = open.checked;
    details.querySelector("summary").textContent =
      row.captions.length > 1 ? `${row.captions.length} best captions` : `log-probability ${number(row.captions[0][1])}`;
    for (const [text, , finished, score] of row.captions) {
      const line = element("tr");
      const caption = element("td", finished ? text : `${text} …`);
      caption.dir = "auto";
      line.append(element("td", number(score), "number"), caption);
      details.querySelector("tbody").append(line);
    }
  }

  // ---- images, loaded when in view ----

  const parsed = new Promise((resolve) => {
    if (document.readyState !== "loading") resolve();
    else document.addEventListener("DOMContentLoaded", resolve);
  });
  const inView = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        inView.unobserve(entry.target);
        showPicture(entry.target);
      }
    },
    { rootMargin: "300px" },
  );

  function showPicture(frame) {
    const row = data.rows[frame.dataset.index];
    const stored = get(`picture-${row.index}`);
    const missing = () => frame.replaceChildren(element("p", `Image cannot be read: ${row.name}`, "missing"));
    if (!stored) return missing();
    const image = new Image();
    image.alt = row.references[0] ?? row.name;
    image.onerror = missing;
    image.onload = () => {
      const ratio = image.naturalWidth / image.naturalHeight;
      frame.style.aspectRatio = Math.min(1.5, Math.max(1, ratio)); // a tall image gets a square
    };
    image.src = `data:image/jpeg;base64,${stored.textContent}`;
    frame.replaceChildren(image);
  }

  // ---- the list, extended on scrolling ----

  let rows = [];
  const end = new IntersectionObserver((entries) => entries[0].isIntersecting && grow(), { rootMargin: "1000px" });

  function grow() {
    const from = cards.children.length;
    const added = rows.slice(from, from + BATCH).map((row, i) => makeCard(row, from + i, rows.length));
    cards.append(...added);
    more.hidden = cards.children.length >= rows.length;
    parsed.then(() => {
      for (const card of added) inView.observe(card.querySelector(".picture"));
    });
    // Observing again reports the button even if it is still in view.
    end.unobserve(more);
    end.observe(more);
  }

  function show() {
    rows = chosenRows();
    order.disabled = !sort.value;
    inView.disconnect();
    cards.replaceChildren();
    grow();
    const total = data.rows.length.toLocaleString("en");
    const sorted = sort.value ? `, ${order.selectedOptions[0].text} by ${sort.selectedOptions[0].text}` : "";
    count.textContent = `${rows.length.toLocaleString("en")} of ${total} images${sorted}`;
  }

  // ---- the view, stored in the URL so that it can be shared ----

  function writeAddress() {
    const view = new URLSearchParams();
    if (query.value.trim()) view.set("q", query.value.trim());
    if (where.value !== "caption") view.set("in", where.value);
    if (sort.value) view.set("sort", sort.value);
    if (sort.value && order.value !== "best") view.set("order", order.value);
    for (const flag of flags.filter((each) => each.checked)) view.append("flag", flag.value);
    if (open.checked) view.set("open", "1");
    const chosen = document.documentElement.dataset.theme;
    if (chosen) view.set("theme", chosen);
    history.replaceState(null, "", `#${view}`);
  }

  function choose(select, value) {
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0; // the URL has an unknown value
  }

  function readAddress() {
    const view = new URLSearchParams(location.hash.slice(1));
    query.value = view.get("q") ?? "";
    choose(where, view.get("in") ?? "caption");
    choose(sort, view.get("sort") ?? "");
    choose(order, view.get("order") ?? "best");
    for (const flag of flags) flag.checked = view.getAll("flag").includes(flag.value);
    open.checked = view.get("open") === "1";
    setTheme(view.get("theme"));
  }

  function setTheme(name) {
    const known = THEMES.includes(name) ? name : "system";
    if (known === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = known;
    theme.textContent = `Theme: ${known}`;
  }

  // ---- events ----

  get("controls").addEventListener("input", (event) => {
    if (event.target === open) {
      for (const details of cards.querySelectorAll("details")) details.open = open.checked;
    } else {
      show();
    }
    writeAddress();
  });
  get("controls").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", grow);
  theme.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
    writeAddress();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the URL fragment holds the view
    get("gallery").focus();
  });
  window.addEventListener("hashchange", () => {
    readAddress();
    show();
  });

  cards.addEventListener("focusin", (event) => {
    const card = event.target.closest(".card");
    for (const word of cards.querySelectorAll(".word[tabindex='0']")) {
      if (!card.contains(word)) word.tabIndex = -1;
    }
    for (const word of card.querySelectorAll(".word")) word.tabIndex = 0;
  });

  function moveFocus(by) {
    const at = [...cards.children].indexOf(document.activeElement.closest(".card"));
    if (at + by >= cards.children.length) grow();
    const card = cards.children[Math.max(0, at + by)];
    card?.focus();
    card?.scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = document.activeElement;
    if (event.key === "Escape" && focused === query) return query.blur();
    if (focused.matches("input:not([type=checkbox]), select")) return;
    const onCard = focused.matches(".card");
    const steps = { j: 1, k: -1, ...(onCard && { ArrowRight: 1, ArrowLeft: -1, PageDown: 1, PageUp: -1 }) };
    if (event.key === "/") query.focus();
    else if (event.key in steps) moveFocus(steps[event.key]);
    else if (event.key === "Enter" && onCard) {
      const all = [...focused.querySelectorAll("details")];
      const opened = all.every((details) => details.open);
      for (const details of all) details.open = !opened;
    } else return;
    event.preventDefault();
  });

  data.rows.forEach((row, index) => { row.index = index; });
  get("controls").hidden = false;
  readAddress();
  show();
  performance.mark("gallery"); // measured by benchmarks/report.py
})();
