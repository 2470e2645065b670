// Pictures: some of one label are made side by side, and what they become is seen on the way.
import { pictureModels, pictures } from "./api.js";
import { $, announce, count, h, say, seconds } from "./dom.js";

const AGAIN_MS = 2000; // until the models are asked for once more
const PREVIEWS = 10;
const MOST = 12;

export class PicturesView {
  constructor() {
    this.models = [];
    this.running = null; // the AbortController of those that are being made
    this.build();
  }

  build() {
    const number = (name, value, least, most, step) =>
      h("input", { name, type: "number", value, min: least, max: most, step, required: true });
    const field = (label, input) => h("label", {}, label, input);
    this.pick = h("select", { "aria-label": "Model of pictures" });
    this.pick.addEventListener("change", () => this.chosen());
    this.label = h("select", { name: "prompt" });
    this.make = h("button", { class: "primary", type: "submit" }, "Make");
    this.stop = h("button", { class: "quiet", type: "button", hidden: true, onclick: () => this.running?.abort() }, "Stop");
    this.form = h(
      "form",
      { class: "wishes" },
      field("Show", this.label),
      field("Pictures", number("n", 6, 1, MOST, 1)),
      field("Steps", number("steps", 50, 1, 1000, 1)),
      field("Guidance", number("guidance", 2, 0, 100, "any")),
      field("Seed", h("input", { name: "seed", type: "number", min: 0, step: 1, placeholder: "random" })),
      this.make,
      this.stop,
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    this.status = h("p", { class: "trouble", role: "status", hidden: true });
    this.about = h("p", { class: "hint" });
    this.tiles = h("div", { class: "tiles" });
    const title = h("div", { class: "title" }, h("h1", {}, "Pictures"), this.pick);
    this.page = h("div", { class: "page wide" }, title, this.about, this.form, this.status, this.tiles);
    const none = h("p", { class: "hint" }, "No model of pictures is served here. Try: diastole serve unet");
    $("pictures").replaceChildren(h("div", { class: "page wide" }, h("h1", {}, "Pictures"), none));
  }

  show(visible) {
    clearTimeout(this.asking);
    if (visible && !this.models.length) this.ask();
  }

  async ask() {
    try {
      this.models = await pictureModels();
    } catch (error) {
      if (error.status !== 401) this.asking = setTimeout(() => this.ask(), AGAIN_MS);
      return;
    }
    if (!this.models.length) return;
    this.pick.replaceChildren(...this.models.map((m) => h("option", { value: m.id }, m.id)));
    $("pictures").replaceChildren(this.page);
    this.chosen();
  }

  get model() {
    return this.models.find((m) => m.id === this.pick.value);
  }

  chosen() {
    const { size, labels, approximate } = this.model;
    const cheaper = approximate ? " A technique makes it cheaper, and other than the model by itself." : "";
    say(this.about, `Makes pictures of ${size} pixels.${cheaper}`);
    const options = [h("option", { value: "" }, "anything"), ...labels.map((name) => h("option", { value: name }, name))];
    this.label.replaceChildren(...options);
    this.label.value = labels[0] ?? "";
  }

  async start() {
    const { prompt, n, steps, guidance, seed } = Object.fromEntries(new FormData(this.form));
    const first = seed === "" ? Math.floor(Math.random() * 2 ** 48) : Number(seed);
    this.running = new AbortController();
    this.buttons();
    this.tell("");
    const tiles = Array.from({ length: Number(n) }, (_, i) => new Tile(prompt || "anything", first + i, Number(steps)));
    this.tiles.replaceChildren(...tiles.map((tile) => tile.element));
    const body = { model: this.model.id, prompt, steps: Number(steps), guidance: Number(guidance) };
    const { signal } = this.running;
    const ends = await Promise.allSettled(tiles.map((tile) => tile.make(body, signal)));
    this.running = null;
    this.buttons();
    const failed = ends.find(({ reason }) => reason && reason.name !== "AbortError");
    if (failed) this.tell(failed.reason.message);
    announce(failed ? failed.reason.message : `${count(tiles.filter((t) => t.done).length, "picture")} made.`);
  }

  buttons() {
    this.make.disabled = this.running !== null;
    this.pick.disabled = this.running !== null;
    this.stop.hidden = this.running === null;
  }

  tell(trouble) {
    this.status.hidden = !trouble;
    say(this.status, trouble);
  }
}

/** One picture, from noise to its end. */
class Tile {
  constructor(label, seed, steps) {
    this.label = label;
    this.seed = seed;
    this.done = false;
    this.image = h("img", { alt: "", width: 160, height: 160 });
    this.bar = h("progress", { max: steps, value: 0, "aria-label": "Steps" });
    this.text = h("figcaption", {}, `seed ${seed}`);
    this.element = h("figure", { class: "tile" }, h("div", { class: "frame" }, this.image), this.bar, this.text);
  }

  async make(body, signal) {
    const began = performance.now();
    for await (const event of pictures({ ...body, seed: this.seed, partial_images: PREVIEWS }, signal)) {
      this.image.src = `data:image/png;base64,${event.b64_json}`;
      if (event.type === "image_generation.partial_image") {
        this.bar.value = event.step;
        continue;
      }
      this.done = true;
      this.image.alt = `${this.label}, seed ${this.seed}`;
      this.bar.hidden = true;
      const { steps, encoder_steps: encoded } = event.denoising;
      const saved = encoded < steps ? `, encoder in ${encoded}` : "";
      say(this.text, `seed ${this.seed} · ${count(steps, "step")}${saved} · ${seconds((performance.now() - began) / 1000)}`);
    }
  }
}
