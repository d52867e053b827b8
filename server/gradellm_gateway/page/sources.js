// The side that shows what an answer's words came from: the prompt coloured by attribution scores.
import { byId, element, percent, quoted, speaker } from "./dom.js";
import { largest, shade } from "./explanation.js";
import { state, updateActions } from "./state.js";

/** Show an answer's sources. */
export function show(answer) {
  state.shown?.box.classList.remove("shown");
  state.shown = answer;
  answer.box.classList.add("shown");
  byId("compare").value = answer.comparedMethod;
  byId("faithfulness").replaceChildren(...(answer.faithfulness ?? []));
  updateActions();
  renderPanels(answer);
}

/** Show no answer. */
export function clear() {
  state.shown?.box.classList.remove("shown");
  state.shown = null;
  for (const name of ["panels", "faithfulness", "status", "scale"]) byId(name).replaceChildren();
  byId("bars").hidden = true;
  updateActions();
}

/** One panel with the prompt's text for each method. */
export function renderPanels(answer) {
  const methods = [answer.method, ...(answer.comparedMethod ? [answer.comparedMethod] : [])];
  answer.panels = methods.map((method) => renderPanel(answer, method));
  byId("panels").replaceChildren(...answer.panels.map(({ panel }) => panel));
  paint(answer);
}

function renderPanel(answer, method) {
  const panel = element("div", "panel");
  panel.tabIndex = 0;
  panel.setAttribute("role", "group");
  panel.setAttribute("aria-label", `The prompt, explained by ${method}`);
  panel.append(element("h3", "", method));
  const spans = [];
  let box = null, boxKey;
  for (const { text, token, columns } of answer.explanation.characters) {
    const isContent = answer.explanation.isContent(columns[0]), key = isContent ? `${token.message ?? ""}` : "template";
    if (!box || key !== boxKey) {
      boxKey = key;
      box = element("div", isContent ? "message" : "template");
      box.dir = "auto";
      panel.append(box);
      if (isContent && token.message !== null) box.append(speaker(token.role));
    }
    const trimmed = text.trimStart() || text, span = element("span", "piece", trimmed);
    if (token.segment) span.title = token.segment;
    box.append(text.slice(0, text.length - trimmed.length), span);
    spans.push(span);
  }
  return { method, panel, spans };
}

/** Colour the prompt by the scores of the word that is looked at, or of the whole answer where there is none. */
export function paint(answer, latestWord = null) {
  const word = answer.hovered ?? answer.pinned ?? latestWord;
  answer.elements.forEach((each, i) => each.classList.toggle("chosen", i === word));
  let isSigned = false;
  answer.panels.forEach(({ method, spans }, i) => {
    const scores = answer.explanation.scores(method, word === null ? undefined : [word]);
    const { characters } = answer.explanation;
    const sums = characters.map(({ columns }) => (scores ? columns.reduce((sum, column) => sum + scores[column], 0) : 0));
    const visible = sums.filter((_, i) => answer.explanation.isContent(characters[i].columns[0]));
    const peak = largest(visible);
    isSigned ||= visible.some((score) => score < 0);
    spans.forEach((span, i) => { span.className = `piece ${peak ? shade(sums[i] / peak) : ""}`; });
    if (i === 0) { showStatus(answer, word, scores); showBars(answer, scores); }
  });
  byId("low").textContent = isSigned ? "against" : "0";
  byId("high").textContent = isSigned ? "for" : "largest";
  byId("scale").replaceChildren(...Array.from({ length: isSigned ? 17 : 9 }, (_, i) => element("i", shade(isSigned ? (i - 8) / 8 : i / 8))));
}

/** A sentence that names the prompt's words with the largest scores. */
function showStatus(answer, word, scores) {
  const subject = word === null ? ["The answer"] : quoted(answer.elements[word].textContent.trim());
  if (!scores) {
    byId("status").replaceChildren(...(word === null ? ["Waiting for the answer."] : [...subject, " is not explained yet."]));
    return;
  }
  const top = answer.explanation.top(scores).flatMap(({ text, share }, i) => [i ? ", " : "", ...quoted(text), ` ${percent(share)}`]);
  byId("status").replaceChildren(...subject, ...(top.length ? [" came from ", ...top] : [": nothing stands out."]));
}

/** A bar for each document, as long as its share. */
function showBars(answer, scores) {
  const segments = scores ? answer.explanation.segments(scores) : [];
  byId("bars").hidden = !segments.length;
  byId("bars").replaceChildren(...segments.map(({ name, score, share }) => {
    const bar = element("div", "bar"), track = element("span", ""), fill = element("i", shade(score < 0 ? -1 : 1));
    fill.style.width = `${100 * share}%`;
    track.append(fill);
    bar.append(element("bdi", "", name), track, element("span", "", percent(share)));
    return bar;
  }));
}
