// The conversation.
import { write } from "./answer.js";
import { $, announce, calm, h } from "./dom.js";
import { Settings } from "./settings.js";
import { download, keep, loadTurns } from "./store.js";
import { TurnView } from "./turns.js";

const NEAR = 80; // pixels from the end within which new text is followed
const IDEAS = ["What is a heartbeat?", "Write a short poem about rain", "Explain recursion with a Python example"];

export class Chat {
  /** `model()` gives the chosen model, null if there is none. */
  constructor(model) {
    this.model = model;
    this.settings = new Settings();
    this.list = $("turns");
    this.prompt = $("prompt");
    this.running = null; // the AbortController of the answer that is being written
    this.editing = null; // index of the turn that the next message replaces
    this.turns = loadTurns();
    this.views = [];
    this.showAll();
    this.listen();
  }

  listen() {
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.prompt.addEventListener("input", () => this.fit());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running) this.stop();
      else if (event.key === "Escape" && this.editing !== null) this.edit(null);
    });
    $("stop").addEventListener("click", () => this.stop());
    $("edit-cancel").addEventListener("click", () => this.edit(null));
    $("new").addEventListener("click", () => this.clear());
    $("export").addEventListener("click", () => this.export());
  }

  // ---- what the user does

  send(text = this.prompt.value.trim()) {
    if (!text || this.running || !this.settings.check()) return;
    if (this.editing !== null) this.turns.length = this.editing;
    this.edit(null);
    this.prompt.value = "";
    this.fit();
    this.turns.push({ role: "user", content: text });
    this.answer();
  }

  stop() {
    this.running?.abort();
  }

  regenerate() {
    if (this.running || !this.settings.check()) return;
    this.turns.pop();
    this.answer();
  }

  /** Put a turn of the user into the composer; null: leave it as it was. */
  edit(index) {
    if (index === null && this.editing === null) return;
    this.editing = index;
    $("editing").hidden = index === null;
    this.prompt.value = index === null ? "" : this.turns[index].content;
    this.fit();
    this.prompt.focus();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.edit(null);
    this.save();
    this.showAll();
    this.prompt.focus();
  }

  export() {
    const messages = this.messages(this.turns);
    download("conversation.json", { model: this.model(), ...this.settings.params(), messages });
  }

  // ---- an answer

  async answer() {
    const turns = this.turns; // a new chat begins another list
    const body = { model: this.model(), ...this.settings.params(), messages: this.messages(turns) };
    const turn = { role: "assistant", content: "", model: body.model };
    turns.push(turn);
    this.running = new AbortController();
    this.showAll();
    const view = this.views.at(-1);
    view.update({ busy: true });
    this.follow(true);
    announce("The answer begins.");
    await write(turn, body, this.running.signal, () => this.grow(view));
    this.running = null;
    this.buttons();
    if (this.turns !== turns) return;
    this.save();
    const follows = this.nearEnd();
    this.showAll(follows);
    announce(turn.error ?? turn.content);
  }

  /** Show new text with the next frame, however many pieces come before it. */
  grow(view) {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      const follows = this.nearEnd();
      view.grow();
      if (follows) this.follow();
    });
  }

  /** The conversation as the API takes it. A question whose answer has no word is no part of it, unless it is the last:
   *  many models want questions and answers by turns. */
  messages(turns) {
    const told = [];
    for (const { role, content } of turns) {
      if (content) told.push({ role, content });
      else told.pop();
    }
    const { system } = this.settings;
    return system ? [{ role: "system", content: system }, ...told] : told;
  }

  save() {
    if (!keep("turns", this.turns)) announce("The browser has no room to keep this conversation.");
  }

  // ---- what is seen

  showAll(follow = true) {
    this.views = this.turns.map((turn) => new TurnView(turn));
    const last = this.turns.length - 1;
    this.views.forEach((view, i) => view.update(this.running ? {} : this.possible(i, last)));
    this.list.replaceChildren(...(this.turns.length ? this.views.map((v) => v.element) : [this.welcome()]));
    this.buttons();
    if (follow) this.follow(true);
  }

  /** What can be done to a turn: only the last question can be changed, only the last answer replaced. */
  possible(index, last) {
    const { role } = this.turns[index];
    if (role === "user" && index >= last - 1) return { edit: () => this.edit(index) };
    if (role === "assistant" && index === last) {
      const again = () => this.regenerate();
      return this.turns[index].error ? { retry: again } : { regenerate: again };
    }
    return {};
  }

  welcome() {
    const ideas = IDEAS.map((text) => h("button", { type: "button", class: "idea", onclick: () => this.send(text) }, text));
    return h("div", { class: "welcome" }, h("h1", {}, "Ask something"), h("p", {}, "What you write stays between this browser and this server."), h("div", { class: "ideas" }, ...ideas));
  }

  buttons() {
    const focused = document.activeElement;
    $("send").hidden = this.running !== null;
    $("stop").hidden = this.running === null;
    $("export").disabled = this.turns.length === 0;
    if (focused === $("send") || focused === $("stop")) this.prompt.focus(); // a hidden button has no focus
  }

  /** As high as its text, up to what the style allows. */
  fit() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  nearEnd() {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < NEAR;
  }

  follow(jump = false) {
    this.list.scrollTo({ top: this.list.scrollHeight, behavior: jump || calm() ? "instant" : "smooth" });
  }
}
