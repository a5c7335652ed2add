// A daemon, a browser, and the checks that hold for every page.
import { spawn } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import path from "node:path";
import axe from "axe-core";
import { chromium } from "playwright-core";

export const WORK = process.env.PAGE_WORK;
const DEADLINE = 60000;

export function check(holds, what) {
  if (!holds) throw new Error(what);
}

// Waits for a condition; the bound ends a hang and measures nothing.
export async function eventually(what, probe) {
  const until = Date.now() + DEADLINE;
  let last = "";
  for (;;) {
    try {
      const value = await probe();
      if (value) return value;
    } catch (error) {
      last = `: ${error.message}`;
    }
    if (Date.now() > until) throw new Error(`timed out waiting until ${what}${last}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function freePort() {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

const children = new Set();
// Whatever a daemon of this process has left in shared memory.
function sweep(name) {
  for (const file of readdirSync("/dev/shm")) if (file.includes(name)) rmSync(`/dev/shm/${file}`, { force: true });
}
process.on("exit", () => {
  children.forEach((child) => child.kill("SIGKILL"));
  sweep(`page${process.pid}_`);
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

export function run(binary, args) {
  const child = spawn(binary, args, { stdio: ["pipe", "pipe", "pipe"] });
  children.add(child);
  child.output = "";
  child.errors = "";
  child.stdout.on("data", (text) => (child.output = (child.output + text).slice(-100000)));
  child.stderr.on("data", (text) => (child.errors = (child.errors + text).slice(-100000)));
  child.ended = new Promise((resolve) => child.on("exit", (code) => { children.delete(child); resolve(code); }));
  return child;
}

export class Daemon {
  static number = 0;

  static async start(extra = [], options = {}) {
    const daemon = new Daemon();
    daemon.name = `page${process.pid}_${Daemon.number++}`;
    [daemon.port, daemon.http] = [await freePort(), await freePort()];
    daemon.args = [`--port=${daemon.port}`, `--http-port=${daemon.http}`, "--prometheus-port=0",
      `--shm-name=${daemon.name}`, "--l1-size-gb=0.125", ...extra];
    daemon.spawn();
    if (!options.mayFail) await daemon.ready();
    return daemon;
  }

  get url() { return `http://127.0.0.1:${this.http}/`; }
  get pool() { return `/dev/shm/lmcache_l1_pool_${this.name}`; }

  spawn() { this.child = run(process.env.LMCACHED_BIN, this.args); }

  async ready() {
    await eventually("the daemon is ready", async () => {
      if (this.child.exitCode !== null) throw new Error(`it ended with ${this.child.exitCode}: ${this.child.errors}`);
      return (await fetch(`${this.url}healthcheck`)).ok;
    });
  }

  async metrics() {
    const samples = [];
    const text = await (await fetch(`${this.url}metrics`)).text();
    for (const line of text.split("\n")) {
      const found = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (!found) continue;
      const labels = {};
      for (const [, name, value] of (found[2] || "").matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
        labels[name] = value.replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped));
      }
      samples.push({ name: found[1], labels, value: found[3] === "+Inf" ? Infinity : Number(found[3]) });
    }
    return samples;
  }

  async kill() {
    this.child.kill("SIGKILL");
    await this.child.ended;
  }

  async stop() {
    await this.kill();
    sweep(this.name);
  }
}

let browser = null;
export async function closeBrowser() { if (browser) await browser.close(); }

export class Page {
  // expected: console lines that this scenario may cause.
  static async open(url, { scheme = "light", size = { width: 1280, height: 1000 }, expected = /$^/ } = {}) {
    browser ??= await chromium.launch({ executablePath: process.env.CHROMIUM });
    const self = new Page();
    self.errors = [];
    self.outside = [];
    self.context = await browser.newContext({ viewport: size, colorScheme: scheme, serviceWorkers: "block" });
    // Nothing but the daemon may be asked for anything.
    await self.context.route("**/*", (route) => {
      const asked = route.request().url();
      if (asked.startsWith(url) || asked.startsWith("data:")) return route.continue();
      self.outside.push(asked);
      return route.abort();
    });
    self.page = await self.context.newPage();
    self.page.on("console", (message) => {
      if (["error", "warning"].includes(message.type()) && !expected.test(message.text())) self.errors.push(message.text());
    });
    self.page.on("pageerror", (error) => self.errors.push(String(error)));
    await self.page.goto(url);
    await eventually("the page has numbers", () => self.points());
    return self;
  }

  async points() { return Number(await this.page.evaluate(() => document.body.dataset.points || 0)); }

  text(selector) { return this.page.locator(selector).innerText(); }

  async alerts() {
    return this.page.locator("#alerts .alert").evaluateAll((boxes) => boxes.map((box) => box.dataset.name));
  }

  // Every number on the page: key, labels, value.
  async numbers() {
    return this.page.locator("#numbers tr[data-key]").evaluateAll((rows) => rows.map((row) =>
      ({ key: row.dataset.key, labels: JSON.parse(row.dataset.labels), value: Number(row.dataset.value) })));
  }

  // Waits until the page has shown a sample that was taken after this call.
  async fresh() {
    const seen = () => this.page.evaluate(async () => {
      const answer = await (await fetch("page/data")).json();
      return answer.times[answer.times.length - 1];
    });
    const before = await seen();
    const later = await eventually("a newer sample is there", async () => {
      const now = await seen();
      return now > before ? now : 0;
    });
    await eventually("the page shows it", async () =>
      Number(await this.page.evaluate(() => document.body.dataset.newest || 0)) >= later);
  }

  async shot(name, fullPage = true) {
    await this.page.screenshot({ path: path.join(WORK, `${name}.png`), fullPage });
  }

  // What must hold for everybody who looks at it.
  async accessible(what) {
    for (const theme of ["light", "dark"]) {
      await this.page.evaluate((name) => (document.documentElement.dataset.theme = name), theme);
      // Runs in the page past its policy, as a debugger would.
      await this.page.evaluate(axe.source);
      const broken = await this.page.evaluate(async () => {
        const found = await window.axe.run(document, { resultTypes: ["violations"] });
        return found.violations.map((rule) => `${rule.id}: ${rule.nodes.map((node) => node.target).join(" ")}`);
      });
      check(!broken.length, `${what}, ${theme}: ${broken.join("; ")}`);
    }
    await this.page.evaluate(() => delete document.documentElement.dataset.theme);
  }

  async onPhone(what) {
    await this.page.setViewportSize({ width: 375, height: 800 });
    // The size reaches the layout a moment later.
    await eventually(`${what} fits on a phone`, () => this.page.evaluate(() =>
      document.documentElement.scrollWidth <= document.documentElement.clientWidth));
  }

  async close() {
    check(!this.outside.length, `the page asked elsewhere: ${this.outside.join(", ")}`);
    check(!this.errors.length, `errors on the console: ${this.errors.join("; ")}`);
    await this.context.close();
  }
}

// A server that has the document of a real daemon, with its headers, and data of our own.
export async function stub(daemon, data) {
  const server = http.createServer(async (request, response) => {
    if (request.url.startsWith("/page/data")) {
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(data(new URL(request.url, "http://localhost").searchParams.get("since"))));
      return;
    }
    const page = await fetch(daemon.url, { headers: { accept: "text/html" } });
    for (const [name, value] of page.headers) if (!/^(content-length|transfer|connection|date)/.test(name)) response.setHeader(name, value);
    response.end(await page.text());
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}
