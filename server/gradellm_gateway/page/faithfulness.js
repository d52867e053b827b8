// How faithful an answer's explanation is: the server measures it, quickly for the selected words or thoroughly.
import { byId, element, percent, quoted, shorten, showError } from "./dom.js";
import { stream } from "./server.js";
import { callOptions, keywordsOf, state, updateActions } from "./state.js";

const QUICK_TOKENS = 2; // that are evaluated
const QUICK_PI = 0.3; // the share of the words that is kept or left out; a thorough check has 19 shares
const QUICK_SAMPLES = 5; // masks

/** What a quick check evaluates: a few tokens of the selected words, at one share of the words. */
function quickSettings({ explanation }, range) {
  const [first, end] = explanation.tokensOf(range), stride = Math.ceil((end - first) / QUICK_TOKENS);
  const completion = explanation.tokens.slice(0, end); // later tokens have no part in it
  return { completion_ids: completion.map(({ id }) => id), offset: first, stride, pis: [QUICK_PI], samples: QUICK_SAMPLES };
}

async function measure(isQuick) {
  const answer = state.shown, { explanation, method } = answer, range = answer.pinned ?? [0, explanation.words.length - 1];
  const body = {
    ...answer.request,
    completion_ids: explanation.tokens.map(({ id }) => id),
    ...(isQuick ? quickSettings(answer, range) : {}),
    methods: { [method]: keywordsOf(method), random: { method: "random" } },
    seed: 0,
  };
  start();
  const { signal } = state.measuring, begin = performance.now();
  try {
    for await (const { progress, summary } of stream("v1/gradellm/evaluate", body, callOptions(AbortSignal.any([signal, state.sideWork.signal])))) {
      if (progress) showProgress(progress.done, (performance.now() - begin) / 1000);
      if (summary) answer.faithfulness = results(answer, isQuick ? range : null, summary, (performance.now() - begin) / 1000);
    }
    if (state.shown === answer) byId("faithfulness").replaceChildren(...(answer.faithfulness ?? []));
  } catch (error) {
    if (error.name !== "AbortError") showError(error.message);
    else if (signal.aborted) byId("faithfulness").textContent = "Cancelled.";
  } finally {
    state.measuring = null;
    byId("measuring").hidden = true;
    updateActions();
  }
}

function start() {
  state.measuring = new AbortController();
  byId("faithfulness").replaceChildren();
  byId("measuring").hidden = false;
  showProgress(0, 0);
  updateActions();
}

/** Show the share that is done, and the remaining time at the pace so far. */
function showProgress(done, seconds) {
  byId("done").value = done;
  byId("remaining").textContent = done > 0 ? `${percent(done)}, ${duration((seconds * (1 - done)) / done)} left` : "Measuring …";
}

function duration(seconds) {
  if (seconds < 1) return "less than a second";
  return seconds < 100 ? `about ${Math.ceil(seconds)} s` : `about ${Math.round(seconds / 60)} minutes`;
}

// --- results ---------------------------------------------------------------------------------------------------------

const METRICS = {
  pi_soft_ns: { name: "Sufficiency, π-Soft-NS", kept: "The coloured words alone bring this text back", better: "better than random words do", worse: "worse than random words do", equal: "about as well as random words do" },
  pi_soft_nc: { name: "Comprehensiveness, π-Soft-NC", kept: "Without the coloured words it changes", unit: " of the change without the whole question", better: "more than without random words", worse: "less than without random words", equal: "about as much as without random words" },
};

/** A measurement as paragraphs: a verdict, what it rests on, numbers. `range`: words of a quick check; null for a thorough one. */
function results(answer, range, summary, seconds) {
  const of = (wanted) => summary.metrics.filter(({ name, metric }) => name === wanted && metric in METRICS);
  const found = of(answer.method), random = of("random"), length = summary.steps.length - summary.skipped_steps.length;
  if (!found.length) return [element("p", "", "No result: the model would write this text without the question, too.")];
  const verdicts = found.map(({ difference_from_random: gain }) => verdict(gain));
  const sentences = found.map(({ metric, interval }, i) => {
    const { kept, [verdicts[i]]: comparison } = METRICS[metric];
    const shares = range ? ` (${percent(interval.mean)}${METRICS[metric].unit ?? ""}, random words ${percent(random[i].interval.mean)})` : "";
    return `${kept} ${comparison}${shares}.`;
  });
  const subject = range ? quoted(shorten(answer.explanation.textOf(range))) : ["the whole answer"];
  const facts = element("p", "help");
  facts.append("Measured for ", ...subject, ` at ${length} ${length === 1 ? "token" : "tokens"}${range ? `, with ${percent(QUICK_PI)} of the words kept or left out` : ""}, in ${seconds.toFixed(1)} s. `);
  facts.append("The ranges cover the random choice of words, not other answers.");
  return [element("p", "verdict", overall(verdicts)), element("p", "", sentences.join(" ")), ...found.map(numbers), facts];
}

function overall(verdicts) {
  if (verdicts.every((each) => each === "better")) return "Faithful here: the coloured words matter more to the model than others.";
  if (verdicts.some((each) => each === "worse")) return "Not faithful here: random words do better. Do not rely on these colours.";
  if (verdicts.some((each) => each === "better")) return "Partly faithful here: one of two checks finds that the coloured words matter more than others.";
  return "Not shown to be faithful: this check cannot tell the coloured words from random ones.";
}

/** Whether scores do better than random ones: their difference, with its interval, is on one side of 0. */
function verdict(gain) {
  if (!gain || gain.low === null) return "equal";
  return gain.low > 0 ? "better" : gain.high < 0 ? "worse" : "equal";
}

function numbers({ metric, interval, difference_from_random: gain }) {
  const shown = ({ mean, low, high }) => `${mean.toFixed(2)}${low === null ? "" : ` (${low.toFixed(2)} to ${high.toFixed(2)})`}`;
  return element("p", "help", `${METRICS[metric].name}: ${shown(interval)}${gain ? `; difference from random ${shown(gain)}` : ""}`);
}

export function addMeasurements() {
  byId("judge").addEventListener("click", () => measure(true));
  byId("judge-thoroughly").addEventListener("click", () => measure(false));
  byId("cancel").addEventListener("click", () => state.measuring?.abort());
}
