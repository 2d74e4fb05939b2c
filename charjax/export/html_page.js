// The page: what is typed is read and painted, then continued, in slices of time that leave room for the next keystroke.
const SLICE_MS = 20, PAUSE_MS = 250, BARS = 10;
const $ = id => document.getElementById(id);
const shape = JSON.parse($("shape").textContent);
const vocab = new Vocab(shape.codes);
const model = makeModel(shape, decodeBase85($("weights").textContent));
const reader = new Reader(model);
const text = $("text"), painted = $("painted"), rest = $("rest"), tip = $("tip");

let units = [];          // the characters of the text: {text, from, to, element}; they are ids [from, to)
let colored = 0;         // how many of them are painted
let writer = null;       // what continues the text
let left = 0;            // characters that it has yet to write
let due = false;         // whether a new one starts once the text is read
let barsAreOld = true;
let pause = 0, pointed = null;

// The settings; what is out of range counts as the nearest valid number.
function whole(id, fallback) {
  const { valueAsNumber: value, min, max } = $(id);
  return Number.isNaN(value) ? fallback : Math.min(Math.max(Math.round(value), min), max);
}
const temperature = () => $("temperature").valueAsNumber;
const topK = () => whole("top-k", shape.vocabSize);
const length = () => whole("length", 0);

// Work: one character read or written at a time. Messages to oneself come after the events of keys and pointers.
const channel = new MessageChannel();
let isWorking = false;
function work() {
  if (isWorking) return;
  isWorking = true;
  channel.port2.postMessage(null);
}
channel.port1.onmessage = () => {
  const end = performance.now() + SLICE_MS;
  do isWorking = reader.advance() || write();
  while (isWorking && performance.now() < end);
  show();
  if (isWorking) channel.port2.postMessage(null);
};

function write() {
  if (due) {
    due = false;
    writer = new Writer(model, vocab, stateToContinue(), whole("seed", 0));
    left = length();
  }
  if (!left) return false;
  writer.write(temperature(), topK());
  left--;
  return true;
}

// Without a text, the model continues a line break, as `charjax sample` does.
function stateToContinue() {
  const state = copyOf(reader.state), [id] = vocab.encode("\n");
  if (!reader.ids.length && id !== undefined) model.step(state, id);
  return state;
}

function restart(delay) {
  clearTimeout(pause);
  writer = null;
  left = 0;
  due = false;
  barsAreOld = true;
  rest.textContent = $("spoken").textContent = "";
  pause = setTimeout(() => {
    pause = 0;
    due = true;
    work();
  }, delay);
  work();
  show();
}

function onText() {
  const characters = [...text.value];
  let same = 0;
  while (same < units.length && same < characters.length && units[same].text === characters[same]) same++;
  units.length = same;
  const kept = same ? units[same - 1].element : null, line = kept ? kept.parentNode : painted.firstChild;
  while (line.lastChild !== kept) line.lastChild.remove();
  while (painted.lastChild !== line) painted.lastChild.remove();
  const ids = reader.ids.slice(0, same ? units[same - 1].to : 0);
  for (const character of characters.slice(same)) {
    const from = ids.length, element = document.createElement("b");
    ids.push(...vocab.encode(character));
    element.textContent = character === "\n" ? "" : character;
    element.at = units.length;
    if (ids.length === from) element.className = "unread";
    lastLine().append(element);
    units.push({ text: character, from, to: ids.length, element });
  }
  lastLine().append(rest);
  colored = Math.min(colored, same);
  reader.aim(ids);
  point(null);
  restart(PAUSE_MS);
}

// Every line is a block without its line break, so that a keystroke does not lay out the others again.
function lastLine() {
  const isNew = units.length && units[units.length - 1].text === "\n";
  return isNew ? painted.appendChild(document.createElement("div")) : painted.lastChild;
}

function setText(value) {
  text.value = value;
  text.setSelectionRange(value.length, value.length);
  onText();
}

// What is on the page.
function show() {
  const read = reader.judged.length, isReading = read < reader.ids.length;
  for (; colored < units.length && units[colored].to <= read; colored++) paint(units[colored]);
  $("loss").textContent = lossText(read);
  rest.textContent = writer ? writer.text : "";
  if (barsAreOld && !isReading) showBars();
  const isBusy = isReading || left > 0 || due || pause > 0;
  $("pause").textContent = isBusy ? "Stop" : "Continue";
  $("keep").disabled = !writer || !writer.text;
  $("scroller").setAttribute("aria-busy", isBusy);
  $("shown-temperature").textContent = temperature().toFixed(2);
  if (!isBusy && writer) $("spoken").textContent = writer.text;
}

function paint({ text: character, from, to, element }) {
  if (from === to) return;
  const bits = reader.nats(from, to) / Math.LN2, level = Math.floor(bits / shape.most * shape.levels);
  element.className = character === "\n" ? "newline" : "";
  if (level > 0) element.classList.add(String.fromCharCode(97 + Math.min(level, shape.levels - 1)));
}

// As `charjax score`: the first character is not counted.
function lossText(read) {
  if (read < 2) return "";
  const nats = reader.nats(1, read) / (read - 1), unit = vocab.bytes ? "byte" : "character";
  return `Loss ${nats.toFixed(4)} nats (${(nats / Math.LN2).toFixed(2)} bits) per ${unit}`;
}

function percent(probability) {
  const value = 100 * probability;
  return value >= 0.1 ? value.toFixed(value < 9.95 ? 1 : 0) + "%" : "<0.1%";
}

function showBars() {
  barsAreOld = false;
  const found = nextCharacters(), rows = $("bars").children;
  [...rows].forEach((row, n) => {
    row.hidden = n >= found.length;
    if (row.hidden) return;
    const [button] = row.children, [name, bar, share] = button.children, { character, probability } = found[n];
    name.textContent = visibleName(character);
    name.className = name.textContent.length > 2 ? "long" : "";
    bar.firstChild.style.width = 100 * probability + "%";
    share.textContent = percent(probability);
    button.value = character;
  });
}

function nextCharacters() {
  const state = stateToContinue(), probabilities = distribution(model.logits(state), temperature(), topK());
  const likely = [...probabilities.keys()].filter(id => probabilities[id]);
  likely.sort((a, b) => probabilities[b] - probabilities[a]);
  const found = likely.slice(0, BARS).map(id => completed(state, id, probabilities[id])).filter(Boolean);
  return found.sort((a, b) => b.probability - a.probability);
}

// A byte that begins a longer character is completed by the most likely bytes.
function completed(state, id, probability) {
  const decode = vocab.makeDecoder(), after = copyOf(state);
  let character = decode(id);
  while (!character) {
    model.step(after, id);
    const probabilities = distribution(model.logits(after), temperature(), topK());
    id = probabilities.indexOf(Math.max(...probabilities));
    probability *= probabilities[id];
    character = decode(id);
  }
  return vocab.bytes && character.includes("\ufffd") ? null : { character, probability };
}

// Tells how surprising a character was, and what was expected.
function point(unit) {
  if (pointed) pointed.element.classList.remove("pointed");
  pointed = unit && unit.to <= reader.judged.length ? unit : null;
  tip.hidden = !pointed;
  if (!pointed) return;
  pointed.element.classList.add("pointed");
  tip.textContent = tipText(pointed);
  const at = pointed.element.getClientRects()[0], room = innerHeight - tip.offsetHeight - 6;
  tip.style.left = Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = (at.bottom < room ? at.bottom + 6 : at.top - tip.offsetHeight - 6) + "px";
}

function tipText({ text: character, from, to }) {
  const name = visibleName(character);
  if (from === to) return `${name} is not in the model's alphabet: it is not read`;
  const nats = reader.nats(from, to), { top } = reader.judged[from];
  const expected = top.map(([id, probability]) => `${vocab.name(id)} ${percent(probability)}`).join("  ");
  return `${name}  ${(nats / Math.LN2).toFixed(2)} bits, ${percent(Math.exp(-nats))}\nexpected: ${expected}`;
}

function pointAt(event) {
  const element = document.elementsFromPoint(event.clientX, event.clientY).find(one => one.at !== undefined);
  point(element ? units[element.at] : null);
}

function pointAtCursor() {
  let before = text.selectionStart;
  point(units.find(unit => (before -= unit.text.length) < 0) || null);
}

for (let n = 0; n < BARS; n++) {
  const row = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.append(...["kbd", "span", "small"].map(tag => document.createElement(tag)));
  button.children[1].append(document.createElement("i"));
  button.addEventListener("click", () => setText(text.value + button.value));
  row.append(button);
  $("bars").append(row);
}
text.addEventListener("input", onText);
text.addEventListener("pointermove", event => event.pointerType === "mouse" && pointAt(event));
text.addEventListener("pointerleave", event => event.pointerType === "mouse" && point(null));
text.addEventListener("click", pointAt);
text.addEventListener("keyup", event => /^(Arrow|Home|End|Page)/.test(event.key) && pointAtCursor());
text.addEventListener("blur", () => point(null));
$("scroller").addEventListener("scroll", () => point(null));
addEventListener("scroll", () => point(null));
$("settings").addEventListener("input", () => restart(0));
$("settings").addEventListener("submit", event => event.preventDefault());
$("another").addEventListener("click", () => {
  $("seed").value = (whole("seed", 0) + 1) % 2 ** 32;
  restart(0);
});
$("keep").addEventListener("click", () => setText(text.value + writer.text));
$("pause").addEventListener("click", () => {
  const isBusy = $("pause").textContent === "Stop";
  clearTimeout(pause);
  pause = 0;
  due = !isBusy && !writer;
  left = isBusy ? 0 : length();
  work();
});
text.addEventListener("keydown", event => {
  if (event.key === "Escape" && $("pause").textContent === "Stop") $("pause").click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("keep").click();
});
text.value ||= shape.context;
onText();
