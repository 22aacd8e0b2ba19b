/* Keeps the page Raft up to date, and lets one read its charts. Without it, the page shows the moment of its loading. */
"use strict";

{
  const EVERY = 2000;
  const PATIENCE = 8000;
  const live = document.getElementById("raft-live");

  /** What an element holds, without the space between tags and what a chart has put in. */
  function parts(element) {
    return Array.from(element.childNodes).filter((node) =>
      node.nodeType === Node.TEXT_NODE ? node.nodeValue.trim() : !(node.classList && node.classList.contains("raft-cursor")),
    );
  }

  /** Make `old` equal to `fresh`, and touch what differs only: so focus, selection and screen readers stay in place. */
  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) {
        old.nodeValue = fresh.nodeValue;
      }
      return;
    }
    for (const { name } of Array.from(old.attributes)) {
      // Whether details are open is the reader's own.
      if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) {
        old.removeAttribute(name);
      }
    }
    for (const { name, value } of Array.from(fresh.attributes)) {
      if (old.getAttribute(name) !== value) {
        old.setAttribute(name, value);
      }
    }
    if (old.name === "csrfmiddlewaretoken") {
      return;
    }
    const mine = parts(old);
    const theirs = parts(fresh);
    theirs.forEach((node, place) => {
      if (place < mine.length) {
        morph(mine[place], node);
      } else {
        old.appendChild(node);
      }
    });
    mine.slice(theirs.length).forEach((node) => node.remove());
  }

  function startUpdating() {
    const lost = document.getElementById("raft-lost");
    const age = document.getElementById("raft-age");
    const box = document.getElementById("raft-updating");
    let heard = Date.now();
    document.getElementById("raft-updates").hidden = false;

    function say(element, text) {
      // An alert that is written again is read again.
      if (element.textContent !== text) {
        element.textContent = text;
      }
      element.hidden = !text;
    }

    async function update() {
      const given = new AbortController();
      const timer = setTimeout(() => given.abort(), PATIENCE);
      try {
        const answer = await fetch(live.dataset.url, { credentials: "same-origin", cache: "no-store", signal: given.signal });
        const text = await answer.text();
        if (answer.redirected || answer.status === 403) {
          say(lost, "You are logged out, or may not see this any more. Load the page again.");
          return;
        }
        if (!answer.ok) {
          throw new Error(`status ${answer.status}`);
        }
        const fresh = new DOMParser().parseFromString(`<div>${text}</div>`, "text/html").body.firstElementChild;
        // The element itself has attributes of its own.
        for (const { name, value } of Array.from(live.attributes)) {
          fresh.setAttribute(name, value);
        }
        morph(live, fresh);
        bind();
        heard = Date.now();
        say(lost, "");
      } catch (error) {
        say(lost, "This node does not answer. What you see below is old; other nodes may serve the page.");
      } finally {
        clearTimeout(timer);
      }
    }

    async function loop() {
      if (box.checked && !document.hidden) {
        await update();
      }
      const old = Math.round((Date.now() - heard) / 1000);
      say(age, old < 5 ? "" : `${old} s old`);
      setTimeout(loop, EVERY);
    }
    setTimeout(loop, EVERY);
  }

  /** A chart that tells the value under the pointer, or, with the arrow keys, at its cursor. */
  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".raft-plot");
      this.now = figure.querySelector(".raft-now");
      this.ago = null;
      this.cursor = document.createElement("span");
      this.cursor.className = "raft-cursor";
      this.cursor.hidden = true;
      this.plot.append(this.cursor);
      this.spoken = document.createElement("span");
      this.spoken.className = "visually-hidden";
      this.spoken.setAttribute("aria-live", "polite");
      document.getElementById("content-main").append(this.spoken);
      this.plot.addEventListener("pointermove", (event) => this.point(event));
      this.plot.addEventListener("pointerdown", (event) => this.point(event));
      this.plot.addEventListener("pointerleave", () => this.leave());
      this.plot.addEventListener("blur", () => this.leave());
      this.plot.addEventListener("keydown", (event) => this.key(event));
    }

    get points() {
      return JSON.parse(this.figure.dataset.points);
    }

    get span() {
      return 60 * Number(this.figure.dataset.minutes);
    }

    point(event) {
      const box = this.plot.getBoundingClientRect();
      this.show(this.span * (1 - (event.clientX - box.left) / box.width), false);
    }

    key(event) {
      const step = { ArrowLeft: 10, ArrowRight: -10, PageUp: 60, PageDown: -60 }[event.key];
      if (event.key === "Escape") {
        this.leave();
      } else if (event.key === "Home" || event.key === "End") {
        event.preventDefault();
        this.show(event.key === "Home" ? this.span : 0, true);
      } else if (step) {
        event.preventDefault();
        this.show((this.ago === null ? 0 : this.ago) + step, true);
      }
    }

    show(ago, aloud) {
      const points = this.points;
      if (!points.length) {
        return;
      }
      ago = Math.min(Math.max(ago, 0), this.span);
      const nearest = points.reduce((one, two) => (Math.abs(two[0] - ago) < Math.abs(one[0] - ago) ? two : one));
      this.ago = ago;
      this.cursor.hidden = false;
      this.cursor.style.left = `${100 * (1 - Math.min(nearest[0], this.span) / this.span)}%`;
      const values = nearest.slice(1).map((value) => this.number(value)).join(", ");
      const text = `${values} ${this.when(nearest[0])}`;
      this.now.textContent = text;
      if (aloud) {
        this.spoken.textContent = text;
      }
    }

    number(value) {
      if (value === null) {
        return "–";
      }
      if (this.figure.dataset.unit) {
        return (value > 0 && value < 10 ? value.toFixed(1) : value.toFixed(0)) + this.figure.dataset.unit;
      }
      return value < 1 ? `${(value * 1000).toPrecision(2)} ms` : `${value.toFixed(1)} s`;
    }

    when(ago) {
      return ago < 3 ? "now" : ago < 90 ? `${Math.round(ago)} s ago` : `${Math.round(ago / 60)} min ago`;
    }

    refresh() {
      if (this.ago !== null && this.points.length) {
        this.show(this.ago, false);
      }
    }

    leave() {
      this.ago = null;
      this.cursor.hidden = true;
      const last = this.points.at(-1);
      this.now.textContent = `now ${last ? last.slice(1).map((value) => this.number(value)).join(", ") : "–"}`;
    }
  }

  const charts = new Map();

  /** Have a Chart for each plot on the page: they come anew after a moment in which the node did not answer. */
  function bind() {
    for (const [plot, chart] of charts) {
      if (plot.isConnected) {
        chart.refresh();
      } else {
        chart.spoken.remove();
        charts.delete(plot);
      }
    }
    for (const figure of live.querySelectorAll(".raft-chart")) {
      const plot = figure.querySelector(".raft-plot");
      if (!charts.has(plot)) {
        charts.set(plot, new Chart(figure));
      }
    }
  }

  if (live) {
    bind();
    startUpdating();
  }
}
