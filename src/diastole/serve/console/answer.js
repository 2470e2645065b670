// One answer while it is written: its text, its times, its end.
import { chat } from "./api.js";

/** Ids of requests of this page, as the engine's trace shows them. */
export const mine = new Set();

const HOLE = "\u2591"; // a place that is not settled yet
const SHOWN = 8; // characters of an id in the trace

/** Write an answer into `turn`, telling `grown` after each piece. Never throws: what goes wrong is told in the turn. */
export async function write(turn, body, signal, grown) {
  const began = performance.now();
  let first;
  let last;
  let pieces = 0;
  let usage = null;
  try {
    for await (const chunk of chat(body, signal)) {
      mine.add(chunk.id.slice(-SHOWN));
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices;
      if (choice?.settled) {
        settle(turn, choice.settled);
        grown();
      }
      if (choice?.delta.content) {
        last = performance.now();
        first ??= last;
        pieces++;
        turn.content += choice.delta.content;
        grown();
      }
      turn.ended = choice?.finish_reason ?? turn.ended;
    }
  } catch (error) {
    if (error.name === "AbortError") turn.ended = "stopped";
    else {
      turn.ended = "error";
      turn.error = error.message;
    }
  }
  delete turn.places;
  delete turn.ahead;
  if (first === undefined && usage === null) return;
  const tokens = usage?.completion_tokens ?? pieces;
  turn.stats = { tokens, exact: usage !== null };
  if (first !== undefined) turn.stats.first = (first - began) / 1000;
  if (tokens > 1 && last > first) turn.stats.rate = ((tokens - 1) * 1000) / (last - first);
}

/** Of an answer that is settled in any order: `ahead` is what stands behind its beginning, with holes. */
function settle(turn, settled) {
  turn.places ??= [];
  for (const { index, text } of settled) turn.places[index] = text;
  const told = Array.from(turn.places, (text) => text !== undefined).indexOf(false); // -1: all that there are
  turn.ahead = told < 0 ? "" : Array.from(turn.places.slice(told), (text) => text ?? HOLE).join("");
}
