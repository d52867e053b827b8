// The documents that each sentence of an answer was drawn from, as the gateway cites them.
import { bar, byId, element, quoted, shorten } from "./dom.js";

/** Draw an answer's citations, once for each answer; then only what is selected changes. */
export function showCitations(answer) {
  const place = byId("citations"), { citations } = answer.explanation;
  place.hidden = !citations.length;
  if (place.answer !== answer || place.count !== citations.length) {
    Object.assign(place, { answer, count: citations.length });
    const missing = citations.filter(({ documents }) => !documents.length).length;
    const heading = `Documents of each sentence${missing ? ` · ${missing} of ${citations.length} without a document` : ""}`;
    place.replaceChildren(element("h3", "", heading), listOf(answer));
  }
  for (const button of place.querySelectorAll("button")) {
    const isSelected = +button.dataset.sentence === answer.sentence && (button.dataset.document ?? null) === answer.document;
    button.setAttribute("aria-pressed", `${isSelected}`);
  }
}

function listOf(answer) {
  const list = element("ol", "");
  list.tabIndex = 0; // it may scroll
  answer.explanation.citations.forEach((citation, i) => {
    const row = element("li", "sentence");
    row.append(button(answer, i, null, ...quoted(shorten(citation.text, 120))));
    for (const document of citation.documents) row.append(citedDocument(answer, i, document));
    if (!citation.documents.length) row.append(element("p", "none", withoutDocument(citation)));
    list.append(row);
  });
  return list;
}

/** Why a sentence has no citation. */
function withoutDocument({ explained_tokens: explained, missing_names: names = [], uncited = [] }) {
  if (!explained) return "not explained";
  if (!names.length) return "no document";
  const drawnFrom = uncited.map(({ name }) => name).join(", ");
  return `no document has ${names.map((name) => `“${name}”`).join(", ")}${drawnFrom ? `; drawn from ${drawnFrom}` : ""}`;
}

function citedDocument(answer, i, { name, share, strength, strength_of_strongest: length, passage }) {
  const created = button(answer, i, name, bar(name, length, "f24", ""));
  created.classList.add("document-of");
  created.title = `${passage ? `“${passage.text}” · ` : ""}stands out by ${strength.toFixed(2)} nats; ${Math.round(100 * share)} % of what all documents have for this sentence`;
  if (passage) {
    const quote = element("span", "passage");
    quote.append(...quoted(shorten(passage.text, 160)));
    created.append(quote);
  }
  return created;
}

/** A button that selects a sentence, and a document with it. */
function button(answer, sentence, document, ...content) {
  const created = element("button", "");
  created.type = "button";
  created.dataset.sentence = sentence;
  if (document !== null) created.dataset.document = document;
  created.append(...content);
  created.addEventListener("click", () => {
    const isSelected = answer.sentence === sentence && answer.document === document;
    const { start, end } = answer.explanation.citations[sentence];
    if (isSelected) answer.select(null);
    else answer.select(answer.explanation.wordsAt(start, end), sentence, document);
  });
  return created;
}
