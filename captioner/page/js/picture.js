// Reads a picture that somebody gave the page, and makes it small enough to send.

// The CNN sees about 224 x 224 pixels. More than this only costs time.
const MOST_PIXELS = 1_500_000;
const MOST_BYTES = 4_000_000;
const QUALITY = 0.92;
const UNSEEN_BY_BROWSERS = /\.(heic|heif|tiff?)$/i;

// -> { name, url, width, height, body }: the body is what is sent. The url is null if the browser
// cannot show this kind of file but the server may be able to read it.
export async function readPicture(file) {
  const name = file.name || "picture";
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    if (file.type.startsWith("image/") || UNSEEN_BY_BROWSERS.test(name)) {
      return { name, url: null, width: 0, height: 0, body: file };
    }
    throw new Error(`“${name}” is not a picture: give it a JPEG, PNG or WebP file.`);
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  if (width * height <= MOST_PIXELS && file.size <= MOST_BYTES && file.type !== "image/svg+xml") {
    return { name, url, width, height, body: file };
  }
  const body = await scaled(image, Math.min(1, Math.sqrt(MOST_PIXELS / (width * height))));
  URL.revokeObjectURL(url);
  return { name, url: URL.createObjectURL(body), width, height, body };
}

// The browser has already turned the image upright as its EXIF block says.
async function scaled(image, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind transparent pixels, as the server does
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}
