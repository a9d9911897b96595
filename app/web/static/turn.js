// One question and its answer on the page: shows the data of a turn, and lets the reader rate, fix, copy and ask again.
// The data is a plain object (what `store.js` keeps); this view never decides what is asked of the model.

import { Problem, callJson } from "./api.js";
import { copyText, growing, makeCode } from "./dom.js";
import { number, t, translate } from "./i18n.js";
import { GrowingMarkdown } from "./markdown.js";

const CORRECTION_LIMIT = 5000;

/** `data`: {prompt, text, state: streaming|done|stopped|failed, id, rating, correction, before, compared, ...}. `on`: {change, again, ended}. */
export class TurnView {
  #data;
  #on;
  #find;
  #words;
  #corrected;
  #drawing = 0;

  constructor(template, data, on) {
    this.#data = data;
    this.#on = on;
    const copy = template.content.cloneNode(true);
    translate(copy);
    this.node = copy.querySelector("article");
    this.#find = (selector) => this.node.querySelector(selector);
    this.#find(".asked").textContent = data.prompt;
    this.#words = new GrowingMarkdown(this.#find(".words"), makeCode);
    this.#corrected = new GrowingMarkdown(this.#find(".correction .words"), makeCode);
    this.#listen();
    this.update();
    if (data.fixing !== undefined) this.#openEditor(false);
  }

  /** Shows new text with the next frame; many calls, one drawing. */
  grow(drawn) {
    if (this.#drawing !== 0) return;
    this.#drawing = requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#find(".waiting").hidden = this.#data.text !== "" || this.#data.state !== "streaming";
      this.#words.show(this.#data.text);
      drawn();
    });
  }

  /** Shows everything as the data says. */
  update() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    const { state, text, id, finish } = this.#data;
    const streaming = state === "streaming";
    if (streaming) this.#say("");
    this.node.setAttribute("aria-busy", String(streaming));
    this.#find(".waiting").hidden = !streaming || text !== "";
    this.#words.show(text);
    this.#find(".actions").hidden = streaming || (state === "failed" && text === "");
    this.#find(".rate").hidden = !id;
    this.#find("[data-act=copy]").hidden = text === "";
    this.#note(state === "stopped" ? t("stopped") : finish === "length" ? t("cut_length") : "");
    this.#trouble();
    this.#find(".meta").textContent = state === "done" ? this.#meta() : "";
    this.#feedback();
  }

  /** Whether this turn, being the last, offers another answer. */
  set last(value) {
    this.#find("[data-act=regenerate]").hidden = !value;
  }

  #note(text) {
    const note = this.#find(".note");
    note.textContent = text;
    note.hidden = text === "";
  }

  #meta() {
    const { model, version, tokens, ms, cached } = this.#data;
    const parts = [model, version ? t("version", { version: version.slice(0, 8) }) : ""];
    if (tokens) parts.push(t("tokens", { count: number(tokens) }));
    if (ms) parts.push(t("seconds", { count: number(ms / 1000, 1) }));
    if (cached) parts.push(t("cached"));
    return parts.filter(Boolean).join(" · ");
  }

  #trouble() {
    const box = this.#find(".trouble");
    const { problem } = this.#data;
    box.hidden = !problem;
    box.querySelector("button")?.remove();
    if (!problem) return;
    box.querySelector("strong").textContent = problem.title;
    box.querySelector("span").textContent = problem.detail;
    const again = document.createElement("button");
    again.type = "button";
    again.textContent = t("retry");
    again.addEventListener("click", () => this.#on.again(this.#data));
    box.append(again);
  }

  #feedback() {
    const { rating, correction } = this.#data;
    for (const side of ["up", "down"]) this.#find(`[data-act=${side}]`).setAttribute("aria-pressed", String(rating === side));
    this.#find("[data-act=fix] span").textContent = t(correction ? "fix_edit" : "fix");
    this.#find(".correction").hidden = !correction || !this.#find(".editor").hidden;
    this.#corrected.show(correction ?? "");
    this.#find(".compare").hidden = !this.#data.id || !this.#data.before || this.#data.compared !== undefined;
  }

  #listen() {
    const acts = {
      up: () => this.#rate("up"),
      down: () => this.#rate("down"),
      fix: () => this.#openEditor(),
      cancel: () => this.#closeEditor(),
      copy: () => this.#copy(),
      better: () => this.#compare("better"),
      worse: () => this.#compare("worse"),
      regenerate: () => this.#on.again(this.#data),
    };
    for (const button of this.node.querySelectorAll("[data-act]")) button.addEventListener("click", acts[button.dataset.act]);
    const editor = this.#find(".editor");
    const area = editor.querySelector("textarea");
    const label = editor.querySelector("label");
    area.id = `fix-${Math.random().toString(36).slice(2)}`;
    label.htmlFor = area.id;
    area.addEventListener("input", () => {
      // Part of the data, so that an unsaved correction survives a reload and a new login.
      this.#data.fixing = area.value;
      this.#count();
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#closeEditor();
      }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) editor.requestSubmit();
    });
    editor.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#fix(area.value);
    });
  }

  #say(text) {
    const saved = this.#find(".saved");
    saved.textContent = text;
    saved.classList.remove("bad");
  }

  /** Sets one field of the data, sends, and takes it back where the service did not store it. */
  async #save(field, value, done) {
    const before = this.#data[field];
    if (before === value) return;
    this.#data[field] = value;
    this.#feedback();
    this.#say(t("saving"));
    const error = await this.#send();
    if (error !== null) {
      this.#data[field] = before;
      this.#feedback();
      this.#say(`${error.title} ${error.detail}`.trim());
      this.#find(".saved").classList.add("bad");
      return;
    }
    this.#say(t(done));
  }

  #rate(rating) {
    return this.#save("rating", rating, `saved_${rating}`);
  }

  #compare(verdict) {
    return this.#save("compared", verdict, `saved_${verdict}`);
  }

  // One current feedback per person and answer: each sending carries the whole of it.
  async #send() {
    const { id, before, compared } = this.#data;
    const bodies = [said(this.#data, compared === "better" ? before.id : undefined)];
    // "Worse" is said of the earlier answer, together with what was said of that one before.
    if (compared === "worse") bodies.push(said(before, id));
    try {
      for (const body of bodies) if (Object.keys(body).length > 1) await callJson("/feedback", { method: "POST", body });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.#on.ended(error);
      return error;
    }
    this.#on.change();
    return null;
  }

  #openEditor(focus = true) {
    const editor = this.#find(".editor");
    const area = editor.querySelector("textarea");
    if (editor.hidden) area.value = this.#data.fixing ?? this.#data.correction ?? this.#data.text;
    editor.hidden = false;
    this.#complain("");
    this.#feedback();
    this.#count();
    if (focus) area.focus();
  }

  #closeEditor() {
    delete this.#data.fixing;
    this.#on.change();
    this.#find(".editor").hidden = true;
    this.#feedback();
    this.#find("[data-act=fix]").focus();
  }

  #count() {
    const area = this.#find(".editor textarea");
    growing(area);
    const count = [...area.value].length;
    this.#find(".count").textContent = count > CORRECTION_LIMIT * 0.8 ? t("too_long", { count: number(count), limit: number(CORRECTION_LIMIT) }) : "";
    this.#find(".editor button[type=submit]").disabled = count > CORRECTION_LIMIT || area.value.trim() === "";
  }

  #complain(text) {
    const alert = this.#find(".editor .alert");
    alert.textContent = text;
    alert.hidden = text === "";
  }

  async #fix(value) {
    const before = this.#data.correction;
    if (value.trim() === (before ?? this.#data.text).trim()) {
      this.#complain(t("fix_same"));
      return;
    }
    const button = this.#find(".editor button[type=submit]");
    button.disabled = true;
    this.#data.correction = value;
    const error = await this.#send();
    button.disabled = false;
    if (error !== null) {
      this.#data.correction = before;
      this.#complain(`${error.title} ${error.detail}`.trim());
      return;
    }
    this.#closeEditor();
    this.#say(t("fix_saved"));
  }

  async #copy() {
    const done = await copyText(this.#data.text);
    this.#say(t(done ? "copied" : "copy_failed"));
  }
}

function said({ id, rating, correction }, worse) {
  const body = { prediction_id: id };
  if (rating) body.rating = rating;
  if (correction) body.correction = correction;
  if (worse) body.preferred_over = worse;
  return body;
}
