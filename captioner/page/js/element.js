// Makes elements. Text becomes a text node, never HTML: a caption cannot run as code.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    // The content policy refuses style attributes; properties set from here are allowed.
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    // A false aria attribute says something; another false one is left out.
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child || child === 0));
  return element;
}

// Arrow keys move along a row of elements, of which one is in the order of the Tab key.
export function moveByArrows(container, selector, moved = () => {}) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(selector)];
    const at = all.indexOf(event.target.closest(selector));
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const forward = getComputedStyle(container).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
    const backward = forward === "ArrowRight" ? "ArrowLeft" : "ArrowRight";
    const to = { [forward]: at + 1, [backward]: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = all[Math.max(0, Math.min(all.length - 1, to))];
    focusOnly(all, next);
    next.focus();
    moved(next, event);
  });
}

export function focusOnly(all, one) {
  for (const each of all) each.tabIndex = each === one ? 0 : -1;
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
