"use strict";
// Line charts of one kind: time to the right, gaps where nothing is known, a cursor for pointer and keyboard.
const Charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 20, HEIGHT = 170, EMPTY = 40, MOST_LINES = 8;

  function svg(name, attributes, ...children) {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // A step of 1, 2 or 5 times a power of `base` that gives about four lines below `top`.
  function ticks(top, base) {
    if (!(top > 0)) return [0, 1];
    let unit = 1;
    if (base === 1024) while (unit * 1024 <= top) unit *= 1024;
    const rough = top / unit / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = unit * power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) || 10);
    const found = [];
    for (let index = 0; index <= Math.ceil(top / step - 1e-9); index++) found.push(index * step);
    return found;
  }

  class Chart {
    // options: format (number to text), base (1024 for bytes), top (largest value of the axis), none (text without lines).
    constructor(id, options) {
      this.options = options;
      this.figure = document.getElementById(id);
      this.title = options.title;
      this.legend = document.createElement("ul");
      this.legend.className = "legend";
      this.picture = svg("svg", { role: "img", tabindex: "0" });
      this.figure.append(this.legend, this.picture);
      this.lines = []; this.times = []; this.cursor = null; this.now = 0; this.window = 1;
      this.picture.addEventListener("pointermove", (event) => this.point(event));
      this.picture.addEventListener("pointerleave", () => this.move(null));
      this.picture.addEventListener("blur", () => this.move(null));
      this.picture.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.draw()).observe(this.picture);
    }

    // lines: [{name, values}], one value or null for each time.
    show(times, lines, now, window) {
      this.times = times; this.now = now; this.window = window;
      this.lines = lines.slice(0, MOST_LINES);
      if (this.cursor !== null && this.cursor >= times.length) this.cursor = null;
      this.draw();
    }

    get width() { return Math.max(240, this.picture.clientWidth || 420); }

    x(time) { return LEFT + (this.width - LEFT - RIGHT) * (1 - (this.now - time) / this.window); }

    point(event) {
      if (!this.times.length) return;
      const box = this.picture.getBoundingClientRect();
      const at = event.clientX - box.left;
      let best = 0;
      this.times.forEach((time, index) => {
        if (Math.abs(this.x(time) - at) < Math.abs(this.x(this.times[best]) - at)) best = index;
      });
      this.move(best);
    }

    key(event) {
      const last = this.times.length - 1, step = event.shiftKey ? 30 : 1;
      const at = this.cursor === null ? last : this.cursor;
      const to = { ArrowLeft: at - step, ArrowRight: at + step, Home: 0, End: last }[event.key];
      if (event.key === "Escape") return this.move(null);
      if (to === undefined || last < 0) return;
      event.preventDefault();
      this.move(Math.min(last, Math.max(0, to)));
    }

    move(index) {
      if (index === this.cursor) return;
      this.cursor = index;
      this.draw();
    }

    ago(time) {
      const seconds = Math.max(0, Math.round((this.now - time) / 1000));
      return seconds < 60 ? `${seconds} s ago` : `${Math.floor(seconds / 60)} min ${seconds % 60} s ago`;
    }

    value(line) {
      if (this.cursor !== null) return line.values[this.cursor];
      // A point that is older than a minute is no longer "now".
      for (let index = line.values.length - 1; index >= 0; index--) {
        if (this.now - this.times[index] > 60000) break;
        if (line.values[index] !== null) return line.values[index];
      }
      return null;
    }

    draw() {
      const format = (value) => (value === null || value === undefined ? "–" : this.options.format(value));
      const known = this.lines.filter((line) => line.values.some((value) => value !== null));
      const entries = known.map((line) => {
        const item = document.createElement("li"), value = document.createElement("b");
        const color = this.lines.indexOf(line);
        value.textContent = format(this.value(line));
        item.append(svg("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" },
          svg("line", { x1: 0, y1: 4, x2: 18, y2: 4, class: `line s${color}` })), line.name, " ", value);
        return item;
      });
      if (this.cursor !== null && known.length) {
        const when = document.createElement("li");
        when.textContent = this.ago(this.times[this.cursor]);
        entries.push(when);
      }
      this.legend.replaceChildren(...entries);
      const text = known.map((line) => `${line.name} ${format(this.value(line))}`).join(", ");
      const when = this.cursor === null ? "now" : this.ago(this.times[this.cursor] || 0);
      this.picture.setAttribute("aria-label", `${this.title}, ${known.length ? `${when}: ${text}` : this.options.none}`);
      this.figure.classList.toggle("none", !known.length);
      this.picture.setAttribute("viewBox", `0 0 ${this.width} ${known.length ? HEIGHT : EMPTY}`);
      this.picture.replaceChildren(...(known.length ? this.content(known) : [this.nothing()]));
    }

    nothing() {
      return svg("text", { x: this.width / 2, y: EMPTY / 2, "text-anchor": "middle", class: "nothing" },
        this.options.none);
    }

    content(known) {
      const largest = Math.max(0, ...known.flatMap((line) => line.values.filter((value) => value !== null)));
      const marks = ticks(this.options.top || largest, this.options.base);
      const top = Math.max(marks[marks.length - 1], largest);
      const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value / top);
      const parts = [];
      for (const mark of marks) {
        parts.push(svg("line", { x1: LEFT, x2: this.width - RIGHT, y1: y(mark), y2: y(mark), class: "grid" }));
        parts.push(svg("text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end", class: "tick" },
          this.options.format(mark)));
      }
      for (const minutes of [15, 10, 5, 0]) {
        const at = this.x(this.now - minutes * 60000);
        if (at < LEFT - 1) continue;
        const anchor = minutes === 0 ? "end" : minutes === 15 ? "start" : "middle";
        parts.push(svg("text", { x: at, y: HEIGHT - 5, "text-anchor": anchor, class: "tick" },
          minutes ? `−${minutes} min` : "now"));
      }
      for (const line of known) {
        const color = this.lines.indexOf(line);
        for (const run of this.runs(line)) {
          const path = run.map(([time, value]) => `${this.x(time).toFixed(1)},${y(value).toFixed(1)}`);
          if (known.length === 1 && run.length > 1) {
            const [first, last] = [this.x(run[0][0]), this.x(run[run.length - 1][0])].map((x) => x.toFixed(1));
            parts.push(svg("polygon", { points: `${first},${y(0)} ${path.join(" ")} ${last},${y(0)}`,
              class: `area f${color}` }));
          }
          // A lone point would be a line of no length.
          if (run.length === 1) path.push(`${(this.x(run[0][0]) + 2).toFixed(1)},${y(run[0][1]).toFixed(1)}`);
          parts.push(svg("polyline", { points: path.join(" "), class: `line s${color}` }));
        }
      }
      if (this.cursor !== null && this.times[this.cursor] !== undefined) {
        const at = this.x(this.times[this.cursor]);
        parts.push(svg("line", { x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" }));
      }
      return parts;
    }

    // Stretches without a gap.
    runs(line) {
      const runs = [];
      let run = [];
      line.values.forEach((value, index) => {
        const time = this.times[index];
        if (value === null || this.now - time > this.window) {
          if (run.length) runs.push(run);
          run = [];
        } else {
          run.push([time, value]);
        }
      });
      if (run.length) runs.push(run);
      return runs;
    }
  }

  return { Chart };
})();
