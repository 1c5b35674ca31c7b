// Runs the gateway's own check of its locks. Arguments: MODULE STATE_DIR. Removes nothing.
import fs from "node:fs";
import path from "node:path";

const { cleanStaleLockFiles } = await import(process.argv[2]);
const agents = path.join(process.argv[3], "agents");
let locks = 0;
for (const agent of fs.readdirSync(agents)) {
  const sessionsDir = path.join(agents, agent, "sessions");
  locks += (await cleanStaleLockFiles({ sessionsDir, removeStale: false })).locks.length;
}
console.log(locks);
