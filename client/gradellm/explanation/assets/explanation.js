// What a page with one explanation does. `data` is what gradellm.explanation.html made of it.
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = 24, FAINT = 0.03; // shades of the scale; below this share of the largest no eye sees a colour
const at = (id) => document.getElementById(id);

// --- scores --------------------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

/** Rows by token: one score a column. */
const rows = new Map(data.rows.map((packed) => {
  const row = new Float32Array(data.columns.length), scores = new Int16Array(bytes(packed.scores));
  const columns = packed.columns ? new Int32Array(bytes(packed.columns)) : null;
  scores.forEach((score, i) => { row[columns ? columns[i] : i] = score / 32767 * packed.peak; });
  return [packed.token, row];
}));

/** The sum of some tokens' rows. */
function sum(tokens) {
  const total = new Float32Array(data.columns.length);
  for (const token of tokens) rows.get(token)?.forEach((score, column) => { total[column] += score; });
  return total;
}

const wordRows = data.words.map(sum);
const isExplained = data.words.map((tokens) => tokens.some((token) => rows.has(token)));
const isSigned = data.rows.length > 0 && wordRows.some((row) => row.some((score) => score < 0));
const all = sum(data.words.flat());

function shade(element, share) {
  element.className = element.className.replace(/ ?\b[fa]\d+\b/g, "");
  if (Math.abs(share) >= FAINT) element.classList.add(shadeName(share));
}

const shadeName = (share) => (share > 0 ? "f" : "a") + Math.max(1, Math.min(LEVELS, Math.round(Math.abs(share) * LEVELS)));

const largest = (scores) => scores.reduce((most, score) => Math.max(most, Math.abs(score)), 0);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

// --- text ------------------------------------------------------------------------------------------------------------

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A text in quotation marks, apart from the direction of what is around it. */
function quoted(text) {
  const made = element("bdi", "", text.trim() || "␣");
  return ["“", made, "”"];
}

const words = []; // elements, by place in data.words
{
  const byFirst = new Map(data.words.map((tokens, i) => [tokens[0], i]));
  let word = null, last = -1;
  for (const token of data.tokens) {
    if (byFirst.has(token.index)) {
      const i = byFirst.get(token.index);
      const text = data.words[i].map((index) => data.tokens[index - data.tokens[0].index].text).join("");
      const bare = text.trim(), start = text.indexOf(bare);
      at("answer").append(text.slice(0, start));
      word = element("span", "word", bare);
      word.dataset.i = i;
      word.tabIndex = words.length ? -1 : 0;
      word.setAttribute("role", "button");
      word.setAttribute("aria-pressed", "false");
      words.push(word);
      at("answer").append(word, text.slice(start + bare.length));
      last = data.words[i].at(-1);
    } else if (token.index > last && token.text) at("answer").append(token.text);
  }
}

const pieces = []; // [element, columns]
{
  let message, box, isReachable = false;
  for (const piece of data.prompt) {
    const isTemplate = piece.role === "template";
    const key = isTemplate ? "template" : `${piece.message ?? ""}`;
    if (!box || key !== message) {
      message = key;
      box = element("div", `message${isTemplate ? " template hidden" : ""}`);
      box.dir = "auto";
      if (!isTemplate && piece.message !== undefined) {
        const role = element("span", "role", piece.role ?? "");
        role.dir = "ltr"; // ours: it does not decide the direction of the text below
        box.append(role);
      }
      at("prompt").append(box);
    }
    const bare = piece.text.trimStart() || piece.text; // words stand apart as chips
    const span = element("span", "piece", bare);
    span.dataset.i = pieces.length;
    if (piece.segment) span.title = piece.segment;
    if (!isTemplate) { span.tabIndex = isReachable ? -1 : 0; isReachable = true; }
    box.append(piece.text.slice(0, piece.text.length - bare.length), span);
    pieces.push([span, piece.columns, piece]);
  }
}
at("template").addEventListener("change", (event) => {
  for (const box of document.querySelectorAll(".message.template")) box.classList.toggle("hidden", !event.target.checked);
});

// --- what is shown ---------------------------------------------------------------------------------------------------

let pinned = null; // a word

/** Colour the sources of a word; of the whole answer, where none is chosen. */
function showSources(word) {
  const scores = word === null ? all : wordRows[word];
  const seen = scores.filter((_, column) => data.columns[column].written);
  const peak = largest(seen) || largest(scores);
  for (const [span, columns] of pieces) shade(span, peak ? columns.reduce((s, c) => s + scores[c], 0) / peak : 0);
  words.forEach((element, i) => {
    element.classList.toggle("chosen", i === word);
    const columns = data.words[i].map((index) => data.tokens[index - data.tokens[0].index].column);
    const own = new Set(columns.filter((column) => column !== null && column < scores.length));
    shade(element, peak ? [...own].reduce((s, c) => s + scores[c], 0) / peak : 0);
  });
  tell(word, scores);
  showSegments(scores);
}

function tell(word, scores) {
  const who = word === null ? ["The whole answer"] : quoted(words[word].textContent);
  if (word !== null && !isExplained[word]) { at("status").replaceChildren(...who, " was not explained."); return; }
  const total = scores.reduce((s, score) => s + Math.abs(score), 0);
  const sums = data.promptWords.map(() => 0);
  scores.forEach((score, column) => { if (data.columns[column].written) sums[data.columns[column].word] += score; });
  const ranked = sums.map((score, i) => [score, data.promptWords[i]])
    .filter(([score]) => score !== 0).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3)
    .flatMap(([score, label], i) => [i ? ", " : "", ...quoted(label), ` ${percent(Math.abs(score) / total)}${score < 0 ? " against" : ""}`, i === 2 ? " …" : ""]);
  at("status").replaceChildren(...who, ...(ranked.length ? [" came from ", ...ranked] : [": no source stands out."]));
}

/** Colour the words that a source led to. */
function showTargets(piece) {
  const [span, columns] = pieces[piece];
  const scores = wordRows.map((row) => columns.reduce((s, column) => s + row[column], 0));
  const peak = largest(scores);
  for (const [other] of pieces) { shade(other, 0); other.classList.toggle("chosen", other === span); }
  words.forEach((element, i) => { element.classList.remove("chosen"); shade(element, peak ? scores[i] / peak : 0); });
  const most = scores.indexOf(scores.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0));
  at("status").replaceChildren(...(peak
    ? [...quoted(span.textContent), " led most to ", ...quoted(words[most].textContent), "."] : ["That part led to nothing."]));
}

function showSegments(scores) {
  if (!data.segments.length) return;
  const total = scores.reduce((s, score) => s + Math.abs(score), 0);
  const bySegment = new Map(data.segments.map((name) => [name, 0]));
  const counted = new Set();
  for (const [, columns, piece] of pieces) {
    for (const column of columns) {
      if (counted.has(column)) continue;
      counted.add(column);
      if (piece.segment) bySegment.set(piece.segment, bySegment.get(piece.segment) + scores[column]);
    }
  }
  at("segments-section").hidden = false;
  at("segments").replaceChildren(...[...bySegment].map(([name, score]) => {
    const bar = element("div", "bar"), fill = element("i", score < 0 ? `a${LEVELS}` : `f${LEVELS}`);
    const share = total ? Math.abs(score) / total : 0;
    fill.style.width = percent(share).replace(" ", "");
    const held = element("span", "");
    held.append(fill);
    bar.append(element("bdi", "", name), held, element("span", "", percent(share)));
    return bar;
  }));
}

const rest = () => { pieces.forEach(([span]) => span.classList.remove("chosen")); showSources(pinned); };

// --- pointing, clicking, keys ----------------------------------------------------------------------------------------

const wordOf = (event) => { const found = event.target.closest(".word"); return found ? +found.dataset.i : null; };

at("answer").addEventListener("pointerover", (event) => { const i = wordOf(event); if (i !== null) showSources(i); });
at("answer").addEventListener("pointerleave", rest);
at("answer").addEventListener("focusin", (event) => { const i = wordOf(event); if (i !== null) showSources(i); });
at("answer").addEventListener("focusout", rest);
at("answer").addEventListener("click", (event) => { const i = wordOf(event); if (i !== null) pin(i === pinned ? null : i); });
at("prompt").addEventListener("pointerover", (event) => {
  const found = event.target.closest(".piece");
  if (found) showTargets(+found.dataset.i);
});
at("prompt").addEventListener("pointerleave", rest);
at("prompt").addEventListener("focusin", (event) => {
  const found = event.target.closest(".piece");
  if (found) showTargets(+found.dataset.i);
});
at("prompt").addEventListener("focusout", rest);
at("prompt").addEventListener("keydown", (event) => {
  const found = event.target.closest(".piece"), steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (!found || !(event.key in steps)) return;
  let to = +found.dataset.i + steps[event.key];
  while (pieces[to] && !pieces[to][0].hasAttribute("tabindex")) to += steps[event.key];
  if (!pieces[to]) return;
  found.tabIndex = -1;
  pieces[to][0].tabIndex = 0;
  pieces[to][0].focus();
  event.preventDefault();
});

function pin(word) {
  if (pinned !== null) words[pinned].setAttribute("aria-pressed", "false");
  pinned = word;
  if (word !== null) words[word].setAttribute("aria-pressed", "true");
  showSources(word);
}

function move(to) {
  const target = words[Math.max(0, Math.min(words.length - 1, to))];
  words.forEach((word) => { word.tabIndex = word === target ? 0 : -1; });
  target.focus();
}

at("answer").addEventListener("keydown", (event) => {
  const i = wordOf(event);
  if (i === null) return;
  const forward = getComputedStyle(at("answer")).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  const back = forward === "ArrowLeft" ? "ArrowRight" : "ArrowLeft";
  const keys = {
    [forward]: () => move(i + 1), ArrowDown: () => move(i + 1), [back]: () => move(i - 1), ArrowUp: () => move(i - 1),
    Home: () => move(0), End: () => move(words.length - 1),
    Enter: () => pin(i === pinned ? null : i), " ": () => pin(i === pinned ? null : i),
  };
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { pin(null); document.activeElement?.blur(); } });

// --- the matrix ------------------------------------------------------------------------------------------------------

const shown = data.columns.map((_, column) => column).filter((column) => data.columns[column].written);
const CELL = Math.max(2, Math.min(12, Math.floor(4096 / Math.max(1, shown.length))));

function drawMatrix() {
  const canvas = at("matrix"), context = canvas.getContext("2d");
  canvas.width = shown.length * CELL;
  canvas.height = words.length * CELL;
  const probe = element("i", ""), colors = new Map();
  document.body.append(probe);
  for (const name of ["f", "a"]) {
    for (let level = 1; level <= LEVELS; level++) {
      probe.className = name + level;
      colors.set(name + level, getComputedStyle(probe).backgroundColor);
    }
  }
  probe.remove();
  wordRows.forEach((row, y) => {
    const peak = largest(shown.map((column) => row[column]));
    shown.forEach((column, x) => {
      const share = peak ? row[column] / peak : 0;
      if (Math.abs(share) < FAINT) return;
      context.fillStyle = colors.get(shadeName(share));
      context.fillRect(x * CELL, y * CELL, CELL, CELL);
    });
  });
}
at("matrix-section").addEventListener("toggle", (event) => { if (event.target.open) drawMatrix(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (at("matrix-section").open) drawMatrix(); });
at("matrix").addEventListener("pointermove", (event) => {
  const x = Math.floor(event.offsetX / CELL), y = Math.floor(event.offsetY / CELL);
  if (!(x in shown) || !(y in words)) return;
  const label = data.columns[shown[x]].label;
  at("cell").replaceChildren(...quoted(words[y].textContent), " from ", ...quoted(label), `: ${wordRows[y][shown[x]].toPrecision(3)}`);
});

// --- begin -----------------------------------------------------------------------------------------------------------

const facts = [[data.method, data.preset].filter(Boolean).join(", "), data.reason.replaceAll("_", " ")].filter(Boolean);
at("facts").append(element("bdi", "", data.model), ...facts.map((fact) => ` · ${fact}`));
at("low").textContent = isSigned ? "against" : "0";
at("high").textContent = isSigned ? "for" : "largest of what is shown";
for (let level = isSigned ? -LEVELS : 0; level <= LEVELS; level += 3) {
  at("scale").append(element("i", level < 0 ? `a${-level}` : level ? `f${level}` : ""));
}
showSources(null);
