// What can be done with a finished answer: comparison with another method, copy, download.
import { byId, element, showError } from "./dom.js";
import { Attribution } from "./explanation.js";
import { addMeasurements } from "./faithfulness.js";
import { stream } from "./server.js";
import { paint, renderPanels, show } from "./sources.js";
import { callOptions, keywordsOf, state } from "./state.js";

async function compare(event) {
  const answer = state.shown, method = event.target.value, { attributions } = answer;
  answer.comparedMethod = method;
  renderPanels(answer);
  if (!method || attributions.has(method)) return;
  byId("status").textContent = `Explaining by ${method} …`;
  const completion_ids = answer.explanation.tokens.map((token) => token.id);
  const body = { ...answer.request, completion_ids, ...keywordsOf(method), pictures: true };
  try {
    for await (const event of stream("v1/gradellm/attribute", body, callOptions(state.sideWork.signal))) {
      if (event.started) {
        attributions.set(method, new Attribution(event));
        if (state.shown === answer) renderPanels(answer);
      }
      attributions.get(method)?.add(event);
    }
    if (state.shown === answer) paint(answer);
  } catch (error) {
    attributions.delete(method); // which may be incomplete
    answer.comparedMethod = "";
    if (state.shown === answer) show(answer);
    if (error.name !== "AbortError") showError(error.message);
  }
}

async function copyAnswer() {
  const text = state.shown.explanation.tokens.map((token) => token.text).join("");
  try { await navigator.clipboard.writeText(text); byId("status").textContent = "Copied."; }
  catch { showError("The browser does not let this page copy; select the text instead."); }
}

function downloadExplanation() {
  const { explanation, attributions, method } = state.shown;
  const file = new Blob([JSON.stringify(explanation.document(attributions.get(method)))], { type: "application/json" });
  const link = element("a", "");
  link.href = URL.createObjectURL(file);
  link.download = "explanation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

export function addActions() {
  byId("compare").addEventListener("change", compare);
  byId("copy").addEventListener("click", copyAnswer);
  byId("download").addEventListener("click", downloadExplanation);
  addMeasurements();
}
