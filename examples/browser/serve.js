// Serves index.html, and what it imports, on this machine: `node serve.js [PORT]`. Build ncn-bindings/typescript first (`npm ci && npm run build` there).
import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const sdk = join(here, "../../ncn-bindings/typescript");
const folders = { "/ncn/": sdk, "/data/": join(here, "../data") };
const kinds = { ".js": "text/javascript", ".png": "image/png" };
const map = execFileSync(process.execPath, [join(sdk, "importmap.js"), "/ncn"], { encoding: "utf8" });

async function found(url) {
  const path = new URL(url, "http://localhost").pathname;
  if (path === "/") return [(await readFile(join(here, "index.html"), "utf8")).replace("{}", map), "text/html; charset=utf-8"];
  const [prefix, folder] = Object.entries(folders).find(([name]) => path.startsWith(name)) ?? [];
  const kind = kinds[extname(path)];
  if (folder === undefined || kind === undefined) return undefined;
  return [await readFile(join(folder, normalize(path.slice(prefix.length - 1)))), kind];
}

const server = createServer(async ({ url }, response) => {
  const answer = await found(url).catch(() => undefined);
  response.writeHead(answer ? 200 : 404, { "content-type": answer?.[1] ?? "text/plain" }).end(answer?.[0] ?? "nothing is here");
});
server.listen(Number(process.argv[2] ?? 8000), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
