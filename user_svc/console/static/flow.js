// One snapshot of /overview into the page. Every [data-v] names its figure, data-as how it is said.

import { $, NONE, count, duration, element, quarantineWords, rate, time, timeElement } from "./dom.js";

const BREAKER = {
  closed: ["closed", "Mail flows."],
  open: ["open", "Mail is held in the queue; sign-up goes on."],
  half_open: ["half open", "A few mails probe the way."],
};

const AS = {
  count,
  rate,
  duration,
  time,
  text: String,
  per_second: (n) => (n > 0 ? `${rate(n)}/s` : ""),
  per_minute: (n) => (n > 0 ? `${count(n)}/min` : "no limit"),
  pace: (factor) => (factor < 1 ? `${Math.round(factor * 100)} % of it` : "full"),
  tokens: (n) => count(Math.floor(n)),
  relay: (n) => (n > 0 ? "busy" : "idle"),
  breaker: (state) => BREAKER[state]?.[0] ?? String(state),
  downtime: (d) => (d.down ? "on" : "off"),
  downtime_until: (d) => (d.down && d.ends_in_s !== null ? `of the mail server, simulated; ends in ${duration(d.ends_in_s)}` : "of the mail server, simulated"),
};

/** Said where there is no figure; elsewhere it is a dash. */
const MISSING = { per_second: "", downtime: "not known", downtime_until: "of the mail server, simulated" };

const find = (snapshot, path) => path.split(".").reduce((value, key) => value?.[key], snapshot);

function put(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

export function paint(snapshot) {
  const breaker = snapshot.breaker ?? {};
  const all = { ...snapshot, next_attempt: nextAttempt(breaker), drained_in: drainedIn(breaker, snapshot.queue) };
  for (const place of document.querySelectorAll("[data-v]")) {
    const value = find(all, place.dataset.v);
    const missing = value === null || value === undefined;
    put(place, missing ? (MISSING[place.dataset.as] ?? NONE) : AS[place.dataset.as](value));
  }
  if (snapshot.limiter && snapshot.limiter.tokens === null) put(document.querySelector('[data-v="limiter.tokens"]'), "∞");
  paintPipes(snapshot);
  paintBreaker(breaker);
  paintBooks(snapshot.ledger);
  paintReplicas(snapshot.replicas ?? [], snapshot.at, Boolean(snapshot.problem));
}

function nextAttempt(breaker) {
  if (breaker.state !== "open") return null;
  return breaker.until_further_notice ? "when it is closed" : breaker.next_attempt_at && time(breaker.next_attempt_at);
}

/** What it drained at before it was held says nothing about when it will be out. */
function drainedIn(breaker, queue) {
  if (breaker.state === "open" && queue?.size > 0) return "held";
  const s = queue?.drain_estimate_seconds ?? null;
  return s === null ? null : duration(s);
}

function paintPipes({ accepted, outbox, queue, breaker, sent }) {
  const moves = {
    "pipe-outbox": accepted?.per_second > 0,
    "pipe-queue": accepted?.per_second > 0 || outbox?.pending > 0,
    "pipe-breaker": queue?.in_flight > 0 || sent?.per_second > 0,
    "pipe-limiter": queue?.in_flight > 0 || sent?.per_second > 0,
    "pipe-sent": sent?.per_second > 0,
  };
  for (const [id, moving] of Object.entries(moves)) {
    const shut = breaker?.state === "open" && ["pipe-breaker", "pipe-limiter", "pipe-sent"].includes(id);
    $(id).dataset.state = shut ? "shut" : moving ? "moving" : "still";
  }
}

let spoken = null;
let shownTransitions = "";

function paintBreaker(breaker) {
  const [word, means] = BREAKER[breaker.state] ?? ["unknown", "The state is not known yet."];
  $("breaker").dataset.state = breaker.state in BREAKER ? breaker.state : "unknown";
  put($("breaker-means"), means);
  if (spoken !== null && spoken !== word) put($("spoken"), `Breaker ${word}. ${means} ${breaker.reason ?? ""}`);
  spoken = word;
  const rows = breaker.transitions;
  if (!rows) return; // not known: the page says so, or shows the last that were
  const key = JSON.stringify(rows);
  if (key === shownTransitions) return;
  shownTransitions = key;
  $("transition-rows").replaceChildren(
    ...(rows.length ? rows.slice(0, 8).map(transition) : [element("li", { className: "quiet", text: "It has never changed: no mail server failed since the start." })]),
  );
}

function transition({ at, state, reason }) {
  const word = element("span", { className: "tag", text: BREAKER[state]?.[0] ?? state, "data-state": state });
  return element("li", {}, word, timeElement(at), element("span", { className: "reason", text: reason || "no reason was given" }));
}

function paintBooks(ledger) {
  if (!ledger) return;
  const { gap, balanced, quarantined } = ledger;
  $("quarantine").dataset.state = quarantined > 0 ? "bad" : "";
  put($("quarantine"), `${quarantined > 0 ? "▲ " : ""}${quarantineWords(quarantined)}`);
  const erasing = ledger.erasures_under_way > 0;
  const words = erasing
    ? `◌ Not judged: ${count(ledger.erasures_under_way)} erasure under way.`
    : balanced
      ? "✓ Balanced: every event is somewhere."
      : `✕ A gap of ${count(gap)}: these are nowhere. If it lasts, the reconciler looks for them.`;
  $("balance").dataset.state = erasing ? "unknown" : balanced ? "good" : "bad";
  put($("balance"), words);
}

function paintReplicas(replicas, now, troubled) {
  const rows = replicas.map((each) => {
    const state = each.ready ? ["● ready", "good"] : ["▲ not ready", "bad"];
    const up = each.started_at ? duration((new Date(now) - new Date(each.started_at)) / 1000) : NONE;
    const cells = [
      element("td", { text: each.service }),
      element("td", { className: "code keep", text: each.replica }),
      element("td", { className: `${state[1]} keep`, text: state[0] }),
      element("td", { className: "number", text: each.service === "email_svc" ? `${count(each.in_hand)} ${each.in_hand === 1 ? "mail" : "mails"}` : NONE }),
      element("td", { className: "keep", text: up }),
      element("td", { text: each.version || NONE }),
    ];
    return element("tr", {}, ...cells);
  });
  if (!replicas.some((each) => each.service === "email_svc")) {
    const words = troubled ? "Not known: nobody can be asked." : "No email_svc answers: mails wait in the queue until one is back.";
    rows.push(element("tr", {}, element("td", { colspan: 6, className: "bad", text: `▲ ${words}` })));
  }
  $("replica-rows").replaceChildren(...rows);
}
