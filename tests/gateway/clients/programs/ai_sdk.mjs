// The AI SDK: PACKAGES BASE_URL MODEL API WHAT, API being chat or responses, and WHAT text, object or tools.
// Prints one JSON object.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, baseURL, model, api, what] = process.argv.slice(2);
const { resolve } = createRequire(`${packages}/`);
const load = (name) => import(pathToFileURL(resolve(name)));
const { generateObject, generateText, streamObject, streamText, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { z } = await load("zod");

const openai = createOpenAI({ baseURL, apiKey: "none" }); // pragma: allowlist secret (none)
const onError = ({ error }) => { throw error; };
const settings = { model: api === "chat" ? openai.chat(model) : openai(model), temperature: 0, maxRetries: 0 };
const question = { ...settings, prompt: "What is the capital of France?" };

const collected = async (stream) => {
  let text = "";
  for await (const delta of stream) text += delta;
  return text;
};

const programs = {
  async text() {
    const asked = { ...question, maxOutputTokens: 16 };
    const stream = streamText({ ...asked, onError });
    const streamed = await collected(stream.textStream);
    const whole = await generateText(asked);
    const tokens = (await stream.totalUsage).outputTokens;
    return { text: whole.text, streamed, finish: await stream.finishReason, tokens };
  },
  async object() {
    const cities = z.object({ city: z.enum(["Paris", "Rome"]), country: z.enum(["France", "Italy"]), large: z.boolean() });
    const asked = { ...question, schema: cities, maxOutputTokens: 100 };
    const stream = streamObject({ ...asked, onError });
    await collected(stream.textStream);
    return { object: (await generateObject(asked)).object, streamed: await stream.object };
  },
  async tools() {
    const weather = tool({ description: "The weather of a city.", inputSchema: z.object({ city: z.string() }) });
    const asked = {
      ...settings, prompt: "How is the weather in Bonn?", tools: { weather }, toolChoice: "required", maxOutputTokens: 60,
    };
    const stream = streamText({ ...asked, onError });
    const parts = [];
    for await (const part of stream.fullStream) parts.push(part.type);
    const calls = (made) => made.map(({ toolName, input }) => ({ toolName, input }));
    return { parts, streamed: calls(await stream.toolCalls), calls: calls((await generateText(asked)).toolCalls) };
  },
};
console.log(JSON.stringify(await programs[what]()));
