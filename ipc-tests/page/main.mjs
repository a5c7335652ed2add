// The scenarios; README.md says what they show.
import { Daemon, Page, check, closeBrowser, eventually, run, stub } from "./harness.mjs";
import { madeUp } from "./made_up.mjs";

// Where each number of the page is at /metrics; a second name is LMCache 0.5.6's.
const SAMPLE = {
  requested_tokens: ["lmcache_mp_lookup_requested_tokens_total"],
  hit_tokens: ["lmcache_mp_lookup_hit_tokens_total"],
  stored_tokens: ["lmcached_stored_tokens_total"],
  retrieved_tokens: ["lmcached_retrieved_tokens_total"],
  requests: ["lmcached_requests_total"],
  l1_used: ["lmcache_mp_l1_memory_usage_bytes"],
  l1_ratio: ["lmcache_mp_l1_usage_ratio"],
  l1_capacity: ["lmcached_l1_capacity_bytes"],
  l1_reserved: ["lmcached_l1_reserved_bytes"],
  l1_objects: ["lmcached_l1_objects"],
  l1_writing: ["lmcached_l1_writing_objects"],
  l1_quarantined: ["lmcached_l1_quarantined_objects"],
  l1_leases: ["lmcached_l1_leases"],
  l1_pins: ["lmcached_l1_pins"],
  l1_full: ["lmcached_l1_full_total"],
  l1_evicted: ["lmcache_mp_l1_evicted_keys_total", "lmcache_mp_l1_evicted_chunks_total"],
  l1_evicted_bytes: ["lmcached_l1_evicted_bytes_total"],
  l2_used: ["lmcached_l2_usage_bytes", "lmcache_mp_l2_usage_bytes"],
  l2_stores: ["lmcache_mp_num_inflight_l2_stores"],
  l2_loads: ["lmcache_mp_num_inflight_l2_loads"],
  l2_stored: ["lmcache_mp_l2_store_completed_total", "lmcache_mp_l2_store_completed_requests_total"],
  l2_loaded: ["lmcache_mp_l2_load_completed_total", "lmcache_mp_l2_load_completed_requests_total"],
  l2_store_failed: ["lmcache_mp_l2_store_failed_keys_total"],
  l2_load_failed: ["lmcache_mp_l2_prefetch_failed_keys_total"],
  queue_depth: ["lmcache_mp_event_bus_queue_depth"],
  drain_lag: ["lmcache_mp_event_bus_drain_lag_seconds"],
  events_dropped: ["lmcache_mp_event_bus_dropped_events_total"],
  subscriber_exceptions: ["lmcache_mp_event_bus_subscriber_exceptions_total"],
  ring_lost: ["lmcached_ring_lost_events_total"],
  log_lines_dropped: ["lmcached_log_lines_dropped_total"],
  otlp_dropped: ["lmcached_otlp_dropped_total"],
  malformed: ["lmcached_malformed_messages_total"],
  unknown_operations: ["lmcached_unknown_operations_total"],
  peers_refused: ["lmcached_peers_refused_total"],
  reaped: ["lmcached_workers_reaped_total"],
  connections: ["lmcached_connections"],
  workers: ["lmcached_workers"],
  queued_bytes: ["lmcached_queued_bytes"],
};
for (const [short, long] of [["store", "l0_l1_store"], ["load", "l0_l1_load"], ["l2_store", "l2_store"], ["l2_load", "l2_load"]]) {
  for (const part of ["sum", "count"]) {
    SAMPLE[`${short}_gbs_${part}`] =
      ["gbs", "GB_per_second"].map((unit) => `lmcache_mp_${long}_throughput_${unit}_${part}`);
  }
}

// Whole numbers must be the same to the last digit; sums of fractions depend on the order of the labels.
function same(one, other) {
  return one === other || (!Number.isInteger(one) && Math.abs(one - other) <= Math.abs(one) * 1e-12);
}

// Per key, added up over labels.
function totals(numbers) {
  const totals = new Map();
  for (const { key, value } of numbers) totals.set(key, (totals.get(key) || 0) + value);
  return totals;
}

function scraped(samples, key) {
  check(SAMPLE[key], `the test does not know where ${key} comes from`);
  const name = SAMPLE[key].find((one) => samples.some((sample) => sample.name === one));
  check(name, `${key} is on the page and not at /metrics`);
  return samples.filter((sample) => sample.name === name).reduce((sum, sample) => sum + sample.value, 0);
}

// Prometheus' histogram_quantile, over everything since the start.
function quantile(samples, operation, q) {
  const buckets = samples.filter((one) => one.name === "lmcached_request_seconds_bucket" && one.labels.operation === operation)
    .map((one) => [one.labels.le === "+Inf" ? Infinity : Number(one.labels.le), one.value]).sort((a, b) => a[0] - b[0]);
  const rank = q * buckets[buckets.length - 1][1];
  const at = buckets.findIndex(([, count]) => count >= rank);
  const [lower, below] = at ? buckets[at - 1] : [0, 0];
  const [upper, count] = buckets[at];
  if (upper === Infinity) return lower;
  return count > below ? lower + ((upper - lower) * (rank - below)) / (count - below) : upper;
}

async function empty() {
  const daemon = await Daemon.start();
  const api = await fetch(daemon.url);
  check((await api.json()).service === "LMCache HTTP API", "other clients get the peer's answer");
  const page = await Page.open(daemon.url);
  await eventually("it says that it is ready", async () => (await page.text("#state")) === "ready");
  check((await page.alerts()).length === 0, "an empty daemon has nothing wrong");
  check(await page.page.locator("#hint").isVisible(), "the hint how to connect");
  check((await page.text("#hit-rate")) === "–", "no hit rate without lookups");
  await page.accessible("empty");
  await page.shot("empty-light");
  await page.onPhone("empty");
  await page.close();
  await daemon.stop();
}

async function load() {
  const daemon = await Daemon.start();
  const traffic = run(process.env.PAGE_LOAD_BIN, [`--port=${daemon.port}`, `--pool=${daemon.pool}`]);
  const page = await Page.open(daemon.url, { scheme: "dark", expected: /Failed to load resource.*ERR_/ });
  await eventually("tokens are served", async () => {
    check(traffic.exitCode === null, `the load ended: ${traffic.errors}`);
    return Number(await page.page.evaluate(() => document.getElementById("served").dataset.value || 0)) > 0;
  });
  // Seconds of load, for a fuller picture.
  await new Promise((resolve) => setTimeout(resolve, Number(process.env.PAGE_LOAD_SECONDS || 15) * 1000));
  const before = await daemon.metrics();
  await page.fresh();
  const during = totals(await page.numbers());
  const after = await daemon.metrics();
  let moving = 0;
  for (const [key, value] of during) {
    if (!SAMPLE[key][0].match(/_(total|sum|count)$/)) continue;
    const [low, high] = [scraped(before, key), scraped(after, key)];
    check((low <= value && value <= high) || same(low, value) || same(value, high), `${key}: ${value} is not between ${low} and ${high}`);
    moving += low < high;
  }
  check(moving >= 4, "the load moves the counters");
  await page.shot("load-dark");
  await page.page.locator("#theme").click();
  check((await page.text("#theme")) === "Theme: light", "the switch");
  await page.shot("load-light");
  // What a screen of usual size shows at first: docs/page.png is one of these, after PAGE_LOAD_SECONDS=880.
  await page.shot("picture", false);
  await page.page.locator("#theme").click();
  await page.page.locator("#theme").click();

  traffic.stdin.end();
  check((await traffic.ended) === 0, `the load ends in order: ${traffic.errors}`);
  await eventually("the daemon is quiet and every number is the same", async () => {
    const samples = await daemon.metrics();
    await page.fresh();
    const [numbers, again] = [totals(await page.numbers()), await daemon.metrics()];
    for (const [key, value] of numbers) {
      if (scraped(samples, key) !== scraped(again, key)) return false;
      check(same(value, scraped(samples, key)), `${key}: ${value} on the page, ${scraped(samples, key)} at /metrics`);
    }
    check(numbers.get("hit_tokens") > 0 && numbers.get("connections") === 0, "there was traffic, and it is over");
    check(await page.page.evaluate((value) => Number(document.getElementById("served").dataset.value) === value,
      scraped(samples, "retrieved_tokens")), "the card shows it, too");
    // Every wanted sample that there is at /metrics is on the page.
    for (const key of Object.keys(SAMPLE)) {
      const there = SAMPLE[key].some((name) => samples.some((sample) => sample.name === name));
      check(there === numbers.has(key), `${key} is ${there ? "" : "not "}at /metrics, but ${there ? "not " : ""}on the page`);
    }
    return true;
  });
  const samples = await daemon.metrics();
  const rows = await page.page.locator("#operations tr[data-operation]").evaluateAll((list) => list.map((row) => ({ ...row.dataset })));
  check(rows.length >= 5, "the operations are listed");
  for (const row of rows.filter((one) => one.p99 !== "")) {
    for (const [name, q] of [["p50", 0.5], ["p99", 0.99]]) {
      const want = quantile(samples, row.operation, q);
      check(Math.abs(Number(row[name]) - want) <= want * 1e-9, `${name} of ${row.operation}: ${row[name]}, not ${want}`);
    }
  }
  if (!rows.some((one) => one.p99 !== "")) console.log("SKIP percentiles: this build does not measure lmcached_request_seconds");
  check(!(await page.page.title()).includes("owned"), "a name stays a name");

  // The keyboard reads a chart.
  await page.page.locator("#chart-tokens svg[role=img]").focus();
  await page.page.keyboard.press("ArrowLeft");
  check(/ago/.test(await page.text("#chart-tokens .legend")), "the cursor says when");
  await page.page.keyboard.press("Escape");
  check(!/ago/.test(await page.text("#chart-tokens .legend")), "and goes away");
  await page.page.keyboard.press("Tab");
  check(await page.page.evaluate(() => document.activeElement !== document.body), "the focus is not lost");

  // Pause.
  await page.page.locator("#pause").click();
  const points = await page.points();
  await new Promise((resolve) => setTimeout(resolve, 3000));
  check((await page.points()) === points, "a paused page does not move");
  await page.page.locator("#pause").click();

  // A daemon that goes and comes back.
  await daemon.kill();
  await eventually("the page says that nobody answers", async () => (await page.alerts()).includes("unreachable"));
  check((await page.text("#state")) === "unreachable", "the state, too");
  daemon.spawn();
  await daemon.ready();
  await eventually("the page goes on with the new daemon", async () => (await page.text("#state")).startsWith("ready"));
  await page.fresh();
  for (const [key, value] of totals(await page.numbers())) {
    if (key === "retrieved_tokens") check(value === 0, "and does not mix it with the old one");
  }
  check((await page.points()) < points, "its points begin again");
  await page.accessible("load");
  await page.onPhone("load");
  await page.shot("load-phone");
  await page.close();
  await daemon.stop();
}

async function trouble() {
  const daemon = await Daemon.start();
  const server = await stub(daemon, madeUp());
  const page = await Page.open(server.url);
  check((await page.alerts()).join() === "l2_down,l1_full,quarantined,not_ready", "each alert");
  check((await page.text("#state")).includes("4 to look at"), "and their number");
  check((await page.page.locator("#alerts img, #alerts script, main img").count()) === 0, "text stays text");
  check((await page.text("#alerts")).includes("<img src=x"), "and is shown as it is");
  check((await page.page.title()) === "lmcached", "nothing ran");
  for (const chart of await page.page.locator("figure").evaluateAll((list) =>
    list.map((figure) => [figure.id, figure.querySelectorAll("polyline").length]))) {
    check(chart[1] >= 1, `${chart[0]} draws`);
  }
  check((await page.page.locator("#chart-workers polyline").count()) === 8, "a line for each worker and direction");
  await page.page.locator("#operation").selectOption("retrieve");
  check((await page.text("#chart-latency .legend")).includes("99th percentile"), "another operation");
  check((await page.page.locator("#models").innerText()).includes("<img src=x"), "models by name");
  await page.accessible("trouble");
  await page.shot("trouble-light");
  await page.page.evaluate(() => (document.documentElement.dataset.theme = "dark"));
  await page.shot("trouble-dark");
  await page.onPhone("trouble");
  await page.shot("trouble-phone");
  await page.close();
  server.close();
  await daemon.stop();
}

async function l2down() {
  const adapter = '--l2-adapter={"type":"resp","host":"127.0.0.1","port":1}';
  const daemon = await Daemon.start([adapter], { mayFail: true });
  const ended = await Promise.race([daemon.child.ended, daemon.ready().catch(() => null)]);
  check(ended === undefined, `the daemon starts although its L2 is down: ${daemon.child.errors}`);
  // Stores make it try.
  const traffic = run(process.env.PAGE_LOAD_BIN, [`--port=${daemon.port}`, `--pool=${daemon.pool}`]);
  const page = await Page.open(daemon.url);
  await eventually("the page says that the tier is down", async () => (await page.alerts()).includes("l2_down"));
  check(/resp/.test(await page.text("#alerts")), "by its name");
  traffic.stdin.end();
  await traffic.ended;
  await page.accessible("l2down");
  await page.shot("l2down-light");
  await page.close();
  await daemon.stop();
}

const scenarios = { empty, load, trouble, l2down };
const chosen = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(scenarios);
let failed = 0;
for (const name of chosen) {
  try {
    if (!scenarios[name]) throw new Error(`there is no scenario ${name}`);
    await scenarios[name]();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error.stack}`);
  }
}
await closeBrowser();
console.log(`${chosen.length - failed} passed, ${failed} failed; pictures in ${process.env.PAGE_WORK}`);
process.exit(failed ? 1 : 0);
