// The event stream: closed while the page is hidden, opened again when it is seen or the connection was lost.
// `say(state, words)` hears how it is: waiting, live, lost or paused.

import { time } from "./dom.js";

const SILENCE_MS = 6000; // a snapshot comes each second
const AGAIN_MS = 2000;

export function follow(address, handlers, say, opened = () => {}) {
  let source = null;
  let heardAt = null;
  let lostSince = null;
  let again = 0;
  let silence = 0;

  function heard() {
    clearTimeout(silence);
    silence = setTimeout(() => lost("nothing was heard for six seconds"), SILENCE_MS);
    heardAt = new Date();
    lostSince = null;
    say("live", "Live");
  }

  function close() {
    clearTimeout(again);
    clearTimeout(silence);
    source?.close();
    source = null;
  }

  // The browser gives up for good after some errors (a 404, a 503), so the next try is ours.
  function lost(why) {
    close();
    lostSince ??= heardAt ?? new Date();
    say("lost", `Not connected since ${time(lostSince.toISOString())}: ${why}. Trying again.`);
    again = setTimeout(open, AGAIN_MS);
  }

  function open() {
    close();
    if (document.hidden) return say("paused", "Paused while the page is hidden");
    source = new EventSource(address);
    for (const [name, handler] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        heard();
        handler(JSON.parse(event.data));
      });
    }
    source.addEventListener("open", () => {
      heard();
      opened();
    });
    source.addEventListener("error", () => lost("the live figures do not answer"));
    silence = setTimeout(() => lost("the live figures do not answer"), SILENCE_MS);
  }

  document.addEventListener("visibilitychange", open);
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  open();
}
