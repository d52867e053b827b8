// An explanation as it is streamed: its words, their scores, the prompt's segments. No DOM in this file.

const LEVELS = 24, MIN_VISIBLE_SHARE = 0.03; // shades of the scale; a smaller share of the largest has no visible colour

/** The CSS class of the shade for a share of the largest score, -1..1; "" for none. */
export function shade(share) {
  if (!(Math.abs(share) >= MIN_VISIBLE_SHARE)) return "";
  return (share > 0 ? "f" : "a") + Math.max(1, Math.min(LEVELS, Math.round(Math.abs(share) * LEVELS)));
}

export const largest = (scores) => scores.reduce((maximum, score) => Math.max(maximum, Math.abs(score)), 0);

/** A prompt's tokens grouped so that every character of its text is drawn once: { columns, token, start, end, text }.
 * Tokens that overlap are one group; a token without text joins the next one. `text` is an array of code points. */
function groupByCharacters(text, tokens) {
  const groups = [];
  let last = null, before = null;
  tokens.forEach((token, column) => {
    const isPart = before && last.start === last.end && !before.special && !token.special && before.role === token.role && before.message === token.message;
    if (!isPart && !(last && token.start >= last.start && token.start < Math.min(last.end, token.end))) {
      groups.push(last = { columns: [], token, start: token.start, end: token.start });
    }
    if (isPart) last.start = last.end = token.start;
    last.columns.push(column);
    last.token = before = token;
    last.end = Math.max(last.end, token.end);
  });
  for (const group of groups) group.text = text.slice(group.start, group.end).join("");
  return groups;
}

export class Explanation {
  constructor(started) {
    this.started = started;
    this.tokens = [];
    this.words = []; // { text, tokens: [index] }
    this.rows = new Map(); // method label -> token index -> scores
    this.finished = null;
    this.text = Array.from(started.prompt_text); // offsets are code points
    this.characters = groupByCharacters(this.text, started.prompt_tokens);
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

  finish(finished) {
    this.#addTextlessTokens();
    this.finished = finished;
  }

  #addTextlessTokens() {
    if (this.words.length) this.words.at(-1).tokens.push(...this.textless);
    this.textless = [];
  }

  addRow(method, attribution) {
    if (!this.rows.has(method)) this.rows.set(method, new Map());
    this.rows.get(method).set(attribution.token_index, attribution.scores);
  }

  /** A method's scores by prompt token, summed over words (default: all); null without attribution. */
  scores(method, words = this.words.keys()) {
    const rows = this.rows.get(method);
    if (!rows) return null;
    let total = null;
    for (const word of words) {
      for (const index of this.words[word].tokens) {
        const row = rows.get(index);
        if (!row) continue;
        total ??= new Float64Array(this.started.prompt_tokens.length);
        row.forEach((score, column) => { total[column] += score; });
      }
    }
    return total;
  }

  /** Whether a prompt token is of a message's text, not of the chat template. */
  isContent(column) {
    const token = this.started.prompt_tokens[column];
    return token.role !== "template" && !token.special;
  }

  /** Named segments with their scores and shares of all scores' magnitudes. */
  segments(scores) {
    const total = scores.reduce((sum, score) => sum + Math.abs(score), 0), sums = new Map();
    this.started.prompt_tokens.forEach((token, column) => {
      if (token.segment) sums.set(token.segment, (sums.get(token.segment) ?? 0) + scores[column]);
    });
    return [...sums].map(([name, score]) => ({ name, score, share: total ? Math.abs(score) / total : 0 }));
  }

  /** The `count` words of the prompt with the largest scores: { text, share }. */
  top(scores, count = 3) {
    const total = scores.reduce((sum, score) => sum + Math.abs(score), 0), words = [];
    let word = null;
    for (const { columns, token, start, end } of this.characters) {
      if (!this.isContent(columns[0])) { word = null; continue; }
      if (!word || word.number !== token.word || typeof token.word !== "number") {
        words.push(word = { start, end, score: 0, number: token.word });
      }
      word.end = end;
      for (const column of columns) word.score += scores[column];
    }
    return words.map(({ start, end, score }) => ({ text: this.text.slice(start, end).join("").trim(), score }))
      .filter((found) => found.score && found.text).sort((a, b) => Math.abs(b.score) - Math.abs(a.score))
      .slice(0, count).map(({ text, score }) => ({ text, share: total ? Math.abs(score) / total : 0 }));
  }

  /** The document that the Python client's Explanation.from_json reads. */
  document(method) {
    const rows = this.rawRows?.get(method) ?? [];
    return { format: "gradellm.explanation", version: 1, started: this.started, tokens: this.tokens, attributions: rows, finished: this.finished };
  }

  keepRaw(method, attribution) {
    this.rawRows ??= new Map();
    if (!this.rawRows.has(method)) this.rawRows.set(method, []);
    this.rawRows.get(method).push(attribution);
  }
}
