// Puts the page together: views, model picker, key field.
import { models, pictureModels, setKey } from "./api.js";
import { Chat } from "./chat.js";
import { $, announce, h } from "./dom.js";
import { EngineView } from "./engine.js";
import { LiveView } from "./live.js";
import { PicturesView } from "./pictures.js";
import * as snippets from "./snippets.js";
import { keep, load } from "./store.js";

const VIEWS = ["chat", "pictures", "live", "engine", "try"];
const TITLES = {
  chat: "Diastole",
  pictures: "Pictures · Diastole",
  live: "Live · Diastole",
  engine: "Engine · Diastole",
  try: "Try it · Diastole",
};
const AGAIN_MS = 2000; // until the models are asked for once more

const picker = $("model");
const model = () => (picker.disabled ? null : picker.value);
const chat = new Chat(model);
const engine = new EngineView(model);
const live = new LiveView();
const pictures = new PicturesView();

function view() {
  const name = location.hash.slice(1);
  return VIEWS.includes(name) ? name : null;
}

function show() {
  const wanted = view();
  if (wanted === null && location.hash) return; // a link to a place on the page
  const name = wanted ?? "chat";
  for (const other of VIEWS) $(other).hidden = other !== name;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = TITLES[name];
  engine.show(name === "engine");
  live.show(name === "live");
  pictures.show(name === "pictures");
  if (name === "chat") chat.follow(true);
}

function snippet() {
  if (model() === null) snippets.wait();
  else snippets.show(model());
}

let asking = null; // the timer of the next attempt

async function askModels() {
  clearTimeout(asking);
  try {
    const names = await models();
    if (!names.length && !location.hash && (await pictureModels()).length) location.hash = "#pictures"; // of these alone
    if (!names.length) throw Object.assign(new Error("no model of texts"), { status: 200 });
    const kept = load("model", null);
    picker.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    picker.value = names.includes(kept) ? kept : names[0];
    picker.disabled = false;
  } catch (error) {
    picker.replaceChildren(h("option", {}, error.status === 503 ? "loading …" : "no model"));
    picker.disabled = true;
    if (error.status === 200 && !location.hash) location.hash = "#live"; // all that is served is live
    if (error.status !== 401 && error.status !== 200) asking = setTimeout(askModels, AGAIN_MS);
  }
  snippet();
}

picker.addEventListener("change", () => {
  keep("model", picker.value);
  snippet();
});

let tried = false; // a key was given already

document.addEventListener("keyneeded", () => {
  if (!$("key").hidden) return;
  $("key").hidden = false;
  if (tried) $("key-hint").textContent = "The server did not take that key.";
  announce($("key-title").textContent);
  $("key-field").focus();
});

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey($("key-field").value.trim());
  $("key-field").value = "";
  $("key").hidden = true;
  tried = true;
  await askModels();
  if ($("key").hidden) $("prompt").focus();
});

addEventListener("hashchange", show);
show();
askModels();
