// Captions a picture in the visitor's browser; the picture goes nowhere.
const here = new URL("./", import.meta.url);
const box = document.getElementById("try");
const file = document.getElementById("try-file");
const shown = document.getElementById("try-picture");
const caption = document.getElementById("try-caption");
const status = document.getElementById("try-status");
let loading = null;  // the promise of the model
let newest = 0;  // an older picture that finishes later is not shown

const fetched = async (name) => {
  const answer = await fetch(new URL(name, here));
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
};

async function program(ort, name) {
  const packed = (await fetched(`${name}.onnx.gz`)).body;
  const bytes = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  // Weights are rounded to 8 bits; with this they become floats once, and not at each run.
  const extra = {session: {disable_quant_qdq: "1"}};
  return ort.InferenceSession.create(bytes, {executionProviders: ["wasm"], extra});
}

async function load() {
  const [ort, search, about] = await Promise.all([
    import(new URL("ort.wasm.min.mjs", here)),
    import(new URL("caption.js", here)),
    fetched("captioner.json").then((answer) => answer.json()),
  ]);
  ort.env.wasm.wasmPaths = here.href;
  ort.env.wasm.numThreads = 1;  // more need headers that not every server sends
  const programs = {};
  for (const name of ["encoder", "start", "step"]) programs[name] = await program(ort, name);
  return {about, write: (pixels) => search.caption(ort, programs, about, pixels)};
}

// The middle of the picture as the CNN sees it: all of red, then green, then blue.
async function pixelsOf(blob, {resize_size: size, crop_size: side}) {
  const picture = await createImageBitmap(blob);  // upright, whatever its EXIF data say
  const scale = size / Math.min(picture.width, picture.height);
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const [width, height] = [picture.width, picture.height].map((length) => Math.floor(length * scale));
  const [left, top] = [width, height].map((length) => Math.floor((side - length) / 2));
  context.fillStyle = "white";  // behind transparent pixels
  context.fillRect(0, 0, side, side);
  context.drawImage(picture, left, top, width, height);
  picture.close();
  const {data} = context.getImageData(0, 0, side, side);
  const pixels = new Uint8Array(3 * side * side);
  for (let place = 0; place < side * side; place++)
    for (let colour = 0; colour < 3; colour++) pixels[colour * side * side + place] = data[4 * place + colour];
  return pixels;
}

async function show(blob) {
  const mine = ++newest;
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(blob);
  shown.hidden = false;
  caption.textContent = "";
  box.dataset.state = "busy";
  try {
    status.textContent = loading ? "Writing a caption." : "Fetching the model.";
    loading ??= load();
    const {about, write} = await loading;
    const pixels = await pixelsOf(blob, about).catch(() => {
      throw new Error("this browser cannot read the picture; take a JPEG or PNG file");
    });
    const started = performance.now();
    const text = await write(pixels);
    if (mine !== newest) return;
    caption.textContent = text;
    shown.alt = text;
    status.textContent = `Written in ${Math.round(performance.now() - started)} ms, on this machine.`;
    box.dataset.state = "done";
  } catch (error) {
    if (!(await loading?.then(() => true, () => false))) loading = null;  // try again next time
    if (mine !== newest) return;
    status.textContent = `No caption: ${error.message}`;
    box.dataset.state = "failed";
  }
}

const first = (items) => [...items].find((item) => item.type.startsWith("image/"));
const showOrSay = (item) => {
  if (item) show(item);
  else status.textContent = "That is no picture.";
};
file.addEventListener("change", () => file.files.length && showOrSay(first(file.files)));
box.addEventListener("dragover", (event) => event.preventDefault());
box.addEventListener("drop", (event) => {
  event.preventDefault();
  showOrSay(first(event.dataTransfer.files));
});
document.addEventListener("paste", (event) => {
  const picture = first(event.clipboardData.files);
  if (picture) show(picture);
});
for (const button of box.querySelectorAll("[data-picture]"))
  button.addEventListener("click", async () => {
    try {
      show(await (await fetched(button.dataset.picture)).blob());
    } catch (error) {
      status.textContent = `No caption: ${error.message}`;
    }
  });
status.textContent = "Nothing is fetched before you choose a picture.";
