// A holder through the gateway's own lock module. Arguments: MODULE openclaw.
// Commands on standard input, one a line: `acquire PATH`, `wait PATH` (acquire however long
// that takes; asks ten times as often as the gateway), `release PATH`, `forget PATH` (release, then put the file back as it was), `date TEXT`.
// Answers one line each.
import fs from "node:fs";
import readline from "node:readline";

const { acquireSessionWriteLock } = await import(process.argv[2]);
const held = new Map();
const commands = {
  async acquire(path) {
    held.set(path, await acquireSessionWriteLock({ sessionFile: path, timeoutMs: 10_000 }));
    return "held";
  },
  async wait(path) {
    const attempts = Array.from({ length: 10 }, async (_, at) => {
      await new Promise((resolve) => setTimeout(resolve, 5 * at));
      held.set(path, await acquireSessionWriteLock({ sessionFile: path, timeoutMs: 3_600_000 }));
    });
    await Promise.race(attempts);
    return "held";
  },
  async release(path) {
    await held.get(path).release();
    held.delete(path);
    return "released";
  },
  async forget(path) {
    const bytes = fs.readFileSync(`${path}.lock`);
    await commands.release(path);
    fs.writeFileSync(`${path}.lock`, bytes);
    return "forgotten";
  },
  // Take and release as many locks as told, some at a time; count those that were not ours to the end.
  async churn(text) {
    const [folder, rounds] = [text.slice(0, text.lastIndexOf(" ")), Number(text.split(" ").at(-1))];
    let disturbed = 0;
    for (let round = 0; round < rounds; round += 1) {
      await Promise.all(
        [0, 1, 2, 3, 4].map(async (slot) => {
          const path = `${folder}/churn${slot}.jsonl`;
          const lock = await acquireSessionWriteLock({ sessionFile: path, timeoutMs: 10_000 });
          const mine = fs.statSync(`${path}.lock`).ino;
          await new Promise((resolve) => setTimeout(resolve, Math.random() * 3));
          let undisturbed = false;
          try {
            undisturbed = fs.statSync(`${path}.lock`).ino === mine;
          } catch {}
          // Also where this process is killed before it can answer.
          if (!undisturbed) fs.appendFileSync(`${folder}/disturbed`, `${path}\n`);
          disturbed += !undisturbed;
          await lock.release();
          disturbed += fs.existsSync(`${path}.lock`);
        }),
      );
    }
    return `disturbed ${disturbed}`;
  },
  async date(text) {
    return JSON.stringify(Date.parse(text));
  },
};
console.log("ready");
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [name, ...rest] = line.split(" ");
  try {
    console.log(await commands[name](rest.join(" ")));
  } catch (error) {
    console.log(`error ${error.name}: ${error.message}`);
  }
}
