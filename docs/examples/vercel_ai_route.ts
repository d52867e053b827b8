// Vercel AI SDK: a route that streams an answer through the gateway, with each token's attribution as a data part.
// npm install ai; set GRADELLM_GATEWAY, such as http://127.0.0.1:8080
// On the page: useChat<UIMessage<never, { attribution: Attribution }>>(), and message.parts of type "data-attribution".
import { createUIMessageStream, createUIMessageStreamResponse, type UIMessage } from "ai";

export type Attribution = { token_index: number; scores: number[] };
type Message = UIMessage<never, { attribution: Attribution }>;

export async function POST(request: Request) {
  const { messages }: { messages: Message[] } = await request.json();
  const chatMessages = messages.map(({ role, parts }) => ({
    role,
    content: parts.map((part) => (part.type === "text" ? part.text : "")).join(""),
  }));
  const stream = createUIMessageStream<Message>({
    async execute({ writer }) {
      const id = crypto.randomUUID();
      writer.write({ type: "text-start", id });
      for await (const chunk of chunks(chatMessages, request.signal)) {
        const delta = chunk.choices[0]?.delta?.content;
        if (delta) writer.write({ type: "text-delta", id, delta });
        const attribution = chunk.gradellm?.attribution;
        if (attribution) writer.write({ type: "data-attribution", data: attribution });
      }
      writer.write({ type: "text-end", id });
    },
  });
  return createUIMessageStreamResponse({ stream });
}

async function* chunks(messages: { role: string; content: string }[], signal: AbortSignal) {
  const response = await fetch(`${process.env.GRADELLM_GATEWAY}/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages, stream: true, gradellm: {} }),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let left = "";
  for await (const text of response.body!.pipeThrough(new TextDecoderStream())) {
    const lines = (left + text).split("\n");
    left = lines.pop()!;
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}
