// The overview: each snapshot of the event stream is written into the page; samples go to the charts.

import { get } from "./api.js";
import { ask } from "./ask.js";
import { $, ZONE, sayIn, time } from "./dom.js";
import { addSample, showSamples } from "./charts.js";
import { paint } from "./flow.js";
import { follow } from "./live.js";

let live = false;
let troubled = false;

const inBar = sayIn($("connection"));

function say(state, words) {
  inBar(state, words);
  live = state === "live";
  showAge();
}

/** Grey and still, in the style sheet, where the figures are not of now. */
function showAge() {
  document.body.classList.toggle("stale", !live || troubled);
}

async function loadSamples() {
  try {
    showSamples(await get("/overview/samples"));
  } catch (error) {
    console.info(error); // the event stream says so, and loads them again when it is back
  }
}

function showSnapshot(snapshot) {
  paint(snapshot);
  $("close-breaker").disabled = snapshot.breaker?.state === "closed";
  $("end-downtime").disabled = snapshot.downtime?.down === false;
  troubled = Boolean(snapshot.problem);
  showAge();
  $("as-of").textContent = `${troubled ? "These figures are old: as" : "As"} of ${time(snapshot.at)}.`;
  $("problem").hidden = !snapshot.problem;
  if ($("problem").textContent !== (snapshot.problem ?? "")) $("problem").textContent = snapshot.problem ?? "";
}

/** What a breaker route answers, as words. */
const breakerSays = ({ state, next_attempt_at: next }) =>
  `Done. The breaker is ${state.replace("_", " ")}${next ? `; it tries again at ${time(next)}` : ""}.`;

$("open-breaker").addEventListener("click", () =>
  ask({
    title: "Stop all mail",
    says: [
      "The breaker opens: the queue is paused on the broker, so no replica sends anything from now on.",
      "Sign-up goes on, and mails wait in the queue. Nothing is lost; what waits longer than the deadline expires.",
    ],
    fields: [
      { name: "for", label: "For how long", options: [["5m", "5 minutes"], ["30m", "30 minutes"], ["2h", "2 hours"], ["", "until it is closed by hand"]] },
      { name: "reason", label: "Reason, for the others (no personal data)", value: "by an operator", maxlength: 200 },
    ],
    confirm: "Stop all mail",
    danger: true,
    address: "/circuit-breaker/open",
    body: (given) => ({ reason: given.reason, ...(given.for && { for: given.for }) }),
    done: breakerSays,
  }),
);

$("close-breaker").addEventListener("click", () =>
  ask({
    title: "Let mail flow",
    says: ["The breaker closes at once, without probes: every replica goes on with what waits, within the rate limit.", "Is the mail server still sick, it opens again after a few failures."],
    fields: [{ name: "reason", label: "Reason, for the others (no personal data)", value: "by an operator", maxlength: 200 }],
    confirm: "Let mail flow",
    address: "/circuit-breaker/close",
    body: (given) => ({ reason: given.reason }),
    done: breakerSays,
  }),
);

$("start-downtime").addEventListener("click", () =>
  ask({
    title: "Begin a downtime",
    says: ["From now on every replica of email_svc treats the mail server as if it did not answer: attempts fail, the breaker opens, mail waits in the queue. It ends by itself."],
    fields: [{ name: "for", label: "For how long", options: [["30s", "30 seconds"], ["2m", "2 minutes"], ["10m", "10 minutes"]] }],
    confirm: "Begin the downtime",
    danger: true,
    address: "/downtime",
    body: (given) => ({ for: given.for }),
    done: ({ down_until: until }) => `Done. The mail server is down, for all replicas, until ${time(until)}.`,
  }),
);

$("end-downtime").addEventListener("click", () =>
  ask({
    title: "End the downtime",
    says: ["The replicas reach the mail server again at once; the breaker closes when its probes succeed. One that the schedule began is over too, until the next."],
    confirm: "End the downtime",
    address: "/downtime",
    body: () => ({ end: true }),
    done: () => "Done. The downtime is over.",
  }),
);

$("zone").textContent = ZONE;
follow("/overview/events", { overview: showSnapshot, sample: addSample }, say, loadSamples);
