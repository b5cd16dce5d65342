// Prints the import map with which a browser finds what dist/index.js imports, without a bundler, from a server that has this directory at /ncn:
// `node importmap.js /ncn`. It is what Node resolves, under the conditions of a browser.
import { register } from "node:module";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { MessageChannel, receiveMessageOnPort } from "node:worker_threads";

const here = new URL(".", import.meta.url).href;
const prefix = (process.argv[2] ?? "").replace(/\/?$/, "/");

const hooks = `
let port;
export const initialize = (data) => { port = data.port; };
export async function resolve(specifier, context, next) {
  const found = await next(specifier, { ...context, conditions: ["browser", "import", "default"] });
  if (!/^(\\.|\\/|node:|file:|data:)/.test(specifier)) port.postMessage([specifier, context.parentURL, found.url]);
  return found;
}`;
const { port1, port2 } = new MessageChannel();
const [imports, scopes] = [{}, {}];
const path = (url) => prefix + url.slice(here.length);
register(`data:text/javascript,${encodeURIComponent(hooks)}`, { data: { port: port2 }, transferList: [port2] });
imports.ncn = path(new URL("dist/index.js", here).href);
await import(fileURLToPath(new URL("dist/index.js", here)));
await import("viem");
await import("viem/accounts");
for (let told = receiveMessageOnPort(port1); told; told = receiveMessageOnPort(port1)) {
  const [name, from, url] = told.message;
  if (!url.startsWith(here)) continue;
  imports[name] ??= path(url);
  // Where packages have different versions of it, each has its own.
  if (imports[name] !== path(url)) (scopes[path(new URL(".", from).href)] ??= {})[name] = path(url);
}
console.log(JSON.stringify({ imports, scopes }));
