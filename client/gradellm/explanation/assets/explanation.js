// The page of one explanation. `data` is embedded by gradellm/explanation/html.py (page_data), which computes all of
// its numbers: strengths, shares, sentences. This file draws them.
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = 24, MAX_INT16 = 32767; // shades from 0 to the strongest; a strength of 1
const byId = (id) => document.getElementById(id);

// --- pictures --------------------------------------------------------------------------------------------------------

const VIEWS = {
  excess: ["what stands out", "Coloured by what a word’s score exceeds the median of all words by.", "strongest"],
  raw: ["raw scores", "Coloured by the scores themselves; a word has its strongest token’s.", "largest"],
  retention: ["kept words", "How likely each word is kept when this share of the words is, as in the paper’s figures 3 to 6.", "kept"],
};

async function decompressed(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Int16Array(await new Response(stream).arrayBuffer());
}

/** The pictures of each view: the whole answer's, then each word's; undefined where a view has none. */
const views = {};
for (const [name, { strengths, pictures }] of Object.entries(data.views)) {
  const numbers = await decompressed(strengths), { length } = data.chips;
  views[name] = pictures.map((picture, i) => ({ ...picture, strengths: numbers.subarray(i * length, (i + 1) * length) }));
}
let view = "excess";

/** A word's picture; the whole answer's for null. */
const pictureOf = (word) => views[view]?.[word === null ? 0 : word + 1];
const strength = (picture, chip) => (picture ? picture.strengths[chip] / MAX_INT16 : 0);
const share = (picture, chip) => Math.abs(strength(picture, chip)) * (picture?.peakShare ?? 0);
const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}\u00a0%`; // no line break within
const isSigned = Object.values(views).flat().some((picture) => picture.strengths.some((n) => n < 0));

/** The CSS class of a strength, -1 to 1; "" for none. */
function shadeName(value) {
  const level = Math.round(Math.abs(value) * LEVELS);
  return level ? (value > 0 ? "f" : "a") + level : "";
}

function shade(target, value) {
  target.className = target.className.replace(/ ?\b[fa]\d+\b/g, "");
  const name = shadeName(value);
  if (name) target.classList.add(name);
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

/** A chip's text in quotation marks, with its place if the same word stands elsewhere, too. */
const quotedChip = (chip) => [...quoted(data.chips[chip].text), data.chips[chip].place ? ` (${data.chips[chip].place})` : ""];

const words = createWords(); // elements, in the order of data.words
const pieces = new Map(); // elements of the prompt by chip
const templates = createPrompt(); // [button, text] of the chat template's parts

function createWords() {
  const created = [];
  for (const part of data.answer) {
    if (typeof part === "string") { byId("answer").append(part); continue; }
    const word = createElement("span", "word", data.words[part].text);
    word.dataset.i = part;
    word.tabIndex = part ? -1 : 0;
    word.setAttribute("role", "button");
    word.setAttribute("aria-pressed", "false");
    byId("answer").append(word);
    created[part] = word;
  }
  return created;
}

function createMessage({ role, message, parts }) {
  const box = createElement("div", "message");
  box.dir = "auto";
  if (message !== null) {
    const speaker = createElement("span", "role", role);
    speaker.dir = "ltr"; // so that the role does not decide the direction of the text below
    box.append(speaker);
  }
  for (const part of parts) {
    if (typeof part === "string") { box.append(part); continue; }
    const piece = createElement("span", part === data.sink ? "piece hatched" : "piece", data.chips[part].text);
    piece.dataset.i = part;
    piece.tabIndex = pieces.size ? -1 : 0;
    if (part === data.sink) piece.title = "The first token is not scored: it is an attention sink.";
    else if (data.chips[part].segment) piece.title = data.chips[part].segment;
    pieces.set(part, piece);
    box.append(piece);
  }
  return box;
}

/** Add the prompt: an element for each message, and a button that opens each part of the chat template. */
function createPrompt() {
  const created = [];
  for (const run of data.prompt) {
    if (!run.template) { byId("prompt").append(createMessage(run)); continue; }
    const button = createElement("button", "template");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const opens = button.getAttribute("aria-expanded") === "false";
      button.setAttribute("aria-expanded", `${opens}`);
      showFolded(pictureOf(pinned));
    });
    byId("prompt").append(button);
    created.push([button, run.text]);
  }
  return created;
}

/** Write what is folded: on the first part of the template, with its share of the scores. */
function showFolded(picture) {
  templates.forEach(([button, text], i) => {
    const label = i || !picture ? "⋯ chat template" : `⋯ chat template: ${percent(picture.folded)} of the scores`;
    button.textContent = button.getAttribute("aria-expanded") === "true" ? text : label;
  });
}

// --- sources and targets ---------------------------------------------------------------------------------------------

let pinned = null; // index of a word

/** Shade the sources of a word; of the whole answer, if `word` is null. */
function showSources(word) {
  const picture = pictureOf(word);
  for (const [chip, piece] of pieces) shade(piece, strength(picture, chip));
  words.forEach((target, i) => {
    target.classList.toggle("chosen", i === word);
    const { chip } = data.words[i];
    shade(target, chip === null ? 0 : strength(picture, chip));
  });
  showTopSources(word, picture);
  showSegments(picture);
  showFolded(picture);
}

/** Write the strongest words to the status line. */
function showTopSources(word, picture) {
  const subject = word === null ? ["The whole answer"] : quoted(data.words[word].text);
  if (word !== null && !data.words[word].explained) { byId("status").replaceChildren(...subject, " was not explained."); return; }
  if (!picture) { byId("status").replaceChildren(...subject, ": this view has the whole answer only."); return; }
  const named = picture.top.flatMap(([chip, of], i) => [
    i ? ", " : "", ...quotedChip(chip), view.startsWith("retention") ? "" : ` ${percent(of)}`, strength(picture, chip) < 0 ? " against" : ""]);
  const verb = view.startsWith("retention") ? " keeps above all " : " was drawn from ";
  byId("status").replaceChildren(...subject, ...(named.length ? [verb, ...named] : [": nothing stands out."]));
}

/** Shade the words that a chip of the prompt contributed to. */
function showTargets(chip) {
  const shares = words.map((_, i) => share(pictureOf(i), chip) * Math.sign(strength(pictureOf(i), chip)));
  const most = shares.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  for (const [other, piece] of pieces) { shade(piece, 0); piece.classList.toggle("chosen", other === chip); }
  words.forEach((word, i) => { word.classList.remove("chosen"); shade(word, most ? shares[i] / most : 0); });
  const top = shares.findIndex((value) => Math.abs(value) === most);
  byId("status").replaceChildren(...(chip === data.sink
    ? [...quotedChip(chip), " is not scored: it is an attention sink."]
    : most ? [...quotedChip(chip), " led most to ", ...quoted(data.words[top].text), `, ${percent(most)} of that word.`]
      : [...quotedChip(chip), ": no word was drawn from it."]));
}

/** Draw a bar per document with its share; they add up with the rest. */
function showSegments(picture) {
  const segments = picture?.segments ?? [];
  byId("segments-section").hidden = segments.length < 2 || view.startsWith("retention");
  byId("segments").replaceChildren(...segments.map(([name, of]) => {
    const bar = createElement("div", "bar"), track = createElement("span", ""), fill = createElement("i", name ? `f${LEVELS}` : "rest");
    fill.style.width = `${100 * of}%`;
    track.append(fill);
    bar.append(createElement("bdi", "", name || "the rest of the text"), track, createElement("span", "", percent(of)));
    return bar;
  }));
}

/** Return to the pinned word, or to the whole answer. */
function showPinned() {
  for (const piece of pieces.values()) piece.classList.remove("chosen");
  showSources(pinned);
}

// --- views -----------------------------------------------------------------------------------------------------------

function addViews() {
  for (const name of Object.keys(views)) {
    const [kind, pi] = name.split(" ");
    byId("view").append(new Option(pi ? `${VIEWS[kind][0]}, π = ${pi}` : VIEWS[kind][0], name));
  }
  byId("view").addEventListener("change", (event) => { view = event.target.value; showView(); });
  byId("view").closest("label").hidden = !byId("view").options.length;
}

function showView() {
  const [kind] = view.split(" ");
  byId("view-help").textContent = byId("view").options.length ? VIEWS[kind][1] : "";
  byId("low").textContent = isSigned ? "against" : kind === "retention" ? "left out" : "0";
  byId("high").textContent = isSigned ? "for" : VIEWS[kind][2];
  showPinned();
  if (byId("matrix-section").open) drawMatrix();
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
  const to = from === null ? undefined : pieces.get(from + steps[event.key]);
  if (!to) return;
  pieces.get(from).tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
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

const CELL = Math.max(2, Math.min(12, Math.floor(4096 / Math.max(1, data.chips.length)))); // pixels

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
  canvas.width = data.chips.length * CELL;
  canvas.height = words.length * CELL;
  words.forEach((_, y) => {
    data.chips.forEach((_, x) => {
      const name = shadeName(strength(pictureOf(y), x));
      if (!name) return;
      context.fillStyle = colors.get(name);
      context.fillRect(x * CELL, y * CELL, CELL, CELL);
    });
  });
}

byId("matrix-section").addEventListener("toggle", (event) => { if (event.target.open) drawMatrix(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (byId("matrix-section").open) drawMatrix(); });
byId("matrix").addEventListener("pointermove", (event) => {
  const chip = Math.floor(event.offsetX / CELL), word = Math.floor(event.offsetY / CELL);
  if (!(chip in data.chips) || !(word in words)) return;
  const raw = views.raw?.[word + 1], score = raw ? (strength(raw, chip) * raw.peakValue).toPrecision(3) : "not explained";
  byId("cell").replaceChildren(...quoted(data.words[word].text), " from ", ...quotedChip(chip), `: score ${score}, ${percent(share(pictureOf(word), chip))} of the colour`);
});

// --- initial state ---------------------------------------------------------------------------------------------------

const facts = [[data.method, data.preset].filter(Boolean).join(", "), data.reason.replaceAll("_", " ")].filter(Boolean);
byId("facts").append(createElement("bdi", "", data.model), ...facts.map((fact) => ` · ${fact}`));
for (let level = isSigned ? -LEVELS : 0; level <= LEVELS; level += 3) {
  byId("scale").append(createElement("i", shadeName(level / LEVELS)));
}
addViews();
showView();
document.documentElement.dataset.ready = "";
