// Elements, and figures as words. What comes from anywhere else goes into a page by textContent alone.

export const $ = (id) => document.getElementById(id);

export function element(name, { className = "", text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const NONE = "–";
const whole = new Intl.NumberFormat("en");
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";
const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
const zoneOf = (date) => zone.formatToParts(date).find((part) => part.type === "timeZoneName")?.value ?? "";

export const count = (n) => whole.format(n);
export const rate = (n) => (n >= 100 ? whole.format(Math.round(n)) : tenth.format(n));

/** Seconds in the two largest units that say something: 850 ms, 12 s, 3 min 5 s, 2 h 10 min, 4 d 3 h. */
export function duration(s) {
  if (s < 0) return NONE;
  if (s === 0) return "0 s";
  if (s < 1) return `${Math.max(1, Math.round(s * 1000))} ms`;
  const n = Math.round(s);
  const two = (big, bigName, small, smallName) => (small ? `${big} ${bigName} ${small} ${smallName}` : `${big} ${bigName}`);
  if (n < 60) return `${n} s`;
  if (n < 3600) return two(Math.floor(n / 60), "min", n % 60, "s");
  if (n < 86400) return two(Math.floor(n / 3600), "h", Math.floor((n % 3600) / 60), "min");
  return two(Math.floor(n / 86400), "d", Math.floor((n % 86400) / 3600), "h");
}

/** A time with its zone, and with the day where that is not today's. */
export function time(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return String(text);
  const today = day.format(date) === day.format(new Date());
  return `${today ? "" : `${day.format(date)}, `}${clock.format(date)} ${zoneOf(date)}`;
}

export function timeElement(text) {
  return element("time", { text: time(text), datetime: text, title: text });
}

/** Writes a state into a place of the bar; a status that is written again would be read out again. */
export function sayIn(place) {
  return (state, words) => {
    if (place.textContent === words) return;
    place.dataset.state = state;
    place.textContent = words;
  };
}

/** Of messages that no replay can name, so a person must. */
export function quarantineWords(n) {
  if (!n) return "None in quarantine.";
  const are = n === 1 ? "1 message is" : `${count(n)} messages are`;
  return `${are} in quarantine: in the queue, and no event of ours. See “Quarantined” in deploy/runbook.md within seven days.`;
}
