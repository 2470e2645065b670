// What the engine's trace says, kept by stream: pure bookkeeping, no pixels.

const KEPT = 12; // seconds of bars
const RECENT = 5; // seconds over which gaps are averaged

/** One stream: its bars, newest last, and what the engine says of it. */
class Lane {
  constructor(id, choice, service) {
    this.id = id;
    this.choice = choice;
    this.service = service;
    this.bars = []; // {step, kind, units, said, from, to}
    this.gaps = []; // {at, seconds} between its outputs
    this.view = null; // the engine's last word on it
    this.alive = false;
  }

  get name() {
    return this.choice ? `${this.id}·${this.choice}` : this.id;
  }

  /** Mean seconds between outputs of late; null before the second. */
  get gap() {
    return this.gaps.length ? this.gaps.reduce((sum, g) => sum + g.seconds, 0) / this.gaps.length : null;
  }

  add(step, kind, units, said) {
    const to = step.began + step.took;
    const before = this.bars.at(-1);
    // Whoever decodes has spoken at the end of the step before.
    if (kind === "decode" && before) this.gaps.push({ at: to, seconds: to - before.to });
    while (this.gaps.length && this.gaps[0].at < to - RECENT) this.gaps.shift();
    this.bars.push({ step, kind, units, said, from: step.began, to });
  }
}

export class Lanes {
  constructor() {
    this.clear();
  }

  clear() {
    this.all = new Map();
    this.last = 0; // number of the last step that is known
    this.now = 0; // seconds on the engine's clock
  }

  /** Take in an answer of /engine/trace. */
  take(view) {
    if (view.last < this.last) {
      this.clear(); // the engine was started anew: the next question is for all it has done
      return;
    }
    this.now = view.now;
    for (const step of view.steps) {
      for (const [id, choice, ...work] of step.streams) this.lane(id, choice, step.service).add(step, ...work);
    }
    // What is not in the steps was not among the newest: then it is not asked for again.
    this.last = view.last;
    for (const lane of this.all.values()) lane.alive = false;
    for (const [service, { streams }] of Object.entries(view.services)) {
      for (const stream of streams) {
        const lane = this.lane(stream.id, stream.choice, service);
        lane.view = stream;
        lane.alive = true;
      }
    }
    this.forget();
  }

  lane(id, choice, service) {
    const key = `${service} ${id} ${choice}`;
    if (!this.all.has(key)) this.all.set(key, new Lane(id, choice, service));
    return this.all.get(key);
  }

  forget() {
    for (const [key, lane] of this.all) {
      const old = lane.bars.findIndex((bar) => bar.to > this.now - KEPT);
      // The last bar stays: it is where the next gap begins.
      lane.bars.splice(0, old < 0 ? Math.max(lane.bars.length - 1, 0) : old);
      if (!lane.alive && old < 0) this.all.delete(key);
    }
  }

  /** Whether anything was guessed that is still kept. */
  get guess() {
    return [...this.all.values()].some((lane) => lane.bars.some(guessed));
  }

  /** Lanes to show for the time from `since` on, oldest first. */
  shown(since) {
    return [...this.all.values()].filter((lane) => lane.alive || lane.bars.at(-1)?.to > since);
  }
}

/** Whether a bar is a beat with guesses behind it: its units are rows then, of which some became tokens. */
export const guessed = (bar) => bar.kind === "decode" && bar.units > 1;

/** How a time stands to what was promised: a word for a level, and words for people. */
export function judge(seconds, promised) {
  if (seconds <= 0.8 * promised) return ["good", "in time"];
  if (seconds <= promised) return ["close", "close"];
  return ["late", "late"];
}
