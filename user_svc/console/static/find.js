// Finds a user by id or address. The address goes in a body; the page that opens then is named by the id.

import { post } from "./api.js";
import { $ } from "./dom.js";

$("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  const who = $("who").value.trim();
  if (!who) return;
  $("find-result").className = "quiet";
  $("find-result").textContent = "Looking…";
  try {
    const { user_id: id } = await post("/mails/find", who.includes("@") ? { email: who } : { user_id: who });
    location.assign(`/console/mails/${encodeURIComponent(id)}`);
  } catch (error) {
    const nobody = who.includes("@") ? "Nobody is registered with that address." : "Nobody has that id.";
    $("find-result").className = "bad";
    $("find-result").textContent = `▲ ${error.status === 404 ? nobody : error.message}`;
    $("who").select();
  }
});
