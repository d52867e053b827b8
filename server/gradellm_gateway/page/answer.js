// One answer: its words as they are streamed, and how they are hovered, selected and reached by keys.
import { element } from "./dom.js";
import { Attribution, Explanation } from "./explanation.js";
import { paint, show } from "./sources.js";
import { state } from "./state.js";

const wordOf = (event) => { const span = event.target.closest(".word"); return span ? +span.dataset.word : null; };

export class Answer {
  constructor(event, box, method, request) {
    this.explanation = new Explanation(event.started);
    this.attributions = new Map([[method, new Attribution(event)]]); // by label of the method
    this.box = box;
    this.method = method; // label of the method that explains while the answer is generated
    this.comparedMethod = ""; // label of a second method
    this.request = request; // { messages, segments }, to explain the same prompt again
    this.elements = []; // a span for each word
    this.leads = []; // a text node with the white space before each word
    this.hovered = null; // index of a word
    this.latest = null; // the last word that was explained, while words come
    this.pinned = null; // [first, last] word of the selection
    this.sentence = null; // of the citations, if it is the selection
    this.document = null; // name of the document that is marked
    this.panels = [];
    this.isFinished = false;
    this.upstream = null; // of an answer that another engine writes
    box.addEventListener("pointerover", (event) => this.#hover(wordOf(event)));
    box.addEventListener("pointerleave", () => this.#hover(null));
    box.addEventListener("focusin", (event) => this.#hover(wordOf(event)));
    box.addEventListener("focusout", () => this.#hover(null));
    box.addEventListener("click", (event) => this.#onClick(event));
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

  /** Add an event's scores and pictures; the latest word is shown, unless another one is looked at. */
  addScores(event) {
    this.attributions.get(this.method).add(event);
    const first = event.words?.findLast(({ picture }) => picture)?.tokens[0];
    if (first !== undefined) this.latest = this.explanation.words.findLastIndex(({ tokens }) => tokens.includes(first));
    if (event.words && state.shown === this) paint(this);
  }

  /** Take what is known of the engine that writes the answer; undefined for nothing new. */
  setUpstream(upstream) { this.upstream = upstream ?? this.upstream; }

  finish(event) {
    this.explanation.finish(event);
    this.isFinished = true;
    if (state.shown === this) paint(this);
  }

  /** The words that are looked at, [first, last]; null for the whole answer. */
  range() {
    if (this.hovered !== null) return [this.hovered, this.hovered];
    return this.pinned ?? (this.isFinished || this.latest === null ? null : [this.latest, this.latest]);
  }

  /** Mark a range of words: outlined if it is one, underlined if it is several. */
  mark(range) {
    this.elements.forEach((each, i) => {
      const isInside = range !== null && i >= range[0] && i <= range[1];
      each.classList.toggle("chosen", isInside && range[0] === range[1]);
      each.classList.toggle("ranged", isInside && range[0] < range[1]);
    });
  }

  /** Select a range of words, perhaps a sentence of the citations and a document; null for the whole answer. */
  select(range, sentence = null, document = null) {
    Object.assign(this, { pinned: range, sentence, document, hovered: null });
    this.elements.forEach((each, i) => each.setAttribute("aria-pressed", `${range !== null && i >= range[0] && i <= range[1]}`));
    if (state.shown !== this) show(this);
    else paint(this);
  }

  /** Select the words of the text that the user has selected in the page, if it is of this answer. */
  selectText() {
    const selection = getSelection();
    if (selection.isCollapsed || !this.box.contains(selection.anchorNode)) return;
    const range = selection.getRangeAt(0);
    const words = this.elements.flatMap((each, i) => (!each.hidden && covers(range, each.firstChild) ? [i] : []));
    if (words.length) this.select([words[0], words.at(-1)]);
  }

  #isSelected(word) { return this.pinned !== null && this.pinned[0] === word && this.pinned[1] === word; }

  #toggle(word) { this.select(this.#isSelected(word) ? null : [word, word]); }

  #extendTo(word) { this.select([Math.min(word, this.pinned?.[0] ?? word), Math.max(word, this.pinned?.[1] ?? word)]); }

  #onClick(event) {
    const word = wordOf(event);
    if (word === null) return;
    if (event.shiftKey) { this.#extendTo(word); getSelection().collapseToEnd(); }
    else if (getSelection().isCollapsed) this.#toggle(word);
  }

  #hover(word) {
    if (word === this.hovered) return;
    this.hovered = word;
    if (word !== null && state.shown !== this) show(this);
    else if (state.shown === this) paint(this);
  }

  #onKey(event) {
    const word = wordOf(event);
    if (word === null) return;
    const isRightToLeft = getComputedStyle(this.box).direction === "rtl";
    const [forward, back] = isRightToLeft ? ["ArrowLeft", "ArrowRight"] : ["ArrowRight", "ArrowLeft"];
    const targets = { [forward]: word + 1, [back]: word - 1, Home: 0, End: Infinity };
    if (event.key in targets) {
      if (event.shiftKey && !this.pinned) this.select([word, word]);
      const target = this.#focus(targets[event.key]);
      if (event.shiftKey) this.#extendTo(target);
    } else if (event.key === "Enter" || event.key === " ") this.#toggle(word);
    else return;
    event.preventDefault();
  }

  /** Move the focus to a word, which alone is in the tab order; its index. */
  #focus(word) {
    const target = Math.max(0, Math.min(this.elements.length - 1, word));
    this.elements.forEach((each, i) => { each.tabIndex = i === target ? 0 : -1; });
    this.elements[target].focus();
    return target;
  }
}

/** Whether a range has a character of a text node. */
function covers(range, node) {
  const own = document.createRange();
  own.selectNodeContents(node);
  return range.compareBoundaryPoints(Range.END_TO_START, own) < 0 && range.compareBoundaryPoints(Range.START_TO_END, own) > 0;
}
