// The ways a picture gets in: drop, paste, file, camera, example.

import { openCamera } from "./camera.js";
import { byId } from "./element.js";

// `take(file)` is called with each picture or a promise of it, `complain(sentence)` if there is none.
export function listenForPictures(take, complain) {
  const takeFirst = (files) => {
    const file = [...files].find((each) => each.type.startsWith("image/")) ?? files[0];
    if (file) take(file);
  };
  listenForDrops(takeFirst, complain);
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (files.length) {
      event.preventDefault();
      takeFirst(files);
    } else if (!event.target.closest?.("input")) {
      complain("There is no picture on the clipboard: copy one, then paste it here.");
    }
  });
  const file = byId("file");
  const shot = byId("shot");
  byId("choose").addEventListener("click", () => file.click());
  byId("invitation").addEventListener("click", () => file.click()); // a large target for a mouse
  byId("camera").addEventListener("click", () => openCamera(take, () => shot.click(), complain));
  for (const input of [file, shot]) {
    input.addEventListener("change", () => {
      takeFirst(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  for (const button of document.querySelectorAll(".example")) {
    button.addEventListener("click", () => take(example(button.dataset.name)));
  }
}

async function example(name) {
  const answer = await fetch(`page/${name}`).catch(() => null);
  const blob = answer?.ok && (await answer.blob().catch(() => null));
  if (!blob) throw new Error("The example could not be loaded: is the server still running?");
  return new File([blob], name, { type: blob.type });
}

// A picture may be dropped anywhere on the page.
function listenForDrops(takeFirst, complain) {
  const frame = byId("frame");
  let inside = 0; // elements that the pointer has entered and not left
  const mark = (count) => {
    inside = count;
    frame.classList.toggle("dropping", inside > 0);
  };
  window.addEventListener("dragenter", () => mark(inside + 1));
  window.addEventListener("dragleave", () => mark(Math.max(0, inside - 1)));
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(0);
    const files = event.dataTransfer?.files ?? [];
    if (files.length) takeFirst(files);
    else complain("A link was dropped, and links are not followed: save the picture, then drop the file.");
  });
}
