// The side panel: what is sent along with a conversation.
import { $ } from "./dom.js";
import { keep, load } from "./store.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/** The form, filled with what was kept. */
export class Settings {
  constructor() {
    this.form = $("settings");
    const kept = load("settings", {});
    for (const field of this.form.elements) {
      if (typeof kept[field.name] === "string") field.value = kept[field.name];
    }
    this.form.addEventListener("input", () => keep("settings", Object.fromEntries(new FormData(this.form))));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    $("side-toggle").addEventListener("click", () => this.open(!this.form.classList.contains("open")));
  }

  open(wanted) {
    $("side-toggle").setAttribute("aria-expanded", String(wanted));
    this.form.classList.toggle("open", wanted);
  }

  /** Whether all fields can be sent; if not, the browser says which one cannot. */
  check() {
    if (this.form.checkValidity()) return true;
    this.open(true);
    this.form.reportValidity();
    return false;
  }

  /** The system prompt; empty for none. */
  get system() {
    return this.form.elements.system.value.trim();
  }

  /** Fields of a request. Those left empty are not sent. */
  params() {
    const params = {};
    for (const name of NUMBERS) {
      const { value } = this.form.elements[name];
      if (value !== "") params[name] = Number(value);
    }
    const stop = this.form.elements.stop.value.split("\n").filter((line) => line !== "");
    if (stop.length) params.stop = stop;
    return params;
  }
}
