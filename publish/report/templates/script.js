"use strict";
(() => {
  // One section at a time; without this script, and in print, all of them stand one below the other.
  const views = [...document.querySelectorAll(".view")];
  const links = [...document.querySelectorAll("nav a")];
  document.documentElement.classList.add("scripted");

  function show(isFirst) {
    const target = document.getElementById(location.hash.slice(1));
    const view = target?.closest(".view") ?? views[0];
    for (const other of views) other.classList.toggle("shown", other === view);
    for (const link of links) {
      if (link.hash === `#${view.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    for (const list of view.querySelectorAll(".users")) fill(list);
    reach(view);
    if (target?.id === "main") return;
    if (target && target !== view) target.scrollIntoView();
    else if (!isFirst) {
      scrollTo(0, 0);
      view.querySelector("h2").focus({ preventScroll: matchMedia("(min-width: 52rem)").matches });
    }
  }

  // What scrolls has to be reached by keys, and only that.
  function reach(part) {
    for (const wide of part.querySelectorAll(".scroll")) {
      const title = wide.querySelector("caption, svg > title")?.textContent;
      if (wide.scrollWidth <= wide.clientWidth || !title) wide.removeAttribute("tabindex");
      else for (const [name, value] of Object.entries({ tabindex: 0, role: "group", "aria-label": title })) wide.setAttribute(name, value);
    }
  }

  // The users of the version: read once, when a list is first shown.
  let users;
  async function read() {
    const content = JSON.parse(document.getElementById("users").textContent);
    await Promise.all(content.columns.map(async (column) => {
      const text = atob(column.data);
      const bytes = new Uint8Array(text.length);
      for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      column.at = reader(JSON.parse(await new Response(stream).text()), content.rows);
      column.isNumber = ["number", "share", "rank"].includes(column.kind);
    }));
    return content;
  }

  function reader({ codes, levels, values, form, rest, scale, step_us, start }, rows) {
    if (codes) return (row) => levels[codes[row]];
    if (form) {
      // Texts that are alike in some places: `form` has these, and `rest` the characters of the others, by place.
      const texts = Array.from({ length: rows }, (_, row) => {
        let at = row - rows;
        return form.map((fixed) => fixed ?? rest[at += rows]).join("");
      });
      return (row) => texts[row];
    }
    const whole = (number) => (scale ? number / scale : step_us ? (start + number) * step_us : number);
    return (row) => (values[row] === null || typeof values[row] !== "number" ? values[row] : whole(values[row]));
  }

  const column = (name) => users.columns.find((one) => one.name === name);

  function members(segment, kind) {
    const of = column(kind === "named" ? "rule_segments" : "segment_id");
    const rows = [];
    for (let row = 0; row < users.rows; row++) {
      const value = of.at(row);
      if (kind === "named" ? value?.includes(segment) : value === segment) rows.push(row);
    }
    return rows;
  }

  // How a value is read by people, and how a file has it: empty for null, "" for an empty text.
  // Swedish is written as ISO 8601: 2024-06-28 21:00.
  const timeZone = document.documentElement.dataset.timeZone;
  const clock = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "short", timeZone });
  const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
  const ranks = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const shares = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

  function written(of, value) {
    if (value === null) return "–";
    if (of.kind === "time") return clock.format(value / 1000);
    if (of.kind === "list") return value.join(", ");
    if (of.kind === "share") return `${shares.format(100 * value)}\u00a0%`;
    if (of.kind === "rank") return ranks.format(value);
    return of.isNumber ? numbers.format(value) : String(value);
  }

  function instant(micros) {
    const seconds = Math.floor(micros / 1e6);
    const text = new Date(seconds * 1000).toISOString().slice(0, 19);
    const rest = micros - seconds * 1e6;
    return rest ? `${text}.${String(rest).padStart(6, "0")}Z` : `${text}Z`;
  }

  function field(of, value) {
    if (value === null) return "";
    if (of.kind === "time") return instant(value);
    if (of.isNumber) return String(value);
    if (of.kind === "boolean") return value ? "True" : "False";
    // As publish/formulas.py: no spreadsheet program runs what is in a text.
    const text = (of.kind === "list" ? value.join(users.separator) : value)
      .replace(/([,;|"\t\r\n])(['\x00]*[=+\-@＝＋－＠])/g, "$1'$2")
      .replace(/^(['\x00]*[=+\-@＝＋－＠\t\r\n])/, "'$1");
    return text === "" || /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv(rows) {
    const parts = [`${users.columns.map((of) => field({ kind: "text" }, of.name)).join(",")}\n`];
    for (let from = 0; from < rows.length; from += 5000) {
      const lines = rows.slice(from, from + 5000).map((row) => users.columns.map((of) => field(of, of.at(row))).join(","));
      parts.push(`${lines.join("\n")}\n`);
    }
    return new Blob(parts, { type: "text/csv;charset=utf-8" });
  }

  // Nulls come last, whichever way a column is sorted.
  function sorted(rows, of, isDown) {
    const keys = new Map(rows.map((row) => [row, of.kind === "list" ? of.at(row)?.join(", ") || null : of.at(row)]));
    const sign = isDown ? -1 : 1;
    return [...rows].sort((one, other) => {
      const [a, b] = [keys.get(one), keys.get(other)];
      if (a === b) return one - other;
      if (a === null) return 1;
      if (b === null) return -1;
      return a < b ? -sign : sign;
    });
  }

  const LONG = 40;
  function cell(of, value, tag) {
    const found = document.createElement(tag);
    const text = written(of, value);
    if (of.isNumber) found.className = "n";
    if (of.kind === "time") found.className = "time";
    if (of.kind === "list") found.className = "many";
    if (of.kind !== "text" || text.length <= LONG) {
      found.textContent = text;
      return found;
    }
    const [details, summary] = ["details", "summary"].map((name) => document.createElement(name));
    details.className = "id";
    summary.textContent = `${[...text.slice(0, 2 * LONG)].slice(0, LONG).join("")}…`;
    details.append(summary, text);
    found.append(details);
    return found;
  }

  async function fill(list) {
    if (list.dataset.filled) return;
    list.dataset.filled = "yes";
    const { segment, kind, name } = list.dataset;
    const part = document.getElementById("list").content.cloneNode(true);
    const [search, size, download, status, rounded] =
      ["input", "select", ".download", "[role=status]", ".rounded"].map((what) => part.querySelector(what));
    const [first, previous, next, last] = part.querySelectorAll(".pager button");
    const place = part.querySelector(".pager span");
    const [caption, head, body] = ["caption", "thead tr", "tbody"].map((what) => part.querySelector(what));
    caption.textContent = `Users of ${name}`;
    rounded.hidden = !("rounded" in document.getElementById("users").dataset);
    status.textContent = "Reading the users …";
    list.append(part);
    try {
      users = await (read.once ??= read());
    } catch (error) {
      status.textContent = "This browser cannot read the list; users.parquet beside this file has the same rows.";
      return;
    }

    const all = members(segment, kind);
    const isSame = (of) => kind === "discovered" && /^segment_(id|name)$/.test(of.name);
    const seen = users.columns.filter((of) => !isSame(of) && (of.name === users.columns[0].name || all.some((row) => of.at(row) !== null)));
    let rows = all, found = all, page = 0, by = null, isDown = false;
    const id = users.columns[0];

    function draw() {
      const step = Number(size.value);
      const pages = Math.max(1, Math.ceil(found.length / step));
      page = Math.min(Math.max(page, 0), pages - 1);
      const shown = found.slice(page * step, (page + 1) * step);
      body.replaceChildren(...shown.map((row) => {
        const line = document.createElement("tr");
        line.append(...seen.map((of, at) => {
          const made = cell(of, of.at(row), at ? "td" : "th");
          if (!at) made.scope = "row";
          return made;
        }));
        return line;
      }));
      const count = (number) => numbers.format(number);
      const range = shown.length ? `, ${count(page * step + 1)} to ${count(page * step + shown.length)} shown` : "";
      const of = found.length === all.length ? "" : ` of ${count(all.length)}`;
      const order = by ? `, sorted by ${by.title}${isDown ? ", highest first" : ""}` : "";
      reach(list);
      status.textContent = `${count(found.length)}${of} users${range}${order}.`;
      place.textContent = `Page ${count(page + 1)} of ${count(pages)}`;
      first.disabled = previous.disabled = page === 0;
      next.disabled = last.disabled = page === pages - 1;
    }

    function look() {
      // A field for a line drops line breaks, and so does what is pasted there.
      const wanted = search.value.trim().toLowerCase();
      const has = (text) => text.toLowerCase().includes(wanted) || text.replace(/[\r\n]/g, "").toLowerCase().includes(wanted);
      found = wanted ? rows.filter((row) => has(String(id.at(row)))) : rows;
      page = 0;
      draw();
    }

    for (const of of seen) {
      const [above, button] = ["th", "button"].map((what) => document.createElement(what));
      above.scope = "col";
      if (of.isNumber) above.className = "n";
      button.type = "button";
      button.textContent = of.title;
      button.addEventListener("click", () => {
        isDown = by === of ? !isDown : false;
        by = of;
        for (const other of head.children) other.removeAttribute("aria-sort");
        above.setAttribute("aria-sort", isDown ? "descending" : "ascending");
        rows = sorted(all, of, isDown);
        look();
      });
      above.append(button);
      head.append(above);
    }
    let waiting;
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(look, 150); });
    size.addEventListener("change", () => { page = 0; draw(); });
    const turns = [[first, () => 0], [previous, () => page - 1], [next, () => page + 1], [last, () => Infinity]];
    for (const [button, to] of turns) button.addEventListener("click", () => { page = to(); draw(); });
    download.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(csv(rows));
      link.download = `${segment.replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 60)}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      status.textContent = `${numbers.format(rows.length)} users in ${link.download}.`;
    });
    draw();
  }

  addEventListener("resize", () => reach(document.querySelector(".shown")));
  addEventListener("toggle", (event) => reach(event.target), true);
  addEventListener("hashchange", () => show(false));
  addEventListener("DOMContentLoaded", () => show(true));
})();
