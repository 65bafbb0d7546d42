"use strict";
(() => {
  const media = JSON.parse(document.getElementById("kdctool-media").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const said = document.getElementById("said");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Pictures get their data when they come into view of the page, not before: hundreds stand behind the pager.
  function fill(root) {
    for (const image of all("img[data-media]:not([src])", root)) image.src = media[image.dataset.media];
  }

  // One element per sound, made when it is first asked for.
  const sounds = new Map();
  let playing = null;
  function sound(button) {
    const id = button.dataset.sound;
    if (!sounds.has(id)) {
      const audio = document.createElement("audio");
      audio.preload = "auto";
      audio.dataset.sound = id;
      audio.dataset.seconds = button.dataset.seconds;
      audio.src = media[id];
      audio.addEventListener("ended", stop);
      document.body.append(audio);
      sounds.set(id, audio);
    }
    return sounds.get(id);
  }
  function stop() {
    if (!playing) return;
    playing.audio.pause();
    playing.audio.currentTime = 0;
    playing.button.setAttribute("aria-pressed", "false");
    const head = playing.button.parentElement.querySelector(".playhead");
    if (head) {
      head.parentElement.classList.remove("playing");
      head.style.left = "0";
    }
    playing = null;
  }
  function follow() {
    if (!playing) return;
    const head = playing.button.parentElement.querySelector(".playhead");
    if (head) head.style.left = `${(100 * playing.audio.currentTime) / (playing.audio.duration || 1)}%`;
    if (still.matches) setTimeout(follow, 500);
    else requestAnimationFrame(follow);
  }
  function toggle(button) {
    const same = playing && playing.button === button;
    stop();
    if (same) return;
    const audio = sound(button);
    playing = { audio, button };
    button.setAttribute("aria-pressed", "true");
    if (button.parentElement.querySelector(".playhead")) button.parentElement.classList.add("playing");
    audio.play().then(follow, () => {
      said.textContent = "This browser cannot play the sound.";
      stop();
    });
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".play");
    if (button) toggle(button);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });

  // The gallery: direction, filter, order and page, all in the address.
  const PAGE = 6;
  const compare = {
    stored: (a, b) => a.place - b.place,
    best: (a, b) => a.rank - b.rank || a.place - b.place,
    worst: (a, b) => b.rank - a.rank || a.place - b.place,
  };
  function gallery(root) {
    const name = root.dataset.gallery;
    const ways = all(".way", root);
    const tabs = all(".tabs [data-way]", root);
    const filter = root.querySelector("[data-filter]");
    const order = root.querySelector("[data-order]");
    const where = root.querySelector("[data-where]");
    const steps = all("[data-step]", root);
    const queries = new Map(
      ways.map((way) => [
        way.dataset.way,
        all(".query", way).map((item, place) => ({ item, place, rank: Number(item.dataset.rank) })),
      ]),
    );
    const view = { way: ways[0].dataset.way, filter: "all", order: "stored", page: 1 };
    function draw(keep = true) {
      stop();
      for (const way of ways) way.hidden = way.dataset.way !== view.way;
      for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.dataset.way === view.way));
      filter.value = view.filter;
      order.value = view.order;
      const mine = queries.get(view.way);
      const found = mine.filter((query) => view.filter === "all" || query.item.dataset.found === view.filter);
      found.sort(compare[view.order]);
      const pages = Math.max(1, Math.ceil(found.length / PAGE));
      view.page = Math.min(Math.max(1, view.page), pages);
      const shown = new Set(found.slice((view.page - 1) * PAGE, view.page * PAGE));
      for (const query of mine) query.item.hidden = !shown.has(query);
      for (const query of found) query.item.parentElement.append(query.item);
      for (const query of shown) fill(query.item);
      const first = (view.page - 1) * PAGE + 1;
      where.textContent = found.length
        ? `${first} to ${first + shown.size - 1} of ${found.length}`
        : "none of these";
      steps[0].disabled = view.page <= 1;
      steps[1].disabled = view.page >= pages;
      if (keep) {
        const text = `#gallery=${name},${view.way},${view.filter},${view.order},${view.page}`;
        history.replaceState(null, "", text);
      }
    }
    function change(values) {
      Object.assign(view, { page: 1 }, values);
      draw();
    }
    for (const tab of tabs) tab.addEventListener("click", () => change({ way: tab.dataset.way }));
    filter.addEventListener("change", () => change({ filter: filter.value }));
    order.addEventListener("change", () => change({ order: order.value }));
    for (const step of steps) {
      step.addEventListener("click", () => change({ page: view.page + Number(step.dataset.step) }));
    }
    root.addEventListener("keydown", (event) => {
      if (event.target.closest("select, .scroll") || event.altKey || event.ctrlKey || event.metaKey) return;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) {
        change({ page: view.page + by });
        event.preventDefault();
      }
    });
    function restore() {
      const match = /^#gallery=([^,]+),([^,]+),([^,]+),([^,]+),(\d+)$/.exec(location.hash);
      if (!match || match[1] !== name || !queries.has(match[2])) return false;
      if (!["all", "first", "five", "later"].includes(match[3]) || !(match[4] in compare)) return false;
      Object.assign(view, { way: match[2], filter: match[3], order: match[4], page: Number(match[5]) });
      return true;
    }
    const restored = restore();
    draw(false);
    if (restored) root.scrollIntoView();
    addEventListener("hashchange", () => restore() && draw(false));
  }
  all(".gallery").forEach(gallery);

  for (const root of all("[data-localized]")) {
    for (const [name, mark] of [["heat", "no-heat"], ["boxes", "no-boxes"]]) {
      const button = root.querySelector(`[data-${name}]`);
      button.addEventListener("click", () => {
        const off = root.classList.toggle(mark);
        button.setAttribute("aria-pressed", String(!off));
      });
    }
  }

  // Tables that can be sorted and filtered.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    all("th[scope=col]", table).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of all("[aria-sort]", table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent.trim();
        const number = (row) => Number.parseFloat(text(row).replaceAll(",", ""));
        rows.sort((a, b) => {
          const [x, y] = [number(a), number(b)];
          if (column > 0 && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y);
          const by = column > 0 ? x - y : text(a) < text(b) ? -1 : text(a) > text(b) ? 1 : 0;
          return down ? -by : by;
        });
        body.append(...rows);
      });
    });
  }
  for (const input of all("[data-filter-table]")) {
    const rows = [...document.getElementById(input.dataset.filterTable).tBodies[0].rows];
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
  }

  // Colours: as the system says, light, dark.
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  function colour(name) {
    document.documentElement.dataset.theme = name;
    theme.textContent = `Colours: ${name}`;
    try {
      localStorage.setItem("kdctool-theme", name);
    } catch {
      // A browser may refuse storage to files; the choice then lasts as long as the page.
    }
  }
  theme.addEventListener("click", () => {
    colour(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]);
  });
  try {
    const stored = localStorage.getItem("kdctool-theme");
    if (themes.includes(stored)) colour(stored);
  } catch {
    // As above.
  }

  // Where the reader is.
  const links = new Map(all("nav a").map((link) => [link.getAttribute("href").slice(1), link]));
  const watch = new IntersectionObserver(
    (seen) => {
      for (const entry of seen) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.classList.remove("here");
        const link = links.get(entry.target.id);
        link.classList.add("here");
        link.parentElement.parentElement.scrollTo({ left: link.offsetLeft - 40 });
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  for (const id of links.keys()) watch.observe(document.getElementById(id));

  for (const root of all(".localized, .filled, .matrix")) fill(root);
  addEventListener("beforeprint", () => fill(document));
  document.documentElement.dataset.ready = "yes";
})();
