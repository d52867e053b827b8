// The page of one explanation. `data` is embedded by gradellm/explanation/html.py (page_data).
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = 24, MIN_SHARE = 0.03; // shades of the scale; smaller shares of the largest score have no visible colour
const byId = (id) => document.getElementById(id);

// --- scores --------------------------------------------------------------------------------------------------------

const decodeBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

/** Attribution rows by token index: one score per column. */
const rows = new Map(data.rows.map((packed) => {
  const row = new Float32Array(data.columns.length), scores = new Int16Array(decodeBase64(packed.scores));
  const columns = packed.columns ? new Int32Array(decodeBase64(packed.columns)) : null;
  scores.forEach((score, i) => { row[columns ? columns[i] : i] = score / 32767 * packed.peak; });
  return [packed.token, row];
}));

/** The sum of several tokens' rows. */
function sumRows(tokens) {
  const total = new Float32Array(data.columns.length);
  for (const token of tokens) rows.get(token)?.forEach((score, column) => { total[column] += score; });
  return total;
}

const wordRows = data.words.map(sumRows);
const isExplained = data.words.map((tokens) => tokens.some((token) => rows.has(token)));
const isSigned = data.rows.length > 0 && wordRows.some((row) => row.some((score) => score < 0));
const completionRow = sumRows(data.words.flat());

const sumOf = (scores, columns) => columns.reduce((sum, column) => sum + scores[column], 0);
const largest = (scores) => scores.reduce((most, score) => Math.max(most, Math.abs(score)), 0);
const magnitude = (scores) => scores.reduce((sum, score) => sum + Math.abs(score), 0);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`; // no line break within

/** The CSS class of a share of the largest score, -1 to 1. */
const shadeName = (share) => (share > 0 ? "f" : "a") + Math.max(1, Math.min(LEVELS, Math.round(Math.abs(share) * LEVELS)));

function shade(target, share) {
  target.className = target.className.replace(/ ?\b[fa]\d+\b/g, "");
  if (Math.abs(share) >= MIN_SHARE) target.classList.add(shadeName(share));
}

// --- text ------------------------------------------------------------------------------------------------------------

function createElement(tag, className, text) {
  const created = document.createElement(tag);
  created.className = className;
  if (text !== undefined) created.textContent = text;
  return created;
}

/** A text in quotation marks, isolated from the direction of the text around it. */
const quoted = (text) => ["“", createElement("bdi", "", text.trim() || "␣"), "”"];

const tokenOf = (index) => data.tokens[index - data.tokens[0].index];

const words = createWords(); // elements, in the order of data.words
const pieces = createPrompt(); // [element, columns, piece], in the order of data.prompt

function createWord(text, index) {
  const word = createElement("span", "word", text);
  word.dataset.i = index;
  word.tabIndex = index ? -1 : 0;
  word.setAttribute("role", "button");
  word.setAttribute("aria-pressed", "false");
  return word;
}

/** Add the completion's words, and the text between them. */
function createWords() {
  const created = [], answer = byId("answer");
  const byFirstToken = new Map(data.words.map((tokens, i) => [tokens[0], i]));
  let last = -1; // the last token of the word before
  for (const token of data.tokens) {
    if (byFirstToken.has(token.index)) {
      const i = byFirstToken.get(token.index);
      const text = data.words[i].map((index) => tokenOf(index).text).join("");
      const bare = text.trim(), start = text.indexOf(bare);
      const word = createWord(bare, i);
      created.push(word);
      answer.append(text.slice(0, start), word, text.slice(start + bare.length));
      last = data.words[i].at(-1);
    } else if (token.index > last && token.text) answer.append(token.text);
  }
  return created;
}

function createMessage(piece, isTemplate) {
  const message = createElement("div", `message${isTemplate ? " template hidden" : ""}`);
  message.dir = "auto";
  if (!isTemplate && piece.message !== undefined) {
    const role = createElement("span", "role", piece.role ?? "");
    role.dir = "ltr"; // so that the role does not decide the direction of the text below
    message.append(role);
  }
  return message;
}

/** Add the prompt's pieces, in one element per message and per part of the template. */
function createPrompt() {
  const created = [];
  let key, message, hasTabStop = false;
  for (const piece of data.prompt) {
    const isTemplate = piece.role === "template";
    const pieceKey = isTemplate ? "template" : `${piece.message ?? ""}`;
    if (!message || pieceKey !== key) {
      key = pieceKey;
      message = createMessage(piece, isTemplate);
      byId("prompt").append(message);
    }
    const bare = piece.text.trimStart() || piece.text; // without leading space, so that words are separate chips
    const span = createElement("span", "piece", bare);
    span.dataset.i = created.length;
    if (piece.segment) span.title = piece.segment;
    if (!isTemplate) { span.tabIndex = hasTabStop ? -1 : 0; hasTabStop = true; }
    message.append(piece.text.slice(0, piece.text.length - bare.length), span);
    created.push([span, piece.columns, piece]);
  }
  return created;
}

byId("template").addEventListener("change", (event) => {
  for (const message of document.querySelectorAll(".message.template")) message.classList.toggle("hidden", !event.target.checked);
});

// --- sources and targets ---------------------------------------------------------------------------------------------

let pinned = null; // index of a word

/** Shade the sources of a word; of the whole completion, if `word` is null. */
function showSources(word) {
  const scores = word === null ? completionRow : wordRows[word];
  const written = scores.filter((_, column) => data.columns[column].written);
  const peak = largest(written) || largest(scores);
  for (const [span, columns] of pieces) shade(span, peak ? sumOf(scores, columns) / peak : 0);
  words.forEach((target, i) => {
    target.classList.toggle("chosen", i === word);
    const columns = data.words[i].map((index) => tokenOf(index).column);
    const unique = new Set(columns.filter((column) => column !== null && column < scores.length));
    shade(target, peak ? sumOf(scores, [...unique]) / peak : 0);
  });
  showTopSources(word, scores);
  showSegments(scores);
}

/** Write the three words of the prompt with the largest scores to the status line. */
function showTopSources(word, scores) {
  const subject = word === null ? ["The whole answer"] : quoted(words[word].textContent);
  if (word !== null && !isExplained[word]) { byId("status").replaceChildren(...subject, " was not explained."); return; }
  const total = magnitude(scores);
  const sums = data.promptWords.map(() => 0);
  scores.forEach((score, column) => { if (data.columns[column].written) sums[data.columns[column].word] += score; });
  const ranked = sums.map((score, i) => [score, data.promptWords[i]])
    .filter(([score]) => score !== 0).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3)
    .flatMap(([score, label], i) => [i ? ", " : "", ...quoted(label), ` ${percent(Math.abs(score) / total)}${score < 0 ? " against" : ""}`, i === 2 ? " …" : ""]);
  byId("status").replaceChildren(...subject, ...(ranked.length ? [" came from ", ...ranked] : [": no source stands out."]));
}

/** Shade the words that a piece of the prompt contributed to. */
function showTargets(piece) {
  const [span, columns] = pieces[piece];
  const scores = wordRows.map((row) => sumOf(row, columns));
  const peak = largest(scores);
  for (const [other] of pieces) { shade(other, 0); other.classList.toggle("chosen", other === span); }
  words.forEach((word, i) => { word.classList.remove("chosen"); shade(word, peak ? scores[i] / peak : 0); });
  const top = scores.indexOf(scores.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0));
  byId("status").replaceChildren(...(peak
    ? [...quoted(span.textContent), " led most to ", ...quoted(words[top].textContent), "."] : ["That part led to nothing."]));
}

/** Draw a bar per segment with its share of the scores. */
function showSegments(scores) {
  if (!data.segments.length) return;
  const total = magnitude(scores);
  const bySegment = new Map(data.segments.map((name) => [name, 0]));
  const counted = new Set();
  for (const [, columns, piece] of pieces) {
    for (const column of columns) {
      if (counted.has(column)) continue;
      counted.add(column);
      if (piece.segment) bySegment.set(piece.segment, bySegment.get(piece.segment) + scores[column]);
    }
  }
  byId("segments-section").hidden = false;
  byId("segments").replaceChildren(...[...bySegment].map(([name, score]) => {
    const bar = createElement("div", "bar"), fill = createElement("i", score < 0 ? `a${LEVELS}` : `f${LEVELS}`);
    const share = total ? Math.abs(score) / total : 0;
    fill.style.width = `${100 * share}%`;
    const track = createElement("span", "");
    track.append(fill);
    bar.append(createElement("bdi", "", name), track, createElement("span", "", percent(share)));
    return bar;
  }));
}

/** Return to the pinned word, or to the whole completion. */
function showPinned() {
  pieces.forEach(([span]) => span.classList.remove("chosen"));
  showSources(pinned);
}

// --- pointer and keyboard --------------------------------------------------------------------------------------------

const wordOf = (event) => { const word = event.target.closest(".word"); return word ? +word.dataset.i : null; };
const pieceOf = (event) => { const piece = event.target.closest(".piece"); return piece ? +piece.dataset.i : null; };

function pin(word) {
  if (pinned !== null) words[pinned].setAttribute("aria-pressed", "false");
  pinned = word;
  if (word !== null) words[word].setAttribute("aria-pressed", "true");
  showSources(word);
}

const togglePin = (word) => pin(word === pinned ? null : word);

for (const type of ["pointerover", "focusin"]) {
  byId("answer").addEventListener(type, (event) => { const i = wordOf(event); if (i !== null) showSources(i); });
  byId("prompt").addEventListener(type, (event) => { const i = pieceOf(event); if (i !== null) showTargets(i); });
}
for (const id of ["answer", "prompt"]) {
  byId(id).addEventListener("pointerleave", showPinned);
  byId(id).addEventListener("focusout", showPinned);
}
byId("answer").addEventListener("click", (event) => { const i = wordOf(event); if (i !== null) togglePin(i); });
byId("prompt").addEventListener("keydown", (event) => {
  const from = pieceOf(event), steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (from === null || !(event.key in steps)) return;
  let to = from + steps[event.key];
  while (pieces[to] && !pieces[to][0].hasAttribute("tabindex")) to += steps[event.key];
  if (!pieces[to]) return;
  pieces[from][0].tabIndex = -1;
  pieces[to][0].tabIndex = 0;
  pieces[to][0].focus();
  event.preventDefault();
});

function focusWord(index) {
  const target = words[Math.max(0, Math.min(words.length - 1, index))];
  words.forEach((word) => { word.tabIndex = word === target ? 0 : -1; });
  target.focus();
}

byId("answer").addEventListener("keydown", (event) => {
  const i = wordOf(event);
  if (i === null) return;
  const isRightToLeft = getComputedStyle(byId("answer")).direction === "rtl";
  const [forward, back] = isRightToLeft ? ["ArrowLeft", "ArrowRight"] : ["ArrowRight", "ArrowLeft"];
  const actions = {
    [forward]: () => focusWord(i + 1), ArrowDown: () => focusWord(i + 1),
    [back]: () => focusWord(i - 1), ArrowUp: () => focusWord(i - 1),
    Home: () => focusWord(0), End: () => focusWord(words.length - 1),
    Enter: () => togglePin(i), " ": () => togglePin(i),
  };
  if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { pin(null); document.activeElement?.blur(); } });

// --- matrix ----------------------------------------------------------------------------------------------------------

const matrixColumns = data.columns.map((_, column) => column).filter((column) => data.columns[column].written);
const CELL = Math.max(2, Math.min(12, Math.floor(4096 / Math.max(1, matrixColumns.length)))); // pixels

/** The background colours of the scale's CSS classes. */
function scaleColors() {
  const probe = createElement("i", ""), colors = new Map();
  document.body.append(probe);
  for (const name of ["f", "a"]) {
    for (let level = 1; level <= LEVELS; level++) {
      probe.className = name + level;
      colors.set(name + level, getComputedStyle(probe).backgroundColor);
    }
  }
  probe.remove();
  return colors;
}

function drawMatrix() {
  const canvas = byId("matrix"), context = canvas.getContext("2d"), colors = scaleColors();
  canvas.width = matrixColumns.length * CELL;
  canvas.height = words.length * CELL;
  wordRows.forEach((row, y) => {
    const peak = largest(matrixColumns.map((column) => row[column]));
    matrixColumns.forEach((column, x) => {
      const share = peak ? row[column] / peak : 0;
      if (Math.abs(share) < MIN_SHARE) return;
      context.fillStyle = colors.get(shadeName(share));
      context.fillRect(x * CELL, y * CELL, CELL, CELL);
    });
  });
}

byId("matrix-section").addEventListener("toggle", (event) => { if (event.target.open) drawMatrix(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (byId("matrix-section").open) drawMatrix(); });
byId("matrix").addEventListener("pointermove", (event) => {
  const x = Math.floor(event.offsetX / CELL), y = Math.floor(event.offsetY / CELL);
  if (!(x in matrixColumns) || !(y in words)) return;
  const label = data.columns[matrixColumns[x]].label, score = wordRows[y][matrixColumns[x]].toPrecision(3);
  byId("cell").replaceChildren(...quoted(words[y].textContent), " from ", ...quoted(label), `: ${score}`);
});

// --- initial state ---------------------------------------------------------------------------------------------------

const facts = [[data.method, data.preset].filter(Boolean).join(", "), data.reason.replaceAll("_", " ")].filter(Boolean);
byId("facts").append(createElement("bdi", "", data.model), ...facts.map((fact) => ` · ${fact}`));
byId("low").textContent = isSigned ? "against" : "0";
byId("high").textContent = isSigned ? "for" : "largest of what is shown";
for (let level = isSigned ? -LEVELS : 0; level <= LEVELS; level += 3) {
  byId("scale").append(createElement("i", level < 0 ? `a${-level}` : level ? `f${level}` : ""));
}
showSources(null);
