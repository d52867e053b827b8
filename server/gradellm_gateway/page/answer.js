// One answer: its words as they are streamed, and how they are hovered, pinned and reached by keys.
import { element } from "./dom.js";
import { Explanation } from "./explanation.js";
import { paint, show } from "./sources.js";
import { state } from "./state.js";

const wordOf = (event) => { const span = event.target.closest(".word"); return span ? +span.dataset.word : null; };

export class Answer {
  constructor(started, box, method) {
    this.explanation = new Explanation(started);
    this.box = box;
    this.method = method; // label of the method that explains while the answer is generated
    this.comparedMethod = ""; // label of a second method
    this.elements = []; // a span for each word
    this.leads = []; // a text node with the white space before each word
    this.hovered = null; // index of a word
    this.pinned = null;
    this.panels = []; // { method, panel, spans }
    this.isFinished = false;
    box.addEventListener("pointerover", (event) => this.#hover(wordOf(event)));
    box.addEventListener("pointerleave", () => this.#hover(null));
    box.addEventListener("focusin", (event) => this.#hover(wordOf(event)));
    box.addEventListener("focusout", () => this.#hover(null));
    box.addEventListener("click", (event) => { const word = wordOf(event); if (word !== null) this.togglePin(word); });
    box.addEventListener("keydown", (event) => this.#onKey(event));
  }

  addToken(token) {
    const added = this.explanation.addToken(token);
    if (!added) return;
    const { word, isNew } = added;
    if (isNew) this.#addWord(word);
    const text = this.explanation.words[word].text, trimmed = text.trimStart();
    this.leads[word].data = text.slice(0, text.length - trimmed.length);
    this.elements[word].textContent = trimmed;
    this.elements[word].hidden = !trimmed; // white space whose word has not come yet
  }

  #addWord(word) {
    const span = element("span", "word"), lead = new Text();
    span.dataset.word = word;
    span.tabIndex = this.elements.length ? -1 : 0;
    span.setAttribute("role", "button");
    span.setAttribute("aria-pressed", "false");
    this.box.append(lead, span);
    this.elements.push(span);
    this.leads.push(lead);
  }

  /** Add a token's scores by this answer's method; the latest word is shown, unless another one is looked at. */
  addAttribution(attribution) {
    this.explanation.addRow(this.method, attribution);
    this.explanation.keepRaw(this.method, attribution);
    const { length } = this.explanation.words;
    if (state.shown === this) paint(this, length ? length - 1 : null);
  }

  togglePin(word) {
    const before = this.pinned;
    if (before !== null) this.elements[before].setAttribute("aria-pressed", "false");
    this.pinned = before === word ? null : word;
    if (this.pinned !== null) this.elements[word].setAttribute("aria-pressed", "true");
    if (state.shown !== this) show(this);
    paint(this);
  }

  #hover(word) {
    this.hovered = word;
    if (word !== null && state.shown !== this) show(this);
    if (state.shown === this) paint(this);
  }

  #onKey(event) {
    const word = wordOf(event);
    if (word === null) return;
    const isRightToLeft = getComputedStyle(this.box).direction === "rtl";
    const [forward, back] = isRightToLeft ? ["ArrowLeft", "ArrowRight"] : ["ArrowRight", "ArrowLeft"];
    const actions = {
      [forward]: () => this.#focus(word + 1),
      [back]: () => this.#focus(word - 1),
      Home: () => this.#focus(0),
      End: () => this.#focus(Infinity),
      Enter: () => this.togglePin(word),
      " ": () => this.togglePin(word),
    };
    if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
  }

  /** Move the focus to a word; it alone is in the tab order. */
  #focus(word) {
    const target = this.elements[Math.max(0, Math.min(this.elements.length - 1, word))];
    this.elements.forEach((each) => { each.tabIndex = each === target ? 0 : -1; });
    target.focus();
  }
}
