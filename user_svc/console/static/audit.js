// The audit's newest records, asked for again every five seconds.

import { every, get } from "./api.js";
import { $, NONE, ZONE, element, sayIn, timeElement } from "./dom.js";

let shown = "";

function row(record) {
  if (record.unreadable) {
    return element("tr", {}, element("td", { colspan: 7, className: "bad", text: `▲ The record at sequence ${record.unreadable} cannot be read.` }));
  }
  const bad = /^(failed|refused|unknown|broken off|the process was stopped)/.test(record.outcome);
  return element(
    "tr",
    {},
    element("td", { className: "keep" }, timeElement(record.at)),
    element("td", { className: "keep", text: record.action.replaceAll("-", " ") }),
    element("td", { className: "code break", text: record.target || NONE }),
    element("td", { className: bad ? "bad" : "", text: bad ? `▲ ${record.outcome}` : record.outcome }),
    element("td", { text: record.by }),
    element("td", { className: "code", text: record.peer || NONE }),
    element("td", { text: record.service }),
  );
}

async function load() {
  const { audit } = await get("/audit");
  const key = JSON.stringify(audit);
  if (key === shown) return;
  shown = key;
  $("rows").replaceChildren(...audit.map(row));
  $("records").hidden = audit.length === 0;
  $("empty").hidden = audit.length > 0;
}

$("zone").textContent = ZONE;
every(() => 5000, load, sayIn($("connection")));
