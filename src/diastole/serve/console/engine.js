// The live view of the engine: asks /engine/trace twice a second while it is seen.
import { getJson, getText, parseMetrics } from "./api.js";
import { $, calm, h, say } from "./dom.js";
import { run } from "./example.js";
import { Lanes } from "./lanes.js";
import { Pages, Streams, Totals } from "./panels.js";
import { Timeline } from "./timeline.js";

const POLL_MS = 500;
const AFTER_FAILURE_MS = 2000;
const COUNT_EVERY = 3; // polls, for /metrics
const BEHIND = 0.7; // seconds that the picture lags, so that steps do not appear in leaps
const SPANS = [10, 3, 1]; // seconds
const EMPTY =
  "Nothing has run in the last ten seconds. Send a message in the chat, or run an example: two answers, " +
  "and a long prompt between them.";

export class EngineView {
  /** `model()` gives the chosen model for the example. */
  constructor(model) {
    this.model = model;
    this.lanes = new Lanes();
    this.timeline = new Timeline();
    this.totals = new Totals();
    this.pages = new Pages();
    this.streams = new Streams();
    this.visible = false;
    this.paused = false;
    this.polls = 0;
    this.offset = -Infinity; // from the page's clock to the engine's, in seconds
    this.build();
    document.addEventListener("visibilitychange", () => this.wake());
    document.addEventListener("themechange", () => this.draw());
    addEventListener("resize", () => this.draw());
  }

  build() {
    const button = (label, onclick) => h("button", { type: "button", class: "quiet", onclick }, label);
    this.pause = button("Pause", () => this.togglePause());
    this.example = button("Run an example", () => this.toggleExample());
    const spans = SPANS.map((s) => h("option", { value: s }, `${s} s`));
    this.span = h("select", { "aria-label": "Length of the timeline" }, spans);
    this.span.addEventListener("change", () => this.draw());
    this.status = h("p", { class: "trouble", role: "status", hidden: true });
    this.failure = h("p", { class: "trouble", role: "status", hidden: true });
    this.empty = h("p", { class: "empty" }, EMPTY);
    this.more = h("p", { class: "hint" });
    const key = (kind, words) => h("span", { class: `key ${kind}` }, words);
    this.guess = key("guess", "with guesses: filled as far as right");
    this.guess.hidden = true;
    const keys = [key("prefill", "prefill: absorbs what is known"), key("decode", "decode: one token"), this.guess];
    const legend = h("p", { class: "legend" }, keys, h("span", {}, "width is time, stronger is more tokens"));
    const { frame, words } = this.timeline;
    const card = (name, ...inner) => h("section", { class: "card", "aria-label": name }, h("h2", {}, name), ...inner);
    const title = h("div", { class: "title" }, h("h1", {}, "Engine"), this.example, this.span, this.pause);
    const page = h(
      "div",
      { class: "page wide" },
      title,
      this.status,
      this.failure,
      this.totals.element,
      card("Steps", legend, frame, this.empty, this.more, words),
      card("Streams and their promises", this.streams.element),
      card("Pages of the key/value cache", this.pages.element),
    );
    $("engine").replaceChildren(page);
  }

  // ---- when it runs

  show(visible) {
    this.visible = visible;
    this.wake();
  }

  get active() {
    return this.visible && !this.paused && document.visibilityState === "visible";
  }

  wake() {
    clearTimeout(this.timer);
    if (!this.active) return;
    this.poll();
    this.animate();
  }

  togglePause() {
    this.paused = !this.paused;
    this.pause.textContent = this.paused ? "Go on" : "Pause";
    this.wake();
  }

  async toggleExample() {
    if (this.running) {
      this.running.abort();
      return;
    }
    this.running = new AbortController();
    this.example.textContent = "Stop the example";
    tell(this.failure, "");
    tell(this.failure, await run(this.model(), this.running.signal));
    this.running = null;
    this.example.textContent = "Run an example";
  }

  async poll() {
    clearTimeout(this.timer);
    if (this.polling) return; // its end sets the timer
    this.polling = true;
    let delay = POLL_MS;
    try {
      const view = await getJson(`engine/trace?since=${this.lanes.last}`);
      this.take(view);
      if (this.polls++ % COUNT_EVERY === 0) await this.count();
      tell(this.status, "");
    } catch (error) {
      tell(this.status, error.message);
      delay = AFTER_FAILURE_MS;
    }
    this.polling = false;
    if (this.active) this.timer = setTimeout(() => this.poll(), delay);
  }

  async count() {
    const sums = parseMetrics(await getText("metrics"));
    this.totals.count(sums, performance.now() / 1000);
  }

  take(view) {
    if (view.last < this.lanes.last) this.offset = -Infinity; // the engine was started anew
    this.lanes.take(view);
    // Answers come late by the way they take: the least late one tells the clock best.
    this.offset = Math.max(this.offset, view.now - performance.now() / 1000);
    this.totals.streams(view.services);
    this.pages.show(view.services);
    this.streams.show(this.lanes.shown(view.now - SPANS[0]), view.now);
    this.draw();
  }

  // ---- drawing

  animate() {
    if (this.animating || calm()) return; // calm pages change with each answer only
    const frame = () => {
      this.animating = this.active;
      if (!this.active) return;
      this.draw();
      requestAnimationFrame(frame);
    };
    this.animating = true;
    requestAnimationFrame(frame);
  }

  draw() {
    if (!Number.isFinite(this.offset)) return;
    if (!this.paused) this.end = performance.now() / 1000 + this.offset - (calm() ? 0 : BEHIND);
    const span = Number(this.span.value);
    const lanes = this.lanes.shown(this.end - SPANS[0]);
    this.timeline.draw(lanes, this.end, span);
    this.timeline.frame.hidden = lanes.length === 0;
    this.timeline.words.hidden = lanes.length === 0;
    this.empty.hidden = lanes.length > 0;
    this.guess.hidden = !this.lanes.guess;
    say(this.more, this.timeline.hiddenLanes ? `and ${this.timeline.hiddenLanes} older streams` : "");
  }
}

/** Show what went wrong; no words: nothing did. */
function tell(element, words) {
  say(element, words ?? "");
  element.hidden = !words;
}
