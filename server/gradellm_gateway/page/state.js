// The page's state, and the attribution methods that it offers.
import { byId } from "./dom.js";

export const state = {
  messages: [], // of this conversation, in OpenAI's form
  segments: {}, // its documents: by name [message, start, end]
  model: "gradellm", // of chat requests: another engine's name for it, where one writes
  answering: null, // AbortController of the answer that is streamed
  sideWork: new AbortController(), // of comparisons and faithfulness measurements of finished answers
  measuring: null, // AbortController of a faithfulness measurement
  view: "excess", // what colours stand for (sources.js)
  shown: null, // the Answer whose attribution is shown
  streamingMethods: [], // { label, keywords }: methods that explain while text is generated
  postHocMethods: [], // the same, for finished answers
};

export const keywordsOf = (label) => state.postHocMethods.find((method) => method.label === label)?.keywords ?? {};

/** How a request is sent: with the token that the user has entered. */
export const callOptions = (signal) => ({ token: byId("token").value.trim(), signal });

/** Cancel comparisons and measurements that run. */
export function cancelSideWork() {
  state.sideWork.abort();
  state.sideWork = new AbortController();
}

/** Whether an answer's actions (compare, measure, copy, download) can be used: only once it is finished. */
export function updateActions() {
  const isReady = Boolean(state.shown?.isFinished) && !state.answering;
  byId("actions").hidden = !isReady;
  for (const name of ["compare", "judge", "judge-thoroughly", "copy", "download"]) byId(name).disabled = !isReady;
  for (const name of ["judge", "judge-thoroughly"]) byId(name).disabled ||= state.measuring !== null;
}
