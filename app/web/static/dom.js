// Small things done to the page: code blocks with a copy button, copying, text boxes that grow, staying at the end.

import { t } from "./i18n.js";

/** A code block with its language and a copy button. */
export function makeCode(language, text) {
  const frame = document.createElement("figure");
  const head = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = language;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = t("copy");
  button.setAttribute("aria-label", t("copy_code"));
  button.addEventListener("click", async () => {
    button.textContent = t((await copyText(text)) ? "copied" : "copy_failed");
    setTimeout(() => { button.textContent = t("copy"); }, 2000);
  });
  head.append(name, button);
  const pre = document.createElement("pre");
  // Wide code scrolls sideways, also from the keyboard.
  pre.tabIndex = 0;
  const code = document.createElement("code");
  code.textContent = text;
  pre.append(code);
  frame.append(head, pre);
  return frame;
}

/** Puts text on the clipboard; false where the browser does not let us. */
export async function copyText(text) {
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // Refused: the older way below may still work.
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  const focused = document.activeElement;
  area.select();
  // Plain HTTP on another machine's address has no navigator.clipboard; this old call is what is left there.
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Makes a text box as tall as its text; the style sheet sets the limit. */
export function growing(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Keeps a scroller at its end while new text comes, until the reader scrolls away; offers the way back. */
export class StayAtEnd {
  #scroller;
  #button;
  #following = true;
  #last = 0;

  constructor(scroller, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    button.addEventListener("click", () => this.follow());
  }

  /** Goes to the end and stays there. */
  follow() {
    this.#following = true;
    this.settle();
  }

  /** After the page grew: goes to the end if the reader was there. */
  settle() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#show();
  }

  #distance() {
    return this.#scroller.scrollHeight - this.#scroller.clientHeight - this.#scroller.scrollTop;
  }

  #scrolled() {
    const up = this.#scroller.scrollTop < this.#last - 1;
    this.#last = this.#scroller.scrollTop;
    if (this.#distance() < 24) this.#following = true;
    else if (up) this.#following = false;
    this.#show();
  }

  #show() {
    this.#button.hidden = this.#following || this.#distance() < 24;
  }
}
