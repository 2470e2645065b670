// How one turn of a conversation looks.
import { copyButton, count, h, say, seconds } from "./dom.js";
import { render } from "./markdown.js";

const ENDS = { length: "cut at the limit of tokens", stopped: "stopped by you" };

/** A turn's element, with the actions that are possible on it: {edit, regenerate, retry}, functions or nothing. */
export class TurnView {
  constructor(turn) {
    this.turn = turn;
    const mine = turn.role === "user";
    this.text = h("div", { class: mine ? "text plain" : "text" });
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.stats = h("span", { class: "stats" });
    this.actions = h("span", { class: "actions" });
    const foot = h("footer", {}, this.stats, this.actions);
    const name = h("h2", { class: "hidden" }, mine ? "You" : turn.model ?? "Answer");
    this.element = h("article", { class: `turn ${turn.role}` }, name, this.text, this.error, foot);
    this.update({});
  }

  /** Show what the turn holds now. */
  update({ busy = false, edit = null, regenerate = null, retry = null }) {
    const { turn } = this;
    if (turn.role === "user") this.text.textContent = turn.content;
    else render(this.text, turn.content);
    this.element.classList.toggle("busy", busy);
    this.element.setAttribute("aria-busy", String(busy));
    say(this.stats, busy ? "" : statistics(turn));
    this.error.hidden = !turn.error;
    this.error.replaceChildren(
      ...(turn.error ? [h("p", {}, turn.error)] : []),
      ...(retry ? [button("Try again", retry)] : []),
    );
    this.actions.replaceChildren(
      ...(busy || !turn.content ? [] : [copyButton(() => turn.content)]),
      ...(edit ? [button("Edit", edit)] : []),
      ...(regenerate ? [button("Regenerate", regenerate)] : []),
    );
  }

  /** Show more of an answer that is growing. */
  grow() {
    render(this.text, this.turn.content);
    if (this.turn.ahead) this.text.append(h("p", { class: "ahead" }, this.turn.ahead));
  }
}

const button = (label, onclick) => h("button", { type: "button", class: "link", onclick }, label);

/** "128 tokens · 41.2 tokens/s · first token after 83 ms". */
function statistics({ stats, ended }) {
  if (!stats) return "";
  const parts = [(stats.exact ? "" : "about ") + count(stats.tokens, "token")];
  if (stats.rate) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
  if (stats.first !== undefined) parts.push(`first token after ${seconds(stats.first)}`);
  if (ENDS[ended]) parts.push(ENDS[ended]);
  return parts.join(" · ");
}
