// An explanation as it is streamed: its words, and what each method says of them. All numbers come from the gateway.
// No DOM in this file.

export class Explanation {
  constructor(started) {
    this.started = started;
    this.tokens = [];
    this.words = []; // { text, tokens: [index] }
    this.finished = null;
    this.citations = []; // a sentence each
    this.textless = []; // tokens without text: they belong to the next token's word
  }

  /** Add a token: { word, isNew }, the word it belongs to and whether the token starts it; null for a token without text. */
  addToken(token) {
    this.tokens.push(token);
    if (token.special) this.#addTextlessTokens();
    else if (!token.text) this.textless.push(token.index);
    if (!token.text) return null;
    const isNew = !this.words.length || token.special || typeof token.word !== "number" || token.word !== this.words.at(-1).number;
    if (isNew) this.words.push({ text: "", tokens: [], number: token.special ? null : token.word });
    this.#addTextlessTokens();
    const word = this.words.at(-1);
    word.text += token.text;
    word.tokens.push(token.index);
    return { word: this.words.length - 1, isNew };
  }

  finish({ finished, citations }) {
    this.#addTextlessTokens();
    this.finished = finished;
    this.citations = citations ?? [];
  }

  #addTextlessTokens() {
    if (this.words.length) this.words.at(-1).tokens.push(...this.textless);
    this.textless = [];
  }

  /** The tokens of a range of words, [first, one past the last]; null, all of them, for null. */
  tokensOf(range) {
    return range && [this.words[range[0]].tokens[0], this.words[range[1]].tokens.at(-1) + 1];
  }

  /** The text of a range of words, white space around it removed. */
  textOf([first, last]) {
    return this.words.slice(first, last + 1).map(({ text }) => text).join("").trim();
  }

  /** The words that share a character with a part of the answer, [first, last]; null for none. `end` is exclusive. */
  wordsAt(start, end) {
    const inside = new Set(this.tokens.filter((token) => token.start < end && token.end > start).map(({ index }) => index));
    const found = this.words.flatMap(({ tokens }, i) => (tokens.some((index) => inside.has(index)) ? [i] : []));
    return found.length ? [found[0], found.at(-1)] : null;
  }

  /** The document that the Python client's Explanation.from_json reads, with the rows of some tokens (default: all). */
  document({ started, rows }, tokens = null) {
    const attributions = rows.filter(({ token_index: index }) => !tokens || (index >= tokens[0] && index < tokens[1]));
    return { format: "gradellm.explanation", version: 1, started, tokens: this.tokens, attributions, finished: this.finished };
  }
}

const keyOf = (view, tokens) => `${view} ${tokens ?? "all"}`;

/** What one method says of an answer: the rows of its tokens, and the pictures that have come so far. */
export class Attribution {
  constructor({ started, canvas }) {
    this.started = started;
    this.canvas = canvas; // the prompt as chips
    this.rows = [];
    this.pictures = new Map(); // by view and tokens; null for one that cannot be made
    this.wanted = null; // { view, tokens } of the picture to ask for next
    this.isAsking = false;
  }

  /** Add an event: a row, and the pictures of the words that it completes and of the whole answer. */
  add({ attribution, words, answer }) {
    if (attribution) this.rows.push(attribution);
    for (const { tokens, picture } of words ?? []) if (picture) this.setPicture("excess", tokens, picture);
    if (answer) this.setPicture("excess", null, answer);
  }

  setPicture(view, tokens, picture) { this.pictures.set(keyOf(view, tokens), picture); }

  /** The picture of a view and some tokens (null: the whole answer); undefined until it has come. */
  picture(view, tokens) { return this.pictures.get(keyOf(view, tokens)); }

  /** Whether every token has a row that was asked for; pictures of others are made when they come. */
  explains(tokens) {
    return this.rows.some(({ token_index: index }) => !tokens || (index >= tokens[0] && index < tokens[1]));
  }
}
