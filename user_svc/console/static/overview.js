// The overview: each snapshot of the event stream is written into the page; samples go to the charts.

import { $, ZONE, time } from "./dom.js";
import { addSample, showSamples } from "./charts.js";
import { paint } from "./flow.js";
import { follow } from "./live.js";

let said = "";

function say(state, words) {
  if (words === said) return; // a status that is written again is read out again
  said = words;
  $("connection").dataset.state = state;
  $("connection").textContent = words;
  document.body.classList.toggle("stale", state !== "live");
}

async function loadSamples() {
  try {
    const answer = await fetch("/overview/samples", { cache: "no-store" });
    if (answer.ok) showSamples(await answer.json());
  } catch (error) {
    console.info(error); // the event stream says so, and loads them again when it is back
  }
}

function showSnapshot(snapshot) {
  paint(snapshot);
  $("as-of").textContent = `As of ${time(snapshot.at)}.`;
  $("problem").hidden = !snapshot.problem;
  if ($("problem").textContent !== (snapshot.problem ?? "")) $("problem").textContent = snapshot.problem ?? "";
}

$("zone").textContent = ZONE;
follow("/overview/events", { overview: showSnapshot, sample: addSample }, say, loadSamples);
