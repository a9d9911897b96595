// Picks the reader's language once and fills it into the page. Text only: nothing here makes HTML.

import { messages } from "./messages.js";

const preferred = navigator.languages?.length ? navigator.languages : [navigator.language];
const known = preferred.map((tag) => String(tag).slice(0, 2).toLowerCase()).find((code) => Object.hasOwn(messages, code));

/** `en` or `es`. */
export const language = known ?? "en";

/** The message in the reader's language, with `{name}` replaced by `values.name`. */
export function t(key, values = {}) {
  return messages[language][key].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** A number as the reader writes it. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

const PLACES = { text: null, label: "aria-label", title: "title", placeholder: "placeholder" };

/** Fills `data-t-text`, `data-t-label`, `data-t-title` and `data-t-placeholder` in a document, fragment or template's copy. */
export function translate(root) {
  for (const [place, attribute] of Object.entries(PLACES)) {
    for (const node of root.querySelectorAll(`[data-t-${place}]`)) {
      const words = t(node.getAttribute(`data-t-${place}`));
      if (attribute === null) node.textContent = words;
      else node.setAttribute(attribute, words);
    }
  }
}

/** Makes the page visible in the reader's language. */
export function ready(titleKey) {
  document.documentElement.lang = language;
  document.title = t(titleKey);
  translate(document);
  document.documentElement.dataset.ready = "";
}
