// Small helpers around the DOM. Text goes in as text nodes: nothing here, or anywhere else, parses HTML.

/** An element: h("a", {class: "x", href: "…", onclick: f, disabled: true}, "text", otherElement, [more, elements]). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  // One by one: a call takes fewer arguments than a long text has lines.
  for (const child of children.flat()) element.append(child);
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Tell screen readers. */
export function announce(text) {
  $("announcer").textContent = text;
}

/** Set the text of an element that is asked to change often: nothing happens when it stays the same. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text, label = "Copy") {
  const button = h("button", { type: "button", class: "link" }, label);
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.textContent = done ? "Copied" : "Could not copy";
    announce(button.textContent);
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // pages without TLS on another machine have no clipboard
  }
}

function copyBySelection(text) {
  const area = h("textarea", { class: "hidden", readonly: true, "aria-hidden": "true" });
  area.value = text;
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Seconds as people read them: 850 µs, 12.3 ms, 1.24 s. The space does not break. */
export function seconds(value) {
  if (value < 0.001) return `${Math.round(value * 1e6)}\u00a0µs`;
  if (value < 0.1) return `${(value * 1e3).toFixed(1)}\u00a0ms`;
  if (value < 1) return `${Math.round(value * 1e3)}\u00a0ms`;
  return `${Number(value.toFixed(value < 10 ? 2 : 1))}\u00a0s`;
}

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
