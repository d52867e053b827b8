// Answers that another engine writes: their text, which comes before its words are explained, and what is known of the engine.
import { element } from "./dom.js";

/** The text of an answer as the other engine sends it. What has no words yet is shown after them. */
export class UpstreamText {
  constructor(box) {
    this.text = "";
    this.box = box;
    this.rest = element("span", "unexplained");
  }

  /** Take an event of the stream into account: the engine's own chunks have no `gradellm` object. */
  add({ choices }) { this.text += choices?.[0]?.delta?.content ?? ""; }

  /** Show what comes after the words of an answer; all of it while there is none. */
  show(answer) {
    const words = answer?.explanation.tokens.map(({ text }) => text).join("") ?? "";
    this.rest.textContent = this.text.startsWith(words) ? this.text.slice(words.length) : "";
    if (this.rest.textContent) this.box.append(this.rest);
    else this.rest.remove();
  }
}

const digits = (difference) => Number(difference.toPrecision(2));

/** What is known of the engine that wrote an answer, in sentences; "" if the explaining model did. */
export function describeUpstream(upstream) {
  if (!upstream) return "";
  const { ids, template, dtype, log_probs: found } = upstream, figures = found && `${found.tokens} tokens, largest difference ${digits(found.largest)}`;
  const compared = {
    same: `Its log-probabilities agree with this model’s (${figures}).`,
    compatible: `Its log-probabilities are as near to this model’s as ${dtype} lets expect (${figures}); that it is the same model is not proved.`,
    different: `Its log-probabilities differ from this model’s (${figures}): the colours explain another checkpoint, adapter or prompt.`,
  }[found?.verdict] ?? "Whether its log-probabilities agree with this model’s is not known.";
  const others = [
    ids === "upstream" ? "" : "It tells no token ids: its text was tokenised again.",
    template === "different" ? "Its chat template is another than this model’s; its own prompt is explained." : "",
  ];
  return ["Another engine wrote this answer.", compared, ...others].filter(Boolean).join(" ");
}
