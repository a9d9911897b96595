// The chat page: who is here, what is asked, the streaming answer.

import { Problem, SessionEnded, call, callJson, problemOf } from "./api.js";
import { StayAtEnd, growing } from "./dom.js";
import { ready, t } from "./i18n.js";
import { readEvents } from "./sse.js";
import { forget, keep, restore } from "./store.js";
import { TurnView } from "./turn.js";

// Where the page itself carries the history: newest turns first, up to so many characters. A small context holds no more.
const HISTORY_CHARACTERS = 3000;
const MODEL_POLL_MS = 2000;
const MODEL_POLLS = 150;

const byId = (id) => document.getElementById(id);
const message = byId("message");
const template = byId("turn");
const atEnd = new StayAtEnd(byId("scroller"), byId("latest"));

/**
 * The page's state. `conversation`: its id, from which the service recalls the earlier turns; null before the first answer.
 * `forked`: what is on the page differs from what the service would recall (an answer was generated anew), so that the page
 * sends the turns along itself.
 */
const chat = { user: null, conversation: null, forked: false, turns: [], views: [], running: null };

function remember() {
  const { user, conversation, forked, turns } = chat;
  keep({ user, conversation, forked, turns, draft: message.value });
}

function goToLogin() {
  remember();
  location.replace("/login?again");
}

function show(data) {
  const view = new TurnView(template, data, {
    change: remember,
    again: ask,
    ended: (error) => { if (error instanceof SessionEnded) goToLogin(); },
  });
  byId("turns").append(view.node);
  chat.views.push(view);
  arrange();
  return view;
}

function arrange() {
  const some = chat.turns.length > 0;
  byId("empty").hidden = some;
  byId("conversation-heading").hidden = !some;
  byId("new-chat").hidden = !some;
  chat.views.forEach((view, index) => { view.last = index === chat.views.length - 1; });
}

function busy(running) {
  chat.running = running;
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
}

/** The messages for one question: what came before it, as far as it fits, and itself. */
function messagesFor(turn) {
  const before = chat.turns.slice(0, chat.turns.indexOf(turn)).filter((earlier) => earlier.state === "done");
  const messages = [{ role: "user", content: turn.prompt }];
  let room = HISTORY_CHARACTERS;
  for (const earlier of before.reverse()) {
    const answer = earlier.correction || earlier.text;
    room -= earlier.prompt.length + answer.length;
    if (room < 0) break;
    messages.unshift({ role: "user", content: earlier.prompt }, { role: "assistant", content: answer });
  }
  return messages;
}

function submit() {
  const prompt = message.value.trim();
  if (prompt === "" || chat.running !== null) return;
  message.value = "";
  growing(message);
  const turn = { prompt, text: "", state: "streaming" };
  chat.turns.push(turn);
  show(turn);
  ask(turn);
}

/** Asks the model for the answer of this turn: the first time, again after trouble, or for another one. */
async function ask(turn) {
  if (chat.running !== null) return;
  const view = chat.views[chat.turns.indexOf(turn)];
  if (turn.state === "done") {
    // Another answer to the first question is simply a new conversation; later on, only the page knows which answer stands.
    if (chat.turns[0] === turn && chat.turns.length === 1) chat.conversation = null;
    else chat.forked = true;
  }
  // An answer in the middle would come last in what the service recalls.
  if (turn !== chat.turns.at(-1)) chat.forked = true;
  // What was said of the answer before this one stays known, so that the two can be compared.
  const before = turn.state === "done" ? { id: turn.id, rating: turn.rating, correction: turn.correction } : turn.before;
  for (const key of Object.keys(turn)) if (key !== "prompt") delete turn[key];
  Object.assign(turn, { text: "", state: "streaming", before });
  const stopper = new AbortController();
  busy(stopper);
  view.update();
  atEnd.follow();
  byId("status").textContent = t("answering");
  const started = performance.now();
  try {
    await stream(turn, view, stopper.signal);
    turn.ms = performance.now() - started;
  } catch (error) {
    failed(turn, error);
  } finally {
    busy(null);
    view.update();
    atEnd.settle();
    byId("status").textContent = turn.state === "done" ? t("answer_ready", { text: turn.text.slice(0, 1000) }) : "";
    remember();
  }
  if (document.activeElement === document.body) message.focus();
}

function failed(turn, error) {
  if (error instanceof SessionEnded) {
    // The question goes back into the text box, before whatever was typed meanwhile.
    message.value = [turn.prompt, message.value].filter(Boolean).join("\n\n");
    const at = chat.turns.indexOf(turn);
    chat.turns.splice(at, 1);
    goToLogin();
  } else if (error.name === "AbortError") {
    turn.state = "stopped";
  } else if (error instanceof Problem) {
    Object.assign(turn, { state: "failed", problem: { title: error.title, detail: error.detail } });
  } else {
    // The connection broke in the middle: browsers report it as a TypeError of the reader.
    Object.assign(turn, { state: "failed", problem: { title: t("error_cut"), detail: t("error_cut_text") } });
  }
}

async function reach(turn, signal) {
  const options = (asked) => ({ method: "POST", signal, body: { ...asked, stream: true } });
  if (!chat.forked) {
    try {
      return await call("/predict", options({ prompt: turn.prompt, conversation_id: chat.conversation ?? "new" }));
    } catch (error) {
      if (!(error instanceof Problem) || error.field !== "conversation_id") throw error;
      // Deleted meanwhile (in another tab, say): the page still has the turns.
      chat.forked = true;
    }
  }
  return call("/predict", options({ messages: messagesFor(turn) }));
}

async function stream(turn, view, signal) {
  const response = await reach(turn, signal);
  for await (const { event, data } of readEvents(response.body)) {
    const body = JSON.parse(data);
    if (event === "delta") {
      turn.text += body.text;
      view.grow(() => atEnd.settle());
    } else if (event === "problem") {
      throw problemOf(body.status, body);
    } else if (event === "done") {
      finish(turn, body);
      if (!chat.forked && chat.turns.includes(turn)) chat.conversation = body.conversation_id ?? null;
      return;
    }
  }
  throw new Problem({ title: t("error_cut"), detail: t("error_cut_text") });
}

function finish(turn, done) {
  const [provider, ...name] = done.model.split("/");
  showModel({ provider, model: name.join("/"), version: done.version, state: "ready" });
  Object.assign(turn, {
    state: "done", text: done.text, id: done.id, model: done.model, version: done.version,
    tokens: done.usage?.completion_tokens ?? 0, cached: done.cached === true, finish: done.finish_reason,
  });
}

function showModel({ provider, model, version, state, error }) {
  const loading = state === "starting" || state === "restarting";
  const badge = byId("model");
  const key = !model ? "model_none" : state === "failed" ? "model_failed" : loading ? "model_loading" : "model_ready";
  const words = t(key, { model });
  // Written only where it changed: each writing is read aloud.
  if (badge.textContent !== words) badge.textContent = words;
  badge.title = [provider, model, version && t("version", { version }), error].filter(Boolean).join(" · ");
  badge.dataset.state = state;
  return loading;
}

async function watchModel() {
  for (let turn = 0; turn < MODEL_POLLS; turn++) {
    try {
      // A stopped engine starts with the first question: nothing to wait for.
      if (!showModel(await callJson("/model"))) return;
    } catch (error) {
      // Only the badge suffers; an ended session tells itself with the next question.
      if (!(error instanceof Problem)) throw error;
      byId("model").textContent = error.title;
    }
    await new Promise((resolve) => { setTimeout(resolve, MODEL_POLL_MS); });
  }
}

async function signOut() {
  chat.running?.abort();
  try {
    await call("/auth/logout", { method: "POST" });
  } catch (error) {
    // An ended session is what was wanted; anything else must be seen, for the cookies may live on.
    if (!(error instanceof SessionEnded)) {
      byId("status").textContent = error.title;
      byId("model").textContent = error.title;
      return;
    }
  }
  forget();
  chat.user = null;
  location.replace("/login");
}

function newChat() {
  chat.running?.abort();
  Object.assign(chat, { conversation: null, forked: false, turns: [], views: [] });
  byId("turns").replaceChildren();
  arrange();
  remember();
  message.focus();
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  message.addEventListener("keydown", (event) => {
    // While an input method composes a word, Enter belongs to it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  message.addEventListener("input", () => growing(message));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") chat.running?.abort(); });
  byId("stop").addEventListener("click", () => {
    chat.running?.abort();
    message.focus();
  });
  byId("new-chat").addEventListener("click", newChat);
  byId("sign-out").addEventListener("click", signOut);
  for (const idea of document.querySelectorAll(".ideas button")) {
    idea.addEventListener("click", () => {
      message.value = idea.textContent;
      submit();
    });
  }
  // A reload loses nothing that was typed; after log-out there is no user, and nothing may be written again.
  // A page from the browser's back-forward cache may be another user's, or long signed out.
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  window.addEventListener("pagehide", () => { if (chat.user !== null) remember(); });
}

async function start() {
  let me;
  try {
    me = await callJson("/auth/me");
  } catch (error) {
    if (error instanceof SessionEnded) {
      location.replace("/login");
      return;
    }
    throw error;
  }
  chat.user = me.id;
  const kept = restore(me.id);
  ready("chat_title");
  byId("who").textContent = me.username;
  byId("who").title = t("signed_in_as", { name: me.username });
  listen();
  chat.conversation = kept?.conversation ?? null;
  chat.forked = kept?.forked === true;
  for (const turn of kept?.turns ?? []) {
    if (turn.state === "streaming") turn.state = "stopped";
    chat.turns.push(turn);
    show(turn);
  }
  arrange();
  message.value = kept?.draft ?? "";
  growing(message);
  atEnd.follow();
  message.focus();
  watchModel();
}

/** The service did not say who is here: nothing works, so nothing but the trouble and a way out is shown. */
function unreachable(error) {
  ready("chat_title");
  for (const id of ["empty", "composer", "keys", "sign-out"]) byId(id).hidden = true;
  const box = template.content.querySelector(".trouble").cloneNode(true);
  box.querySelector("strong").textContent = error.title;
  box.querySelector("span").textContent = error.detail;
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = t("retry");
  again.addEventListener("click", () => location.reload());
  box.append(again);
  box.hidden = false;
  byId("turns").append(box);
}

start().catch((error) => {
  if (!(error instanceof Problem)) throw error;
  unreachable(error);
});
