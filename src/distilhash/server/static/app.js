// The page of distilhash serve. The address says what is shown: /?photo=ID&radius=BITS, or / for all photos. An image
// that was dropped or picked has no address: it lives in the history of this tab.

import { ask, counted, grouped } from "./api.js";
import { receive } from "./upload.js";
import { beside, focusTile, settled, spread, tile, visible, waiting } from "./tiles.js";

const element = (id) => document.getElementById(id);
const sections = ["failure", "empty", "all", "results"].map(element);
const FEWEST_HITS = 120;
const MOST_HITS = 500;

let status = null; // what is served
let asked = new AbortController(); // the request whose answer is waited for
let next = -1; // the last photo of all that is shown; null where there are no more
let listing = false;
let shown = null; // the results on the page: {hits, top, request}
let chosen = ""; // the last tile that was followed, by its address
let scrolled = 0; // where the page of all photos was left
const uploads = new Map(); // the images of this tab, by number

function show(section) {
  for (const other of sections) other.hidden = other !== section;
}

function fail(error, again) {
  if (error.name === "AbortError") return;
  element("failure-text").textContent = error.message;
  element("retry").onclick = again;
  document.title = "That did not work · distilhash";
  show(element("failure"));
}

function say(text) {
  element("said").textContent = text;
}

// All photos

async function listMore() {
  if (listing || next === null) return;
  listing = true;
  const grid = element("all-grid");
  try {
    const page = await ask(`/api/photos?after=${next}&limit=60`);
    if (next === -1) grid.replaceChildren();
    grid.append(...page.photos.map((photo) => tile(photo, 0)));
    next = page.next;
    settled(grid);
    element("all-more").hidden = next === null;
  } finally {
    listing = false;
  }
}

async function showAll() {
  document.title = "All photos · distilhash";
  if (!status.photos) {
    element("empty-command").textContent = `distilhash index FOLDER --hasher DIR --index ${status.index}`;
    show(element("empty"));
    return;
  }
  show(element("all"));
  if (next === -1) {
    waiting(element("all-grid"));
    await listMore();
  }
  window.scrollTo(0, scrolled);
  const before = visible(element("all-grid")).find((link) => link.getAttribute("href") === chosen);
  if (before) focusTile(element("all-grid"), before);
}

const endless = new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) listMore().catch((error) => say(error.message));
  },
  { rootMargin: "800px" },
);
endless.observe(element("all-more"));
element("all-more").addEventListener("click", () => listMore().catch((error) => fail(error, render)));

// Results

function begin(title, image, name, path, full) {
  document.title = `${title} · distilhash`;
  const picture = element("query-image");
  picture.hidden = false;
  picture.onerror = () => (picture.hidden = true);
  picture.src = image;
  element("query-name").textContent = name;
  element("query-path").textContent = path;
  element("query-open").hidden = !full;
  if (full) element("query-open").href = full;
  else element("query-open").removeAttribute("href");
}

async function showHits(request, radius, top) {
  const grid = element("hit-grid");
  element("results-title").textContent = "Looking";
  element("results-note").textContent = "";
  element("hit-more").hidden = true;
  element("spread").replaceChildren();
  show(element("results"));
  waiting(grid);
  window.scrollTo(0, 0);
  const answer = await request(top);
  shown = { hits: answer.hits, top, request };
  if (answer.query) {
    const { name, path, image } = answer.query;
    begin(name, image, name, path, image);
  }
  grid.replaceChildren(...answer.hits.map((hit) => tile(hit, status.bits)));
  const slider = element("radius");
  slider.max = status.bits;
  slider.value = radius ?? status.bits;
  draw();
  settled(grid);
  element("results-title").focus({ preventScroll: true });
}

/** Show the hits within the slider's radius: they are here already, so nothing is asked. */
function draw() {
  if (!shown) return;
  const radius = Number(element("radius").value);
  const everything = radius === status.bits;
  let count = 0;
  for (const item of element("hit-grid").children) {
    item.hidden = Number(item.dataset.distance) > radius;
    count += !item.hidden;
  }
  settled(element("hit-grid"));
  const furthest = shown.hits.at(-1)?.distance ?? 0;
  const cut = shown.hits.length >= shown.top && radius >= furthest;
  element("hit-more").hidden = !cut || shown.top >= MOST_HITS;
  element("radius-output").textContent = everything ? "any distance" : counted(radius, "bit", "bits");
  element("radius").setAttribute("aria-valuetext", element("radius-output").textContent);
  element("radius").style.setProperty("--filled", `${(100 * radius) / status.bits}%`);
  const title = cut
    ? `The ${grouped(count)} nearest photos`
    : count === 0
      ? everything ? "There is no other photo" : "Nothing so near"
      : everything ? `${counted(count, "photo", "photos")}, nearest first` : `${counted(count, "photo", "photos")} so near`;
  element("results-title").textContent = title;
  element("results-note").textContent =
    count === 0 && !everything
      ? `The nearest photo is ${counted(shown.hits[0]?.distance ?? 0, "bit", "bits")} away: move the slider to the right.`
      : `A distance is the number of bits, of ${status.bits}, in which two codes differ.`;
  spread(element("spread"), shown.hits, radius, status.bits);
  say(title);
}

element("radius").addEventListener("input", draw);
element("radius").addEventListener("change", () => {
  const address = new URL(location.href);
  const radius = Number(element("radius").value);
  if (radius === status.bits) address.searchParams.delete("radius");
  else address.searchParams.set("radius", radius);
  history.replaceState(history.state, "", address);
});
element("hit-more").addEventListener("click", () => {
  const radius = Number(element("radius").value);
  showHits(shown.request, radius, Math.min(MOST_HITS, 2 * shown.top)).catch((error) => fail(error, render));
});

// Images from outside

function take(file) {
  const number = uploads.size + 1;
  uploads.set(number, file);
  visit("/?image", { image: number });
}

async function showUpload(file, radius) {
  begin("Your image", URL.createObjectURL(file), file.name || "Your image", "not in the index", "");
  if (file.size > status.most_upload_bytes) {
    throw new Error(`An image may have ${status.most_upload_bytes >> 20} MiB at most, and this one has ${file.size >> 20}.`);
  }
  const request = (top) =>
    ask(`/api/search?top=${top}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream" },
      signal: asked.signal,
    });
  await showHits(request, radius, FEWEST_HITS);
}

receive(take);

// Addresses

function visit(address, state = null) {
  if (!element("all").hidden) scrolled = window.scrollY;
  history.pushState({ ...state, inside: true }, "", address);
  render();
}

async function render() {
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  try {
    status = await ask("/api/status", { signal });
    const photos = counted(status.photos, "photo", "photos");
    element("about").textContent = `${photos} · codes of ${status.bits} bits by ${status.hasher}`;
    const wanted = new URLSearchParams(location.search);
    const radius = wanted.has("radius") ? Number(wanted.get("radius")) : null;
    const file = uploads.get(history.state?.image);
    if (wanted.has("photo")) {
      const id = encodeURIComponent(wanted.get("photo"));
      begin("Looking", `/api/photos/${id}/thumbnail`, "", "", "");
      await showHits((top) => ask(`/api/photos/${id}/neighbours?top=${top}`, { signal }), radius, FEWEST_HITS);
    } else if (wanted.has("image") && file) {
      await showUpload(file, radius);
    } else {
      if (location.search) history.replaceState(null, "", "/");
      await showAll();
    }
  } catch (error) {
    fail(error, render);
  }
}

function home() {
  if (location.search) visit("/");
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
  if (!element("all").hidden) chosen = link.getAttribute("href");
  visit(link.href);
});
window.addEventListener("popstate", render);
if ("scrollRestoration" in history) history.scrollRestoration = "manual";

// Keys

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
    const [first] = visible(grid);
    if (!first || event.key === "ArrowUp") return;
    event.preventDefault();
    focusTile(grid, first);
  } else if (link) {
    const grid = link.closest(".grid");
    const to = beside(grid, link, event.key);
    if (!to) return;
    event.preventDefault();
    focusTile(grid, to);
  }
});

render();
