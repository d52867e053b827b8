// Calls to the gateway, and its event streams.

/** The events of a stream. Leaving the loop, or aborting the signal, cancels the call. */
export async function* stream(path, body, options) {
  const response = await post(path, body, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let incomplete = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (incomplete + value).split("\n");
      incomplete = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        const chunk = JSON.parse(line.slice(6));
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk.gradellm ?? chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The answer to a call that is not streamed. */
export const call = async (path, body, options) => (await post(path, body, options)).json();

async function post(path, body, { token, signal } = {}) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await failure(response);
  return response;
}

export async function info(token) {
  const response = await fetch("v1/gradellm/info", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (!response.ok) throw await failure(response);
  return response.json();
}

async function failure(response) {
  try {
    return new Error((await response.json()).error.message);
  } catch {
    return new Error(`the gateway answered ${response.status} ${response.statusText}`);
  }
}
