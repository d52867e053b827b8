// The side that shows what an answer's words were drawn from: the picture of what is selected, which the gateway made.
import { showCitations } from "./citations.js";
import { bar, byId, element, percent, quoted, shorten, showError } from "./dom.js";
import { markDocument, renderPanel, shadePanel, shadeName } from "./panel.js";
import { call } from "./server.js";
import { callOptions, state, updateActions } from "./state.js";
import { describeUpstream } from "./upstream.js";

/** Views by name: what they are called, what their colours mean, the ends of their scale. */
const VIEWS = {
  excess: ["what stands out", "Coloured by how far a word’s score exceeds the median of all words.", "0", "strongest"],
  raw: ["raw scores", "Coloured by the scores themselves.", "0", "largest"],
  ...Object.fromEntries([0.1, 0.3, 0.5].map((pi) => [`retention ${pi}`, [
    `kept words, π = ${pi}`, `How likely each word is kept when ${percent(pi)} of the words are.`, "left out", "kept"]])),
};

/** Show an answer's sources. */
export function show(answer) {
  state.shown?.box.classList.remove("shown");
  state.shown = answer;
  answer.box.classList.add("shown");
  byId("compare").value = answer.comparedMethod;
  byId("faithfulness").replaceChildren(...(answer.faithfulness ?? []));
  byId("colours").hidden = false;
  updateActions();
  renderPanels(answer);
}

/** Show no answer. */
export function clear() {
  state.shown?.box.classList.remove("shown");
  state.shown = null;
  for (const name of ["panels", "faithfulness", "status", "scale", "citations", "upstream"]) byId(name).replaceChildren();
  for (const name of ["bars", "colours", "citations"]) byId(name).hidden = true;
  updateActions();
}

/** One panel with the prompt's text for each method that has begun to explain. */
export function renderPanels(answer) {
  const methods = [answer.method, answer.comparedMethod].filter((method) => answer.attributions.has(method));
  answer.panels = methods.map((method) => renderPanel(method, answer.attributions.get(method)));
  byId("panels").replaceChildren(...answer.panels.map(({ box }) => box));
  paint(answer);
}

/** Draw the picture of what is looked at: a word, the selection, the latest word while words come, the whole answer. */
export function paint(answer) {
  const range = answer.range(), tokens = answer.explanation.tokensOf(range);
  answer.mark(range);
  answer.panels.forEach((panel, i) => {
    const picture = pictureOf(answer, panel.attribution, tokens);
    if (picture !== undefined) shadePanel(panel, picture);
    panel.box.setAttribute("aria-busy", `${picture === undefined}`);
    markDocument(panel, answer.document);
    if (i === 0) { showStatus(answer, range, panel, picture); showBars(picture); }
  });
  byId("upstream").textContent = describeUpstream(answer.upstream);
  showScale(answer);
  showCitations(answer);
}

// --- pictures --------------------------------------------------------------------------------------------------------

/** The picture of some tokens; null if there is none, undefined if it has been asked for. */
function pictureOf(answer, attribution, tokens) {
  const found = attribution.picture(state.view, tokens);
  if (found !== undefined) return found;
  if (!attribution.explains(tokens)) return null;
  attribution.wanted = { view: state.view, tokens };
  if (!attribution.isAsking) askForPictures(answer, attribution);
  return undefined;
}

/** Ask for the wanted picture, then for what is wanted by then: pointers pass over words faster than pictures come. */
async function askForPictures(answer, attribution) {
  attribution.isAsking = true;
  while (attribution.wanted) {
    const { view, tokens } = attribution.wanted, [scale, pi] = view.split(" ");
    attribution.wanted = null;
    const body = { explanation: answer.explanation.document(attribution, tokens), selection: tokens, scale, ...(pi ? { pi: +pi } : {}) };
    try {
      attribution.setPicture(view, tokens, (await call("v1/gradellm/pictures", body, callOptions())).picture);
    } catch (error) {
      attribution.setPicture(view, tokens, null);
      showError(error.message);
    }
    if (state.shown === answer) paint(answer);
  }
  attribution.isAsking = false;
}

// --- texts -----------------------------------------------------------------------------------------------------------

const quotedChip = ({ text, place }) => [...quoted(text), place ? ` (${place})` : ""];

/** A sentence that names the words that the selection was drawn from. */
function showStatus(answer, range, { attribution }, picture) {
  const subject = range ? quoted(shorten(answer.explanation.textOf(range))) : ["The whole answer"];
  if (picture === undefined) return; // the last sentence stays until the picture has come
  if (!picture) {
    byId("status").replaceChildren(...(answer.explanation.words.length ? [...subject, answer.isFinished ? " was not explained." : " is not explained yet."] : ["Waiting for the answer."]));
    return;
  }
  const { chips } = attribution.canvas, isRetention = state.view.startsWith("retention");
  const against = new Set(picture.coloured.filter(([, level]) => level < 0).map(([chip]) => chip));
  const named = picture.top.filter(([chip]) => chip in chips).flatMap(([chip, share], i) => [
    i ? ", " : "", ...quotedChip(chips[chip]), isRetention ? "" : ` ${percent(share)}`, against.has(chip) ? " against" : ""]);
  const verb = isRetention ? " keeps above all " : " was drawn from ";
  byId("status").replaceChildren(...subject, ...(named.length ? [verb, ...named, "."] : [": nothing stands out."]));
}

/** A bar for each document, and one for the rest of the text, as long as its share of the colour. */
function showBars(picture) {
  if (picture === undefined) return;
  const segments = picture?.segments ?? [], isHidden = segments.length < 2 || state.view.startsWith("retention");
  byId("bars").hidden = isHidden;
  byId("bars").replaceChildren(element("h3", "", "Shares of the colour"), ...segments.map(([name, share]) => bar(name || "the rest of the text", share, name ? shadeName(24) : "rest", percent(share))));
}

function showScale(answer) {
  const [, help, low, high] = VIEWS[state.view];
  const isSigned = answer.panels.some(({ isSigned }) => isSigned);
  byId("view-help").textContent = help;
  byId("low").textContent = isSigned ? "against" : low;
  byId("high").textContent = isSigned ? "for" : high;
  byId("scale").replaceChildren(...Array.from({ length: isSigned ? 17 : 9 }, (_, i) => element("i", shadeName(isSigned ? 3 * (i - 8) : 3 * i))));
}

export function addViews() {
  byId("view").replaceChildren(...Object.entries(VIEWS).map(([name, [label]]) => new Option(label, name)));
  byId("view").addEventListener("change", (event) => { state.view = event.target.value; if (state.shown) paint(state.shown); });
}
