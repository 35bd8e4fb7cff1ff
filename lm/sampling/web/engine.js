"use strict";
// The model: a block that lm/sampling/web/block.py made, run by WebAssembly. An id is a character's place in the
// vocabulary.
//
// A position is the end of a text as a value to keep and to go on from, as in lm/sampling/decoder.py: {state, logits: of
// the next id, drawn: random numbers used}.

/** The smallest module that uses a vector. */
const VECTORS = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
];

class Engine {
  /** An engine of a block. Throws an Error that says, in a line for the reader, why there is none. */
  static async create(block) {
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(VECTORS))) {
      throw new Error("This browser cannot run the model: it has no WebAssembly with SIMD. Those since 2023 have it.");
    }
    if (crc32(new TextEncoder().encode(block.header + block.module + block.image)) !== block.checksum) {
      throw new Error("The model in this page is damaged: its checksum differs. Get the page again.");
    }
    const { instance } = await WebAssembly.instantiate(bytesOf(block.module));
    return new Engine(JSON.parse(block.header), instance.exports, bytesOf(block.image));
  }

  constructor(header, exports, image) {
    const { buffer } = exports.memory;
    const missing = Math.ceil((header.size - buffer.byteLength) / 65536);
    if (missing > 0) exports.memory.grow(missing);
    new Uint8Array(exports.memory.buffer).set(image, header.base);
    this.header = header;
    this.trace = exports.trace;
    this.vocabulary = [...header.vocabulary];
    this.unknown = this.vocabulary.length - 1;
    this.layers = header.layers;
    this.ids = new Map(this.vocabulary.slice(0, -1).map((character, id) => [character, id]));
    const floats = (address, n) => new Float32Array(exports.memory.buffer, address, n);
    this.memory = {
      ids: new Int32Array(exports.memory.buffer, header.ids, 2 * header.rows), // low and high half of each
      state: floats(header.state, header.floats),
      logits: floats(header.logits, header.rows * this.vocabulary.length),
      z: header.z.map((address, i) => floats(address, header.rows * header.layers[i].hidden)),
      h: header.h.map((address, i) => floats(address, header.rows * header.layers[i].hidden)),
    };
  }

  /** The ids of a text, one for each code point; a character never seen in training is the unknown, the last id. */
  encode(text) {
    return Array.from(text, (character) => this.ids.get(character) ?? this.unknown);
  }

  decode(ids) {
    return Array.from(ids, (id) => this.vocabulary[id]).join("");
  }

  /** The position where a text without a prompt starts: after the start of a line. */
  start() {
    return this.read(this.header.start).position;
  }

  /**
   * Read ids after a position, or from the very start without one.
   * Returns {logits: (n, V) of the prediction after each id, z and h: gates and states (n, hidden) of each layer, null
   * unless `trace` asks for them, position: after the last id}.
   */
  read(ids, position = null, { trace = false } = {}) {
    const { header, memory } = this;
    const V = this.vocabulary.length;
    const perLayer = () => header.layers.map(({ hidden }) => new Float32Array(ids.length * hidden));
    const logits = new Float32Array(ids.length * V);
    const [z, h] = trace ? [perLayer(), perLayer()] : [null, null];
    if (position) memory.state.set(position.state);
    else memory.state.fill(0);
    for (let first = 0; first < ids.length; first += header.rows) {
      const rows = Math.min(header.rows, ids.length - first);
      for (let i = 0; i < rows; i++) memory.ids[2 * i] = ids[first + i];
      this.call(rows, trace);
      logits.set(memory.logits.subarray(0, rows * V), first * V);
      for (const [i, { hidden }] of trace ? header.layers.entries() : []) {
        z[i].set(memory.z[i].subarray(0, rows * hidden), first * hidden);
        h[i].set(memory.h[i].subarray(0, rows * hidden), first * hidden);
      }
    }
    const last = ids.length ? logits.slice(-V) : position?.logits;
    return { logits, z, h, position: { state: memory.state.slice(), logits: last, drawn: position?.drawn ?? 0 } };
  }

  /** Read the first ids in memory: the function `trace` of lm/sampling/packed.c. */
  call(rows, trace) {
    const { model, ids, logits, work, pointers } = this.header;
    const [state, h, z] = pointers;
    if (this.trace(model, rows, ids, logits, state, h, trace ? z : 0, work)) throw new RangeError("no such id");
  }
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function crc32(bytes) {
  const table = new Uint32Array(256).map((_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
    return n;
  });
  let sum = -1;
  for (const byte of bytes) sum = table[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}
