// One answer while it is written: its text, its times, its end.
import { chat } from "./api.js";

/** Ids of requests of this page, as the engine's trace shows them. */
export const mine = new Set();

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
  if (first === undefined && usage === null) return;
  const tokens = usage?.completion_tokens ?? pieces;
  turn.stats = { tokens, exact: usage !== null };
  if (first !== undefined) turn.stats.first = (first - began) / 1000;
  if (tokens > 1 && last > first) turn.stats.rate = ((tokens - 1) * 1000) / (last - first);
}
