// A holder of OpenClaw's other locks, through its own code. Arguments: FILE_LOCK_MODULE AUTH_STORE_MODULE, then anything.
// Commands on standard input, one a line: `hold PATH` (by withFileLock, for ever), `try PATH` (by it, and release), `sync PATH`
// (by acquireAuthStoreLockSync, which keeps no descriptor). Answers one line each; paths are those of the guarded file.
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";

const [moduleFile, storeFile] = process.argv.slice(2);
const name = fs.readFileSync(moduleFile, "utf8").match(/\bwithFileLock as (\w+)/)?.[1] ?? "withFileLock";
const withFileLock = (await import(moduleFile))[name];
// It is not exported: its region of the source is run as it stands.
const source = fs.readFileSync(storeFile, "utf8");
const from = source.indexOf("function readSyncLockSnapshot");
const to = source.indexOf("\nfunction ", source.indexOf("function acquireAuthStoreLockSync"));
const acquireAuthStoreLockSync = new Function("fs", "path", `${source.slice(from, to)}; return acquireAuthStoreLockSync;`)(fs, path);

const options = { retries: { retries: 3, factor: 1, minTimeout: 50, maxTimeout: 50 }, stale: 30_000 };
const commands = {
  hold: (file) =>
    new Promise((resolve, reject) => {
      withFileLock(file, options, () => (resolve("held"), new Promise(() => {}))).catch(reject);
    }),
  try: (file) => withFileLock(file, options, async () => "succeeded"),
  async sync(file) {
    return acquireAuthStoreLockSync(file) === null ? "refused" : "held";
  },
};
console.log("ready");
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, ...rest] = line.split(" ");
  try {
    console.log(await commands[command](rest.join(" ")));
  } catch (error) {
    console.log(`error ${error.code ?? error.message}`);
  }
}
