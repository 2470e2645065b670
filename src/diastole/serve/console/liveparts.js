// What the view of live streams shows: waves that scroll, marks on them, a meter of deadlines, and a list.
import { count, h, say, seconds } from "./dom.js";

const SPAN = 10; // seconds of the picture
const LANE = 56; // pixels of a channel
const MOST = 8; // channels that are drawn
const KEPT = 200; // readings in the list
const COLUMNS = 2; // pixels of a bar

/** Channels one above the other, the newest sample at the right, readings as lines and bands. */
export class Waves {
  constructor() {
    this.canvas = h("canvas", { class: "waves", role: "img", "aria-label": "The last seconds of the signal" });
    this.element = this.canvas;
    this.signal = null;
    this.shown = false;
    this.marks = [];
    this.drawing = false;
  }

  begin(signal) {
    this.signal = signal;
    this.lanes = Math.min(signal.channels.length, MOST);
    // The largest deviation of each stretch that will be one bar.
    this.stretch = Math.max(Math.round((signal.rate * SPAN * COLUMNS) / 1200), 1);
    this.bars = signal.channels.map(() => []);
    this.means = signal.channels.map(() => 0);
    this.now = signal.channels.map(() => 0);
    this.filled = 0;
    this.samples = 0;
    this.marks = [];
    this.canvas.style.height = `${this.lanes * LANE}px`;
    this.draw();
  }

  /** piece: Float32Array, all channels of one sample after the other. */
  hear(piece) {
    const n = this.signal.channels.length;
    for (let i = 0; i < piece.length; i += n) {
      for (let c = 0; c < this.lanes; c++) {
        this.means[c] += (piece[i + c] - this.means[c]) * 0.001;
        this.now[c] = Math.max(this.now[c], Math.abs(piece[i + c] - this.means[c]));
      }
      if (++this.filled === this.stretch) this.bar();
    }
    this.samples += piece.length / n;
    this.draw();
  }

  bar() {
    const most = Math.ceil((SPAN * this.signal.rate) / this.stretch);
    for (let c = 0; c < this.lanes; c++) {
      this.bars[c].push(this.now[c]);
      if (this.bars[c].length > most) this.bars[c].shift();
      this.now[c] = 0;
    }
    this.filled = 0;
  }

  mark(event) {
    this.marks.push(event);
    if (this.marks.length > KEPT) this.marks.shift();
    this.draw();
  }

  draw() {
    if (this.drawing || !this.shown || !this.signal) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = this.lanes * LANE;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name);
    const end = this.samples / this.signal.rate;
    const x = (at) => width - ((end - at) / SPAN) * width;
    pen.font = "12px system-ui, sans-serif";
    for (let c = 0; c < this.lanes; c++) {
      const bars = this.bars[c];
      const top = Math.max(...bars, 1e-12);
      const middle = c * LANE + LANE / 2;
      const wide = ((this.stretch / this.signal.rate) * width) / SPAN;
      pen.fillStyle = colour("--fill");
      bars.forEach((v, i) => {
        const half = Math.max((v / top) * (LANE / 2 - 4), 0.5);
        pen.fillRect(width - (bars.length - i) * wide, middle - half, Math.max(wide, 1), 2 * half);
      });
      pen.fillStyle = colour("--soft");
      pen.fillText(this.signal.channels[c], 4, c * LANE + 13);
    }
    for (const event of this.marks) {
      if (event.end < end - SPAN) continue;
      const name = event.phase ?? event.label ?? (event.type === "final" ? event.text : event.type);
      pen.fillStyle = colour(event.type === "gap" ? "--late" : "--beat");
      if (event.end > event.start && event.type !== "label") {
        pen.globalAlpha = 0.15;
        pen.fillRect(x(event.start), 0, x(event.end) - x(event.start), height);
        pen.globalAlpha = 1;
      }
      if (event.type === "label") pen.fillRect(x(event.end) - 1, height - 8, 2, 8);
      else pen.fillRect(x(event.start) - 1, 0, 2, height);
      if (event.type !== "label") pen.fillText(name, x(event.start) + 4, height - 6);
    }
  }
}

/** How many chunks were answered in time, and how soon. */
export class Meter {
  constructor() {
    this.share = h("strong", {}, "–");
    this.bar = h("meter", { min: 0, max: 1, low: 0.95, high: 0.99, optimum: 1, value: 0, "aria-label": "In time" });
    this.words = h("span", { class: "hint" }, "no chunk yet");
    this.element = h("p", { class: "deadlines" }, this.share, this.bar, this.words);
    this.clear();
  }

  clear() {
    this.chunks = 0;
    this.met = 0;
    this.latencies = [];
    say(this.share, "–");
    this.bar.value = 0;
    say(this.words, "no chunk yet");
  }

  count(event) {
    this.chunks += event.chunks;
    this.met += event.chunks - event.late_chunks;
    this.latencies.push(event.latency_ms);
    if (this.latencies.length > 1000) this.latencies.shift();
    const share = this.met / this.chunks;
    const sorted = [...this.latencies].sort((a, b) => a - b);
    const at = (q) => seconds(Math.max(sorted[Math.floor(q * (sorted.length - 1))], 0) / 1000);
    say(this.share, `${(100 * share).toFixed(share === 1 ? 0 : 2)}%`);
    this.bar.value = share;
    say(this.words, `of ${count(this.chunks, "chunk")} in time; half within ${at(0.5)}, 99 of 100 within ${at(0.99)}`);
  }
}

/** The latest readings, the newest first. */
export class Readings {
  constructor() {
    this.list = h("ol", { class: "found", reversed: true });
    this.element = this.list;
  }

  clear() {
    this.list.replaceChildren();
  }

  add(event) {
    const late = event.deadline_met ? "" : " late";
    const at = h("span", { class: "at" }, `${event.start.toFixed(2)} s`);
    const after = h("span", { class: `after${late}` }, seconds(Math.max(event.latency_ms, 0) / 1000));
    this.list.prepend(h("li", {}, at, h("span", { class: "kind" }, event.type), h("span", {}, words(event)), after));
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
  }
}

function words(event) {
  if (event.text !== undefined) return event.text;
  if (event.type === "pick") return `${event.phase}, probability ${event.probability.toFixed(2)}`;
  if (event.probabilities) {
    const share = event.probabilities[event.label];
    return `${event.label}, ${(100 * share).toFixed(0)}%`;
  }
  if (event.samples !== undefined) return count(event.samples, "sample");
  return "";
}
