// Chats by OpenAI's JavaScript client: PACKAGES BASE_URL QUESTION. Prints one JSON object.
import { createRequire } from "node:module";

const [packages, baseURL, content] = process.argv.slice(2);
const { OpenAI } = createRequire(`${packages}/`)("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 }); // pragma: allowlist secret (none)
const body = { model: "any", messages: [{ role: "user", content }], max_tokens: 6, temperature: 0, gradellm: {} };

let text = "", rows = 0;
for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.gradellm?.attribution) rows += 1;
}
const whole = await client.chat.completions.create(body);
const helper = client.chat.completions.stream({ ...body, stream: true });
console.log(JSON.stringify({
  text, rows,
  whole: whole.choices[0].message.content,
  wholeRows: whole.gradellm.attributions.length,
  helper: (await helper.finalChatCompletion()).choices[0].message.content,
}));
