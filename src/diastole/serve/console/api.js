// The server's API: keys, errors in plain words, event streams.

const KEY = "diastole.key";

/** What went wrong, in words for the user. `status` is 0 when no answer came. */
export class ApiFailure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const apiKey = () => sessionStorage.getItem(KEY);
export const hasKey = () => apiKey() !== null;

/** Where programs find the API. */
export const base = () => new URL("v1", document.baseURI.split("#")[0]).href;

async function call(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    document.dispatchEvent(new Event("keyneeded"));
    throw new ApiFailure("The server asks for an API key: give it above, then try again.", 401);
  }
  throw new ApiFailure(await words(response), response.status);
}

async function words(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

export const getJson = async (path) => (await call(path)).json();
export const getText = async (path) => (await call(path)).text();

/** The ids of all models of texts. */
export async function models() {
  return (await getJson("v1/models")).data.filter((card) => card.object === "model").map((card) => card.id);
}

/** The cards of all models of live input. */
export async function liveModels() {
  return (await getJson("v1/models")).data.filter((card) => card.object === "live_model");
}

/** The cards of all models of pictures. */
export async function pictureModels() {
  return (await getJson("v1/models")).data.filter((card) => card.object === "picture_model");
}

/** The previews of a picture, and then the picture. Aborting the signal ends it with an AbortError. */
export async function* pictures(body, signal) {
  yield* parsed("v1/images/generations", { ...body, stream: true }, signal);
}

/** The events of a chat completion, as parsed chunks. Aborting the signal ends it with an AbortError. */
export async function* chat(body, signal) {
  yield* parsed("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
}

async function* parsed(path, body, signal) {
  const response = await call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiFailure(chunk.error.message, response.status);
    yield chunk;
  }
  throw new ApiFailure("The connection was lost before the answer was complete.");
}

/** The data of server-sent events, as far as this server writes them: one line of data each. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("The connection was lost before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Sums of the counters of a Prometheus page over their labels, without our prefix. */
export function parseMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const match = /^diastole_(\w+?)(?:_total)?(?:\{.*\})? ([-+.\deE]+)$/.exec(line);
    if (match) sums.set(match[1], (sums.get(match[1]) ?? 0) + Number(match[2]));
  }
  return sums;
}
