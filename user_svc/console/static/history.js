// One user's mails with every attempt, asked for again every three seconds.

import { every, get } from "./api.js";
import { ask } from "./ask.js";
import { $, NONE, ZONE, count, duration, element, sayIn, time, timeElement } from "./dom.js";

const { id, traces } = $("user").dataset;
const address = `/mails/${encodeURIComponent(id)}`;
const WHY = { registration: "Welcome mail", resend: "Sent again on request", replay: "Sent again from the dead letters" };
const STATE = {
  queued: "◌ queued",
  retrying: "↺ retrying",
  sent: "✓ sent",
  dead: "✕ dead",
  expired: "◔ expired",
};
const MEANS = {
  queued: () => "Asked for, not tried yet.",
  retrying: (mail) => (mail.next_attempt_at ? `Tried; the next attempt is due at ${time(mail.next_attempt_at)}.` : "Tried; due again soon."),
  sent: (mail) => `The mail server took it at ${time(mail.ended_at)}.`,
  dead: (mail) => `Refused for good, or its retries are spent, at ${time(mail.ended_at)}.`,
  expired: (mail) => `Not delivered before its deadline, at ${time(mail.ended_at)}.`,
};
const NOBODY = "There is no such user: erased, or never registered.";
let shown = "";
let load = () => {};

function traceOf(attempt) {
  if (!attempt.trace_id) return element("td", { className: "quiet", text: "not sampled" });
  const short = attempt.trace_id.slice(0, 8);
  if (!traces || !/^[0-9a-f]{32}$/.test(attempt.trace_id)) return element("td", { className: "code", text: short, title: attempt.trace_id });
  const link = element("a", { href: `${traces}/trace/${attempt.trace_id}`, target: "_blank", rel: "noreferrer", text: short, title: attempt.trace_id });
  return element("td", { className: "code" }, link);
}

function attemptRow(attempt, number) {
  const code = [attempt.code, attempt.enhanced_code].filter(Boolean).join(" ");
  return element(
    "tr",
    {},
    element("td", { className: "number", text: number }),
    element("td", { className: "keep" }, timeElement(attempt.at)),
    element("td", {}, element("span", { className: "tag", text: attempt.verdict, "data-state": attempt.verdict === "sent" ? "sent" : "retrying" })),
    element("td", { text: attempt.phase.replaceAll("_", " ") || NONE }),
    element("td", { className: "code keep", text: code || NONE }),
    element("td", { className: "break", text: attempt.text || NONE }),
    element("td", { text: (attempt.breaker || NONE).replace("_", " ") }),
    element("td", { className: "keep number", text: duration(attempt.seconds) }),
    traceOf(attempt),
  );
}

function attempts(mail) {
  const total = mail.attempts_total;
  if (!total) return element("p", { className: "quiet", text: "No attempt yet." });
  const heads = ["#", "When", "Verdict", "At", "Code", "The server's words", "Breaker", "Took", "Trace"];
  const numbers = ["#", "Took"];
  const missing = total - mail.attempts.length;
  const rows = mail.attempts.map((each, index) => attemptRow(each, count(index < 3 ? index + 1 : index + 1 + missing)));
  if (missing > 0) {
    rows.splice(3, 0, element("tr", {}, element("td", { colspan: heads.length, className: "quiet", text: `… ${count(missing)} attempts in between are not kept` })));
  }
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col", className: numbers.includes(text) ? "number" : "", text })));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { className: "scroll", tabindex: 0, role: "region", "aria-label": "Attempts" }, table);
}

function card(mail) {
  const title = element("h2", { text: WHY[mail.why] ?? mail.why });
  const tag = element("span", { className: "tag", "data-state": mail.status, text: STATE[mail.status] ?? mail.status });
  const means = MEANS[mail.status]?.(mail) ?? "";
  const reason = mail.reason ? ` Reason: ${mail.reason}` : "";
  const asked = element("p", { className: "quiet" }, "Asked for at ", timeElement(mail.requested_at), " · event ", element("span", { className: "code", text: mail.event_id }));
  return element("section", { className: "card mail" }, element("div", { className: "head" }, title, tag), element("p", { text: means + reason }), asked, attempts(mail));
}

async function show(newest) {
  let found = null;
  let problem = "";
  try {
    found = await get(address);
  } catch (error) {
    if (error.status === 404) problem = NOBODY;
    else if (error.status === 500) problem = `This user cannot be shown. ${error.message}`; // but erased
    else throw error;
  }
  if (newest()) fill(found, problem);
}

/** Without a user nothing of one is left in the page, seen or not. */
function fill(found, problem) {
  const key = JSON.stringify([found, problem]);
  if (key === shown) return;
  shown = key;
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
  $("user").hidden = problem === NOBODY;
  $("resend").disabled = !found;
  $("name").textContent = found ? `Mails of ${found.user.name}` : "Mails of a user";
  $("email").textContent = found?.user.email ?? NONE;
  $("user-id").textContent = found?.user.id ?? id;
  $("created").replaceChildren(found ? timeElement(found.user.created_at) : NONE);
  $("mails").replaceChildren(...(found?.mails ?? []).map(card));
}

$("resend").addEventListener("click", () =>
  ask({
    title: "Send the welcome mail again",
    says: ["A new mail is asked for, whatever became of the earlier ones. It goes the same way, through queue, breaker and limit.", "At most three a day (UTC) for one user."],
    confirm: "Send again",
    address: `${address}/resend`,
    body: () => ({}),
    done: (answer) => `Asked for; it is ${answer.status}. Event ${answer.event_id}.`,
    after: () => load(),
  }),
);

$("erase").addEventListener("click", () =>
  ask({
    title: "Erase this user",
    says: [
      "The address and the name go out of every stream and out of the broker's files; a mail that still waits is not sent. Nobody can take it back.",
      "The same address may register anew afterwards.",
    ],
    fields: [{ name: "confirm", label: `To confirm, type the user id: ${id}`, required: "", spellcheck: "false", autocapitalize: "none" }],
    confirm: "Erase for good",
    danger: true,
    address: `${address}/erase`,
    body: (given) => ({ confirm: given.confirm.trim() }),
    done: () => "Erased everywhere.",
    after: () => {
      fill(null, NOBODY);
      load();
    },
  }),
);

$("zone").textContent = ZONE;
load = every(() => 3000, show, sayIn($("connection")));
