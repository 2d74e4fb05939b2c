"use strict";
// The model: its vocabulary, its weights, a step, and the losses and samples computed from its logits.

// The weights of products are integers from -127 to 127, and h is rounded to multiples of 1/1023, so a sum over 256
// inputs is an integer below 2^25. A double represents integers of 53 bits exactly, so two weights are packed into one,
// 26 bits apart, and multiplied at once. That is nearly twice as fast as multiplying one weight at a time.
const H_STEPS = 1023, FIELD = 2 ** 26, MOST_INPUTS = 256, GROUP = 16;
// Python's base64.b85encode, with "," for "<", which could begin a tag.
const BASE85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
// The number of characters between saved states, and the number of likely characters kept for each position.
const SAVE_EVERY = 32, SHOWN = 5;
// Phones substitute the keys for the values.
const PLAIN = { "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "." };

function decodeBase85(text) {
  const digits = new Uint8Array(128), view = new DataView(new ArrayBuffer(text.length / 5 * 4));
  for (let digit = 0; digit < 85; digit++) digits[BASE85.charCodeAt(digit)] = digit;
  for (let at = 0; at < text.length; at += 5) {
    let word = 0;
    for (let k = at; k < at + 5; k++) word = word * 85 + digits[text.charCodeAt(k)];
    view.setUint32(at / 5 * 4, word);
  }
  return view.buffer;
}

// The vocabulary. `codes` contains the code point of every id; it is null for a byte vocabulary, which encodes UTF-8.
class Vocab {
  constructor(codes) {
    this.bytes = !codes;
    this.characters = this.bytes ? [] : codes.map(code => String.fromCodePoint(code));
    this.idOf = new Map(this.characters.map((character, id) => [character, id]));
  }
  // Returns the ids of a character; empty if it is not in the vocabulary.
  encode(character) {
    if (this.bytes) return [...new TextEncoder().encode(character)];
    const known = this.idOf.has(character) ? character : PLAIN[character];
    return this.idOf.has(known) ? [this.idOf.get(known)] : [];
  }
  name(id) {
    if (this.bytes && id > 127) return "0x" + id.toString(16).toUpperCase();
    return visibleName(this.bytes ? String.fromCharCode(id) : this.characters[id]);
  }
  // Returns a function that decodes one id at a time; bytes are held back until their character is complete.
  makeDecoder() {
    if (!this.bytes) return id => this.characters[id];
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return id => decoder.decode(Uint8Array.of(id), { stream: true });
  }
}

function visibleName(character) {
  const symbol = { "\n": "↵", "\t": "⇥", " ": "␣" }[character];
  if (symbol) return symbol;
  if (/[\p{C}\p{Z}]/u.test(character))
    return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return /\p{M}/u.test(character) ? "◌" + character : character;
}

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}

// A state is [h of layer 0, c of layer 0, h of layer 1, ...], changed in place by `step`. The functions are created once
// only, so that the compiler treats the arrays as constants, which makes the functions a third faster.
function makeModel({ layers, hidden, vocabSize }, buffer) {
  const gates = 4 * hidden, groups = Math.ceil(gates / GROUP), padded = groups * GROUP, size = padded * hidden / 2;
  // All products, one after another: layer 0's own, then, for each further layer, the one from below and its own.
  const packed = new Float64Array((2 * layers - 1) * size), perStep = new Float64Array((2 * layers - 1) * padded);
  const rounded = new Float64Array(hidden), z = new Float64Array(padded), sums = new Float64Array(8), biases = [];
  let taken = 0;
  // Takes the next array; `_weights` in html.py writes them in the same order.
  function take(Kind, length) {
    const from = taken;
    taken += length * Kind.BYTES_PER_ELEMENT;
    return new Kind(buffer.slice(from, taken));
  }

  const table = take(Int16Array, vocabSize * gates), tableScales = take(Float32Array, gates);
  const rows = new Float32Array(table.length);
  biases.push(take(Float32Array, gates));
  rows.forEach((_, at) => rows[at] = table[at] * tableScales[at % gates] + biases[0][at % gates]);
  pack(0);
  for (let n = 1; n < layers; n++) {
    biases.push(take(Float32Array, gates));
    pack(2 * n - 1);
    pack(2 * n);
  }
  const head = Float64Array.from(take(Int16Array, hidden * vocabSize));
  const headScales = take(Float32Array, vocabSize), headBias = take(Float32Array, vocabSize);

  // Arranges weights [hidden, gates] in groups of 16 gates: 8 doubles per input.
  function pack(product) {
    const weights = take(Int8Array, hidden * gates), scales = take(Float32Array, gates), half = GROUP / 2;
    for (let k = 0; k < gates; k++) {
      perStep[product * padded + k] = scales[k] / H_STEPS;
      const lane = k % GROUP, unit = lane < half ? 1 : FIELD;
      let at = product * size + (k - lane) / 2 * hidden + lane % half;
      for (let j = 0; j < hidden; j++, at += half) packed[at] += weights[j * gates + k] * unit;
    }
  }

  // Adds the product of weights and h to z.
  function addProduct(product, h) {
    for (let j = 0; j < hidden; j++) rounded[j] = Math.round(h[j] * H_STEPS);
    for (let k = 0, at = product * size; k < padded; k += GROUP) {
      for (let from = 0; from < hidden; from += MOST_INPUTS) {
        at = sumUp(at, from, Math.min(hidden, from + MOST_INPUTS));
        for (let lane = 0, to = product * padded + k; lane < GROUP / 2; lane++, to++) {
          const high = Math.round(sums[lane] / FIELD);
          z[k + lane] += perStep[to] * (sums[lane] - high * FIELD);
          z[k + lane + 8] += perStep[to + 8] * high;
        }
      }
    }
  }

  // This is a separate function so that the sums stay in registers.
  function sumUp(at, from, to) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
    for (let j = from; j < to; j++, at += 8) {
      const x = rounded[j];
      s0 += packed[at] * x;
      s1 += packed[at + 1] * x;
      s2 += packed[at + 2] * x;
      s3 += packed[at + 3] * x;
      s4 += packed[at + 4] * x;
      s5 += packed[at + 5] * x;
      s6 += packed[at + 6] * x;
      s7 += packed[at + 7] * x;
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
    sums[4] = s4;
    sums[5] = s5;
    sums[6] = s6;
    sums[7] = s7;
    return at;
  }

  // Updates h and c from the gates i, f, g, o.
  function applyGates(h, c) {
    for (let k = 0; k < hidden; k++) {
      c[k] = sigmoid(z[hidden + k]) * c[k] + sigmoid(z[k]) * Math.tanh(z[2 * hidden + k]);
      h[k] = sigmoid(z[3 * hidden + k]) * Math.tanh(c[k]);
    }
  }

  return {
    vocabSize,
    zeroState: () => Array.from({ length: 2 * layers }, () => new Float64Array(hidden)),
    // Reads a character.
    step(state, id) {
      for (let n = 0; n < layers; n++) {
        for (let k = 0; k < gates; k++) z[k] = n ? biases[n][k] : rows[id * gates + k];
        if (n) addProduct(2 * n - 1, state[2 * n - 2]);
        addProduct(2 * n, state[2 * n]);
        applyGates(state[2 * n], state[2 * n + 1]);
      }
    },
    // Returns the logits [vocabSize] for the next character.
    logits(state) {
      const h = state[state.length - 2], logits = new Float64Array(vocabSize);
      for (let j = 0, at = 0; j < hidden; j++) {
        const x = h[j];
        for (let k = 0; k < vocabSize; k++, at++) logits[k] += head[at] * x;
      }
      return logits.map((sum, k) => sum * headScales[k] + headBias[k]);
    },
  };
}

function copyOf(state) {
  return state.map(part => part.slice());
}

// Returns -log p of a character in nats, and the most likely characters with their probabilities.
function judge(logits, id, shown) {
  const most = logits.reduce((a, b) => Math.max(a, b)), top = [];
  let sum = 0;
  for (let k = 0; k < logits.length; k++) {
    sum += Math.exp(logits[k] - most);
    if (top.length === shown && logits[k] <= logits[top[shown - 1]]) continue;
    let place = top.length;
    while (place && logits[k] > logits[top[place - 1]]) place--;
    top.splice(place, 0, k);
    top.length = Math.min(top.length, shown);
  }
  const nats = k => most + Math.log(sum) - logits[k];
  return { nats: nats(id), top: top.map(k => [k, Math.exp(-nats(k))]) };
}

// Returns the probabilities to sample characters with; at temperature 0, the most likely one is certain.
function distribution(logits, temperature, topK) {
  const ranked = logits.slice().sort(), most = ranked[ranked.length - 1];
  const least = ranked[Math.max(0, ranked.length - topK)];
  const weights = logits.map(logit => {
    if (temperature === 0) return logit === most ? 1 : 0;
    return logit < least ? 0 : Math.exp((logit - most) / temperature);
  });
  const sum = weights.reduce((a, b) => a + b);
  return weights.map(weight => weight / sum);
}

function sample(probabilities, uniform) {
  let left = uniform, last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    if (!probabilities[id]) continue;
    left -= probabilities[id];
    last = id;
    if (left < 0) break;
  }
  return last;
}

// Returns a generator of uniform numbers in [0, 1) for a seed: mulberry32.
function makeRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Reads text; when it changes, rereads it only from shortly before the first change.
class Reader {
  constructor(model) {
    this.model = model;
    this.ids = [];
    this.judged = [];
    this.saved = [model.zeroState()];  // before every SAVE_EVERY-th character
    this.goBack(0);
  }
  aim(ids) {
    let same = 0;
    while (same < this.judged.length && same < ids.length && ids[same] === this.ids[same]) same++;
    this.ids = ids;
    if (same < this.judged.length) this.goBack(same);
  }
  goBack(position) {
    const kept = Math.floor(position / SAVE_EVERY);
    this.saved.length = kept + 1;
    this.judged.length = kept * SAVE_EVERY;
    this.state = copyOf(this.saved[kept]);
    this.logits = this.model.logits(this.state);
  }
  // Reads one character; returns false if there is none left.
  advance() {
    if (this.judged.length === this.ids.length) return false;
    const id = this.ids[this.judged.length];
    this.judged.push(judge(this.logits, id, SHOWN));
    this.model.step(this.state, id);
    this.logits = this.model.logits(this.state);
    if (this.judged.length % SAVE_EVERY === 0) this.saved.push(copyOf(this.state));
    return true;
  }
  // Loss over ids [from, to).
  nats(from, to) {
    let sum = 0;
    for (let k = from; k < to; k++) sum += this.judged[k].nats;
    return sum;
  }
}

// Continues a text from the model's state after reading it.
class Writer {
  constructor(model, vocab, state, seed) {
    Object.assign(this, { model, state: copyOf(state), text: "" });
    this.random = makeRandom(seed);
    this.decode = vocab.makeDecoder();
  }
  write(temperature, topK) {
    const id = sample(distribution(this.model.logits(this.state), temperature, topK), this.random());
    this.text += this.decode(id);
    this.model.step(this.state, id);
  }
}
