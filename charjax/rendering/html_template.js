"use strict";
const byId = id => document.getElementById(id);
const text = byId("text"), tip = byId("tip"), box = byId("details");
const DIGITS = box.dataset.digits, BASE = DIGITS.length, ESCAPE = box.dataset.escape, INSTEAD = box.dataset.instead;
const low = +box.dataset.low, step = +box.dataset.step, bits = box.dataset.bits === "yes";
const SYMBOLS = {"\n": "\u21b5", "\t": "\u21e5", " ": "\u2423"};
// The details, one line per character, and the index of each text node's first character; created when first needed.
let lines, names, starts;

const length = string => [...string].length;
const isLow = unit => unit >= 0xdc00 && unit < 0xe000;

function read() {
  lines = box.textContent.split("\n");
  names = byId("names").textContent.split("\n");
  starts = new Map();
  const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
  for (let count = 0; walker.nextNode();) {
    const node = walker.currentNode;
    if (node.parentElement.closest("h2")) continue;
    starts.set(node, count);
    count += isMarked(node) ? 1 : length(node.data);
  }
}

// Every invisible character has its own element.
function isMarked(node) {
  return node.parentElement.tagName === "B" && node.parentElement.className !== "";
}

function find(event) {
  if (!lines) read();
  const range = document.createRange(), only = event.target.firstChild;
  if (starts.has(only) && isMarked(only)) {
    range.selectNode(event.target);
    return {range, place: starts.get(only), character: only.data, marks: event.target.className};
  }
  let node, offset;
  if (document.caretPositionFromPoint) {
    ({offsetNode: node, offset} = document.caretPositionFromPoint(event.clientX, event.clientY) || {});
  } else {
    ({startContainer: node, startOffset: offset} = document.caretRangeFromPoint(event.clientX, event.clientY) || {});
  }
  if (!starts.has(node)) return null;
  // The caret is at one end of the character.
  for (let begin of [offset, offset - 1]) {
    if (isLow(node.data.charCodeAt(begin))) begin--;
    if (begin < 0 || begin >= node.data.length) continue;
    range.setStart(node, begin);
    range.setEnd(node, begin + (isLow(node.data.charCodeAt(begin + 1)) ? 2 : 1));
    const inside = [...range.getClientRects()].some(at => at.left <= event.clientX && event.clientX <= at.right
      && at.top <= event.clientY && event.clientY <= at.bottom);
    const place = starts.get(node) + length(node.data.slice(0, begin));
    if (inside) return {range, place, character: range.toString(), marks: ""};
  }
  return null;
}

const percent = p => (100 * p >= 1e-3 ? +(100 * p).toPrecision(3) : (100 * p).toExponential(1)) + "%";

function described({place, character, marks}) {
  const line = lines[place];
  let at = 0, name = SYMBOLS[character] || character;
  if (marks.endsWith("Z")) name = "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const digits = count => {
    let number = 0;
    while (count--) number = BASE * number + DIGITS.indexOf(line[at++]);
    return number;
  };
  const named = () => names[line[at] === ESCAPE ? (at++, digits(3)) : digits(1)];
  if (!line) return name;
  if (line === "-") return name + "  nothing comes before it, so it does not count";
  const value = low + step * digits(3);
  const told = [bits ? `${name}  ${value.toFixed(2)} bits  ${percent(2 ** -value)}`
    : `${name}  ${value < 0 ? "" : "+"}${value.toFixed(3)}`];
  if (line[at] === INSTEAD) {
    at++;
    told.push(`instead of ${named()}:`);
  }
  while (at < line.length) {
    const likely = named(), code = digits(1), share = code <= 50 ? code : 50 + 2 * (code - 50);
    told.push(`${likely}  ${share ? share + "%" : "<1%"}`);
  }
  return told.join("\n");
}

function hide() {
  tip.hidden = true;
  if (CSS.highlights) CSS.highlights.delete("at");
}

function show(event) {
  const found = find(event);
  if (!found) return hide();
  tip.textContent = described(found);
  tip.hidden = false;
  if (CSS.highlights) CSS.highlights.set("at", new Highlight(found.range));
  const at = found.range.getClientRects()[0] || event.target.getClientRects()[0];
  tip.style.left = Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 4)) + "px";
  const height = tip.offsetHeight + 4;
  tip.style.top = (at.bottom + height + 4 < innerHeight ? at.bottom + 4 : at.top - height) + "px";
}

text.addEventListener("pointermove", event => event.pointerType === "mouse" && show(event));
text.addEventListener("pointerleave", event => event.pointerType === "mouse" && hide());
// A finger taps; dragging scrolls.
text.addEventListener("click", show);
addEventListener("click", event => text.contains(event.target) || hide());
addEventListener("scroll", hide);
