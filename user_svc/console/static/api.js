// The JSON API of this listener. Who is not logged in is sent to the login, and comes back.

function toLogin() {
  location.assign(`/console/login?next=${encodeURIComponent(location.pathname)}`);
}

async function answered(answer) {
  if (answer.status === 401) toLogin();
  const text = await answer.text();
  let data = {};
  try {
    data = text ? JSON.parse(text) : {};
  } catch {
    data = { detail: text };
  }
  if (answer.ok) return data;
  throw Object.assign(new Error(data.detail || `It answered ${answer.status}.`), { status: answer.status });
}

const unreachable = (error) => {
  throw error.status ? error : new Error("It does not answer. Is user_svc running?");
};

export const get = (address) => fetch(address, { cache: "no-store" }).then(answered).catch(unreachable);

export function post(address, body) {
  const headers = { "Content-Type": "application/json" };
  return fetch(address, { method: "POST", headers, body: JSON.stringify(body) }).then(answered).catch(unreachable);
}

/** Asks again every `pause()` ms while the page is seen. `say(state, words)` hears how it went. Returns: asks now. */
export function every(pause, ask, say) {
  let timer = 0;
  let turns = 0;
  async function turn() {
    const mine = (turns += 1);
    clearTimeout(timer);
    if (document.hidden) return say("paused", "Paused while the page is hidden");
    try {
      await ask();
      say("live", "Up to date");
    } catch (error) {
      say("lost", `${error.message} Trying again.`);
    }
    if (mine === turns) timer = setTimeout(turn, pause()); // else a later turn goes on
  }
  document.addEventListener("visibilitychange", turn);
  turn();
  return turn;
}

/** Writes a state into the bar; a status that is written again would be read out again. */
export function sayIn(place) {
  return (state, words) => {
    if (place.textContent === words) return;
    place.dataset.state = state;
    place.textContent = words;
  };
}
