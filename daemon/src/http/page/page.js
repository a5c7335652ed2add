"use strict";
// Fetches the numbers and shows them. Everything that came over a wire (model names, salts, reasons) reaches the
// document as text, never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const REFRESH = 2000, TIMEOUT = 10000;
  const GRANULE = { rate: 10000, share: 30000 };

  // Formats.
  const count = (value) => (Number.isInteger(value) ? value : Math.round(value * 100) / 100).toLocaleString("en-US");
  const short = (value) => {
    for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
      if (value >= size) return `${+(value / size).toPrecision(3)} ${unit}`;
    }
    return `${+value.toPrecision(3)}`;
  };
  const bytes = (value) => {
    for (const [unit, size] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
      if (value >= size) return `${+(value / size).toPrecision(4)} ${unit}`;
    }
    return `${+value.toPrecision(4)} B`;
  };
  const percent = (value) => `${(value * 100).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;
  const seconds = (value) => {
    if (value >= 1) return `${+value.toPrecision(3)} s`;
    if (value >= 1e-3) return `${+(value * 1e3).toPrecision(3)} ms`;
    return `${+(value * 1e6).toPrecision(3)} µs`;
  };
  const gbs = (value) => `${+value.toPrecision(3)} GB/s`;
  const some = (value, format) => (value === null || value === undefined ? "–" : format(value));

  // The numbers kept: what the daemon sent, joined.
  let boot = null, times = [], table = new Map(), answer = null;

  function join(data) {
    if (data.boot !== boot) { boot = data.boot; times = []; table = new Map(); }
    const had = times.length;
    times = times.concat(data.times);
    const seen = new Set();
    for (const one of data.series) {
      const id = JSON.stringify([one.key, one.labels]);
      seen.add(id);
      const known = table.get(id) || { ...one, values: new Array(had).fill(null) };
      known.values = known.values.concat(one.values);
      table.set(id, known);
    }
    for (const id of table.keys()) if (!seen.has(id)) table.delete(id);
    let old = 0;
    while (old < times.length && data.now - times[old] > data.window + GRANULE.share) old++;
    if (old) {
      times = times.slice(old);
      for (const one of table.values()) one.values = one.values.slice(old);
    }
    answer = data;
  }

  const all = (key) => [...table.values()].filter((one) => one.key === key);
  const last = (one) => (one.values.length ? one.values[one.values.length - 1] : null);
  function now(key) {
    const values = all(key).map(last).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) : null;
  }
  // Values at each time, added up. A counter that is not there yet is 0.
  function sum(list) {
    if (!list.length) return null;
    return times.map((_, index) => {
      const values = list.map((one) => one.values[index]).filter((value) => value !== null);
      if (values.length) return values.reduce((total, value) => total + value, 0);
      return list[0].counter ? 0 : null;
    });
  }
  // Growth of `values` over the last `span` ms before each time; null before there are two points.
  function growth(values, span) {
    let from = 0;
    return times.map((time, index) => {
      while (from < index && times[from + 1] <= time - span) from++;
      return from === index ? null : Math.max(0, values[index] - values[from]);
    });
  }
  function rate(list) {
    const values = sum(list);
    if (!values) return times.map(() => null);
    let from = 0;
    return growth(values, GRANULE.rate).map((grown, index) => {
      while (from < index && times[from + 1] <= times[index] - GRANULE.rate) from++;
      return grown === null ? null : grown / ((times[index] - times[from]) / 1000);
    });
  }
  // Growth of one through growth of the other.
  function share(above, below) {
    const [up, down] = [sum(above), sum(below)];
    if (!up || !down) return times.map(() => null);
    const [grown, of] = [growth(up, GRANULE.share), growth(down, GRANULE.share)];
    return grown.map((value, index) => (value === null || !(of[index] > 0) ? null : value / of[index]));
  }
  const whole = (list) => {
    const values = sum(list);
    return values && values.length ? Math.max(0, values[values.length - 1] - values[0]) : 0;
  };

  // Words on the page. `data-value` holds the number as it came.
  function put(id, text, value) {
    const element = $(id);
    if (element.textContent !== text) element.textContent = text;
    if (value === null || value === undefined) delete element.dataset.value; else element.dataset.value = value;
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // A table; the columns in `text` are words.
  function fill(id, columns, rows, text, none) {
    const head = element("tr");
    columns.forEach((column, index) => {
      const cell = element("th", column, index < text ? "text" : "");
      cell.scope = "col";
      head.append(cell);
    });
    const body = rows.map((row) => {
      const line = element("tr");
      row.cells.forEach((cell, index) => line.append(element("td", cell, index < text ? "text" : "")));
      Object.assign(line.dataset, row.data || {});
      return line;
    });
    if (!rows.length) {
      const line = element("tr"), cell = element("td", none);
      cell.colSpan = columns.length;
      line.append(cell);
      body.push(line);
    }
    const [thead, tbody] = [element("thead"), element("tbody")];
    thead.append(head);
    tbody.append(...body);
    $(id).replaceChildren(thead, tbody);
  }

  const chart = (id, title, options) => new Charts.Chart(id, { title, ...options });
  const charts = {
    hits: chart("chart-hits", "Hit rate", { format: percent, top: 1, none: "no lookups in this time" }),
    tokens: chart("chart-tokens", "Tokens per second", { format: short, none: "no lookups in this time" }),
    l1: chart("chart-l1", "L1 in use", { format: bytes, base: 1024, none: "no numbers yet" }),
    l2: chart("chart-l2", "L2 in use", { format: bytes, base: 1024, none: "no L2 tier, or it does not tell" }),
    workers: chart("chart-workers", "Copy throughput by worker", { format: gbs, none: "no measured copies in this time" }),
    tiers: chart("chart-tiers", "L2 throughput by tier", { format: gbs, none: "no measured transfers in this time" }),
    latency: chart("chart-latency", "Time of a request", { format: seconds, none: "no requests in this time" }),
    queue: chart("chart-queue", "Event queue", { format: count, none: "the event bus is off, or does not tell" }),
    drops: chart("chart-drops", "Drops per second", { format: short, none: "no numbers yet" }),
  };

  const DROPS = [["events_dropped", "event bus"], ["ring_lost", "worker rings"], ["log_lines_dropped", "log lines"],
    ["otlp_dropped", "OTLP"]];

  function cards() {
    const [hit, requested] = [all("hit_tokens"), all("requested_tokens")];
    const looked = whole(requested);
    put("hit-rate", looked ? percent(whole(hit) / looked) : "–");
    put("hit-rate-note", `${some(now("hit_tokens"), count)} of ${some(now("requested_tokens"), count)} tokens in all`);
    put("served", some(now("retrieved_tokens"), count), now("retrieved_tokens"));
    put("served-note", `${some(now("stored_tokens"), count)} stored`);
    const [used, size] = [now("l1_used"), now("l1_capacity")];
    const part = now("l1_ratio") ?? (size ? used / size : null);
    put("l1", some(part, percent), part);
    put("l1-note", `${some(used, bytes)} of ${some(size, bytes)}, ${some(now("l1_objects"), count)} objects, ` +
      `${some(now("l1_leases"), count)} leases, ${some(now("l1_pins"), count)} pins`);
    $("l1-bar").setAttribute("aria-valuenow", Math.round((part || 0) * 100));
    $("l1-bar").firstElementChild.style.width = `${Math.min(1, part || 0) * 100}%`;
    put("l2", some(now("l2_used"), bytes), now("l2_used"));
    const [stores, loads] = [now("l2_stores") || 0, now("l2_loads") || 0];
    put("l2-note", all("l2_used").length || stores + loads ? `${count(stores)} stores and ${count(loads)} loads under way`
      : "no L2 tier, or it does not tell");
    put("requests", some(now("requests"), count), now("requests"));
    const rates = rate(all("requests"));
    const refused = all("requests").filter((one) => one.labels.outcome !== "ok");
    const refusals = refused.map(last).reduce((total, value) => total + (value || 0), 0);
    put("requests-note", `${some(rates[rates.length - 1], short)} a second, ${count(refusals)} refused`);
    put("clients", some(now("connections"), count), now("connections"));
    put("clients-note", `connections${now("workers") === null ? "" : `, ${count(now("workers"))} workers`}, ` +
      `${some(now("queued_bytes"), bytes)} queued`);
    put("queue", some(now("queue_depth"), count), now("queue_depth"));
    put("queue-note", now("queue_depth") === null ? "the event bus is off, or does not tell"
      : now("drain_lag") === null ? "events waiting" : `events waiting, ${seconds(now("drain_lag"))} behind`);
    const dropped = DROPS.map(([key]) => now(key)).filter((value) => value !== null);
    put("drops", dropped.length ? count(dropped.reduce((total, value) => total + value, 0)) : "–");
    put("drops-note", DROPS.filter(([key]) => now(key)).map(([key, name]) => `${name} ${count(now(key))}`).join(", ")
      || (dropped.length ? "nothing lost since the start" : "not counted"));
    $("hint").hidden = Boolean(now("connections")) || Boolean(now("requests"));
  }

  const worker = (one) => [one.labels.engine_id, one.labels.device].filter(Boolean).join(" on ") || "worker";
  const tier = (one) => one.labels.l2_name || "tier";

  // One line for each name and direction, the busiest first.
  function speeds(prefix, name) {
    const lines = [];
    for (const [direction, word] of [["load", "load"], ["store", "store"]]) {
      const counts = all(`${prefix}${direction}_gbs_count`), sums = all(`${prefix}${direction}_gbs_sum`);
      for (const label of new Set(counts.map(name))) {
        const mine = (list) => list.filter((one) => name(one) === label);
        lines.push({ name: `${label}, ${word}`, values: share(mine(sums), mine(counts)), weight: whole(mine(counts)) });
      }
    }
    return lines.sort((one, other) => other.weight - one.weight);
  }

  function draw() {
    const { now: at, window: span } = answer;
    const show = (which, lines) => charts[which].show(times, lines, at, span);
    const line = (name, key) => ({ name, values: sum(all(key)) || times.map(() => null) });
    show("hits", [{ name: "tokens found", values: share(all("hit_tokens"), all("requested_tokens")) }]);
    show("tokens", [["looked up", "requested_tokens"], ["found", "hit_tokens"], ["retrieved", "retrieved_tokens"],
      ["stored", "stored_tokens"]].map(([name, key]) => ({ name, values: rate(all(key)) })));
    charts.l1.options.top = now("l1_capacity") || 0;
    show("l1", [line("in use", "l1_used")]);
    show("l2", all("l2_used").map((one) => ({ name: tier(one), values: one.values })));
    show("workers", speeds("", worker));
    show("tiers", speeds("l2_", tier));
    show("queue", [line("events waiting", "queue_depth")]);
    show("drops", DROPS.filter(([key]) => all(key).length).map(([key, name]) => ({ name, values: rate(all(key)) })));
    latency(at, span);
  }

  function latency(at, span) {
    const select = $("operation"), { times: steps, operations } = answer.latency;
    const names = operations.map((one) => one.operation);
    if ([...select.options].map((option) => option.value).join() !== names.join()) {
      const before = select.value;
      select.replaceChildren(...names.map((name) => new Option(name, name)));
      const first = ["lookup", "prepare_retrieve", "retrieve"].find((name) => names.includes(name));
      select.value = names.includes(before) ? before : first || names[0] || "";
    }
    const one = operations.find((operation) => operation.operation === select.value);
    const lines = one ? [{ name: "median", values: one.p50_steps }, { name: "99th percentile", values: one.p99_steps }] : [];
    charts.latency.show(steps, lines, at, span);
  }

  function tables() {
    const operations = new Map();
    for (const one of all("requests")) {
      const row = operations.get(one.labels.operation) || { total: 0, refused: new Map() };
      const value = last(one) || 0;
      row.total += value;
      if (one.labels.outcome !== "ok" && value) row.refused.set(one.labels.outcome, value);
      operations.set(one.labels.operation, row);
    }
    const timed = new Map(answer.latency.operations.map((one) => [one.operation, one]));
    fill("operations", ["operation", "requests", "refused", "p50", "p90", "p99"],
      [...operations].sort((one, other) => other[1].total - one[1].total).map(([operation, row]) => {
        const time = timed.get(operation) || {};
        const refused = [...row.refused].map(([reason, value]) => `${reason} ${count(value)}`).join(", ");
        return {
          cells: [operation, count(row.total), refused || "0", some(time.p50, seconds), some(time.p90, seconds),
            some(time.p99, seconds)],
          data: { operation, requests: row.total, p50: time.p50 ?? "", p99: time.p99 ?? "" },
        };
      }), 1, "no requests yet");
    const hits = new Map(all("hit_tokens").map((one) => [JSON.stringify(one.labels), one]));
    fill("models", ["model", "salt", "tokens looked up", "found", "hit rate"],
      all("requested_tokens").map((one) => [one, hits.get(JSON.stringify(one.labels))])
        .filter(([one]) => last(one) > 0)
        .sort((one, other) => last(other[0]) - last(one[0]))
        .map(([one, hit]) => {
          const [looked, found] = [last(one), hit ? last(hit) || 0 : 0];
          return { cells: [one.labels.model_name || "all", one.labels.cache_salt || "none", count(looked), count(found),
            percent(found / looked)] };
        }), 2, "no lookups yet");
    fill("numbers", ["number", "labels", "value"], [...table.values()].filter((one) => last(one) !== null)
      .sort((one, other) => (one.key < other.key ? -1 : 1)).map((one) => {
        const labels = Object.entries(one.labels).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ");
        return { cells: [one.key, labels, String(last(one))],
          data: { key: one.key, labels: JSON.stringify(one.labels), value: last(one) } };
      }), 2, "no numbers yet");
  }

  function alertBox(level, what, advice) {
    const box = element("div", undefined, `alert ${level}`);
    box.append(element("b", what), element("span", advice));
    return box;
  }

  let shown = "";
  function alerts(list) {
    // Replaced only when they change: a screen reader reads the region again each time.
    const text = JSON.stringify(list);
    if (text === shown) return;
    shown = text;
    $("alerts").replaceChildren(...list.map((alert) => {
      const box = alertBox(alert.level, alert.what, alert.advice);
      box.dataset.name = alert.name;
      return box;
    }));
  }

  function state(text, level) {
    const pill = $("state");
    if (pill.textContent !== text) pill.textContent = text;
    pill.className = `state ${level}`;
  }

  function show() {
    const worst = answer.alerts.length ? answer.alerts[0].level : "";
    if (answer.draining) state("stopping", "warning");
    else if (!answer.ready) state("not ready", "info");
    else if (worst === "critical" || worst === "warning") state(`ready, with ${answer.alerts.length} to look at`, worst);
    else state("ready", "ready");
    put("meta", `version ${answer.version}`);
    alerts(answer.alerts);
    cards();
    draw();
    tables();
    document.body.dataset.points = times.length;
    document.body.dataset.newest = times.length ? times[times.length - 1] : 0;
  }

  // The round.
  let paused = false, busy = false, timer = null, secret = null;
  try { secret = sessionStorage.getItem("lmcached-token"); } catch { /* storage is off: ask each time */ }

  async function round() {
    clearTimeout(timer);
    if (paused || busy || document.hidden) return;
    busy = true;
    const since = boot !== null && times.length ? `?since=${times[times.length - 1]}` : "";
    try {
      const headers = secret ? { authorization: `Bearer ${secret}` } : {};
      let response = await fetch(`page/data${since}`, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
      $("token").hidden = response.status !== 401 && response.status !== 403;
      if (!response.ok) throw new Error(`the daemon answered ${response.status}`);
      let data = await response.json();
      if (boot !== null && data.boot !== boot && since) {
        // Another daemon: what it sent after `since` is not all that it has.
        response = await fetch("page/data", { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
        data = await response.json();
      }
      join(data);
      show();
    } catch (error) {
      state("unreachable", "critical");
      const advice = "The numbers below are old. Is the daemon running, and does this address reach it?";
      alerts([{ level: "critical", name: "unreachable", what: `No numbers from the daemon: ${error.message}`, advice }]);
    }
    busy = false;
    timer = setTimeout(round, REFRESH);
  }

  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", paused);
    $("pause").textContent = paused ? "Go on" : "Pause";
    round();
  });
  document.addEventListener("visibilitychange", round);
  $("operation").addEventListener("change", () => answer && latency(answer.now, answer.window));
  $("token").addEventListener("submit", (event) => {
    event.preventDefault();
    secret = $("secret").value;
    try { sessionStorage.setItem("lmcached-token", secret); } catch { /* it is kept until the page is closed */ }
    round();
  });

  const THEMES = ["system", "light", "dark"];
  function theme(name) {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme").textContent = `Theme: ${name}`;
    $("theme").dataset.theme = name;
  }
  let stored = "system";
  try { stored = localStorage.getItem("lmcached-theme") || "system"; } catch { /* storage is off */ }
  theme(THEMES.includes(stored) ? stored : "system");
  $("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf($("theme").dataset.theme) + 1) % THEMES.length];
    theme(next);
    try { localStorage.setItem("lmcached-theme", next); } catch { /* it holds until the page is closed */ }
  });

  round();
})();
