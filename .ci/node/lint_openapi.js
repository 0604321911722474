// Check OpenAPI documents by the recommended rules of redocly.
//
// Standard input is a JSON list of documents. Standard output is a JSON list with the problems of
// each of them, as lines: "error operation-summary #/paths/~1/get/summary: ...".
const { createConfig, lintFromString } = require("@redocly/openapi-core");

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const config = await createConfig({ extends: ["recommended"] });
  const found = [];
  for (const document of JSON.parse(Buffer.concat(chunks))) {
    const source = JSON.stringify(document);
    const problems = await lintFromString({ source, config, absoluteRef: "openapi.json" });
    found.push(
      problems.map((each) => {
        const [place] = each.location;
        return `${each.severity} ${each.ruleId} ${place.pointer ?? ""}: ${each.message}`;
      }),
    );
  }
  process.stdout.write(JSON.stringify(found));
}

main();
