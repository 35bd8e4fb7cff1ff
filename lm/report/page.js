"use strict";
// What the scripts of all pages use: elements, events, dark and light colours. Text is only ever set as text.

const $ = (id) => document.getElementById(id);
const on = (id, event, act) => $(id).addEventListener(event, act);
const dark = () => document.documentElement.dataset.theme === "dark";

/** An element with properties, `aria-` and `data-` attributes, and children; strings become text, never markup. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key.includes("-") || key === "role" || key === "scope") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").ariaLabel = theme === "dark" ? "switch to light colours" : "switch to dark colours";
}

/** The theme that the user chose, after keeping a new one; null without one, or where a page has no storage. */
function keptTheme(theme) {
  try {
    if (theme) localStorage.setItem("lm.theme", theme);
    return localStorage.getItem("lm.theme");
  } catch {
    return null;
  }
}

/** Let the button `theme` switch the colours, at first those of the system or of the last choice. */
function connectTheme(draw = () => {}) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = keptTheme();
  setTheme(["dark", "light"].includes(kept) ? kept : system.matches ? "dark" : "light");
  system.addEventListener("change", () => {
    setTheme(system.matches ? "dark" : "light");
    draw();
  });
  on("theme", "click", () => {
    setTheme(dark() ? "light" : "dark");
    keptTheme(document.documentElement.dataset.theme);
    draw();
  });
}
