// pg-boss: drain_pgboss.mjs fill URL JOBS, drain_pgboss.mjs drain URL BATCH CONCURRENCY
// fetches again at once after a full batch. It speaks with bench/peers.py as talk.py says.
import { createInterface } from "node:readline";
import { PgBoss } from "pg-boss";

const CHUNK = 5000;
const [what, connectionString, ...numbers] = process.argv.slice(2);
const boss = new PgBoss({ connectionString, max: 10, supervise: false, schedule: false });
boss.on("error", (error) => console.error(error.message));
await boss.start();

async function fill(jobs) {
  await boss.createQueue("q");
  for (let begin = 0; begin < jobs; begin += CHUNK) {
    await boss.insert("q", Array.from({ length: Math.min(CHUNK, jobs - begin) }, () => ({ data: {} })));
  }
  await boss.stop({ graceful: false });
  process.exit(0);
}

async function drain(batchSize, localConcurrency) {
  let done = 0;
  const how = { batchSize, localConcurrency, pollingIntervalSeconds: 0.5, burstWhenBatchFull: true };
  const lines = createInterface({ input: process.stdin });
  lines.on("close", () => process.exit(0));
  lines.once("line", async () => {
    setInterval(() => console.log(done), 10);
    await boss.work("q", how, async (jobs) => { done += jobs.length; });
  });
  console.log("ready");
}

await { fill, drain }[what](...numbers.map(Number));
