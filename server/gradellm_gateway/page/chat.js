// The chat page: a conversation on one side, and what its words came from on the other.
import { Explanation, largest, shade } from "./explanation.js";
import { info, stream } from "./server.js";

const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const token = () => at("token").value.trim();

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A text in quotation marks, apart from the direction of what is around it. */
const quoted = (text) => ["“", element("bdi", "", text), "”"];

/** Whose text follows: ours, so that it does not decide the direction of that. */
function speaker(name) {
  const made = element("span", "who", name);
  made.dir = "ltr";
  return made;
}

// --- state -----------------------------------------------------------------------------------------------------------

let messages = []; // of this conversation, as they are sent
let running = null; // what cancels the answer that comes
let beside = new AbortController(); // what cancels comparisons and measurements of answers that are there
let isMeasuring = false;
let shown = null; // the answer whose words are explained beside: { explanation, box, elements, method, pinned, hovered }
let streaming = []; // methods that explain while text is generated: { label, keywords }
let afterwards = []; // methods for answers that are there

// --- what can be asked -----------------------------------------------------------------------------------------------

function options(select, rows, none) {
  select.replaceChildren(...(none ? [new Option(none, "")] : []), ...rows.map(({ label }) => new Option(label, label)));
}

async function meet() {
  try {
    const served = await info(token());
    say("");
    at("model").textContent = `${served.model.name.split("/").pop()} · ${served.model.family}, ${served.model.dtype} · ${served.limits.max_prompt_tokens} tokens at most`;
    at("max-tokens").max = served.limits.max_new_tokens;
    at("max-tokens").value = Math.min(+at("max-tokens").value, served.limits.max_new_tokens);
    const presets = ["paper", "knockout", "unloosened", "grad_eclip"].map((name) => ({ label: `grad_ellm, ${name}`, keywords: { attribution: name } }));
    const others = served.methods.filter((method) => method.name !== "grad_ellm")
      .map((method) => ({ label: method.name, keywords: { method: method.name }, streams: method.streams }));
    streaming = [...presets.slice(0, 3), ...others.filter((method) => method.streams)];
    afterwards = [...presets, ...others];
    options(at("method"), streaming);
    options(at("compare"), afterwards, "nothing");
    if (!served.model.has_chat_template) say("This model takes no conversations: it has no chat template.");
  } catch (error) {
    say(error.message);
  }
}

const keywordsOf = (label) => afterwards.find((method) => method.label === label)?.keywords ?? {};

function say(text) { at("said").textContent = text; }

// --- asking ----------------------------------------------------------------------------------------------------------

const codePoints = (text) => Array.from(text).length;

/** The message with the documents before it, and where each stands. */
function composed(place) {
  let text = "";
  const segments = {};
  for (const box of document.querySelectorAll(".document")) {
    const name = box.querySelector("input").value.trim(), content = box.querySelector("textarea").value;
    if (!content.trim()) continue;
    let key = name || "document";
    for (let number = 2; key in segments; number += 1) key = `${name || "document"} (${number})`;
    const start = codePoints(text);
    text += `${content}\n\n`;
    segments[key] = [place, start, start + codePoints(content)];
  }
  return { text: text + at("question").value, segments };
}

async function ask(event) {
  event.preventDefault();
  if (running || !at("question").value.trim()) return;
  say("");
  leave();
  const system = at("system").value.trim();
  if (!messages.length && system) messages.push({ role: "system", content: system });
  const conversation = messages, { text, segments } = composed(messages.length);
  messages.push({ role: "user", content: text });
  const own = turn("user"), method = at("method").value, box = turn("assistant");
  own.append(at("question").value);
  running = new AbortController();
  waiting(true);
  const asked = at("question").value;
  at("question").value = "";
  let answer = null;
  try {
    const body = {
      model: "gradellm", messages, stream: true,
      gradellm: { ...keywordsOf(method), ...(Object.keys(segments).length ? { segments } : {}) },
      max_tokens: +at("max-tokens").value, temperature: +at("temperature").value,
      seed: crypto.getRandomValues(new Uint32Array(1))[0], // the server's own may be longer than JavaScript's numbers
    };
    for await (const event of stream("v1/chat/completions", body, { token: token(), signal: running.signal })) {
      if (event.started) { answer = begun(event.started, box, method); show(answer); }
      else if (event.token) grow(answer, event.token);
      else if (event.attribution) explained(answer, event.attribution);
      else if (event.finished) answer.explanation.finish(event.finished);
    }
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  } finally {
    const content = answer?.explanation.tokens.map((one) => one.text).join("") ?? "";
    if (content) conversation.push({ role: "assistant", content });
    else { conversation.pop(); own.remove(); box.remove(); }
    if (conversation === messages) { // not, where a new one has begun
      if (content) answer.isOver = true;
      else { at("question").value = asked; if (shown === answer) clear(); }
    }
    running = null;
    waiting(false);
    at("question").focus();
  }
}

function waiting(is) {
  at("send").disabled = is;
  at("stop").disabled = !is;
  at("turns").setAttribute("aria-busy", `${is}`);
  enable();
}

/** What can be done with an answer can be done once it is there. */
function enable() {
  const isThere = Boolean(shown?.isOver) && !running;
  at("actions").hidden = !isThere;
  for (const name of ["compare", "judge", "copy", "download"]) at(name).disabled = !isThere;
  at("judge").disabled ||= isMeasuring;
}

/** End comparisons and measurements that run. */
function leave() {
  beside.abort();
  beside = new AbortController();
}

/** Show no answer. */
function clear() {
  shown?.box.classList.remove("shown");
  shown = null;
  for (const name of ["panels", "faithfulness", "status"]) at(name).replaceChildren();
  at("bars").hidden = true;
  enable();
}

function turn(role) {
  const box = element("li", `turn ${role}`);
  box.dir = "auto";
  box.append(speaker(role === "user" ? "You" : "Model"));
  at("turns").append(box);
  return box;
}

// --- an answer -------------------------------------------------------------------------------------------------------

function begun(started, box, method) {
  const answer = { explanation: new Explanation(started), box, elements: [], leads: [], method, other: "", pinned: null, hovered: null, panels: [], isOver: false };
  box.addEventListener("pointerover", (event) => point(answer, wordOf(event)));
  box.addEventListener("pointerleave", () => point(answer, null));
  box.addEventListener("focusin", (event) => point(answer, wordOf(event)));
  box.addEventListener("focusout", () => point(answer, null));
  box.addEventListener("click", (event) => { const word = wordOf(event); if (word !== null) pin(answer, word); });
  box.addEventListener("keydown", (event) => keys(answer, event));
  return answer;
}

const wordOf = (event) => { const found = event.target.closest(".word"); return found ? +found.dataset.word : null; };

function grow(answer, token) {
  const added = answer.explanation.addToken(token);
  if (!added) return;
  const { word, isNew } = added;
  if (isNew) {
    const span = element("span", "word"), lead = new Text();
    span.dataset.word = word;
    span.tabIndex = answer.elements.length ? -1 : 0;
    span.setAttribute("role", "button");
    span.setAttribute("aria-pressed", "false");
    answer.box.append(lead, span);
    answer.elements.push(span);
    answer.leads.push(lead);
  }
  const text = answer.explanation.words[word].text, bare = text.trimStart();
  answer.leads[word].data = text.slice(0, text.length - bare.length);
  answer.elements[word].textContent = bare;
  answer.elements[word].hidden = !bare; // white space whose word has not come yet
}

function explained(answer, attribution) {
  answer.explanation.addRow(answer.method, attribution);
  answer.explanation.keepRaw(answer.method, attribution);
  const { length } = answer.explanation.words; // the latest is shown, unless another one is looked at
  if (shown === answer) paint(answer, length ? length - 1 : null);
}

function point(answer, word) {
  answer.hovered = word;
  if (word !== null && shown !== answer) show(answer);
  if (shown === answer) paint(answer);
}

function pin(answer, word) {
  const before = answer.pinned;
  if (before !== null) answer.elements[before].setAttribute("aria-pressed", "false");
  answer.pinned = before === word ? null : word;
  if (answer.pinned !== null) answer.elements[word].setAttribute("aria-pressed", "true");
  if (shown !== answer) show(answer);
  paint(answer);
}

function keys(answer, event) {
  const word = wordOf(event);
  if (word === null) return;
  const go = (to) => {
    const target = answer.elements[Math.max(0, Math.min(answer.elements.length - 1, to))];
    answer.elements.forEach((one) => { one.tabIndex = one === target ? 0 : -1; });
    target.focus();
  };
  const [forward, back] = getComputedStyle(answer.box).direction === "rtl" ? ["ArrowLeft", "ArrowRight"] : ["ArrowRight", "ArrowLeft"];
  const moves = { [forward]: () => go(word + 1), [back]: () => go(word - 1), Home: () => go(0), End: () => go(Infinity), Enter: () => pin(answer, word), " ": () => pin(answer, word) };
  if (moves[event.key]) { moves[event.key](); event.preventDefault(); }
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && shown && shown.pinned !== null) pin(shown, shown.pinned);
});

// --- what it came from -----------------------------------------------------------------------------------------------

function show(answer) {
  shown?.box.classList.remove("shown");
  shown = answer;
  answer.box.classList.add("shown");
  at("compare").value = answer.other;
  at("faithfulness").replaceChildren(...(answer.judgement ?? []));
  enable();
  lay(answer);
}

/** A panel with the prompt's text for each method. */
function lay(answer) {
  answer.panels = [answer.method, ...(answer.other ? [answer.other] : [])].map((method) => {
    const panel = element("div", "panel");
    panel.tabIndex = 0;
    panel.setAttribute("role", "group");
    panel.setAttribute("aria-label", `The prompt, explained by ${method}`);
    panel.append(element("h3", "", method));
    const spans = [];
    let box = null, key;
    for (const { text, token, columns } of answer.explanation.characters) {
      const isWritten = answer.explanation.isWritten(columns[0]), its = isWritten ? `${token.message ?? ""}` : "template";
      if (!box || its !== key) {
        key = its;
        box = element("div", isWritten ? "message" : "template");
        box.dir = "auto";
        panel.append(box);
        if (isWritten && token.message !== null) box.append(speaker(token.role));
      }
      const bare = text.trimStart() || text, span = element("span", "piece", bare);
      if (token.segment) span.title = token.segment;
      box.append(text.slice(0, text.length - bare.length), span);
      spans.push(span);
    }
    return { method, panel, spans };
  });
  at("panels").replaceChildren(...answer.panels.map(({ panel }) => panel));
  paint(answer);
}

/** Colour what the word that is looked at came from; the whole answer where there is none. */
function paint(answer, latest = null) {
  const word = answer.hovered ?? answer.pinned ?? latest;
  answer.elements.forEach((one, i) => one.classList.toggle("chosen", i === word));
  let signed = false;
  answer.panels.forEach(({ method, spans }, i) => {
    const scores = answer.explanation.scores(method, word === null ? undefined : [word]);
    const { characters } = answer.explanation;
    const sums = characters.map(({ columns }) => (scores ? columns.reduce((sum, column) => sum + scores[column], 0) : 0));
    const seen = sums.filter((_, i) => answer.explanation.isWritten(characters[i].columns[0]));
    const peak = largest(seen);
    signed ||= seen.some((score) => score < 0);
    spans.forEach((span, i) => { span.className = `piece ${peak ? shade(sums[i] / peak) : ""}`; });
    if (i === 0) { tell(answer, word, scores); bars(answer, scores); }
  });
  at("low").textContent = signed ? "against" : "0";
  at("high").textContent = signed ? "for" : "largest";
  at("scale").replaceChildren(...Array.from({ length: signed ? 17 : 9 }, (_, i) => element("i", shade(signed ? (i - 8) / 8 : i / 8))));
}

function tell(answer, word, scores) {
  const who = word === null ? ["The answer"] : quoted(answer.elements[word].textContent.trim());
  if (!scores) { at("status").replaceChildren(...(word === null ? ["The answer is on its way."] : [...who, " is not explained yet."])); return; }
  const top = answer.explanation.top(scores).flatMap(({ text, share }, i) => [i ? ", " : "", ...quoted(text), ` ${percent(share)}`]);
  at("status").replaceChildren(...who, ...(top.length ? [" came from ", ...top] : [": nothing stands out."]));
}

function bars(answer, scores) {
  const found = scores ? answer.explanation.segments(scores) : [];
  at("bars").hidden = !found.length;
  at("bars").replaceChildren(...found.map(({ name, score, share }) => {
    const bar = element("div", "bar"), held = element("span", ""), fill = element("i", shade(score < 0 ? -1 : 1));
    fill.style.width = percent(share).replace(" ", "");
    held.append(fill);
    bar.append(element("bdi", "", name), held, element("span", "", percent(share)));
    return bar;
  }));
}

// --- another method, faithfulness, copies ----------------------------------------------------------------------------

/** The same tokens again. */
const again = (answer) => ({
  prompt_ids: answer.explanation.started.prompt_tokens.map((one) => one.id),
  completion_ids: answer.explanation.tokens.map((one) => one.id),
});

at("compare").addEventListener("change", async (event) => {
  const answer = shown, method = event.target.value;
  answer.other = method;
  lay(answer);
  if (!method || answer.explanation.rows.has(method)) return;
  at("status").textContent = `Explaining by ${method} …`;
  try {
    for await (const { attribution } of stream("v1/gradellm/attribute", { ...again(answer), ...keywordsOf(method) }, { token: token(), signal: beside.signal })) {
      if (attribution) answer.explanation.addRow(method, attribution);
    }
    if (shown === answer) paint(answer);
  } catch (error) {
    answer.explanation.rows.delete(method); // some may be there
    answer.other = "";
    if (shown === answer) show(answer);
    if (error.name !== "AbortError") say(error.message);
  }
});

at("judge").addEventListener("click", async () => {
  const answer = shown, place = at("faithfulness");
  isMeasuring = true;
  enable();
  place.textContent = "Measuring: the prompt is run many times with parts of it left out …";
  const columns = answer.explanation.started.prompt_tokens.flatMap((one, i) => (one.role === "user" && !one.special ? [i] : []));
  const methods = { [answer.method]: keywordsOf(answer.method), random: { method: "random" } };
  try {
    for await (const { progress, summary } of stream("v1/gradellm/evaluate", { ...again(answer), methods, perturb_positions: columns, seed: 0 }, { token: token(), signal: beside.signal })) {
      if (progress && shown === answer) place.textContent = `Measuring … ${percent(progress.done)}`;
      if (summary) answer.judgement = judgement(answer, summary);
    }
    if (shown === answer) place.replaceChildren(...(answer.judgement ?? []));
  } catch (error) {
    if (shown === answer) place.textContent = "";
    if (error.name !== "AbortError") say(error.message);
  } finally {
    isMeasuring = false;
    enable();
  }
});

function judgement(answer, summary) {
  const range = ({ mean, low, high }) => `${mean.toFixed(2)}${low === null ? "" : ` (${low.toFixed(2)} to ${high.toFixed(2)})`}`;
  const names = { pi_soft_ns: "Sufficiency: what is kept brings the answer back (pi-Soft-NS)", pi_soft_nc: "Comprehensiveness: without it the answer goes (pi-Soft-NC)" };
  return summary.metrics.filter((one) => one.name === answer.method).map((one) => {
    const gain = one.difference_from_random, sure = gain && gain.low !== null;
    const verdict = !sure ? "" : gain.low > 0 ? "; better than random scores" : gain.high < 0 ? "; worse than random scores" : "; not told apart from random scores";
    return element("p", "", `${names[one.metric] ?? one.metric}: ${range(one.interval)}${gain ? `, ${range(gain)} more than random` : ""}${verdict}. At ${one.steps} of the answer’s tokens; the interval is of the masks that were drawn, for this answer alone.`);
  });
}

at("copy").addEventListener("click", async () => {
  const text = shown.explanation.tokens.map((one) => one.text).join("");
  try { await navigator.clipboard.writeText(text); at("status").textContent = "Copied."; }
  catch { say("The browser does not let this page copy; select the text instead."); }
});

at("download").addEventListener("click", () => {
  const file = new Blob([JSON.stringify(shown.explanation.document(shown.method))], { type: "application/json" });
  const link = element("a", "");
  link.href = URL.createObjectURL(file);
  link.download = "explanation.json";
  link.click();
  URL.revokeObjectURL(link.href);
});

// --- the form --------------------------------------------------------------------------------------------------------

at("composer").addEventListener("submit", ask);
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("composer").requestSubmit(); }
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  running?.abort();
  leave();
  messages = [];
  at("turns").replaceChildren();
  clear();
  say("");
  at("question").focus();
});
let numDocuments = 0;
at("add-document").addEventListener("click", () => {
  numDocuments += 1;
  const box = element("div", "document"), name = element("input", ""), text = element("textarea", ""), remove = element("button", "", "Remove");
  name.setAttribute("aria-label", `Name of document ${numDocuments}`);
  name.value = `document ${numDocuments}`;
  text.setAttribute("aria-label", `Text of document ${numDocuments}`);
  text.rows = 3;
  text.dir = "auto";
  remove.type = "button";
  remove.addEventListener("click", () => box.remove());
  box.append(name, text, remove);
  at("documents").append(box);
  text.focus();
});
at("token").addEventListener("change", meet);
meet();
