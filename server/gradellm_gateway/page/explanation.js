// An answer with its attributions, as it grows: which tokens make a word, and what a word came from. No document here.

const LEVELS = 24, FAINT = 0.03; // shades of the scale; below this share of the largest no eye sees a colour

/** The class of the shade for a share of the largest, -1..1; "" for none. */
export function shade(share) {
  if (!(Math.abs(share) >= FAINT)) return "";
  return (share > 0 ? "f" : "a") + Math.max(1, Math.min(LEVELS, Math.round(Math.abs(share) * LEVELS)));
}

export const largest = (scores) => scores.reduce((most, score) => Math.max(most, Math.abs(score)), 0);

const IDEOGRAPH = /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}]/u;

/** Whether a token begins a word, after the one before it and the text of the word under way. */
function beginsWord(text, before, token) {
  if (before.special || token.special) return true;
  if (text.trim() === "") return false; // white space belongs to the word after it
  const [first = ""] = token.text, last = Array.from(text).at(-1);
  return /\s/.test(first) || /\s/.test(last) || IDEOGRAPH.test(first) || (IDEOGRAPH.test(last) && first !== "");
}

export class Explanation {
  constructor(started) {
    this.started = started;
    this.tokens = [];
    this.words = []; // { text, tokens: [index] }
    this.rows = new Map(); // by method's label: by token index: scores
    this.finished = null;
    this.text = Array.from(started.prompt_text); // offsets are code points
  }

  /** Take a token; the word that it belongs to, and whether it began it. The model's own punctuation is in none. */
  addToken(token) {
    const before = this.tokens.at(-1), word = this.words.at(-1);
    this.tokens.push(token);
    if (token.special && !token.text) return null;
    if (!word || beginsWord(word.text, before, token)) {
      this.words.push({ text: token.text, tokens: [token.index] });
      return { word: this.words.length - 1, isNew: true };
    }
    word.text += token.text;
    word.tokens.push(token.index);
    return { word: this.words.length - 1, isNew: false };
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
    this.started.prompt_tokens.forEach((token, column) => {
      if (!this.isWritten(column)) { word = null; return; }
      const text = this.text.slice(token.start, token.end).join("");
      if (!word || word.message !== token.message || /^\s/.test(text) || /\s$/.test(word.text)) {
        found.push(word = { text: "", score: 0, message: token.message });
      }
      word.text += text;
      word.score += scores[column];
    });
    return found.filter((one) => one.score && one.text.trim()).sort((a, b) => Math.abs(b.score) - Math.abs(a.score))
      .slice(0, count).map((one) => ({ text: one.text.trim(), share: total ? Math.abs(one.score) / total : 0 }));
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
