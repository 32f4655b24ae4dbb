// graphile-worker: drain_graphile.mjs fill URL JOBS, drain_graphile.mjs drain URL SIZE CONCURRENCY DELAY_MS
// with a local queue of SIZE and batched completion. It speaks with bench/peers.py as talk.py says.
import { createInterface } from "node:readline";
import { Logger, makeWorkerUtils, run } from "graphile-worker";

const CHUNK = 5000;
const [what, connectionString, ...numbers] = process.argv.slice(2);
const logger = new Logger(() => () => {});

async function fill(jobs) {
  const tools = await makeWorkerUtils({ connectionString, logger });
  await tools.migrate();
  for (let begin = 0; begin < jobs; begin += CHUNK) {
    const count = Math.min(CHUNK, jobs - begin);
    await tools.addJobs(Array.from({ length: count }, () => ({ identifier: "job", payload: {} })));
  }
  await tools.release();
}

async function drain(size, concurrency, delayMs) {
  let done = 0;
  const localQueue = { size, ttl: 30000, refetchDelay: { durationMs: 10, threshold: 0, maxAbortThreshold: 10 * size } };
  const how = {
    connectionString, logger, concurrency, noHandleSignals: true, pollInterval: 100, maxPoolSize: 10,
    taskList: { job: async () => { done++; } },
    preset: { worker: { completeJobBatchDelay: delayMs, failJobBatchDelay: delayMs, localQueue } },
  };
  const lines = createInterface({ input: process.stdin });
  lines.on("close", () => process.exit(0));
  lines.once("line", async () => {
    setInterval(() => console.log(done), 10);
    await run(how);
  });
  console.log("ready");
}

await { fill, drain }[what](...numbers.map(Number));
