// Live streams: a signal goes to a model over a WebSocket, and what the model finds is drawn onto it.
import { apiKey, liveModels } from "./api.js";
import { $, announce, count, h, say } from "./dom.js";
import { Meter, Readings, Waves } from "./liveparts.js";
import { fromFile, fromMicrophone, testSignal } from "./livesources.js";

const AGAIN_MS = 2000; // until the models are asked for once more

export class LiveView {
  constructor() {
    this.models = [];
    this.run = null; // the stream that runs
    this.waves = new Waves();
    this.readings = new Readings();
    this.meter = new Meter();
    this.build();
    document.addEventListener("themechange", () => this.waves.draw());
    addEventListener("resize", () => this.waves.draw());
  }

  build() {
    const button = (label, onclick) => h("button", { type: "button", class: "quiet", onclick }, label);
    this.pick = h("select", { "aria-label": "Model of live input" });
    this.pick.addEventListener("change", () => this.chosen());
    this.file = h("input", { type: "file", class: "hidden", tabindex: "-1", "aria-hidden": "true" });
    this.file.addEventListener("change", () => this.startFile());
    this.open = button("Open a file", () => this.file.click());
    this.mic = button("Microphone", () => this.start(() => fromMicrophone()));
    this.test = button("Made-up signal", () => this.start(() => testSignal(this.model)));
    this.stop = button("Stop", () => this.end());
    this.status = h("p", { class: "trouble", role: "status", hidden: true });
    this.about = h("p", { class: "hint" });
    this.empty = h("p", { class: "hint" }, "Choose a signal. It plays at its own pace.");
    this.partial = h("p", { class: "partial", "aria-live": "off" });
    const card = (name, ...inner) => h("section", { class: "card", "aria-label": name }, h("h2", {}, name), ...inner);
    const title = h("div", { class: "title" }, h("h1", {}, "Live"), this.pick, this.mic, this.open, this.test, this.stop);
    this.page = h(
      "div",
      { class: "page wide" },
      title,
      this.status,
      this.about,
      this.file,
      card("Signal", this.waves.element, this.empty, this.partial),
      card("Deadlines", this.meter.element),
      card("Found", this.readings.element),
    );
    this.none = h("p", { class: "hint" }, "No model of live input is served here. Try: diastole serve phasenet");
    $("live").replaceChildren(h("div", { class: "page wide" }, h("h1", {}, "Live"), this.none));
  }

  /** The view is seen, or not any more: a stream goes on meanwhile. */
  show(visible) {
    this.visible = visible;
    this.waves.shown = visible;
    clearTimeout(this.asking);
    if (visible && !this.models.length) this.ask();
  }

  async ask() {
    try {
      this.models = await liveModels();
    } catch (error) {
      if (error.status !== 401) this.asking = setTimeout(() => this.ask(), AGAIN_MS);
      return;
    }
    if (!this.models.length) return;
    this.pick.replaceChildren(...this.models.map((m) => h("option", { value: m.id }, m.id)));
    $("live").replaceChildren(this.page);
    this.chosen();
    this.buttons();
  }

  get model() {
    return this.models.find((m) => m.id === this.pick.value);
  }

  chosen() {
    const { rate, channels, quantity, unit_ms: unit } = this.model;
    const names = channels.length > 8 ? count(channels.length, "channel") : channels.join(", ");
    const takes = `Takes ${quantity || "a signal"}: ${names} at ${rate} Hz, ${unit} ms at a time.`;
    say(this.about, `${takes} Tells ${this.model.events.join(", ")}.`);
    this.mic.hidden = quantity !== "sound pressure";
    this.file.accept = quantity === "sound pressure" ? "audio/*" : ".csv,.txt";
  }

  buttons() {
    for (const one of [this.pick, this.mic, this.open, this.test]) one.disabled = this.run !== null;
    this.stop.hidden = this.run === null;
  }

  startFile() {
    const [file] = this.file.files;
    this.file.value = "";
    if (file) this.start(() => fromFile(file, this.model));
  }

  /** `source()` gives a signal: { rate, channels, name, live, onpiece, start(), stop() }. */
  async start(source) {
    this.tell("");
    let signal;
    try {
      signal = await source();
    } catch (error) {
      this.tell(error.message);
      return;
    }
    this.waves.begin(signal);
    this.readings.clear();
    this.meter.clear();
    say(this.partial, "");
    this.empty.hidden = true;
    const address = new URL(`v1/streams/${encodeURIComponent(this.model.id)}`, document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    const run = { socket, signal, over: false };
    this.run = run;
    this.buttons();
    socket.onopen = () => {
      const key = apiKey();
      const { rate, channels } = signal;
      const hello = { type: "hello", rate, channels, dtype: "float32", resample: true, chunks: true };
      socket.send(JSON.stringify(key ? { ...hello, api_key: key } : hello));
    };
    socket.onmessage = ({ data }) => this.hear(run, JSON.parse(data));
    socket.onclose = () => {
      if (!run.over) this.finish(run, "The connection was lost.");
    };
  }

  hear(run, event) {
    switch (event.type) {
      case "ready":
        run.signal.start(
          (piece) => {
            if (run.over || run.socket.readyState !== WebSocket.OPEN) return;
            run.socket.send(piece);
            this.waves.hear(piece);
          },
          () => this.end(),
        );
        return;
      case "chunk":
        this.meter.count(event);
        return;
      case "partial":
        say(this.partial, event.text);
        return;
      case "error":
        if (event.fatal) this.finish(run, event.message);
        else this.tell(event.message);
        return;
      case "done":
        this.finish(run, "");
        announce(`Done: ${count(event.chunks, "chunk")}, ${event.late_chunks} late.`);
        return;
      default:
        if (event.type === "final") say(this.partial, "");
        this.waves.mark(event);
        this.readings.add(event);
    }
  }

  /** Send no more, and wait for the last events. */
  end() {
    if (!this.run) return;
    this.run.signal.stop();
    if (this.run.socket.readyState === WebSocket.OPEN) this.run.socket.send('{"type": "end"}');
    else this.finish(this.run, "");
  }

  finish(run, trouble) {
    if (run.over) return;
    run.over = true;
    run.signal.stop();
    run.socket.close();
    this.run = null;
    this.tell(trouble);
    this.buttons();
  }

  tell(text) {
    this.status.hidden = text === "";
    say(this.status, text);
  }
}
