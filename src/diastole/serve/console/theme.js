// Runs before the first paint, so that the page does not flash in the wrong colours. No module: those run later.
"use strict";

(() => {
  const KEY = "diastole.theme";
  const ORDER = ["auto", "light", "dark"];

  function read() {
    try {
      const kept = localStorage.getItem(KEY);
      return ORDER.includes(kept) ? kept : "auto";
    } catch {
      return "auto"; // storage may be forbidden
    }
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = `◐ ${{ auto: "Auto", light: "Light", dark: "Dark" }[theme]}`;
      button.setAttribute("aria-label", `Colours: ${theme}. Press to change.`);
    }
    document.dispatchEvent(new Event("themechange"));
  }

  function next() {
    const theme = ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it holds until the page is left
    }
    show(theme);
  }

  show(read());
  document.addEventListener("DOMContentLoaded", () => {
    show(read());
    document.getElementById("theme").addEventListener("click", next);
  });
})();
