// The page of distilhash serve. The address says what is shown: /?photo=ID&radius=BITS, or / for all photos. An image
// that was dropped or picked has no address: it lives in the history of this tab.

const element = (id) => document.getElementById(id);
const sections = ["failure", "empty", "all", "results"].map(element);
const numbers = new Intl.NumberFormat("en");
const FEWEST_HITS = 120;
const MOST_HITS = 500;

let status = null; // what is served
let asked = new AbortController(); // the request whose answer is waited for
let next = -1; // the last photo of all that is shown; null where there are no more
let listing = false;
let shown = null; // the results on the page: {title, hits, top, again}
let chosen = ""; // the last tile that was followed, by its address
let scrolled = 0; // where the page of all photos was left
const uploads = new Map(); // the images of this tab, by number

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function counted(number, one, many) {
  return `${numbers.format(number)} ${number === 1 ? one : many}`;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer: is distilhash serve still running?");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok || answer === null) {
    throw new Error(sentence(answer?.error ?? `the service answered ${response.status}.`));
  }
  return answer;
}

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

// Tiles

function tile(photo, hit) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.className = "tile";
  link.href = `/?photo=${photo.id}`;
  link.tabIndex = -1;
  const frame = document.createElement("span");
  frame.className = "frame";
  const image = document.createElement("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = "";
  image.addEventListener("load", () => image.classList.add("there"));
  image.addEventListener("error", () => frame.classList.add("gone"));
  image.src = photo.thumbnail;
  const label = document.createElement("span");
  label.className = "label";
  label.textContent = photo.name;
  frame.append(image, label);
  const words = [photo.name];
  const badge = badgeOf(photo, hit);
  if (badge) {
    frame.append(badge);
    words.push(badge.textContent);
  }
  link.append(frame);
  if (hit) {
    words.push(counted(photo.distance, "bit away", "bits away"));
    link.append(distance(photo.distance));
    item.dataset.distance = photo.distance;
  }
  link.setAttribute("aria-label", words.join(", "));
  item.append(link);
  return item;
}

function badgeOf(photo, hit) {
  let text = "";
  if (hit && photo.near_duplicate) text = "near-duplicate";
  else if (hit && photo.like !== null) text = "like one before";
  else if (!hit && photo.near_duplicates) text = counted(photo.near_duplicates, "near-duplicate", "near-duplicates");
  if (!text) return null;
  const badge = document.createElement("span");
  badge.className = hit && photo.near_duplicate ? "badge near" : "badge";
  badge.textContent = text;
  return badge;
}

function distance(bits) {
  const line = document.createElement("span");
  line.className = "away";
  const number = document.createElement("b");
  number.textContent = bits;
  const bar = document.createElement("i");
  bar.style.setProperty("--share", `${(100 * bits) / status.bits}%`);
  line.append(number, bar);
  return line;
}

function waiting(grid) {
  grid.replaceChildren(
    ...Array.from({ length: 12 }, () => {
      const item = document.createElement("li");
      item.className = "waiting";
      const frame = document.createElement("span");
      frame.className = "frame";
      item.append(frame);
      return item;
    }),
  );
  grid.setAttribute("aria-busy", "true");
}

function settled(grid) {
  grid.removeAttribute("aria-busy");
  const links = visible(grid);
  if (!links.some((link) => link.tabIndex === 0) && links.length) links[0].tabIndex = 0;
}

function visible(grid) {
  return [...grid.querySelectorAll("li:not([hidden]) > .tile")];
}

// All photos

async function listMore() {
  if (listing || next === null) return;
  listing = true;
  const grid = element("all-grid");
  try {
    const page = await ask(`/api/photos?after=${next}&limit=60`);
    if (next === -1) grid.replaceChildren();
    grid.append(...page.photos.map((photo) => tile(photo, false)));
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
  grid.replaceChildren(...answer.hits.map((hit) => tile(hit, true)));
  const slider = element("radius");
  slider.max = status.bits;
  slider.value = radius ?? status.bits;
  draw();
  settled(grid);
  element("results-title").focus({ preventScroll: true });
}

/** Show the hits within the slider's radius: they are here already, so nothing is asked. */
function draw() {
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
    ? `The ${numbers.format(count)} nearest photos`
    : count === 0
      ? everything ? "There is no other photo" : "Nothing so near"
      : everything ? `${counted(count, "photo", "photos")}, nearest first` : `${counted(count, "photo", "photos")} so near`;
  element("results-title").textContent = title;
  element("results-note").textContent =
    count === 0 && !everything
      ? `The nearest photo is ${counted(shown.hits[0]?.distance ?? 0, "bit", "bits")} away: move the slider to the right.`
      : `A distance is the number of bits, of ${status.bits}, in which two codes differ.`;
  spread(radius);
  say(title);
}

/** How many hits there are at each distance, above the slider. */
function spread(radius) {
  const counts = new Array(status.bits + 1).fill(0);
  for (const hit of shown.hits) counts[hit.distance] += 1;
  const most = Math.max(1, ...counts);
  const drawing = element("spread");
  drawing.setAttribute("viewBox", `0 0 ${counts.length} 40`);
  drawing.replaceChildren(
    ...counts.map((count, bits) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(2, (40 * count) / most) : 0;
      for (const [name, value] of Object.entries({ x: bits + 0.1, y: 40 - height, width: 0.8, height })) {
        bar.setAttribute(name, value);
      }
      if (bits <= radius) bar.setAttribute("class", "in");
      return bar;
    }),
  );
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

element("pick").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", () => {
  const [file] = element("file").files;
  element("file").value = "";
  if (file) take(file);
});

let depth = 0; // of the elements that are dragged over
const dragged = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!dragged(event)) return;
  depth += 1;
  element("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!dragged(event)) return;
  depth -= 1;
  element("drop").hidden = depth > 0 ? element("drop").hidden : true;
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  element("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) take(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) take(file);
});

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

function focusTile(grid, link) {
  for (const other of grid.querySelectorAll(".tile[tabindex='0']")) other.tabIndex = -1;
  link.tabIndex = 0;
  link.focus();
}

function beside(grid, link, key) {
  const links = visible(grid);
  const here = links.indexOf(link);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return links[0];
  if (key === "End") return links.at(-1);
  return step === undefined ? undefined : links[here + step];
}

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
