// Parses the AsyncAPI documents that it is given by path; prints what the official parser says.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const parser = new Parser();
const found = {};
for (const path of process.argv.slice(2)) {
  const { document, diagnostics } = await parser.parse(readFileSync(path, "utf8"));
  found[path] = {
    operations: document ? document.operations().all().map((each) => each.id()) : [],
    // 0 is an error, 1 a warning; 2 and 3 are advice, such as a newer version of AsyncAPI.
    problems: diagnostics
      .filter((each) => each.severity < 2)
      .map((each) => `${each.path.join(".")}: ${each.message}`),
  };
}
console.log(JSON.stringify(found));
