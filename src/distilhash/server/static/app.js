// The page of distilhash serve. The URL is the state: ?photo=ID&radius=BITS, ?duplicates, #code=CODE for the search with an
// uploaded image, which itself stays in this tab, or else all photos, by ?folder=, ?since= and ?until=. Every URL is
// relative, because a proxy may serve the page under any path.

import { choose, isChosen, mark } from "./selection.js";
import { create, drawHistogram, focusTile, groupOf, nextTile, plural, showPlaceholders, tile, updateGrid, visibleTiles } from "./tiles.js";
import { view } from "./viewer.js";

const element = (id) => document.getElementById(id);
const sections = ["failure", "empty", "all", "duplicates", "results"].map(element);
const FIRST_HITS = 120;
const MAX_HITS = 500;
const FILTERS = ["folder", "since", "until"];

let status = null; // the answer of /api/status
let pending = new AbortController(); // of the current request
let results = null; // what the page of results shows: {hits, top, request}
let lastTile = ""; // URL of the tile that was followed last
let lastList = "./"; // URL of the list that was left last
const uploads = new Map(); // uploaded images of this tab, by number

// The two lists, each loaded page by page: of what (null: of nothing yet), where the next page starts, and where it was left.
const lists = {
  all: { of: null, next: 0, loading: null, scroll: 0, load: loadPhotos },
  duplicates: { of: null, next: 0, loading: null, scroll: 0, load: loadGroups },
};
const shownList = () => lists[Object.keys(lists).find((name) => !element(name).hidden)];

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

// All photos and duplicates

/** Load the next page of a list, once at a time; what comes for another filter than the present one is dropped. */
async function loadNext(list) {
  if (list.next === null) return;
  if (!list.loading) {
    const loading = list.load(list, list.of).finally(() => {
      if (list.loading === loading) list.loading = null;
    });
    list.loading = loading;
  }
  await list.loading;
}

async function loadPhotos(list, filter) {
  const grid = element("all-grid");
  const page = await fetchJson(`api/photos?${filter}${filter && "&"}start=${list.next}&limit=60`);
  if (list.of !== filter) return;
  if (list.next === 0) grid.replaceChildren();
  grid.append(...page.photos.map((photo) => tile(photo, 0)));
  list.next = page.next;
  updateGrid(grid);
  mark();
  element("all-more").hidden = page.next === null;
  element("all-title").textContent = filter ? plural(page.total, "photo", "photos") : "All photos";
  if (filter) announce(element("all-title").textContent);
}

async function loadGroups(list) {
  const page = await fetchJson(`api/duplicates?start=${list.next}&limit=20`);
  if (list.next === 0) element("groups").replaceChildren();
  const groups = page.groups.map(groupOf);
  element("groups").append(...groups);
  for (const group of groups) updateGrid(group.querySelector(".grid"));
  list.next = page.next;
  mark();
  element("groups-more").hidden = page.next === null;
  const near = plural(status.near_duplicate_bits, "bit", "bits");
  const groupsOf = `${plural(page.total, "group", "groups")} of near-duplicates`;
  element("duplicates-title").textContent = page.total ? groupsOf : "No near-duplicates";
  element("duplicates-note").textContent = page.total
    ? `${plural(page.photos, "photo", "photos")}, each within ${near} of the best copy of its group: the largest picture, then the largest file. Nothing is ever deleted here: select photos and copy their paths.`
    : `No two photos are within ${near} of each other.`;
  announce(element("duplicates-title").textContent);
}

async function showList(name, of) {
  const list = lists[name];
  lastList = location.search || "./";
  element("back").textContent = name === "all" ? "All photos" : "Duplicates";
  show(element(name));
  if (list.of !== of || list.next === 0) { // nothing is loaded, or nothing could be
    Object.assign(list, { of, next: 0, loading: null, scroll: 0 });
    if (name === "all") showPlaceholders(element("all-grid"));
    await loadNext(list);
  }
  window.scrollTo(0, list.scroll);
  const before = visibleTiles(element(name)).find((link) => link.getAttribute("href") === lastTile);
  if (before) focusTile(before.closest(".grid"), before);
}

async function showAll(query) {
  document.title = "All photos \u00b7 distilhash";
  if (!status.photos) {
    element("empty-command").textContent = `distilhash index FOLDER --index ${status.index}`;
    show(element("empty"));
    return;
  }
  const filter = new URLSearchParams(FILTERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
  if (element("month").length === 1) await showPlaces();
  for (const name of FILTERS) element(name).value = filter.get(name) ?? "";
  const until = filter.get("until") ?? "";
  element("month").value = until === lastDay(until.slice(0, 7)) ? until.slice(0, 7) : "";
  element("clear").hidden = ![...filter].length;
  await showList("all", filter.toString());
}

async function showDuplicates() {
  document.title = "Duplicates \u00b7 distilhash";
  if (lists.duplicates.of === null) element("duplicates-title").textContent = "Comparing photos\u2026";
  await showList("duplicates", "");
}

async function showPlaces() {
  const { folders, months } = await fetchJson("api/places");
  const name = new Intl.DateTimeFormat("en", { month: "long", year: "numeric" });
  const option = (value, text, photos) => create("option", { value }, `${text} (${photos})`);
  element("folder").append(...folders.map(({ path, photos }) => option(path, path, photos)));
  element("month").append(...months.map(({ month, photos }) => option(month, name.format(new Date(`${month}-15`)), photos)));
}

/** The last day of a month (2024-05). */
function lastDay(month) {
  const [year, number] = month.split("-").map(Number);
  return `${month}-${new Date(year, number, 0).getDate()}`;
}

element("month").addEventListener("change", () => {
  const month = element("month").value;
  element("until").value = month && lastDay(month);
});
element("filter").addEventListener("change", () => {
  const given = FILTERS.filter((name) => element(name).value).map((name) => [name, element(name).value]);
  visit(given.length ? `?${new URLSearchParams(given)}` : "./");
});
element("filter").addEventListener("submit", (event) => event.preventDefault());
element("filter").addEventListener("reset", () => visit("./"));

const pageLoader = new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) loadNext(shownList()).catch((error) => announce(error.message));
  },
  { rootMargin: "800px" },
);
for (const button of [element("all-more"), element("groups-more")]) {
  pageLoader.observe(button);
  button.addEventListener("click", () => loadNext(shownList()).catch((error) => showError(error, render)));
}

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
  mark();
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
  const number = Date.now(); // the history of the tab outlives these files
  uploads.set(number, file);
  visit("./#image", { image: number });
}

/** The code of an image, which then stands in the URL: so its search survives a reload, and the server keeps nothing. */
async function encodeUpload(file, signal) {
  if (file.size > status.most_upload_bytes) {
    throw new Error(`An image may have ${status.most_upload_bytes >> 20} MiB at most; this one has ${file.size >> 20} MiB.`);
  }
  const headers = { "Content-Type": "application/octet-stream" };
  const post = fetchJson("api/search?top=1", { method: "POST", body: file, headers, signal });
  const [{ code }, picture] = await Promise.all([post, smallPicture(file)]);
  try {
    if (picture) sessionStorage.setItem(code, JSON.stringify([file.name, picture]));
  } catch {
    // no room: the search goes without
  }
  history.replaceState(history.state, "", `./#code=${code}`);
  return code;
}

/** A small JPEG of an upload in base64, which this tab keeps for after a reload; "" where this browser cannot show it. */
async function smallPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return "";
  const scale = Math.min(1, 400 / Math.max(bitmap.width, bitmap.height));
  const canvas = create("canvas", { width: Math.ceil(bitmap.width * scale), height: Math.ceil(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.8).split(",")[1];
}

async function showUpload(code, file, signal, radius) {
  if (file) showQuery("Your image", URL.createObjectURL(file), file.name || "Your image", "not in the index", "");
  code ??= await encodeUpload(file, signal);
  if (!file) {
    const [name, picture] = JSON.parse(sessionStorage.getItem(code) ?? '["", ""]');
    const kept = new Blob([Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0))], { type: "image/jpeg" });
    showQuery("Your image", URL.createObjectURL(kept), name || "Your image", "not in the index", "");
  }
  const request = (top) =>
    fetchJson(`api/search?${new URLSearchParams({ code, top, group: element("group").checked })}`, { signal });
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
  const list = shownList();
  if (list) list.scroll = window.scrollY;
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
    element("about").textContent = `${photos} \u00b7 ${status.bits}-bit codes of ${status.hasher}`;
    const query = new URLSearchParams(location.search);
    const radius = query.has("radius") ? Number(query.get("radius")) : null;
    const file = uploads.get(history.state?.image);
    const code = new URLSearchParams(location.hash.slice(1)).get("code");
    const tab = query.has("duplicates") ? "tab-duplicates" : query.has("photo") || code ? "" : "tab-all";
    for (const link of document.querySelectorAll(".tabs a")) {
      if (link.id === tab) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (query.has("photo")) {
      const id = encodeURIComponent(query.get("photo"));
      showQuery("Searching\u2026", `api/photos/${id}/thumbnail`, "", "", "");
      const request = (top) =>
        fetchJson(`api/photos/${id}/neighbours?top=${top}&group=${element("group").checked}`, { signal });
      await showHits(request, radius, FIRST_HITS);
    } else if (code || (location.hash === "#image" && file)) {
      await showUpload(code, file, signal, radius);
    } else if (query.has("duplicates")) {
      await showDuplicates();
    } else {
      if (location.hash) history.replaceState(null, "", "./");
      await showAll(query);
    }
  } catch (error) {
    showError(error, render);
  }
}

document.addEventListener("click", (event) => {
  if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const item = event.target.closest?.(".grid li");
  if (event.target.closest?.(".choose")) choose([item.photo], !isChosen(item.photo));
  if (event.target.closest?.(".view")) view(item, loadMore);
  const others = event.target.closest?.(".others")?.closest(".group");
  if (others) choose([...others.querySelectorAll("li")].slice(1).map((other) => other.photo));
  const link = event.target.closest?.("a.tile, #viewer-similar, a[data-home], #home, .tabs a, .skip");
  if (!link) return;
  event.preventDefault();
  if (link.matches(".skip")) element("main").focus();
  else if (link.matches("[data-home]")) visit(lastList);
  else {
    if (link.matches(".tile, #viewer-similar") && shownList()) lastTile = link.getAttribute("href");
    visit(link.getAttribute("href"));
  }
});
const loadMore = async () => shownList() && loadNext(shownList());
window.addEventListener("popstate", render);
if ("scrollRestoration" in history) history.scrollRestoration = "manual";

// Keyboard

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || element("viewer").open) return;
  const link = document.activeElement?.closest?.(".tile");
  if (event.key === "/") {
    event.preventDefault();
    element("pick").focus();
  } else if (event.key === "Escape" && !shownList()) {
    visit(lastList);
  } else if (event.key.startsWith("Arrow") && document.activeElement?.matches("body, h1, main")) {
    const [first] = visibleTiles(sections.find((section) => !section.hidden));
    if (!first || event.key === "ArrowUp") return;
    event.preventDefault();
    focusTile(first.closest(".grid"), first);
  } else if (link) {
    const item = link.closest("li");
    const to = nextTile(link.closest(".grid"), link, event.key);
    if (event.key === " ") view(item, loadMore);
    else if (event.key === "x") choose([item.photo], !isChosen(item.photo));
    else if (to) focusTile(link.closest(".grid"), to);
    else return;
    event.preventDefault();
  }
});

render();
