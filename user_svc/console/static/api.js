// The JSON API of this listener. Who is not logged in is sent to the login, and comes back.

const ANSWER_MS = 10_000;

function toLogin() {
  location.assign(`/console/login?next=${encodeURIComponent(location.pathname)}`);
}

function parsed(text) {
  try {
    return JSON.parse(text || "{}");
  } catch {
    return null;
  }
}

/**
 * What is thrown has `status` only where the API itself refuses ({"status", "detail"}): a 404 of anybody else, or of a
 * service that is only starting, says nothing about a user. `unknown`: what was asked for may have been done.
 */
async function asked(address, given) {
  let answer, text;
  try {
    answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS), ...given });
    text = await answer.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw Object.assign(new Error(late ? `No answer within ${ANSWER_MS / 1000} s.` : "It does not answer. Is user_svc running?"), { unknown: true });
  }
  if (answer.status === 401) toLogin();
  const data = parsed(text);
  if (answer.ok && data !== null) return data;
  const ours = data?.status === answer.status && typeof data.detail === "string";
  const words = ours ? data.detail : `It answered ${answer.status}, in words that are not the API's.`;
  throw Object.assign(new Error(words), { status: ours ? answer.status : 0, unknown: !ours || data.unknown === true });
}

export const get = (address) => asked(address);

export const post = (address, body) => asked(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/**
 * Asks again every `pause()` ms while the page is seen. `ask(newest)` gets a function: whether nobody has asked since,
 * for answers may overtake each other. `say(state, words)` hears how it went. Returns: asks now.
 */
export function every(pause, ask, say) {
  let timer = 0;
  let turns = 0;
  async function turn() {
    const mine = (turns += 1);
    const newest = () => mine === turns;
    clearTimeout(timer);
    if (document.hidden) return say("paused", "Paused while the page is hidden");
    try {
      await ask(newest);
      if (newest()) say("live", "Up to date");
    } catch (error) {
      if (newest()) say("lost", `${error.message} Trying again.`);
    }
    if (newest()) timer = setTimeout(turn, pause());
  }
  document.addEventListener("visibilitychange", turn);
  turn();
  return turn;
}
