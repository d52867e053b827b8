// Helpers for the page's elements and texts.

export const byId = (id) => document.getElementById(id);
/** A share in per cent; the no-break space keeps number and sign on one line. */
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;

export function element(tag, className, text) {
  const created = document.createElement(tag);
  created.className = className;
  if (text !== undefined) created.textContent = text;
  return created;
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
