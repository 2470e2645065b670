// The numbers around the timeline: totals, pages, streams and what they were promised.
import { mine } from "./answer.js";
import { count, h, say, seconds } from "./dom.js";
import { judge } from "./lanes.js";

const HISTORY = 120; // polls: a minute of pages in use
const MOST_ROWS = 20;

/** Figures of /metrics: rates come from the difference of two readings. */
export class Totals {
  constructor() {
    this.values = {};
    this.element = h("dl", { class: "totals" });
    const tiles = [
      ["rate", "Tokens per second"],
      ["running", "Running"],
      ["waiting", "Waiting"],
      ["hits", "Prefix hits"],
      ["preemptions", "Preemptions"],
    ];
    for (const [name, label] of tiles) {
      this.values[name] = h("dd", {}, "–");
      this.element.append(h("div", {}, h("dt", {}, label), this.values[name]));
    }
  }

  /** `sums` are the page's counters, `at` when they were read, in seconds. */
  count(sums, at) {
    const tokens = sums.get("generation_tokens") ?? 0;
    if (this.before) {
      const rate = Math.max(tokens - this.before.tokens, 0) / (at - this.before.at);
      say(this.values.rate, rate >= 100 ? rate.toFixed(0) : rate.toFixed(1));
    }
    this.before = { tokens, at };
    const asked = sums.get("prefix_cache_queries") ?? 0;
    say(this.values.hits, asked ? `${((100 * sums.get("prefix_cache_hits")) / asked).toFixed(0)} %` : "–");
    say(this.values.preemptions, String(sums.get("num_preemptions") ?? 0));
  }

  streams(services) {
    const all = Object.values(services);
    say(this.values.running, String(all.reduce((sum, s) => sum + s.running, 0)));
    say(this.values.waiting, String(all.reduce((sum, s) => sum + s.waiting, 0)));
  }
}

/** Pages in use, by service: a bar and the last minute. */
export class Pages {
  constructor() {
    this.element = h("div", { class: "pages" });
    this.meters = new Map();
  }

  show(services) {
    for (const [name, { pages, pages_used: used }] of Object.entries(services)) {
      if (!pages) continue; // its state is not paged
      if (!this.meters.has(name)) this.meters.set(name, this.meter(name));
      const meter = this.meters.get(name);
      meter.history.push(used / pages);
      if (meter.history.length > HISTORY) meter.history.shift();
      say(meter.words, `${used.toLocaleString("en")} of ${pages.toLocaleString("en")} pages`);
      meter.bar.style.width = `${(100 * used) / pages}%`;
      draw(meter.canvas, meter.history);
    }
  }

  meter(name) {
    const words = h("span", {});
    const bar = h("div", { class: "bar-used" });
    const canvas = h("canvas", { role: "img", "aria-label": `Pages of ${name} in use during the last minute` });
    const head = h("p", {}, h("strong", {}, name), words);
    this.element.append(h("div", { class: "meter" }, head, h("div", { class: "bar-all" }, bar), canvas));
    return { words, bar, canvas, history: [] };
  }
}

/** The history of a share as an area, scaled to its own highest value so that small pools of a big machine show too. */
function draw(canvas, history) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const most = Math.max(...history, 1e-9);
  const x = (i) => width * (1 - (history.length - 1 - i) / (HISTORY - 1));
  const y = (share) => height - 1 - (height - 4) * (share / most);
  context.beginPath();
  context.moveTo(x(0), height);
  history.forEach((share, i) => context.lineTo(x(i), y(share)));
  context.lineTo(width, height);
  context.fillStyle = style.getPropertyValue("--fill");
  context.globalAlpha = 0.25;
  context.fill();
  context.globalAlpha = 1;
  context.fillStyle = style.getPropertyValue("--line");
  context.fillRect(0, height - 1, width, 1);
  context.fillStyle = style.getPropertyValue("--soft");
  context.font = "10px system-ui, sans-serif";
  if (most > 1e-6) context.fillText(`highest ${(100 * most).toFixed(1)} %`, 2, 10);
}

/** Streams against their promises. Roles are told, since narrow screens show the rows as blocks. */
export class Streams {
  constructor() {
    this.body = h("tbody");
    const names = ["Stream", "Absorbed", "First token", "Between tokens", "Drafts"];
    const heads = names.map((name) => h("th", { scope: "col" }, name));
    this.drafts = heads.at(-1);
    const table = h("table", { class: "streams", role: "table" }, h("thead", {}, h("tr", {}, ...heads)), this.body);
    this.none = h("p", { class: "hint" }, "No stream has run in the last seconds.");
    this.more = h("p", { class: "hint" });
    this.element = h("div", {}, table, this.none, this.more);
    this.table = table;
  }

  show(lanes, now) {
    const known = lanes.filter((lane) => lane.view);
    const rows = known.slice(-MOST_ROWS);
    this.table.hidden = rows.length === 0;
    this.none.hidden = rows.length > 0;
    say(this.more, known.length > rows.length ? `and ${known.length - rows.length} more` : "");
    const drafts = rows.some((lane) => lane.view.drafted); // else nobody needs the column
    this.drafts.hidden = !drafts;
    this.body.replaceChildren(...rows.map((lane) => row(lane, now, drafts)));
  }
}

function row(lane, now, drafts) {
  const { known, done, arrived, first, slo, running, drafted, kept } = lane.view;
  const state = !lane.alive ? "ended" : running ? "running" : "waiting";
  const note = h("small", {}, mine.has(lane.id) ? `${state} · you` : state);
  const began = first === null ? now - arrived : first - arrived;
  return h(
    "tr",
    { class: lane.alive ? "" : "ended", role: "row" },
    h("th", { scope: "row", role: "rowheader" }, h("code", {}, lane.name), note),
    cell("Absorbed", `${done.toLocaleString("en")} of ${known.toLocaleString("en")}`),
    promise("First token", began, slo.first, first === null ? "not yet, " : ""),
    promise("Between tokens", lane.gap, slo.gap),
    drafts ? cell("Drafts", drafted ? guesses(kept, drafted) : "–") : [],
  );
}

const cell = (head, ...inner) => h("td", { role: "cell", "data-head": head }, ...inner);

const guesses = (right, all) => `${right.toLocaleString("en")} of ${count(all, "guess", "guesses")} right`;

/** A time beside its promise, with a level that is told in words too. */
function promise(head, value, promised, before = "") {
  if (value === null) return cell(head, "–");
  const [level, word] = judge(value, promised);
  const badge = h("span", { class: `level ${level}` }, word);
  const said = h("small", {}, `promised\u00a0${seconds(promised)}`);
  return cell(head, h("span", {}, `${before}${seconds(value)}`), badge, said);
}
