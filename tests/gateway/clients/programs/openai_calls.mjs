// Chats, completions and responses by OpenAI's JavaScript package, whole, streamed and parsed:
// PACKAGES BASE_URL MODEL [tools]. Prints one JSON object, as openai_calls.py does.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, baseURL, model, what] = process.argv.slice(2);
const { resolve } = createRequire(`${packages}/`);
const load = (name) => import(pathToFileURL(resolve(name)));
const { OpenAI } = await load("openai");
const { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } = await load("openai/helpers/zod");
const { z } = await load("zod");

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 1200e3 }); // pragma: allowlist secret (none)
const shared = { model, temperature: 0 };
const chats = client.chat.completions;
const Capital = z.object({ city: z.enum(["Paris", "Rome"]), country: z.enum(["France", "Italy"]) });
const chatOf = (content) => ({ ...shared, messages: [{ role: "user", content }] });
const responseOf = (input) => ({ ...shared, input });
const joined = async (stream, textOf) => {
  let text = "";
  for await (const part of stream) text += textOf(part) ?? "";
  return text;
};

const texts = async (question) => {
  const chat = { ...chatOf(question), max_tokens: 16 };
  const prompt = { ...shared, prompt: "The capital of France is", max_tokens: 8 };
  const response = { ...responseOf(question), max_output_tokens: 16 };
  return {
    chat: [
      (await chats.create(chat)).choices[0].message.content,
      await joined(await chats.create({ ...chat, stream: true }), (chunk) => chunk.choices[0]?.delta.content),
    ],
    completion: [
      (await client.completions.create(prompt)).choices[0].text,
      await joined(await client.completions.create({ ...prompt, stream: true }), (chunk) => chunk.choices[0]?.text),
    ],
    response: [
      (await client.responses.create(response)).output_text,
      await joined(await client.responses.create({ ...response, stream: true }),
        (event) => event.type === "response.output_text.delta" ? event.delta : ""),
    ],
    parsed: await parsed(question),
  };
};

const parsed = async (question) => {
  const chat = { ...chatOf(question), max_tokens: 60, response_format: zodResponseFormat(Capital, "capital") };
  const response = { ...responseOf(question), max_output_tokens: 60, text: { format: zodTextFormat(Capital, "capital") } };
  return [
    (await chats.parse(chat)).choices[0].message.parsed,
    (await chats.stream(chat).finalChatCompletion()).choices[0].message.parsed,
    (await client.responses.parse(response)).output_parsed,
    (await client.responses.stream(response).finalResponse()).output_parsed,
  ];
};

const calls = async (question) => {
  const weather = { name: "Weather", description: "The weather of a city.", parameters: z.object({ city: z.string() }) };
  const chat = { ...chatOf(question), max_tokens: 60, tools: [zodFunction(weather)], tool_choice: "required" };
  const response = {
    ...responseOf(question), max_output_tokens: 60, tools: [zodResponsesFunction(weather)], tool_choice: "required",
  };
  const ofChat = ({ choices }) => choices[0].message.tool_calls.map((call) =>
    [call.function.name, call.function.parsed_arguments]);
  const ofResponse = ({ output }) => output.map((item) => [item.name, item.parsed_arguments]);
  return {
    chat: [ofChat(await chats.parse(chat)), ofChat(await chats.stream(chat).finalChatCompletion())],
    response: [
      ofResponse(await client.responses.parse(response)),
      ofResponse(await client.responses.stream(response).finalResponse()),
    ],
  };
};

const answer = what === "tools" ? calls("How is the weather in Bonn?") : texts("What is the capital of France?");
console.log(JSON.stringify(await answer));
