// The chat page: the conversation and its form. What the answers' words came from is beside it (sources.js).
import { addActions } from "./actions.js";
import { Answer } from "./answer.js";
import { addDocument, joinDocuments } from "./documents.js";
import { byId, element, showError, speaker } from "./dom.js";
import { info, stream } from "./server.js";
import { addViews, clear, show } from "./sources.js";
import { callOptions, cancelSideWork, keywordsOf, state, updateActions } from "./state.js";
import { UpstreamText } from "./upstream.js";

// --- the model and its methods ---------------------------------------------------------------------------------------

function setOptions(select, methods, emptyLabel) {
  const empty = emptyLabel ? [new Option(emptyLabel, "")] : [];
  select.replaceChildren(...empty, ...methods.map(({ label }) => new Option(label, label)));
}

async function loadServerInfo() {
  try {
    const { model, limits, methods, default_attribution, recommended_preset, upstream } = await info(callOptions().token);
    showError(upstream?.waits_for ? `Answers are not explained yet: ${upstream.waits_for}` : "");
    state.model = upstream?.model || "gradellm";
    byId("model").textContent = `${model.name.split("/").pop()} · ${model.family}, ${model.dtype} · up to ${limits.max_prompt_tokens} prompt tokens${upstream ? " · another engine writes" : ""}`;
    byId("max-tokens").max = limits.max_new_tokens;
    byId("max-tokens").value = Math.min(+byId("max-tokens").value, limits.max_new_tokens);
    const defaultPreset = default_attribution ?? "paper"; // of older servers
    const presets = [recommended_preset, "paper", "knockout", "unloosened", "grad_eclip"].filter((name) => name && name !== defaultPreset)
      .map((name) => ({ label: `grad_ellm, ${name}`, keywords: { attribution: name } }));
    presets.unshift({ label: `grad_ellm, ${defaultPreset}`, keywords: {} });
    const otherMethods = methods.filter((method) => method.name !== "grad_ellm")
      .map((method) => ({ label: method.name, keywords: { method: method.name }, streams: method.streams }));
    state.streamingMethods = [...presets.filter(({ keywords }) => keywords.attribution !== "grad_eclip"), ...otherMethods.filter((method) => method.streams)];
    state.postHocMethods = [...presets, ...otherMethods];
    setOptions(byId("method"), state.streamingMethods);
    setOptions(byId("compare"), state.postHocMethods, "nothing");
    if (!model.has_chat_template) showError("This model cannot hold conversations: it has no chat template.");
  } catch (error) {
    showError(error.message);
  }
}

// --- questions and answers -------------------------------------------------------------------------------------------

async function ask(event) {
  event.preventDefault();
  const question = byId("question").value;
  if (state.answering || !question.trim()) return;
  showError("");
  cancelSideWork();
  const system = byId("system").value.trim();
  if (!state.messages.length && system) state.messages.push({ role: "system", content: system });
  const conversation = state.messages, { text, segments, boxes } = joinDocuments(conversation.length, state.segments);
  conversation.push({ role: "user", content: text + question });
  const request = { messages: conversation.slice(), segments: { ...state.segments, ...segments } };
  const questionBox = addTurn("user"), method = byId("method").value, answerBox = addTurn("assistant");
  for (const name in segments) questionBox.append(element("span", "attached", name));
  questionBox.append(question);
  state.answering = new AbortController();
  setAnswering(true);
  byId("question").value = "";
  const upstream = new UpstreamText(answerBox);
  let answer = null;
  try {
    for await (const event of stream("v1/chat/completions", chatRequest(request, method), callOptions(state.answering.signal))) {
      upstream.add(event);
      if (event.started) { answer = new Answer(event, answerBox, method, request); show(answer); }
      else if (event.token) answer.addToken(event.token);
      answer?.addScores(event);
      answer?.setUpstream(event.upstream);
      if (event.finished) answer.finish(event);
      if (event.incomplete) showError(`The answer is not explained, or not all of it: ${event.incomplete.message}`);
      upstream.show(answer);
    }
  } catch (error) {
    if (error.name !== "AbortError") showError(error.message);
  } finally {
    const content = upstream.text || (answer?.explanation.tokens.map((token) => token.text).join("") ?? "");
    if (content) conversation.push({ role: "assistant", content });
    else { conversation.pop(); questionBox.remove(); answerBox.remove(); }
    if (conversation === state.messages) { // no new conversation has begun meanwhile
      if (content) keep(answer, request, boxes);
      else { byId("question").value = question; if (state.shown === answer) clear(); }
    }
    state.answering = null;
    setAnswering(false);
    byId("question").focus();
  }
}

/** Keep an answer, perhaps one that was stopped: its documents are a part of the conversation now. */
function keep(answer, { segments }, boxes) {
  state.segments = segments;
  boxes.forEach((box) => box.remove());
  if (!answer) return;
  answer.isFinished = true;
  if (state.shown === answer) show(answer);
}

function chatRequest({ messages, segments }, method) {
  const documents = Object.keys(segments).length ? { segments, citations: true } : {};
  return {
    model: state.model, messages, stream: true,
    gradellm: { ...keywordsOf(method), pictures: true, ...documents },
    max_tokens: +byId("max-tokens").value, temperature: +byId("temperature").value,
    seed: crypto.getRandomValues(new Uint32Array(1))[0], // the server's own seeds exceed JavaScript's integers
  };
}

function setAnswering(isAnswering) {
  byId("send").disabled = isAnswering;
  byId("stop").disabled = !isAnswering;
  byId("turns").setAttribute("aria-busy", `${isAnswering}`);
  updateActions();
}

function addTurn(role) {
  const box = element("li", `turn ${role}`);
  box.dir = "auto";
  box.append(speaker(role === "user" ? "You" : "Model"));
  byId("turns").append(box);
  return box;
}

function startNewConversation() {
  state.answering?.abort();
  cancelSideWork();
  state.messages = [];
  state.segments = {};
  byId("turns").replaceChildren();
  clear();
  showError("");
  byId("question").focus();
}

// --- the form --------------------------------------------------------------------------------------------------------

byId("composer").addEventListener("submit", ask);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId("composer").requestSubmit(); }
});
document.addEventListener("keydown", (event) => {
  const answer = state.shown;
  if (event.key === "Escape" && answer && answer.pinned !== null) answer.select(null);
});
let selecting = 0; // a timer: the selection changes with every move of the pointer
document.addEventListener("selectionchange", () => {
  clearTimeout(selecting);
  selecting = setTimeout(() => state.shown?.selectText(), 150);
});
byId("stop").addEventListener("click", () => state.answering?.abort());
byId("new").addEventListener("click", startNewConversation);
byId("add-document").addEventListener("click", addDocument);
byId("token").addEventListener("change", loadServerInfo);
addActions();
addViews();
loadServerInfo();
