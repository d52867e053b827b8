// What can be done with a finished answer: comparison with another method, faithfulness, copy, download.
import { byId, element, percent, showError } from "./dom.js";
import { stream } from "./server.js";
import { paint, renderPanels, show } from "./sources.js";
import { callOptions, keywordsOf, state, updateActions } from "./state.js";

/** The keywords of a teacher-forced replay: the same prompt and completion tokens. */
const replayKeywords = (answer) => ({
  prompt_ids: answer.explanation.started.prompt_tokens.map((token) => token.id),
  completion_ids: answer.explanation.tokens.map((token) => token.id),
});

async function compare(event) {
  const answer = state.shown, method = event.target.value;
  answer.comparedMethod = method;
  renderPanels(answer);
  if (!method || answer.explanation.rows.has(method)) return;
  byId("status").textContent = `Explaining by ${method} …`;
  const body = { ...replayKeywords(answer), ...keywordsOf(method) };
  try {
    for await (const { attribution } of stream("v1/gradellm/attribute", body, callOptions(state.sideWork.signal))) {
      if (attribution) answer.explanation.addRow(method, attribution);
    }
    if (state.shown === answer) paint(answer);
  } catch (error) {
    answer.explanation.rows.delete(method); // which may be incomplete
    answer.comparedMethod = "";
    if (state.shown === answer) show(answer);
    if (error.name !== "AbortError") showError(error.message);
  }
}

async function measureFaithfulness() {
  const answer = state.shown, place = byId("faithfulness");
  state.isMeasuring = true;
  updateActions();
  place.textContent = "Measuring: the prompt is run many times with parts of it left out …";
  const body = {
    ...replayKeywords(answer),
    methods: { [answer.method]: keywordsOf(answer.method), random: { method: "random" } },
    perturb_positions: answer.explanation.started.prompt_tokens.flatMap((token, i) => (token.role === "user" && !token.special ? [i] : [])),
    seed: 0,
  };
  try {
    for await (const { progress, summary } of stream("v1/gradellm/evaluate", body, callOptions(state.sideWork.signal))) {
      if (progress && state.shown === answer) place.textContent = `Measuring … ${percent(progress.done)}`;
      if (summary) answer.faithfulness = faithfulnessTexts(answer, summary);
    }
    if (state.shown === answer) place.replaceChildren(...(answer.faithfulness ?? []));
  } catch (error) {
    if (state.shown === answer) place.textContent = "";
    if (error.name !== "AbortError") showError(error.message);
  } finally {
    state.isMeasuring = false;
    updateActions();
  }
}

const METRICS = {
  pi_soft_ns: "Sufficiency: how well the words with high scores alone bring the answer back (pi-Soft-NS)",
  pi_soft_nc: "Comprehensiveness: how much the answer changes without those words (pi-Soft-NC)",
};

function faithfulnessTexts(answer, summary) {
  const interval = ({ mean, low, high }) => `${mean.toFixed(2)}${low === null ? "" : ` (${low.toFixed(2)} to ${high.toFixed(2)})`}`;
  return summary.metrics.filter((result) => result.name === answer.method).map((result) => {
    const gain = result.difference_from_random;
    const difference = gain ? `, ${interval(gain)} more than random` : "";
    return element("p", "", `${METRICS[result.metric] ?? result.metric}: ${interval(result.interval)}${difference}${verdict(gain)}. Measured at ${result.steps} ${result.steps === 1 ? "token" : "tokens"} of the answer; the interval covers the random masks, not other answers.`);
  });
}

function verdict(gain) {
  if (!gain || gain.low === null) return "";
  if (gain.low > 0) return "; better than random scores";
  return gain.high < 0 ? "; worse than random scores" : "; not distinguishable from random scores";
}

async function copyAnswer() {
  const text = state.shown.explanation.tokens.map((token) => token.text).join("");
  try { await navigator.clipboard.writeText(text); byId("status").textContent = "Copied."; }
  catch { showError("The browser does not let this page copy; select the text instead."); }
}

function downloadExplanation() {
  const file = new Blob([JSON.stringify(state.shown.explanation.document(state.shown.method))], { type: "application/json" });
  const link = element("a", "");
  link.href = URL.createObjectURL(file);
  link.download = "explanation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

export function addActions() {
  byId("compare").addEventListener("change", compare);
  byId("judge").addEventListener("click", measureFaithfulness);
  byId("copy").addEventListener("click", copyAnswer);
  byId("download").addEventListener("click", downloadExplanation);
}
