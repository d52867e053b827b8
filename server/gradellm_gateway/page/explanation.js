// An answer with its attributions, as it grows: which tokens make a word, and what a word came from. No document here.

const LEVELS = 24, FAINT = 0.03; // shades of the scale; below this share of the largest no eye sees a colour

/** The class of the shade for a share of the largest, -1..1; "" for none. */
export function shade(share) {
  if (!(Math.abs(share) >= FAINT)) return "";
  return (share > 0 ? "f" : "a") + Math.max(1, Math.min(LEVELS, Math.round(Math.abs(share) * LEVELS)));
}

export const largest = (scores) => scores.reduce((most, score) => Math.max(most, Math.abs(score)), 0);

/** A prompt's tokens as they are drawn, so that every character of its text is drawn once: tokens that overlap share
 * one, and a token without text is a part of the next. `text` is an array of code points. */
function characters(text, tokens) {
  const found = [];
  let last = null, before = null;
  tokens.forEach((token, column) => {
    const isPart = before && last.start === last.end && !before.special && !token.special && before.role === token.role && before.message === token.message;
    if (!isPart && !(last && token.start >= last.start && token.start < Math.min(last.end, token.end))) {
      found.push(last = { columns: [], token, start: token.start, end: token.start });
    }
    if (isPart) last.start = last.end = token.start;
    last.columns.push(column);
    last.token = before = token;
    last.end = Math.max(last.end, token.end);
  });
  for (const one of found) one.text = text.slice(one.start, one.end).join("");
  return found;
}

export class Explanation {
  constructor(started) {
    this.started = started;
    this.tokens = [];
    this.words = []; // { text, tokens: [index] }
    this.rows = new Map(); // by method's label: by token index: scores
    this.finished = null;
    this.text = Array.from(started.prompt_text); // offsets are code points
    this.characters = characters(this.text, started.prompt_tokens);
    this.parts = []; // tokens without text: they are in the next one's word
  }

  /** Take a token; the word that it belongs to, and whether it began it. Tokens without text show no word. */
  addToken(token) {
    this.tokens.push(token);
    if (token.special) this.#takeParts();
    else if (!token.text) this.parts.push(token.index);
    if (!token.text) return null;
    const isNew = !this.words.length || token.special || typeof token.word !== "number" || token.word !== this.words.at(-1).number;
    if (isNew) this.words.push({ text: "", tokens: [], number: token.special ? null : token.word });
    this.#takeParts();
    const word = this.words.at(-1);
    word.text += token.text;
    word.tokens.push(token.index);
    return { word: this.words.length - 1, isNew };
  }

  finish(finished) {
    this.#takeParts();
    this.finished = finished;
  }

  #takeParts() {
    if (this.words.length) this.words.at(-1).tokens.push(...this.parts);
    this.parts = [];
  }

  addRow(method, attribution) {
    if (!this.rows.has(method)) this.rows.set(method, new Map());
    this.rows.get(method).set(attribution.token_index, attribution.scores);
  }

  /** Scores by prompt token of some words by a method; of all where none is chosen; null where nothing is explained. */
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

  isWritten(column) {
    const token = this.started.prompt_tokens[column];
    return token.role !== "template" && !token.special;
  }

  /** What each named segment contributed, as a share of all scores' magnitudes. */
  segments(scores) {
    const total = scores.reduce((sum, score) => sum + Math.abs(score), 0), sums = new Map();
    this.started.prompt_tokens.forEach((token, column) => {
      if (token.segment) sums.set(token.segment, (sums.get(token.segment) ?? 0) + scores[column]);
    });
    return [...sums].map(([name, score]) => ({ name, score, share: total ? Math.abs(score) / total : 0 }));
  }

  /** The words of the prompt that contributed most. */
  top(scores, count = 3) {
    const total = scores.reduce((sum, score) => sum + Math.abs(score), 0), found = [];
    let word = null;
    for (const { columns, token, start, end } of this.characters) {
      if (!this.isWritten(columns[0])) { word = null; continue; }
      if (!word || word.number !== token.word || typeof token.word !== "number") {
        found.push(word = { start, end, score: 0, number: token.word });
      }
      word.end = end;
      for (const column of columns) word.score += scores[column];
    }
    return found.map(({ start, end, score }) => ({ text: this.text.slice(start, end).join("").trim(), score }))
      .filter((one) => one.score && one.text).sort((a, b) => Math.abs(b.score) - Math.abs(a.score))
      .slice(0, count).map(({ text, score }) => ({ text, share: total ? Math.abs(score) / total : 0 }));
  }

  /** As Explanation.from_json of the Python client reads it. */
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
