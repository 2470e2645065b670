// An example for the engine's view: two streams speak, and a long prompt arrives. The long one is absorbed in chunks,
// between which the others go on. No answer ends by itself: they must be seen together, however fast they are.
import { write } from "./answer.js";

const SPEAK = "Tell me a long story about the sea.";
const SENTENCE = "The heart fills while it rests, and what it has gathered it gives with the next beat. ";
const LONG = `${SENTENCE.repeat(90)}\n\nSay in one sentence what this text is about.`;
const LATER_MS = 1500; // until the long prompt arrives

const wait = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()));
  });

/** Run it; what went wrong in words, or null. */
export async function run(model, signal) {
  const ask = async (content, max_tokens) => {
    const turn = { content: "" };
    // A salt of its own: otherwise the second time nothing is left to absorb.
    const cache_salt = String(Math.random());
    const body = { model, messages: [{ role: "user", content }], max_tokens, ignore_eos: true, temperature: 0.7, cache_salt };
    if (!signal.aborted) await write(turn, body, signal, () => {});
    return turn.error ?? null;
  };
  const later = wait(LATER_MS, signal).then(() => ask(LONG, 200));
  const said = await Promise.all([ask(SPEAK, 800), ask(SPEAK, 800), later]);
  return said.find((error) => error !== null) ?? null;
}
