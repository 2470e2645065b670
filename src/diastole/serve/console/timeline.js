// The timeline: one lane per stream, one bar per step. Prefill fills its lane, decode is a beat in its middle.
import { count, h, say, seconds } from "./dom.js";
import { mine } from "./answer.js";
import { guessed } from "./lanes.js";

const LANE = 24;
const AXIS = 24;
const MOST_LANES = 20;
const REACH = 4; // pixels around the pointer in which a bar is found
const HEIGHTS = { prefill: 18, decode: 10 };
const PALEST = { prefill: 0.45, decode: 0.85 }; // share of the colour in a bar of one unit
const FULL = { prefill: 512, decode: 8 }; // units of a bar in full colour
const WRONG = 0.3; // share of the colour in the part of a beat whose guesses were wrong
const NAME = "Timeline of the engine's steps. Arrow keys go from bar to bar and from stream to stream.";
const HELP = "Point at a bar, or go from bar to bar with the arrow keys.";

export class Timeline {
  constructor() {
    const described = { "aria-label": NAME, "aria-describedby": "bar-words" };
    this.canvas = h("canvas", { tabindex: "0", role: "application", ...described });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.words = h("p", { id: "bar-words", class: "words", role: "status" }, HELP);
    this.frame = h("div", { class: "frame" }, this.canvas, this.tip);
    this.lanes = [];
    this.span = 10;
    this.end = 0; // seconds on the engine's clock at the right edge
    this.chosen = null; // {lane, bar}
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.choose(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.choose(null));
    document.addEventListener("themechange", () => this.readColours());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.readColours());
    this.readColours();
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.colours = { prefill: colour("fill"), decode: colour("beat") };
    for (const name of ["ink", "soft", "line", "accent", "raised"]) this.colours[name] = colour(name);
  }

  /** Draw the lanes for the `span` seconds before `end`. */
  draw(lanes, end, span) {
    this.hiddenLanes = Math.max(lanes.length - MOST_LANES, 0);
    this.lanes = lanes.slice(-MOST_LANES);
    this.end = end;
    this.span = span;
    const width = this.canvas.clientWidth;
    if (!width) return;
    this.gutter = width < 480 ? 74 : 112;
    const height = Math.max(this.lanes.length, 3) * LANE + AXIS;
    const context = this.fitted(width, height);
    this.axis(context, width, height);
    this.lanes.forEach((lane, i) => this.lane(context, lane, i * LANE, width));
    if (this.chosen) this.mark(context);
    this.place();
  }

  fitted(width, height) {
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.height = `${height}px`;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }

  x(time) {
    return this.gutter + ((time - this.end) / this.span + 1) * (this.canvas.clientWidth - this.gutter);
  }

  axis(context, width, height) {
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const parts = width < 480 ? 2 : 5;
    for (let i = 0; i <= parts; i++) {
      const back = (this.span * (parts - i)) / parts;
      const x = Math.min(Math.round(this.x(this.end - back)) + 0.5, width - 0.5);
      context.fillStyle = this.colours.line;
      context.fillRect(x, 0, 1, height - AXIS + 4);
      context.fillStyle = this.colours.soft;
      context.textAlign = i === parts ? "right" : i ? "center" : "left";
      context.fillText(back ? `−${Number(back.toFixed(1))} s` : "now", x, height - AXIS / 2 + 2);
    }
  }

  lane(context, lane, top, width) {
    const middle = top + LANE / 2;
    const own = mine.has(lane.id);
    context.textAlign = "left";
    context.font = `${own ? "600 " : ""}11px ui-monospace, "DejaVu Sans Mono", monospace`;
    context.fillStyle = lane.alive ? this.colours.ink : this.colours.soft;
    context.fillText(this.gutter < 100 ? lane.name.slice(-8) : lane.name, 2, middle);
    if (own && this.gutter > 100) {
      context.fillStyle = this.colours.accent;
      context.fillText("you", 76, middle);
    }
    context.fillStyle = this.colours.line;
    context.fillRect(this.gutter, middle, width - this.gutter, 1);
    for (const bar of lane.bars) this.bar(context, bar, middle);
  }

  bar(context, bar, middle) {
    if (bar.to < this.end - this.span || bar.from > this.end) return;
    const from = Math.max(this.x(bar.from), this.gutter);
    const to = Math.min(this.x(bar.to), this.canvas.clientWidth);
    const kind = bar.kind in HEIGHTS ? bar.kind : "prefill";
    const units = guessed(bar) ? Math.max(bar.said, 1) : bar.units;
    const strength = Math.min(Math.log2(units) / Math.log2(FULL[kind]), 1);
    const height = HEIGHTS[kind];
    const gap = to - from > 3 ? 1 : 0; // bars that touch are told apart where there is room
    const top = middle - height / 2 + 0.5;
    const fill = (share, y, tall) => {
      context.fillStyle = mix(this.colours[kind], this.colours.raised, share); // opaque: thin bars may overlap
      context.fillRect(from, y, Math.max(to - from - gap, 0.7), tall);
    };
    // The rows that became tokens fill a beat from below.
    const wrong = guessed(bar) ? height * Math.max(1 - bar.said / bar.units, 0) : 0;
    if (wrong) fill(WRONG, top, height);
    fill(PALEST[kind] + (1 - PALEST[kind]) * strength, top + wrong, height - wrong);
  }

  mark(context) {
    const row = this.lanes.indexOf(this.chosen.lane);
    if (row < 0) return;
    const { from, to } = this.chosen.bar;
    context.strokeStyle = this.colours.ink;
    context.lineWidth = 1.5;
    context.strokeRect(this.x(from) - 1.5, row * LANE + 1.5, Math.max(this.x(to) - this.x(from), 1) + 3, LANE - 3);
  }

  // ---- which bar is looked at

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const lane = this.lanes[Math.floor((event.clientY - box.top) / LANE)];
    const x = event.clientX - box.left;
    const distance = (bar) => Math.max(this.x(bar.from) - x, x - this.x(bar.to), 0);
    const nearest = lane?.bars.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    this.choose(nearest && distance(nearest) <= REACH ? { lane, bar: nearest } : null);
  }

  key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape" && this.chosen) {
      event.stopPropagation(); // it is not meant for an answer that is being written
      this.choose(null);
    }
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.choose(this.chosen ? this.neighbour(...move) : this.newest(this.lanes.find((lane) => lane.bars.length)));
  }

  neighbour(down, right) {
    const { lane, bar } = this.chosen;
    if (right) return { lane, bar: lane.bars[lane.bars.indexOf(bar) + right] ?? bar };
    const other = this.lanes[this.lanes.indexOf(lane) + down];
    if (!other?.bars.length) return this.chosen;
    const distance = (b) => Math.abs(b.from - bar.from);
    return { lane: other, bar: other.bars.reduce((a, b) => (distance(a) <= distance(b) ? a : b)) };
  }

  newest(lane) {
    return lane ? { lane, bar: lane.bars.at(-1) } : null;
  }

  choose(chosen) {
    this.chosen = chosen;
    this.tip.hidden = chosen === null;
    if (chosen === null) {
      say(this.words, HELP);
      return;
    }
    const { lane, bar } = chosen;
    const units = amount(bar);
    const others = count(bar.step.streams.length, "stream");
    const [step, took] = [`step ${bar.step.seq}`, seconds(bar.step.took)];
    const what = `Stream ${lane.name}: ${bar.kind} of ${units} in ${took}`;
    say(this.words, `${what}; ${step} of ${lane.service} ran ${others}.`);
    this.tip.replaceChildren(
      h("strong", {}, `${bar.kind} · ${units}`),
      h("span", {}, `${took} · ${step} · ${others}`),
    );
    this.place();
  }

  /** The tip stays beside its bar while time goes on. */
  place() {
    if (!this.chosen) return;
    const row = this.lanes.indexOf(this.chosen.lane);
    const x = this.x(this.chosen.bar.to);
    if (row < 0 || x < this.gutter) {
      this.choose(null);
      return;
    }
    const room = this.canvas.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(x + 8, room))}px`;
    this.tip.style.top = `${(row + 1) * LANE + 4}px`;
  }
}

/** What a bar was about, in words. */
function amount(bar) {
  if (!guessed(bar)) return count(bar.units, "token");
  return `${count(bar.units, "row")}, ${count(bar.said, "token")}`;
}

/** A colour mixed with another, both "#rrggbb". */
function mix(colour, other, share) {
  const part = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  const parts = [0, 1, 2].map((i) => Math.round(part(colour, i) * share + part(other, i) * (1 - share)));
  return `rgb(${parts.join(" ")})`;
}
