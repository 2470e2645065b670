// Markdown inside a line: code, emphasis, links. Everything else is text, HTML too.
import { h } from "./dom.js";

const FAR = 2000; // characters in which a mark must be closed: it bounds the work on hostile text
const DEEPEST = 8;
const SAFE = /^(https?:\/\/|mailto:)[^\s]+$/i;
const BARE = /^https?:\/\/[^\s<>"')\]]+[^\s<>"')\].,;:!?]/;
const MARKS = [
  ["***", (inner) => h("strong", {}, h("em", {}, ...inner))],
  ["**", (inner) => h("strong", {}, ...inner)],
  ["__", (inner) => h("strong", {}, ...inner)],
  ["~~", (inner) => h("s", {}, ...inner)],
  ["*", (inner) => h("em", {}, ...inner)],
  ["_", (inner) => h("em", {}, ...inner)],
];

/** Nodes for one line of text. */
export function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const found = depth < DEEPEST ? special(text, at, depth) : null;
    if (found === null) {
      plain += text[at++];
      continue;
    }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(found.node);
    at = found.end;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

/** What begins at this place, if it is more than text: its node, and where it ends. */
function special(text, at, depth) {
  switch (text[at]) {
    case "\\":
      return /[\\`*_~[\]()#+\-.!|<>]/.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
    case "`":
      return code(text, at);
    case "[":
      return link(text, at, depth);
    case "h":
      return bare(text, at);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth);
    default:
      return null;
  }
}

function code(text, at) {
  const mark = /^`+/.exec(text.slice(at, at + 16))[0];
  const end = find(text, mark, at + mark.length);
  if (end < 0) return null;
  const inner = text.slice(at + mark.length, end).replace(/^ (.+) $/, "$1");
  return { node: h("code", {}, inner), end: end + mark.length };
}

function link(text, at, depth) {
  const middle = find(text, "](", at + 1);
  if (middle < 0) return null;
  const end = find(text, ")", middle + 2);
  const target = text.slice(middle + 2, end).trim();
  if (end < 0 || !SAFE.test(target)) return null;
  return { node: anchor(target, inline(text.slice(at + 1, middle), depth + 1)), end: end + 1 };
}

function bare(text, at) {
  if (/\w/.test(text[at - 1] ?? "")) return null;
  const found = BARE.exec(text.slice(at, at + FAR));
  return found && { node: anchor(found[0], [found[0]]), end: at + found[0].length };
}

const anchor = (href, inner) => h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...inner);

function emphasis(text, at, depth) {
  for (const [mark, wrap] of MARKS) {
    if (!text.startsWith(mark, at) || /\s/.test(text[at + mark.length] ?? " ")) continue;
    if (mark[0] === "_" && /\w/.test(text[at - 1] ?? "")) continue; // snake_case is no emphasis
    const end = closing(text, mark, at + mark.length);
    if (end < 0) continue;
    return { node: wrap(inline(text.slice(at + mark.length, end), depth + 1)), end: end + mark.length };
  }
  return null;
}

/** Where a mark is closed: after something that is no space, and not by a part of a longer mark. */
function closing(text, mark, from) {
  for (let end = find(text, mark, from); end >= 0; end = find(text, mark, end + mark.length)) {
    const single = mark.length > 1 || (text[end + 1] !== mark && text[end - 1] !== mark);
    if (end > from && single && !/\s/.test(text[end - 1])) return end;
    if (end - from > FAR) return -1;
  }
  return -1;
}

function find(text, mark, from) {
  const place = text.slice(from, from + FAR).indexOf(mark);
  return place < 0 ? -1 : from + place;
}
