// Documents that are sent before a message, each a named segment of the prompt.
import { byId, element } from "./dom.js";

const numCodePoints = (text) => Array.from(text).length;
let numAdded = 0;

export function addDocument() {
  numAdded += 1;
  const box = element("div", "document"), name = element("input", ""), text = element("textarea", ""), remove = element("button", "", "Remove");
  name.setAttribute("aria-label", `Name of document ${numAdded}`);
  name.value = `document ${numAdded}`;
  text.setAttribute("aria-label", `Text of document ${numAdded}`);
  text.rows = 3;
  text.dir = "auto";
  remove.type = "button";
  remove.addEventListener("click", () => box.remove());
  box.append(name, text, remove);
  byId("documents").append(box);
  text.focus();
}

/** The documents' texts joined, their segments, by name [message, start, end] in code points, and their form fields.
 * Names are unique among those of `earlier` messages, too. */
export function joinDocuments(message, earlier) {
  let text = "";
  const segments = {}, boxes = [...document.querySelectorAll(".document")];
  for (const box of boxes) {
    const name = box.querySelector("input").value.trim(), content = box.querySelector("textarea").value;
    if (!content.trim()) continue;
    let key = name || "document";
    for (let number = 2; key in segments || key in earlier; number += 1) key = `${name || "document"} (${number})`;
    const start = numCodePoints(text);
    text += `${content}\n\n`;
    segments[key] = [message, start, start + numCodePoints(content)];
  }
  return { text, segments, boxes };
}
