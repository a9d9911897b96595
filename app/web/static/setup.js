// The page that an invite link opens. The invite travels in the fragment, which browsers never send, and leaves the address bar at once.

import { wireForm, wireReveal } from "./account.js";
import { call } from "./api.js";
import { ready, t } from "./i18n.js";

const ENOUGH = 12;
const GOOD = 16;

ready("setup_title");
const form = document.querySelector("form");
const { username, password, invite } = form.elements;
const meter = form.querySelector("meter");
const strength = form.querySelector("#strength");

/** The token in an invite: a whole link, the fragment, or the bare token. */
function tokenOf(text) {
  const [, after] = text.split("#invite=");
  const token = (after ?? text).trim();
  try {
    return decodeURIComponent(token);
  } catch {
    // A stray percent sign: not an encoded text, so it stands for itself.
    return token;
  }
}

function takeInvite() {
  if (!location.hash.startsWith("#invite=")) return;
  invite.value = tokenOf(location.hash);
  history.replaceState(null, "", location.pathname);
  const found = invite.value !== "";
  document.querySelector(".notice").hidden = !found;
  form.querySelector("#invite-field").hidden = found;
}

takeInvite();
// A link opened in a tab that already shows this page changes only the fragment.
window.addEventListener("hashchange", takeInvite);
wireReveal(password, form.querySelector(".reveal"));

password.addEventListener("input", () => {
  const count = [...password.value].length;
  meter.value = Math.min(count, GOOD);
  meter.hidden = count === 0;
  if (count === 0) strength.textContent = t("password_hint");
  else if (count < ENOUGH) strength.textContent = t("strength_short", { count });
  else strength.textContent = t(count < GOOD ? "strength_fair" : "strength_good");
});

wireForm(form, {
  busyKey: "setup_busy",
  check: () => {
    if (username.value.trim() === "") return ["username", t("need_username")];
    return password.value === "" ? ["password", t("need_password")] : null;
  },
  act: async () => {
    const account = { username: username.value.trim(), password: password.value };
    const token = tokenOf(invite.value);
    await call("/auth/register", { method: "POST", session: false, body: token === "" ? account : { ...account, invite: token } });
    await call("/auth/login", { method: "POST", session: false, body: account });
    location.replace("/");
  },
  explain: (problem) => {
    if (problem.field !== "invite") return null;
    form.querySelector("#invite-field").hidden = false;
    document.querySelector(".notice").hidden = true;
    return { title: t("error_invite"), detail: problem.detail, field: "invite" };
  },
});
username.focus();
