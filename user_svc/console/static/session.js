// Logging out, on every page.

import { post } from "./api.js";
import { $ } from "./dom.js";

$("logout")?.addEventListener("click", async () => {
  await post("/logout", {});
  location.assign("/console/login");
});
