// The sign-in page.

import { destination, wireForm, wireReveal } from "./account.js";
import { call } from "./api.js";
import { ready, t } from "./i18n.js";

ready("login_title");
const form = document.querySelector("form");
const { username, password } = form.elements;
wireReveal(password, form.querySelector(".reveal"));
document.querySelector(".notice").hidden = !new URLSearchParams(location.search).has("again");

wireForm(form, {
  busyKey: "login_busy",
  check: () => {
    if (username.value.trim() === "") return ["username", t("need_username")];
    return password.value === "" ? ["password", t("need_password")] : null;
  },
  act: async () => {
    await call("/auth/login", { method: "POST", session: false, body: { username: username.value.trim(), password: password.value } });
    location.replace(destination(location.search));
  },
  explain: (problem) => (problem.status === 401 ? { title: t("error_login"), detail: "", field: "password" } : null),
});
username.focus();
