// Markdown inside a line: code, emphasis, links. Everything else is text, HTML too.
import { h } from "./dom.js";

const FAR = 2000; // characters in which a mark must be closed
const DEEPEST = 8;
const SAFE = /^(https?:\/\/|mailto:)[^\s]+$/i;
const BARE = /^https?:\/\/[^\s<>"')\]]+[^\s<>"')\].,;:!?]/;
const ESCAPED = /[\\`*_~[\]()#+\-.!|<>]/;
const MARKS = [
  ["***", (inner) => h("strong", {}, h("em", {}, inner))],
  ["**", (inner) => h("strong", {}, inner)],
  ["__", (inner) => h("strong", {}, inner)],
  ["~~", (inner) => h("s", {}, inner)],
  ["*", (inner) => h("em", {}, inner)],
  ["_", (inner) => h("em", {}, inner)],
];

/** Nodes for one line of text. */
export function inline(text, depth = 0) {
  if (depth === DEEPEST) return [text];
  const line = new Line(text, depth);
  const nodes = [];
  let plain = 0; // where the text begins that is no node yet
  let at = 0;
  while (at < text.length) {
    const found = line.special(at);
    if (found === null) {
      at++;
      continue;
    }
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(found.node);
    plain = at = found.end;
  }
  if (at > plain) nodes.push(text.slice(plain));
  return nodes;
}

class Line {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.barren = new Map(); // mark -> the place before which nothing more is closed by it
  }

  /** What begins at this place, if it is more than text: its node, and where it ends. */
  special(at) {
    switch (this.text[at]) {
      case "\\":
        return ESCAPED.test(this.text[at + 1] ?? "") ? { node: this.text[at + 1], end: at + 2 } : null;
      case "`":
        return this.code(at);
      case "[":
        return this.link(at);
      case "h":
        return this.bare(at);
      case "*":
      case "_":
      case "~":
        return this.emphasis(at);
      default:
        return null;
    }
  }

  code(at) {
    const [mark] = /^`+/.exec(this.text.slice(at, at + 16));
    const end = this.find(mark, at + mark.length);
    if (end < 0) return null;
    const inner = this.text.slice(at + mark.length, end).replace(/^ (.+) $/, "$1");
    return { node: h("code", {}, inner), end: end + mark.length };
  }

  link(at) {
    const middle = this.find("](", at + 1);
    const end = middle < 0 ? -1 : this.find(")", middle + 2);
    const target = this.text.slice(middle + 2, end).trim();
    if (end < 0 || !SAFE.test(target)) return null;
    return { node: anchor(target, inline(this.text.slice(at + 1, middle), this.depth + 1)), end: end + 1 };
  }

  bare(at) {
    if (/\w/.test(this.text[at - 1] ?? "")) return null;
    const found = BARE.exec(this.text.slice(at, at + FAR));
    return found && { node: anchor(found[0], [found[0]]), end: at + found[0].length };
  }

  emphasis(at) {
    for (const [mark, wrap] of MARKS) {
      const from = at + mark.length;
      if (!this.text.startsWith(mark, at) || /\s/.test(this.text[from] ?? " ")) continue;
      if (mark[0] === "_" && /\w/.test(this.text[at - 1] ?? "")) continue; // snake_case is no emphasis
      const end = this.find(mark, from + 1, (place) => this.closes(mark, place));
      if (end < 0) continue;
      return { node: wrap(inline(this.text.slice(from, end), this.depth + 1)), end: end + mark.length };
    }
    return null;
  }

  /** Emphasis is closed after something that is no space, and not by a part of a longer mark. */
  closes(mark, place) {
    if (/\s/.test(this.text[place - 1])) return false;
    return mark.length > 1 || (this.text[place + 1] !== mark && this.text[place - 1] !== mark);
  }

  /** Where the next fitting mark is, if it is not too far. What was searched in vain is not searched again: otherwise
   *  a line of open marks would cost the square of its length. */
  find(mark, from, fits = () => true) {
    let place = this.text.indexOf(mark, Math.max(from, this.barren.get(mark) ?? 0));
    while (place >= 0 && place < from + FAR && !fits(place)) place = this.text.indexOf(mark, place + 1);
    if (place >= 0 && place < from + FAR) return place;
    this.barren.set(mark, place < 0 ? Infinity : place);
    return -1;
  }
}

const anchor = (href, inner) => h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, inner);
