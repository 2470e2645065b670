// What this browser keeps: the conversation, the settings, the chosen model. Keys are not among it.

const PREFIX = "diastole.";

export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise; // forbidden, or written by something else
  }
}

/** Keep a value; whether there was room for it. */
export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** The conversation as it was kept: only turns that have the form of turns. */
export function loadTurns() {
  const kept = load("turns", []);
  if (!Array.isArray(kept)) return [];
  return kept.filter((t) => (t?.role === "user" || t?.role === "assistant") && typeof t.content === "string");
}

/** Hand the user a file. */
export function download(name, value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}
