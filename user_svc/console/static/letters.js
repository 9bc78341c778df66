// Dead letters: filtered, chosen, replayed. The list is asked for again, and rows stay the same elements meanwhile, so
// that focus and choice survive.

import { every, get, post } from "./api.js";
import { ask } from "./ask.js";
import { $, NONE, ZONE, count, duration, element, quarantineWords, sayIn, time } from "./dom.js";

const PAGE = 100;
const MOST = 500; // what one request may ask for
const LIST_MS = 5000; // a replay's progress each second, the list not so often
const STATE = { dead: "✕ dead", expired: "◔ expired" };

const rows = new Map(); // event id -> {row, box}
const chosen = new Set();
let limit = PAGE;
let more = false;
let running = false;
let listedAt = -Infinity;
let turn = () => {};

/** All anew, now. */
function load() {
  listedAt = -Infinity;
  turn();
}

function filter() {
  const given = Object.fromEntries([...new FormData($("filter"))].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
  if (given.code) given.code = Number(given.code);
  return given;
}

const filtered = () => Object.keys(filter()).length > 0;
const mails = (n) => `${count(n)} ${n === 1 ? "mail" : "mails"}`;

function makeRow(letter) {
  const box = element("input", { type: "checkbox", "aria-label": `Select ${letter.event_id}` });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(letter.event_id);
    else chosen.delete(letter.event_id);
    showTools();
  });
  const button = element("button", { type: "button", text: "Replay…", "aria-label": `Replay ${letter.event_id}` });
  button.addEventListener("click", () => replay({ event_id: letter.event_id }, "Replay one mail"));
  const user = element("a", { href: `/console/mails/${encodeURIComponent(letter.user_id)}`, className: "code", text: `${letter.user_id.slice(0, 8)}…`, title: letter.user_id });
  const age = element("small", { className: "quiet block", "data-age": letter.at });
  const row = element(
    "tr",
    {},
    element("td", {}, box),
    element("td", { className: "keep" }, element("time", { datetime: letter.at, title: letter.at, text: time(letter.at) }), age),
    element("td", {}, element("span", { className: "tag", "data-state": letter.state, text: STATE[letter.state] ?? letter.state })),
    element("td", { className: "code", text: letter.code ?? NONE }),
    element("td", { className: "break", text: letter.reason || NONE }),
    element("td", { className: "number", text: count(letter.attempts) }),
    element("td", {}, user),
    element("td", { className: "keep" }, button),
  );
  return { row, box };
}

function showList({ dead_letters: letters, next_cursor: next }, { quarantined, dead, expired }) {
  const ids = new Set(letters.map((letter) => letter.event_id));
  for (const [id, { row }] of rows) {
    if (ids.has(id)) continue;
    row.remove();
    rows.delete(id);
    chosen.delete(id);
  }
  let before = $("rows").firstElementChild;
  for (const letter of letters) {
    if (!rows.has(letter.event_id)) rows.set(letter.event_id, makeRow(letter));
    const { row } = rows.get(letter.event_id);
    if (row === before) before = before.nextElementSibling;
    else $("rows").insertBefore(row, before);
  }
  for (const age of document.querySelectorAll("[data-age]")) {
    const words = `${duration(Math.max(0, (Date.now() - new Date(age.dataset.age)) / 1000))} ago`;
    if (age.textContent !== words) age.textContent = words;
  }
  $("quarantine").hidden = quarantined === 0;
  if ($("quarantine").textContent !== quarantineWords(quarantined)) $("quarantine").textContent = quarantineWords(quarantined);
  $("needs-nobody").hidden = quarantined + dead.open + expired.open > 0;
  more = next !== null;
  $("list").hidden = letters.length === 0;
  $("none").hidden = letters.length > 0 || filtered();
  $("none-match").hidden = letters.length > 0 || !filtered();
  $("more").hidden = !more || limit >= MOST;
  showTools();
}

function showTools() {
  const words = rows.size ? `${more ? `The oldest ${mails(rows.size)}; there are more` : mails(rows.size)}${chosen.size ? ` · ${count(chosen.size)} selected` : ""}` : "";
  if ($("found").textContent !== words) $("found").textContent = words;
  $("replay-chosen").disabled = chosen.size === 0 || running;
  $("replay-all").disabled = rows.size === 0 || running;
  $("choose-all").checked = rows.size > 0 && chosen.size === rows.size;
  $("choose-all").indeterminate = chosen.size > 0 && chosen.size < rows.size;
  for (const [id, { box }] of rows) box.checked = chosen.has(id);
}

function showProgress(replay) {
  running = replay.running;
  $("replay").hidden = !replay.started_at;
  $("stop").hidden = !running;
  if (!replay.started_at) return;
  $("progress").max = Math.max(1, replay.matching);
  $("progress").value = replay.replayed + replay.users_gone;
  const gone = replay.users_gone ? `; ${count(replay.users_gone)} had lost their user, and went` : "";
  const words = `${count(replay.replayed)} of ${mails(replay.matching)} asked for again${gone}, at most ${count(replay.per_second)} a second. `;
  const end = running ? `Began at ${time(replay.started_at)}.` : `Ended at ${replay.ended_at ? time(replay.ended_at) : NONE}: ${replay.ended || "done"}.`;
  if ($("progress-words").textContent !== words + end) $("progress-words").textContent = words + end;
}

/** Counts what would be replayed, then asks. */
async function replay(what, title) {
  try {
    const { matching } = await post("/dead-letters/replay", { ...what, dry_run: true });
    if (!matching) return ask({ title, says: ["No dead letter matches any more."] });
    ask({
      title,
      says: [
        `${mails(matching)} will be asked for again: each goes through the queue, the breaker and the rate limit like a new one, and its dead letter goes.`,
        "Whoever was erased meanwhile gets nothing. It can be stopped on the way.",
      ],
      fields: matching === 1 ? [] : [{ name: "per_second", label: "At most so many a second", type: "number", min: 1, max: 10000, value: "100", required: "" }],
      confirm: `Replay ${mails(matching)}`,
      address: "/dead-letters/replay",
      body: (given) => ({ ...what, per_second: Number(given.per_second ?? 100) }),
      done: (progress) => `Started for ${mails(progress.matching)}. The page shows how far it is.`,
      after: () => {
        chosen.clear();
        load();
      },
    });
  } catch (error) {
    ask({ title, says: [`Not counted, so not replayed: ${error.message}`] });
  }
}

$("replay-chosen").addEventListener("click", () => replay({ event_ids: [...chosen] }, "Replay the selected mails"));
$("replay-all").addEventListener("click", () => {
  if (!$("filter").reportValidity()) return;
  replay(filtered() ? { filter: filter() } : { all: true }, filtered() ? "Replay all that match the filter" : "Replay all dead letters");
});

$("stop").addEventListener("click", () =>
  ask({
    title: "Stop the replay",
    says: ["What was asked for already is sent; the others stay dead letters, and can be replayed later."],
    confirm: "Stop it",
    address: "/dead-letters/replay/stop",
    body: () => ({}),
    done: (progress) => (progress.ended === "stopped" ? `Stopped after ${mails(progress.replayed)}.` : "None was running any more."),
    after: () => load(),
  }),
);

$("choose-all").addEventListener("change", () => {
  chosen.clear();
  if ($("choose-all").checked) for (const id of rows.keys()) chosen.add(id);
  showTools();
});

$("more").addEventListener("click", () => {
  limit = Math.min(MOST, limit + 200);
  load();
});

function filterChanged() {
  chosen.clear();
  limit = PAGE;
  load();
}
// A filter goes into an address, which logs keep.
$("reason").addEventListener("input", ({ target }) =>
  target.setCustomValidity(target.value.includes("@") ? "A reason holds no email address. Somebody's mails are found on the page Mails." : ""),
);
$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  filterChanged();
});
$("filter").addEventListener("change", () => $("filter").reportValidity() && filterChanged());
$("filter").addEventListener("reset", () => {
  $("reason").setCustomValidity("");
  setTimeout(filterChanged);
});

async function show(newest) {
  const progress = await get("/dead-letters/replay");
  if (!newest()) return;
  if (running && !progress.running) listedAt = -Infinity;
  showProgress(progress);
  if (performance.now() - listedAt < LIST_MS || !$("filter").checkValidity()) return;
  const [list, books] = await Promise.all([get(`/dead-letters?${new URLSearchParams({ ...filter(), limit })}`), get("/ledger")]);
  if (!newest()) return;
  listedAt = performance.now();
  showList(list, books);
}

$("zone").textContent = ZONE;
turn = every(() => (running ? 1000 : LIST_MS), show, sayIn($("connection")));
