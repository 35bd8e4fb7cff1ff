"use strict";
// A text as a model reads it: what it expected, how surprised it was, and the gates and states of its cells.

const PIECE = 128; // characters between the positions that are kept; a changed text is read again from one of these
const LIKELIEST = 10;
const BUSY = 50; // milliseconds of reading between which the page answers
const TRACED = 2 ** 26; // bytes of gates and states that are kept, which bounds the text

/**
 * The text is `chars`, `n` characters. `bits[i]` is the surprise of character i; `top` and `shares` have, for each i,
 * the likeliest ids after it and their probabilities; `z[l]` and `h[l]` are those of layer l, (n, hidden).
 */
class Reader {
  constructor(engine) {
    const { vocabulary: characters, layers } = engine;
    Object.assign(this, { engine, characters, layers, chars: [], capacity: 0, wanted: 0 });
    this.K = Math.min(LIKELIEST, characters.length);
    const channels = engine.layers.reduce((sum, layer) => sum + layer.hidden, 0);
    this.most = Math.min(data.most, Math.floor(TRACED / (8 * channels)));
    this.bits = new Float32Array(0);
    this.top = new Int32Array(0);
    this.shares = new Float32Array(0);
    this.z = this.layers.map(() => new Float32Array(0));
    this.h = this.layers.map(() => new Float32Array(0));
    this.positions = [null];
    this.cut(0);
  }

  get n() {
    return this.chars.length;
  }

  /** Forget all but the first `n` characters, n a multiple of PIECE. */
  cut(n) {
    this.chars.length = n;
    this.positions.length = n / PIECE + 1;
    this.position = this.positions.at(-1);
  }

  reserve(n) {
    if (n <= this.capacity) return;
    this.capacity = Math.min(Math.max(n, 2 * this.capacity, 1024), Math.max(n, this.most));
    const grown = (old, width) => {
      const array = new old.constructor(this.capacity * width);
      array.set(old);
      return array;
    };
    this.bits = grown(this.bits, 1);
    this.top = grown(this.top, this.K);
    this.shares = grown(this.shares, this.K);
    this.layers.forEach(({ hidden }, l) => {
      this.z[l] = grown(this.z[l], hidden);
      this.h[l] = grown(this.h[l], hidden);
    });
  }

  /** Read another text; what it begins with in common with the one before is not read again. False if overtaken. */
  async read(chars) {
    const wanted = ++this.wanted;
    this.busy = true;
    let same = 0;
    while (same < this.n && this.chars[same] === chars[same]) same++;
    if (same < this.n) this.cut(PIECE * Math.floor(same / PIECE));
    for (let until = performance.now() + BUSY; this.n < chars.length;) {
      this.extend(chars.slice(this.n, PIECE * (Math.floor(this.n / PIECE) + 1)));
      if (performance.now() < until) continue;
      await new Promise((done) => setTimeout(done));
      if (wanted !== this.wanted) return false;
      until = performance.now() + BUSY;
    }
    this.busy = false;
    return true;
  }

  /** Read further characters, not beyond the next multiple of PIECE. */
  extend(chars) {
    const start = this.n;
    const ids = this.engine.encode(chars.join(""));
    const { logits, z, h, position } = this.engine.read(ids, this.position, { trace: true });
    const V = this.engine.vocabulary.length;
    this.reserve(start + ids.length);
    let before = this.position ? logProbabilities(this.position.logits) : null;
    ids.forEach((id, i) => {
      this.bits[start + i] = before ? -before[id] / Math.LN2 : 0;
      before = logProbabilities(logits.subarray(i * V, (i + 1) * V));
      likeliest(before, this.K).forEach((other, k) => {
        this.top[(start + i) * this.K + k] = other;
        this.shares[(start + i) * this.K + k] = Math.exp(before[other]);
      });
    });
    this.layers.forEach(({ hidden }, l) => {
      this.z[l].set(z[l], start * hidden);
      this.h[l].set(h[l], start * hidden);
    });
    this.chars.push(...chars);
    this.position = position;
    if (this.n % PIECE === 0) this.positions.push(position);
  }

  /** What the model expected at a place, from 1 to n: [{char, share}], the likeliest first. */
  expected(place) {
    if (place < 1 || place > this.n) return [];
    return Array.from({ length: this.K }, (_, k) => {
      const at = (place - 1) * this.K + k;
      return { char: this.characters[this.top[at]], share: this.shares[at] };
    });
  }

  knows(char) {
    this.known ??= new Set(this.characters.slice(0, -1));
    return this.known.has(char);
  }
}

/** What Python computed for one text, of a model that cannot run here. */
class FixedReader {
  constructor(model) {
    this.characters = [...model.characters];
    this.chars = [...data.text];
    this.n = this.most = this.chars.length;
    this.bits = unpack(Float32Array, model.bits);
    this.top = unpack(Int32Array, model.top);
    this.shares = unpack(Float32Array, model.shares);
    this.K = this.n ? this.top.length / this.n : 0;
    this.expected = Reader.prototype.expected;
    this.knows = Reader.prototype.knows;
  }

  async read() {
    return true;
  }
}

/** The ids of the k largest numbers, the largest first. */
function likeliest(numbers, k) {
  const best = [];
  for (let id = 0; id < numbers.length; id++) {
    let at = best.length;
    while (at > 0 && numbers[best[at - 1]] < numbers[id]) at--;
    if (at < k) best.splice(at, 0, id);
    if (best.length > k) best.pop();
  }
  return best;
}

/** Natural logarithms of the probabilities of all ids. */
function logProbabilities(logits) {
  let most = -Infinity;
  for (const x of logits) if (x > most) most = x;
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - most);
  return Float64Array.from(logits, (x) => x - most - Math.log(sum));
}
