// What the two account forms (sign in, set up) share: the password field, the error line, one submit at a time.

import { Problem } from "./api.js";
import { t } from "./i18n.js";

/** Wires the form: `check()` gives `[field, message]` or null; `act()` does the work and may throw Problem. */
export function wireForm(form, { busyKey, check, act, explain }) {
  const button = form.querySelector("button[type=submit]");
  const alert = form.querySelector("[role=alert]");
  const idle = button.textContent;

  const complain = (title, detail, name) => {
    alert.replaceChildren();
    const strong = document.createElement("strong");
    strong.textContent = title;
    alert.append(strong);
    if (detail) alert.append(" ", detail);
    alert.hidden = false;
    const input = name ? form.elements.namedItem(name) : null;
    if (input instanceof HTMLInputElement) {
      input.setAttribute("aria-invalid", "true");
      input.focus();
    }
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    alert.hidden = true;
    for (const input of form.querySelectorAll("input")) input.removeAttribute("aria-invalid");
    const missing = check();
    if (missing !== null) {
      complain(missing[1], "", missing[0]);
      return;
    }
    button.disabled = true;
    button.textContent = t(busyKey);
    try {
      await act();
    } catch (error) {
      // After success the button stays as it is: the next page is on its way.
      button.disabled = false;
      button.textContent = idle;
      if (!(error instanceof Problem)) throw error;
      const said = explain?.(error) ?? { title: error.title, detail: error.detail, field: error.field };
      complain(said.title, said.detail, said.field);
    }
  });
}

/** Makes the button beside a password field show and hide what is typed. */
export function wireReveal(input, button) {
  button.addEventListener("click", () => {
    const shown = input.type === "text";
    input.type = shown ? "password" : "text";
    button.textContent = t(shown ? "show_password" : "hide_password");
    button.setAttribute("aria-label", t(shown ? "show_password_long" : "hide_password_long"));
    button.setAttribute("aria-pressed", String(!shown));
    input.focus();
  });
}

/** Where to go after signing in: a path of this very service, never elsewhere. */
export function destination(search) {
  const wanted = new URLSearchParams(search).get("next") ?? "/";
  if (!URL.canParse(wanted, location.origin)) return "/";
  const target = new URL(wanted, location.origin);
  return target.origin === location.origin ? target.pathname + target.search : "/";
}
