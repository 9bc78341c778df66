// Logging out, on every page.

import { post } from "./api.js";
import { $, element } from "./dom.js";

$("logout")?.addEventListener("click", async () => {
  try {
    await post("/logout", {});
    location.assign("/console/login");
  } catch (error) {
    $("not-out")?.remove(); // said anew, so that it is read out again
    $("main").prepend(element("p", { id: "not-out", className: "problem", role: "alert", text: `Still logged in: ${error.message}` }));
  }
});
