// Helpers for the page's elements and texts.

export const byId = (id) => document.getElementById(id);
/** A share in per cent; the no-break space keeps number and sign on one line. */
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}\u00a0%`;

/** A text of at most `length` characters, with its middle left out. */
export function shorten(text, length = 80) {
  const characters = Array.from(text.trim()), half = Math.floor(length / 2);
  return characters.length <= length ? characters.join("") : `${characters.slice(0, half).join("").trim()} … ${characters.slice(-half).join("").trim()}`;
}

export function element(tag, className, text) {
  const created = document.createElement(tag);
  created.className = className;
  if (text !== undefined) created.textContent = text;
  return created;
}

/** A name, a bar and a text. */
export function bar(name, share, shade, text) {
  const row = element("span", "bar"), track = element("span", "track"), fill = element("i", shade);
  fill.style.width = `${100 * share}%`;
  track.append(fill);
  row.append(element("bdi", "", name), track, element("span", "amount", text));
  return row;
}

/** A text in quotation marks. `bdi` isolates its direction from the text around it. */
export const quoted = (text) => ["“", element("bdi", "", text), "”"];

/** A speaker's name. Always left to right, so that it does not decide the direction of the message after it. */
export function speaker(name) {
  const created = element("span", "who", name);
  created.dir = "ltr";
  return created;
}

/** Show an error, or remove it with "". */
export function showError(text) {
  byId("error").textContent = text;
}
