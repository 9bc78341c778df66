// The page of the inbox: the list follows the server's events, the address (#<id>) says which mail is open.
// What comes from a mail goes into the page as text only (textContent), its HTML part only into a sandboxed frame.

import { $, element, sayIn, time, timeElement } from "./dom.js"; // the console's, as is live.js
import { follow } from "./live.js";

const PAGE_SIZE = 100;
const ANSWER_MS = 10_000;

const entries = new Map(); // id -> <li>, kept so that focus and scroll position survive a reload of the list
let limit = PAGE_SIZE;
let loading = false;
let changedMeanwhile = false;
let lost = false; // the open mail could not be had

const GONE = "This mail is no longer here. The inbox keeps the newest 1,000, and forgets them when it restarts.";
const person = ({ Name, Address }) => (Name ? `${Name} <${Address}>` : Address);
const people = (list) => list.map(person).join(", ");

/** Anything may stand in an address, `#%` too. */
function openId() {
  const text = location.hash.slice(1);
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
  if (!answer.ok) throw Object.assign(new Error(`${path}: ${answer.status}`), { status: answer.status });
  return answer;
}

// ---- the list ----

function makeEntry(mail) {
  const part = (className, text) => element("span", { className, text });
  const link = element(
    "a",
    { href: `#${mail.ID}` },
    part("to", people([...mail.To, ...mail.Cc, ...mail.Bcc]) || "(nobody)"),
    timeElement(mail.Created),
    part("subject", mail.Subject || "(no subject)"),
    part("snippet", mail.Snippet),
  );
  return element("li", {}, link);
}

function showList({ messages, total, unread }) {
  const ids = new Set(messages.map((mail) => mail.ID));
  for (const [id, item] of entries) {
    if (!ids.has(id)) {
      item.remove();
      entries.delete(id);
    }
  }
  let before = $("list").firstElementChild;
  for (const mail of messages) {
    if (!entries.has(mail.ID)) entries.set(mail.ID, makeEntry(mail));
    const item = entries.get(mail.ID);
    item.firstElementChild.classList.toggle("unread", !mail.Read);
    if (item === before) before = before.nextElementSibling;
    else $("list").insertBefore(item, before);
  }
  $("count").textContent = `${total} ${total === 1 ? "mail" : "mails"}${unread ? `, ${unread} unread` : ""}`;
  document.title = unread ? `(${unread}) MailFlow inbox` : "MailFlow inbox";
  $("empty").hidden = total > 0;
  $("delete-all").hidden = total === 0;
  $("older").hidden = messages.length >= total;
  markOpen();
}

function markOpen() {
  const open = openId();
  for (const [id, item] of entries) {
    if (id === open) item.firstElementChild.setAttribute("aria-current", "true");
    else item.firstElementChild.removeAttribute("aria-current");
  }
  document.body.classList.toggle("reading", open !== "");
  $("mail").hidden = open === "";
  $("nothing-chosen").hidden = open !== "" || entries.size === 0;
}

// One request at a time; whatever changes meanwhile is covered by one more.
async function loadList() {
  if (loading) {
    changedMeanwhile = true;
    return;
  }
  loading = true;
  try {
    do {
      changedMeanwhile = false;
      showList(await (await get(`/api/v1/messages?limit=${limit}`)).json());
    } while (changedMeanwhile);
  } catch (error) {
    console.warn(error); // the event stream reconnects, and its first event loads the list again
  } finally {
    loading = false;
  }
}

// ---- one mail ----

async function showMail() {
  const id = openId();
  markOpen();
  if (!id) return;
  let mail = null;
  let why = "";
  try {
    mail = await (await get(`/api/v1/message/${encodeURIComponent(id)}`)).json();
  } catch (error) {
    why = error.status === 404 ? GONE : "This mail could not be had: the inbox does not answer. It is asked again when it does.";
  }
  if (id !== openId()) return; // another one was chosen meanwhile
  lost = mail === null && why !== GONE;
  $("gone").textContent = why;
  $("gone").hidden = mail !== null;
  $("content").hidden = mail === null;
  if (mail) fillMail(mail);
  $("mail").scrollTop = 0;
  if (getComputedStyle($("back")).display !== "none") $("mail").focus(); // narrow: the list has gone, and the focus with it
}

function fillMail(mail) {
  $("subject").textContent = mail.Subject || "(no subject)";
  const attachments = mail.Attachments.map((file) => `${file.FileName || file.ContentType} (${file.Size} bytes)`);
  fillList($("envelope"), [
    ["From", person(mail.From)],
    ["To", people(mail.To)],
    ["Cc", people(mail.Cc)],
    ["Bcc", people(mail.Bcc)],
    ["Reply to", people(mail.ReplyTo)],
    ["Date", time(mail.Date)],
    ["Size", `${mail.Size.toLocaleString()} bytes`],
    ["Attached", attachments.join(", ")],
  ]);
  $("text-part").hidden = !mail.Text;
  $("text").textContent = mail.Text;
  $("html-part").hidden = !mail.HTML;
  $("html").replaceChildren();
  if (mail.HTML) {
    const src = `/api/v1/message/${mail.ID}/html`;
    $("html").append(element("iframe", { sandbox: "", title: "HTML part of the mail", src }));
  }
  $("headers").replaceChildren();
  $("raw").textContent = "";
  fillHeaders();
  fillRaw();
}

function fillList(list, rows) {
  list.replaceChildren();
  for (const [name, value] of rows) {
    if (value) list.append(element("dt", { text: name }), element("dd", { text: value }));
  }
}

// Headers and source are fetched when they are unfolded.
async function fillHeaders() {
  await fillPart("headers", async (answer) => {
    const headers = Object.entries(await answer.json());
    return () => fillList($("headers"), headers.flatMap(([name, values]) => values.map((value) => [name, value])));
  });
}

async function fillRaw() {
  await fillPart("raw", async (answer) => {
    const raw = await answer.text();
    return () => ($("raw").textContent = raw);
  });
}

async function fillPart(name, read) {
  const id = openId();
  if (!id || !$(`${name}-part`).open) return;
  let show = () => ($(name).textContent = "It could not be had. Fold and unfold this to ask again.");
  try {
    show = await read(await get(`/api/v1/message/${encodeURIComponent(id)}/${name}`));
  } catch (error) {
    console.warn(error);
  }
  if (id === openId()) show();
}

// ---- events, and what acts ----

async function deleteAll() {
  try {
    const answer = await fetch("/api/v1/messages", { method: "DELETE", signal: AbortSignal.timeout(ANSWER_MS) });
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    $("ask").close();
  } catch (error) {
    $("ask-result").dataset.state = "bad";
    $("ask-result").textContent = `Not deleted: ${error.message}`;
  }
}

function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  const links = [...$("list").querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  const inPage = document.activeElement === document.body;
  if (at < 0 && !inPage) return; // the arrows scroll a focused text
  event.preventDefault();
  links[Math.min(Math.max(at + step, 0), links.length - 1)]?.focus();
}

addEventListener("hashchange", showMail);
addEventListener("keydown", moveFocus);
$("headers-part").addEventListener("toggle", fillHeaders);
$("raw-part").addEventListener("toggle", fillRaw);
$("older").addEventListener("click", () => {
  limit += PAGE_SIZE;
  loadList();
});
$("delete-all").addEventListener("click", () => {
  $("ask-result").textContent = "";
  $("ask").showModal();
  $("ask-cancel").focus();
});
$("ask-cancel").addEventListener("click", () => $("ask").close());
$("ask-confirm").addEventListener("click", deleteAll);

function changed() {
  loadList();
  if (lost) showMail();
}

follow("/events", { change: changed, still() {} }, sayIn($("connection")));
showMail();
