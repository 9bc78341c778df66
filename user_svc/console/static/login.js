// The token goes in a body, once; from then on the browser holds a cookie that no script can read.

import { $ } from "./dom.js";

/** Where to go then: a page of this listener, whatever the address says. */
function next() {
  try {
    const wanted = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
    return wanted.origin === location.origin ? wanted.origin + wanted.pathname : "/"; // the path may begin with //
  } catch {
    return "/";
  }
}

$("login")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ token: $("token").value });
  try {
    const answer = await fetch("/login", { method: "POST", headers, body, signal: AbortSignal.timeout(10_000) });
    if (answer.ok) return location.assign(next());
    $("login-result").textContent = `▲ ${(await answer.json()).detail ?? answer.status}`;
  } catch {
    $("login-result").textContent = "▲ It does not answer yet. Try again in a moment.";
  }
  $("token").select();
});
