// A word's map over the picture: what mattered is lit, the rest is dimmed.

const SIZE = 160; // pixels of a drawn map; between the places it is interpolated
// Dim blue over glowing orange to clear yellow, each [red, green, blue, opacity].
const GLOW = [[8, 10, 36, 0.6], [60, 16, 84, 0.52], [190, 52, 62, 0.4], [250, 140, 30, 0.3], [255, 228, 110, 0.2]];
// For signed maps: what spoke against the word, and for it.
const AGAINST = [16, 84, 226, 0.56];
const FOR = [255, 150, 30, 0.3];

// Draws a map into a canvas context. `box`: the part of the picture that the CNN sees, in pixels.
// `scale`: the value that gets the brightest colour.
export function drawMap(context, map, scale, box) {
  const small = document.createElement("canvas");
  small.width = small.height = SIZE;
  const pixels = new ImageData(SIZE, SIZE);
  const signed = map.some((row) => row.some((value) => value < 0));
  for (let y = 0; y < SIZE; y++) {
    for (let x = 0; x < SIZE; x++) {
      const value = between(map, (x + 0.5) / SIZE, (y + 0.5) / SIZE) / (scale || 1);
      const [red, green, blue, opacity] = signed ? signedColour(value) : glow(value);
      pixels.data.set([red, green, blue, 255 * opacity], 4 * (y * SIZE + x));
    }
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, box.x, box.y, box.width, box.height);
  // What the CNN's crop leaves out had no part in any word.
  context.fillStyle = `rgba(${GLOW[0].slice(0, 3)}, ${GLOW[0][3]})`;
  const { width, height } = context.canvas;
  context.fillRect(0, 0, width, box.y);
  context.fillRect(0, box.y + box.height, width, height - box.y - box.height);
  context.fillRect(0, box.y, box.x, box.height);
  context.fillRect(box.x + box.width, box.y, width - box.x - box.width, box.height);
}

// All words share one scale, of weights or of nats: a word that needs no picture stays unlit.
export function scaleOf(answer) {
  return Math.max(...answer.words.flatMap((word) => (word.map ?? [[0]]).flat().map(Math.abs)));
}

// The box of the map on a canvas; the whole picture if the server does not say what it cropped.
export function seenBox(answer, width, height) {
  const [left, top, right, bottom] = answer.image?.seen ?? [0, 0, 1, 1];
  const [x, y] = [Math.round(left * width), Math.round(top * height)]; // whole pixels leave no seam
  return { x, y, width: Math.round(right * width) - x, height: Math.round(bottom * height) - y };
}

// Where a map is strongest, for people who do not see it.
export function where(map) {
  if (!map?.length) return "";
  let [best, row, column] = [-Infinity, 0, 0];
  map.forEach((values, y) => values.forEach((value, x) => {
    if (value > best) [best, row, column] = [value, y, x];
  }));
  const third = (place, count) => Math.min(2, Math.floor((3 * (place + 0.5)) / count));
  const side = ["left", "middle", "right"][third(column, map[0].length)];
  const height = ["upper", "middle", "lower"][third(row, map.length)];
  const spot = height === side ? "in the middle" : `at the ${height} ${side}`.replace("middle left", "left").replace("middle right", "right");
  return `Strongest ${spot} of what the model sees.`;
}

function glow(value) {
  const at = Math.max(0, Math.min(1, value)) * (GLOW.length - 1);
  const low = Math.min(GLOW.length - 2, Math.floor(at));
  return GLOW[low].map((from, i) => from + (GLOW[low + 1][i] - from) * (at - low));
}

function signedColour(value) {
  const share = Math.min(1, Math.abs(value));
  return (value < 0 ? AGAINST : FOR).map((to, i) => GLOW[0][i] + (to - GLOW[0][i]) * share);
}

// Bilinear interpolation; x and y from 0 to 1, values lie at the middles of the places.
function between(map, x, y) {
  const column = Math.max(0, Math.min(map[0].length - 1, x * map[0].length - 0.5));
  const row = Math.max(0, Math.min(map.length - 1, y * map.length - 0.5));
  const [left, top] = [Math.floor(column), Math.floor(row)];
  const [right, bottom] = [Math.min(left + 1, map[0].length - 1), Math.min(top + 1, map.length - 1)];
  const [dx, dy] = [column - left, row - top];
  const upper = map[top][left] * (1 - dx) + map[top][right] * dx;
  const lower = map[bottom][left] * (1 - dx) + map[bottom][right] * dx;
  return upper * (1 - dy) + lower * dy;
}
