// The prompt as a picture: words with shades, the chat template folded to a chip, the attention sink hatched.
import { element, percent, speaker } from "./dom.js";

/** The CSS class of a shade, -24 to 24; "" for none. */
export const shadeName = (level) => (level ? (level > 0 ? "f" : "a") + Math.abs(level) : "");

const SINK = "The first token is not scored: it is an attention sink, on which the model rests attention that it has no use for.";

/** A panel of one method: { box, attribution, pieces, templates, coloured, isSigned }. */
export function renderPanel(method, attribution) {
  const box = element("div", "panel");
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `The prompt, explained by ${method}`);
  box.append(element("h3", "", method));
  const panel = { box, attribution, pieces: [], templates: [], coloured: [], isSigned: false };
  for (const run of attribution.canvas.prompt) box.append(run.template ? templateOf(run, panel) : messageOf(run, panel));
  return panel;
}

function messageOf({ role, message, parts }, { attribution, pieces }) {
  const box = element("div", "message"), { chips, sink } = attribution.canvas;
  box.dir = "auto";
  if (message !== null) box.append(speaker(role));
  for (const part of parts) {
    if (typeof part === "string") { box.append(part); continue; }
    const piece = element("span", part === sink ? "piece hatched" : "piece", chips[part].text);
    piece.title = part === sink ? SINK : chips[part].segment;
    pieces[part] = piece;
    box.append(piece);
  }
  return box;
}

/** A chip that stands for a part of the chat template, and opens it. */
function templateOf({ text }, { templates }) {
  const button = element("button", "template");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  const template = { button, text, label: "⋯" };
  button.addEventListener("click", () => {
    button.setAttribute("aria-expanded", `${button.getAttribute("aria-expanded") === "false"}`);
    writeTemplate(template);
  });
  templates.push(template);
  return button;
}

function writeTemplate({ button, text, label }) {
  const isOpen = button.getAttribute("aria-expanded") === "true";
  button.textContent = isOpen ? text : label;
  button.title = isOpen ? "" : "Text of the chat template, which is not coloured. Click to read it.";
  if (label === "⋯" && !isOpen) button.setAttribute("aria-label", "chat template");
  else button.removeAttribute("aria-label");
}

/** Shade a panel's words, and write what the folded chat template has; null for no picture. */
export function shadePanel(panel, picture) {
  const { pieces, attribution, templates } = panel, { chips, sink } = attribution.canvas;
  const write = (chip, shade, ...facts) => {
    if (!pieces[chip] || chip === sink) return; // a word of the answer, or hatched
    pieces[chip].className = `piece ${shade}`.trim();
    pieces[chip].title = [chips[chip].segment, ...facts].filter(Boolean).join(" · ");
  };
  for (const [chip] of panel.coloured) write(chip, "");
  panel.coloured = picture?.coloured ?? [];
  for (const [chip, level, share, value] of panel.coloured) write(chip, shadeName(level), share && `${percent(share)} of the colour`, `score ${value}`);
  panel.isSigned = panel.coloured.some(([, level]) => level < 0);
  templates.forEach((template, i) => {
    if (i === 0) template.label = picture ? `⋯ chat template: ${percent(picture.folded)} of the scores` : "⋯ chat template";
    writeTemplate(template);
  });
}

/** Underline the words of a document, and bring it into view; null for none. */
export function markDocument(panel, name) {
  const { chips } = panel.attribution.canvas;
  let first = null;
  panel.pieces.forEach((piece, chip) => {
    const isMarked = name !== null && chips[chip].segment === name;
    piece.classList.toggle("cited", isMarked);
    if (isMarked) first ??= piece;
  });
  if (first && panel.marked !== name) scrollTo(panel.box, first);
  panel.marked = name;
}

/** Scroll a box, and not the page, to an element that is out of view in it. */
function scrollTo(box, target) {
  const outer = box.getBoundingClientRect(), inner = target.getBoundingClientRect();
  if (inner.top < outer.top || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - 40;
}
