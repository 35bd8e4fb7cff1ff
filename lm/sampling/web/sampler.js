"use strict";
// The choice of the next character, as lm/sampling/filters.py, decoder.py and text.py make it: with equal weights a page
// and `char-lm generate` write the same text for the same seed.

/** Keep the k largest logits, ties included; the others become -Infinity. 0 keeps all. */
function topK(logits, k) {
  if (!(k > 0 && k < logits.length)) return logits;
  const smallest = Float64Array.from(logits).sort()[logits.length - k];
  return logits.map((x) => (x < smallest ? -Infinity : x));
}

/** Keep the fewest most probable ids whose probabilities sum to at least p. */
function topP(logits, p) {
  if (p >= 1) return logits;
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const weights = order.map((id) => Math.exp(logits[id] - logits[order[0]]));
  let sum = 0;
  const cumulative = weights.map((weight) => (sum += weight));
  const kept = new Float64Array(logits.length).fill(-Infinity);
  for (const [i, id] of order.entries()) if (cumulative[i] - weights[i] < p * sum) kept[id] = logits[id];
  return kept;
}

/** Keep the ids that are at least p times as probable as the most probable one; 0 keeps all. */
function minP(logits, p) {
  if (!(p > 0)) return logits;
  const least = logits.reduce((a, b) => Math.max(a, b)) + Math.log(p);
  return logits.map((x) => (x < least ? -Infinity : x));
}

/**
 * The first id whose cumulative probability exceeds a random number in [0, 1); at temperature 0 the most probable one.
 * Temperature comes first, then top_k, top_p and min_p. logits: of the ids that may be chosen, which the last one, the
 * unknown, is not.
 */
function choose(logits, uniform, { temperature = 1, top_k = 0, top_p = 1, min_p = 0 } = {}) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return logits.indexOf(largest);
  const scaled = Float64Array.from(logits).map((x) => (x - largest) / temperature);
  let sum = 0;
  const cumulative = minP(topP(topK(scaled, top_k), top_p), min_p).map((x) => (sum += Math.exp(x)));
  return cumulative.findIndex((part) => part > uniform * sum);
}

const WORD = (1n << 64n) - 1n;

/**
 * Random numbers in [0, 1): number n is a function of (seed, sample, n) alone, that of `RandomStreams` in
 * lm/sampling/decoder.py. The generator is Philox 4x64 of ten rounds, as in numpy (Salmon et al., 2011).
 * seed: a BigInt or an integer, at least 0 and below 2^64. drawn: numbers used before.
 */
class RandomStream {
  constructor(seed, sample = 0, drawn = 0) {
    this.seed = BigInt(seed);
    this.sample = BigInt(sample);
    this.drawn = drawn;
    this.numbers = null; // the four that begin at a multiple of four
  }

  random() {
    const place = this.drawn % 4;
    if (place === 0 || !this.numbers) this.numbers = this.four(BigInt(Math.floor(this.drawn / 4) + 1));
    this.drawn++;
    return Number(this.numbers[place] >> 11n) / 2 ** 53;
  }

  four(count) {
    let [a, b, c, d] = [count, 0n, 0n, this.sample];
    let [first, second] = [this.seed, 0n];
    for (let round = 0; round < 10; round++) {
      const left = 0xd2e7470ee14c6c93n * a;
      const right = 0xca5a826395121157n * c;
      [a, b, c, d] = [(right >> 64n) ^ b ^ first, right & WORD, (left >> 64n) ^ d ^ second, left & WORD];
      first = (first + 0x9e3779b97f4a7c15n) & WORD;
      second = (second + 0xbb67ae8584caa73bn) & WORD;
    }
    return [a, b, c, d];
  }
}

/**
 * How much of a text that was not passed on yet can be: the rest is, or may become, a stop string.
 * Returns {ready: its length, stopped: whether a stop string is complete}.
 */
function findStop(text, stops) {
  const places = stops.map((stop) => text.indexOf(stop)).filter((place) => place >= 0);
  if (places.length) return { ready: Math.min(...places), stopped: true };
  let ready = text.length;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > 0; n--) {
      if (text.endsWith(stop.slice(0, n))) ready = Math.min(ready, text.length - n);
    }
  }
  return { ready, stopped: false };
}

/**
 * Continue a text, a character at each step. Yields {id, text: what can be shown, held: what is or may become a stop
 * string, finish: "length", "stop" or empty, position: after the id}. The unknown, the last id, is never chosen.
 * options, read at each step: {seed, sample, chars (0: no end), stops, temperature, top_k, top_p, min_p}.
 */
function* writeText(engine, position, options) {
  const { seed = 0, sample = 0 } = options;
  const stream = new RandomStream(seed, sample, position.drawn);
  let held = "";
  for (let written = 1; ; written++) {
    const uniform = options.temperature === 0 ? 0 : stream.random();
    const id = choose(position.logits.subarray(0, -1), uniform, options);
    position = { ...engine.read([id], position).position, drawn: stream.drawn };
    held += engine.vocabulary[id];
    const { ready, stopped } = findStop(held, options.stops ?? []);
    const finish = stopped ? "stop" : options.chars && written >= options.chars ? "length" : "";
    const text = finish === "length" ? held : held.slice(0, ready);
    held = held.slice(text.length);
    yield { id, text, held, finish, position };
    if (finish) return;
  }
}
