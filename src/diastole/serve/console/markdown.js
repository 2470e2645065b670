// Markdown as models write it, to DOM nodes. Text stays text: elements are made one by one, never parsed from HTML.
import { copyButton, h } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?$/;
const DEEPEST = 6; // of lists and quotes in each other

/** Show `text` in `root`. Blocks that stayed the same since the last time are left alone, so that a selection in them
 *  survives while an answer is still growing. */
export function render(root, text) {
  const wanted = blocks(text.split("\n"), 0);
  const shown = [...root.children];
  let same = 0;
  while (same < shown.length && same < wanted.length && shown[same].source === wanted[same].source) same++;
  for (const old of shown.slice(same)) old.remove();
  for (const block of wanted.slice(same)) {
    const element = block.build();
    element.source = block.source;
    root.append(element);
  }
}

/** The blocks of some lines: their source, and how to build their element. */
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [length, build] = block(lines, at, depth);
    found.push({ source: lines.slice(at, at + length).join("\n"), build });
    at += length;
  }
  return found;
}

function block(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  // A page has one h1; an answer begins below it.
  if (heading) {
    const title = heading[2].trimEnd().replace(/ #{1,6}$/, "");
    return [1, () => h(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(title))];
  }
  if (RULE.test(line)) return [1, () => h("hr")];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && DIVIDER.test((lines[at + 1] ?? "").trim())) return table(lines, at);
  return paragraph(lines, at, depth);
}

function code(lines, at, [, mark, language]) {
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  while (end < lines.length && !closes(lines[end])) end++;
  const text = lines.slice(at + 1, end).join("\n");
  const build = () =>
    h(
      "figure",
      { class: "code" },
      h("figcaption", {}, h("span", {}, language || "text"), copyButton(() => text)),
      h("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, h("code", {}, text)),
    );
  return [Math.min(end + 1, lines.length) - at, build];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end - at, () => h("blockquote", {}, blocks(inner, depth + 1).map((b) => b.build()))];
}

/** A list: its items, and what is indented below them. */
function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (item && item[1].length <= indent.length + 1) {
      if (/\d/.test(item[2]) !== ordered) break;
      items.push([item[3]]);
    } else if (!lines[end].trim()) {
      const next = lines[end + 1] ?? "";
      if (!/^\s{2,}\S/.test(next) && !ITEM.test(next)) break;
      items.at(-1).push("");
    } else if (/^\s/.test(lines[end]) && lines[end].search(/\S/) > indent.length) {
      const step = Math.min(lines[end].search(/\S/), indent.length + mark.length + 1);
      items.at(-1).push(lines[end].slice(step));
    } else break;
    end++;
  }
  const attributes = ordered ? { start: parseInt(mark, 10) } : {};
  const build = () => h(ordered ? "ol" : "ul", attributes, items.map((item) => h("li", {}, itemParts(item, depth))));
  return [end - at, build];
}

/** An item's first line stands in the item itself, not in a paragraph. */
function itemParts(lines, depth) {
  const plain = lines[0] && !FENCE.test(lines[0]);
  const head = plain ? inline(lines[0]) : [];
  return [...head, ...blocks(plain ? lines.slice(1) : lines, depth + 1).map((b) => b.build())];
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const sides = cells(lines[at + 1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "center" : "end") : "start"));
  const row = (tag, line) => {
    const given = cells(line);
    return h("tr", {}, sides.map((side, i) => h(tag, { class: `to-${side}` }, inline(given[i] ?? ""))));
  };
  const build = () => {
    const body = lines.slice(at + 2, end).map((line) => row("td", line));
    const grid = h("table", {}, h("thead", {}, row("th", lines[at])), h("tbody", {}, body));
    return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, grid);
  };
  return [end - at, build];
}

/** The cells of a table's row; "\|" is no border. */
function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  const starts = (line) =>
    FENCE.test(line) || HEADING.test(line) || RULE.test(line) || (depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line)));
  while (end < lines.length && lines[end].trim() && !starts(lines[end])) end++;
  const parts = () => lines.slice(at, end).flatMap((line, i) => [...(i ? [h("br")] : []), ...inline(line.trim())]);
  return [end - at, () => h("p", {}, parts())];
}
