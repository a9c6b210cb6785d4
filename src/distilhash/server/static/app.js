// The page of distilhash serve. The URL is the state: ?photo=ID&radius=BITS, or no query for all photos. An uploaded image
// has no URL of its own: it is kept in this tab, and the history refers to it by number. Every URL is relative, because a
// proxy may serve the page under any path.

import { drawHistogram, focusTile, nextTile, plural, showPlaceholders, tile, updateGrid, visibleTiles } from "./tiles.js";

const element = (id) => document.getElementById(id);
const sections = ["failure", "empty", "all", "results"].map(element);
const FIRST_HITS = 120;
const MAX_HITS = 500;

let status = null; // the answer of /api/status
let pending = new AbortController(); // of the current request
let next = -1; // id of the last photo in the grid of all photos; null after the last page
let loadingPage = false;
let results = null; // what the page of results shows: {hits, top, request}
let lastTile = ""; // URL of the tile that was followed last
let scrollTop = 0; // where the grid of all photos was left
const uploads = new Map(); // uploaded images of this tab, by number

function show(section) {
  for (const other of sections) other.hidden = other !== section;
}

function showError(error, retry) {
  if (error.name === "AbortError") return;
  element("failure-text").textContent = error.message;
  element("retry").onclick = retry;
  document.title = "Something went wrong · distilhash";
  show(element("failure"));
}

async function fetchJson(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer: is distilhash serve still running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const sentence = body?.error ?? `the service answered ${response.status}.`;
  throw new Error(sentence.charAt(0).toUpperCase() + sentence.slice(1));
}

/** For screen readers. */
function announce(text) {
  element("announcement").textContent = text;
}

// All photos

async function loadPage() {
  if (loadingPage || next === null) return;
  loadingPage = true;
  const grid = element("all-grid");
  try {
    const page = await fetchJson(`api/photos?after=${next}&limit=60`);
    if (next === -1) grid.replaceChildren();
    grid.append(...page.photos.map((photo) => tile(photo, 0)));
    next = page.next;
    updateGrid(grid);
    element("all-more").hidden = next === null;
  } finally {
    loadingPage = false;
  }
}

async function showAll() {
  document.title = "All photos · distilhash";
  if (!status.photos) {
    element("empty-command").textContent = `distilhash index FOLDER --index ${status.index}`;
    show(element("empty"));
    return;
  }
  show(element("all"));
  if (next === -1) {
    showPlaceholders(element("all-grid"));
    await loadPage();
  }
  window.scrollTo(0, scrollTop);
  const before = visibleTiles(element("all-grid")).find((link) => link.getAttribute("href") === lastTile);
  if (before) focusTile(element("all-grid"), before);
}

const pageLoader = new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) loadPage().catch((error) => announce(error.message));
  },
  { rootMargin: "800px" },
);
pageLoader.observe(element("all-more"));
element("all-more").addEventListener("click", () => loadPage().catch((error) => showError(error, render)));

// Results

/** Show the query beside the results. ``original``: URL of its file, or "". */
function showQuery(title, image, name, path, original) {
  document.title = `${title} · distilhash`;
  const picture = element("query-image");
  picture.hidden = false;
  picture.onerror = () => (picture.hidden = true);
  picture.src = image;
  element("query-name").textContent = name;
  element("query-path").textContent = path;
  element("query-open").hidden = !original;
  if (original) element("query-open").href = original;
  else element("query-open").removeAttribute("href");
}

async function showHits(request, radius, top) {
  const grid = element("hit-grid");
  element("results-title").textContent = "Searching…";
  element("results-note").textContent = "";
  element("hit-more").hidden = true;
  element("histogram").replaceChildren();
  show(element("results"));
  showPlaceholders(grid);
  window.scrollTo(0, 0);
  const answer = await request(top);
  results = { hits: answer.hits, top, request };
  if (answer.query) {
    const { name, path, image } = answer.query;
    showQuery(name, image, name, path, image);
  }
  grid.replaceChildren(...answer.hits.map((hit) => tile(hit, status.bits)));
  const slider = element("radius");
  slider.max = status.bits;
  slider.value = radius ?? status.bits;
  applyRadius();
  updateGrid(grid);
  element("results-title").focus({ preventScroll: true });
}

/** Show the hits within the slider's radius. No request: all hits are loaded already. */
function applyRadius() {
  if (!results) return;
  const radius = Number(element("radius").value);
  const unlimited = radius === status.bits;
  let count = 0;
  for (const item of element("hit-grid").children) {
    item.hidden = Number(item.dataset.distance) > radius;
    count += !item.hidden;
  }
  updateGrid(element("hit-grid"));
  const farthest = Math.max(0, ...results.hits.map((hit) => hit.distance)); // missing photos come last
  const truncated = results.hits.length >= results.top && radius >= farthest;
  element("hit-more").hidden = !truncated || results.top >= MAX_HITS;
  element("radius-output").textContent = unlimited ? "any distance" : plural(radius, "bit", "bits");
  element("radius").setAttribute("aria-valuetext", element("radius-output").textContent);
  element("radius").style.setProperty("--filled", `${(100 * radius) / status.bits}%`);
  const photos = count ? plural(count, "photo", "photos") : "No photo";
  let title = unlimited ? `${photos}, nearest first` : `${photos} within ${plural(radius, "bit", "bits")}`;
  if (unlimited && count === 0) title = "There is no other photo";
  if (truncated) title = `The ${plural(count, "nearest photo", "nearest photos")}`;
  element("results-title").textContent = title;
  element("results-note").textContent =
    count === 0 && !unlimited
      ? `The nearest photo is ${plural(results.hits[0]?.distance ?? 0, "bit", "bits")} away. Raise the maximum distance to see it.`
      : `Distance: in how many of ${status.bits} bits the codes of two photos differ.`;
  drawHistogram(element("histogram"), results.hits, radius, status.bits);
  announce(title);
}

element("radius").addEventListener("input", applyRadius);
element("radius").addEventListener("change", () => {
  const url = new URL(location.href);
  const radius = Number(element("radius").value);
  if (radius === status.bits) url.searchParams.delete("radius");
  else url.searchParams.set("radius", radius);
  history.replaceState(history.state, "", url);
});
element("group").addEventListener("change", () => {
  const radius = Number(element("radius").value);
  showHits(results.request, radius, FIRST_HITS).catch((error) => showError(error, render));
});
element("hit-more").addEventListener("click", () => {
  const radius = Number(element("radius").value);
  showHits(results.request, radius, Math.min(MAX_HITS, 2 * results.top)).catch((error) => showError(error, render));
});

// Uploads

function addUpload([file]) {
  if (!file) return;
  const number = uploads.size + 1;
  uploads.set(number, file);
  visit("?image", { image: number });
}

async function showUpload(file, radius) {
  showQuery("Your image", URL.createObjectURL(file), file.name || "Your image", "not in the index", "");
  if (file.size > status.most_upload_bytes) {
    throw new Error(`An image may have ${status.most_upload_bytes >> 20} MiB at most; this one has ${file.size >> 20} MiB.`);
  }
  const request = (top) =>
    fetchJson(`api/search?top=${top}&group=${element("group").checked}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream" },
      signal: pending.signal,
    });
  await showHits(request, radius, FIRST_HITS);
}

element("pick").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", () => {
  addUpload(element("file").files);
  element("file").value = "";
});
document.addEventListener("paste", (event) => addUpload(event.clipboardData.files));

// An image may be dropped anywhere on the page.
let depth = 0; // nested elements under the pointer
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  depth += 1;
  element("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!hasFiles(event)) return;
  depth -= 1;
  if (depth <= 0) element("drop").hidden = true;
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  element("drop").hidden = true;
  addUpload(event.dataTransfer.files);
});

// URLs

function visit(url, state = null) {
  if (!element("all").hidden) scrollTop = window.scrollY;
  history.pushState({ ...state, inside: true }, "", url);
  render();
}

async function render() {
  pending.abort();
  pending = new AbortController();
  const { signal } = pending;
  try {
    status = await fetchJson("api/status", { signal });
    const photos = plural(status.photos, "photo", "photos");
    element("about").textContent = `${photos} · ${status.bits}-bit codes of ${status.hasher}`;
    const query = new URLSearchParams(location.search);
    const radius = query.has("radius") ? Number(query.get("radius")) : null;
    const file = uploads.get(history.state?.image);
    if (query.has("photo")) {
      const id = encodeURIComponent(query.get("photo"));
      showQuery("Searching…", `api/photos/${id}/thumbnail`, "", "", "");
      const request = (top) =>
        fetchJson(`api/photos/${id}/neighbours?top=${top}&group=${element("group").checked}`, { signal });
      await showHits(request, radius, FIRST_HITS);
    } else if (query.has("image") && file) {
      await showUpload(file, radius);
    } else {
      if (location.search) history.replaceState(null, "", "./");
      await showAll();
    }
  } catch (error) {
    showError(error, render);
  }
}

function home() {
  if (location.search) visit("./");
  else render();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a.tile, a[data-home], #home");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (!link.classList.contains("tile")) {
    home();
    return;
  }
  if (!element("all").hidden) lastTile = link.getAttribute("href");
  visit(link.href);
});
window.addEventListener("popstate", render);
if ("scrollRestoration" in history) history.scrollRestoration = "manual";

// Keyboard

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  const link = document.activeElement?.closest?.(".tile");
  if (event.key === "/") {
    event.preventDefault();
    element("pick").focus();
  } else if (event.key === "Escape" && location.search) {
    home();
  } else if (event.key.startsWith("Arrow") && document.activeElement?.matches("body, h1, main")) {
    const grid = element("results").hidden ? element("all-grid") : element("hit-grid");
    const [first] = visibleTiles(grid);
    if (!first || event.key === "ArrowUp") return;
    event.preventDefault();
    focusTile(grid, first);
  } else if (link) {
    const grid = link.closest(".grid");
    const to = nextTile(grid, link, event.key);
    if (!to) return;
    event.preventDefault();
    focusTile(grid, to);
  }
});

render();
