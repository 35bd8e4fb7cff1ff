"use strict";
// What all views use: the data that Python embedded, numbers, colours, maps of numbers.

const data = JSON.parse($("data").textContent);
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const unpack = (Kind, base64) => new Kind(bytes(base64).buffer);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const percent = (share) => (share < 0.0005 ? "<0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`);
/** A number with its sign, which 0 has none of. */
function signed(value, digits = 2) {
  const size = Math.abs(value).toFixed(digits);
  return (Number(size) ? (value < 0 ? "\u2212" : "+") : "") + size;
}

const NAMES = { " ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\ufffd": "unknown" };

/** A character as it is shown alone. */
function visible(char) {
  if (char === undefined) return "end";
  if (/[\p{C}\p{Z}]/u.test(char) && !NAMES[char]) return `U+${char.codePointAt(0).toString(16).toUpperCase()}`;
  return NAMES[char] ?? char;
}

const HIGH = () => (dark() ? [245, 138, 66] : [213, 94, 0]);
const LOW = () => (dark() ? [77, 168, 232] : [0, 114, 178]);
const GROUND = () => (dark() ? [23, 27, 33] : [255, 255, 255]);

/** A background: orange for positive values up to 1, blue for negative ones. */
function tint(value) {
  const alpha = Math.min(1, Math.abs(value)) * 0.8;
  return alpha < 0.02 ? "" : `rgb(${(value < 0 ? LOW() : HIGH()).join(" ")} / ${alpha.toFixed(2)})`;
}

/** How a value is marked besides its colour: the number of limits that it reaches; negative below their negatives. */
const level = (value, limits) => Math.sign(value) * limits.filter((limit) => Math.abs(value) >= limit).length;

/** The explanation of colours and lines: an example of each level, and a remark. */
function key(examples, remark = "") {
  const sample = ([value, mark, label]) => {
    const node = el("span", { className: "sample-key" }, el("span", { "data-lines": marks(mark) }, "abc"), label);
    node.firstChild.style.background = tint(value);
    return node;
  };
  $("key").replaceChildren(...examples.map(sample), remark);
}

const marks = (mark) => (mark ? (mark > 0 ? `over-${mark}` : `under-${-mark}`) : "");

/** A canvas as wide as its place and so many pixels high, sharp on every screen. */
function prepare(canvas, height) {
  const width = canvas.parentElement.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

/** Draw a matrix of (rows, columns) values from -1 to 1 into a rectangle. */
function drawMatrix(context, rows, columns, value, x, y, width, height) {
  if (!rows || !columns) return;
  const image = new ImageData(columns, rows);
  const [ground, high, low] = [GROUND(), HIGH(), LOW()];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const v = clamp(value(row, column) || 0, -1, 1);
      const ink = v < 0 ? low : high;
      const at = 4 * (row * columns + column);
      for (let k = 0; k < 3; k++) image.data[at + k] = ground[k] + (ink[k] - ground[k]) * Math.abs(v);
      image.data[at + 3] = 255;
    }
  }
  const cells = new OffscreenCanvas(columns, rows);
  cells.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = rows > height || columns > width;
  context.drawImage(cells, x, y, width, height);
}
