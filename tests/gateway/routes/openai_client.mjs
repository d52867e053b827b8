// Completions and responses by OpenAI's JavaScript client: PACKAGES BASE_URL. Prints one JSON object.
import { createRequire } from "node:module";

const [packages, baseURL] = process.argv.slice(2);
const { OpenAI } = createRequire(`${packages}/`)("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 }); // pragma: allowlist secret (none)
const completion = { model: "gradellm", prompt: "Once upon a time", max_tokens: 4 };
const response = { model: "gradellm", input: "Once upon a time", max_output_tokens: 4 };

let text = "", delta = "";
for await (const chunk of await client.completions.create({ ...completion, stream: true })) {
  text += chunk.choices[0]?.text ?? "";
}
const types = [];
for await (const event of await client.responses.create({ ...response, stream: true })) {
  types.push(event.type);
  if (event.type === "response.output_text.delta") delta += event.delta;
}
const whole = await client.responses.create(response);
console.log(JSON.stringify({
  text, delta, types,
  wholeText: (await client.completions.create(completion)).choices[0].text,
  wholeResponse: whole.output_text,
}));
