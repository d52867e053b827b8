// A client of another language: streams Generate by the .proto, and prints the events as JSON lines.
import { createRequire } from "node:module";
const [, , packages, proto, address] = process.argv;
const require = createRequire(`${packages}/`);
const grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader");
const loaded = grpc.loadPackageDefinition(loader.loadSync("gradellm/v1/explainer.proto", { includeDirs: [proto], oneofs: true }));
const client = new loaded.gradellm.v1.ExplainerService(address, grpc.credentials.createInsecure());
const call = client.Generate({ input: { prompt: "Once upon a time" }, maxNewTokens: 5, attribution: {} });
call.on("data", (response) => console.log(JSON.stringify({ kind: response.event, value: response[response.event] })));
call.on("error", (error) => { console.error(error.message); process.exit(1); });
call.on("end", () => client.close());
