// One dialog for every action: it says what will happen, is confirmed once, and shows what came of it.

import { post } from "./api.js";
import { $, element } from "./dom.js";

let asked = null;
let busy = false;

/**
 * title, says: what will happen, a paragraph each. fields: {name, label, value, options: [[value, words]], …attributes}.
 * confirm: the button's words; without, there is nothing to do but to close it. address, body(given): what is posted.
 * done(answer, given): the result in words. after(): when it was done. danger: the focus is on Cancel, and the button is red.
 */
export function ask(action) {
  if ($("ask").open) return; // what is confirmed is what was read
  asked = action;
  $("ask-title").textContent = action.title;
  $("ask-says").replaceChildren(...action.says.map((text) => element("p", { text })));
  $("ask-fields").replaceChildren(...(action.fields ?? []).map(field));
  $("ask-fields").hidden = false;
  result("", "");
  $("ask-confirm").textContent = action.confirm ?? "";
  $("ask-confirm").hidden = !action.confirm;
  $("ask-confirm").classList.toggle("danger", Boolean(action.danger));
  $("ask-cancel").textContent = action.confirm ? "Cancel" : "Close";
  $("ask").showModal();
  const first = $("ask-fields").querySelector("input, select");
  (!action.confirm || (action.danger && !first) ? $("ask-cancel") : (first ?? $("ask-confirm"))).focus();
}

function field({ name, label, options, value = "", ...attributes }) {
  const id = `field-${name}`;
  const input = element(options ? "select" : "input", { id, name, autocomplete: "off", ...attributes });
  for (const [each, words] of options ?? []) input.append(element("option", { value: each, text: words }));
  if (!options) input.value = value;
  return element("p", { className: "field" }, element("label", { for: id, text: label }), input);
}

function result(state, words) {
  $("ask-result").dataset.state = state;
  $("ask-result").textContent = words;
}

$("ask-cancel").addEventListener("click", () => $("ask").close());
$("ask").addEventListener("cancel", (event) => busy && event.preventDefault());

$("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy || $("ask-confirm").hidden) return;
  busy = true;
  const { address, body, done, after } = asked;
  const given = Object.fromEntries(new FormData($("ask-form")));
  $("ask-confirm").disabled = $("ask-cancel").disabled = true;
  result("waiting", "Doing it…");
  try {
    const answer = await post(address, body(given));
    result("good", done(answer, given));
    $("ask-confirm").hidden = true;
    $("ask-fields").hidden = true;
    $("ask-cancel").textContent = "Close";
    after?.(answer);
  } catch (error) {
    result("bad", error.unknown ? `Not known whether it was done: ${error.message} Look before you repeat it.` : `Not done: ${error.message}`);
  } finally {
    busy = false;
    $("ask-confirm").disabled = $("ask-cancel").disabled = false;
    $("ask-cancel").focus();
  }
});
