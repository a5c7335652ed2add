// Fifteen minutes of a daemon to which everything has happened.
const HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>";

export function madeUp() {
  const points = 900, now = 900000;
  const times = Array.from({ length: points }, (_, index) => index * 1000);
  const series = [];
  const add = (key, counter, labels, value) =>
    series.push({ key, counter, labels, values: times.map((_, index) => value(index)) });
  const wave = (index, period, low, high) => low + ((high - low) * (1 + Math.sin(index / period))) / 2;
  const grow = (rate) => { let total = 0; return (index) => (total += rate(index)); };
  for (const [model, weight] of [["meta-llama/Llama-3.1-8B", 3], ["Qwen/Qwen3-32B", 2], [HOSTILE, 1]]) {
    const labels = { model_name: model, cache_salt: weight === 1 ? HOSTILE : "" };
    add("requested_tokens", true, labels, grow(() => 4096 * weight));
    add("hit_tokens", true, labels, grow((index) => Math.round(4096 * weight * wave(index, 90, 0.5, 0.85))));
  }
  add("stored_tokens", true, {}, grow((index) => Math.round(wave(index, 90, 6000, 1500))));
  add("retrieved_tokens", true, {}, grow((index) => Math.round(wave(index, 90, 9000, 20000))));
  for (const [operation, rate] of [["lookup", 24], ["store", 12], ["retrieve", 20], ["ping", 2]]) {
    add("requests", true, { operation, outcome: "ok" }, grow(() => rate));
  }
  add("requests", true, { operation: "store", outcome: "pool_full" }, grow((index) => (index > 880 ? 1 : 0)));
  const size = 100 * 2 ** 30, used = (index) => Math.round(size * Math.min(0.97, index / 700));
  add("l1_used", false, {}, used);
  add("l1_ratio", false, {}, (index) => used(index) / size);
  for (const [key, value] of [["l1_capacity", size], ["l1_objects", 51200], ["l1_leases", 31], ["l1_pins", 12],
    ["l1_quarantined", 2], ["connections", 8], ["workers", 4], ["queued_bytes", 4096], ["drain_lag", 7.5]]) {
    add(key, false, {}, () => value);
  }
  add("l1_full", true, {}, grow((index) => (index > 880 ? 1 : 0)));
  for (const [name, top] of [["fs", 2 ** 41], ["resp", 2 ** 37], [HOSTILE, 2 ** 30]]) {
    add("l2_used", false, { l2_name: name }, (index) => (top * (200 + index)) / 1100);
    for (const direction of ["store", "load"]) {
      add(`l2_${direction}_gbs_count`, true, { l2_name: name }, grow(() => 1));
      add(`l2_${direction}_gbs_sum`, true, { l2_name: name }, grow((index) => wave(index, 60, 1, name === "fs" ? 5 : 2)));
    }
  }
  for (const worker of [0, 1, 2, 3]) {
    const labels = { engine_id: String(4711 + worker), device: `cuda:${worker}` };
    for (const direction of ["store", "load"]) {
      add(`${direction}_gbs_count`, true, labels, grow(() => 2));
      add(`${direction}_gbs_sum`, true, labels, grow((index) => 2 * wave(index + worker * 40, 70, 14, 20 + worker)));
    }
  }
  add("queue_depth", false, {}, (index) => Math.round(wave(index, 20, 0, 400)));
  for (const key of ["events_dropped", "ring_lost", "log_lines_dropped", "otlp_dropped"]) {
    add(key, true, {}, grow((index) => (index % 300 === 299 ? 5 : 0)));
  }
  const steps = Array.from({ length: 59 }, (_, index) => (index + 1) * 15000);
  const operations = ["lookup", "store", "retrieve"].map((operation, place) => ({
    operation, count: 1000, p50: 5e-5 * (place + 1), p90: 2e-4, p99: 9e-4,
    p50_steps: steps.map((_, index) => wave(index, 5, 4e-5, 8e-5) * (place + 1)),
    p99_steps: steps.map((_, index) => wave(index, 7, 3e-4, 9e-4) * (place + 1)),
  }));
  const alerts = [
    { level: "critical", name: "l2_down", what: `L2 tier ${HOSTILE} is down: connection refused`, advice: HOSTILE },
    { level: "critical", name: "l1_full", what: "19 stores were refused in the last minute", advice: "Raise --l1-size-gb." },
    { level: "warning", name: "quarantined", what: "2 slots are in quarantine", advice: "They come back." },
    { level: "info", name: "not_ready", what: "The daemon is not ready yet", advice: "Wait." },
  ];
  const answer = { boot: "made-up", version: "0.0.0", now, window: now, ready: true, reason: null, draining: false,
    alerts, times, series, latency: { times: steps, operations } };
  return (since) => (since === null ? answer
    : { ...answer, times: [], series: series.map((one) => ({ ...one, values: [] })) });
}
