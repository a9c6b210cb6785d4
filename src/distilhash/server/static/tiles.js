// The grid of photos, the histogram of distances, and numbers as text.

const numbers = new Intl.NumberFormat("en");

export function plural(number, one, many) {
  return `${numbers.format(number)} ${number === 1 ? one : many}`;
}

/** 2.1 MB, or 340 kB. */
export function bytes(size) {
  return size >= 1e5 ? `${(size / 1e6).toFixed(1)} MB` : `${Math.ceil(size / 1e3)} kB`;
}

export function create(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** The tile of a photo. ``bits``: length of a code if the photo is a hit, else 0. */
export function tile(photo, bits) {
  const image = create("img", { loading: "lazy", decoding: "async", alt: "" });
  const frame = create("span", { className: "frame" }, image, create("span", { className: "label" }, photo.name));
  image.addEventListener("load", () => image.classList.add("there"));
  image.addEventListener("error", () => frame.classList.add("gone"));
  image.src = photo.thumbnail;
  const link = create("a", { className: "tile", href: `?photo=${photo.id}`, tabIndex: -1 }, frame);
  const choose = control("choose", "checkbox", `Select ${photo.name}`, "m5 10.5 3.5 3.5L15.5 7");
  const view = control("view", "button", `View ${photo.name} larger`, "M8 4H4v4m8-4h4v4m0 4v4h-4m-4 0H4v-4");
  const item = create("li", { photo }, link, create("span", { className: "controls" }, choose, view));
  const description = [photo.name];
  const badge = badgeOf(photo, bits);
  if (badge) {
    frame.append(badge);
    description.push(badge.title);
  }
  if (bits) {
    description.push(plural(photo.distance, "bit away", "bits away"));
    link.append(distanceBar(photo.distance, bits));
    item.dataset.distance = photo.distance;
  }
  link.setAttribute("aria-label", description.join(", "));
  return item;
}

/** A button on a tile that the mouse reaches; on the tile itself keys do the same. */
function control(name, role, label, path) {
  const button = create("button", { className: name, type: "button", tabIndex: -1 });
  button.setAttribute("role", role);
  button.setAttribute("aria-label", label);
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 20 20");
  drawing.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  drawing.append(line);
  button.append(drawing);
  return button;
}

/** A group of near-duplicates, the best copy first. */
export function groupOf({ photos, count }) {
  const grid = create("ul", { className: "grid" });
  photos.forEach((photo, place) => {
    const item = tile({ ...photo, near_duplicates: 0 }, 0);
    item.photo = photo;
    const near = place ? plural(photo.distance, "bit away", "bits away") : "best copy";
    const pixels = photo.width ? `${photo.width} \u00d7 ${photo.height}` : "unreadable";
    const link = item.querySelector(".tile");
    link.querySelector(".frame").append(create("span", { className: place ? "badge" : "badge near" }, near));
    const facts = [`${pixels}, ${bytes(photo.size)}`, photo.date.slice(0, 10), photo.path];
    link.append(create("span", { className: "facts" }, ...facts.map((fact) => create("span", { title: fact }, fact))));
    link.setAttribute("aria-label", `${photo.name}, ${near}, ${facts[0]}`);
    grid.append(item);
  });
  const title = create("h2", {}, plural(count, "photo", "photos"), count > photos.length ? `, of which ${photos.length} are shown` : "");
  const others = create("button", { className: "quiet others", type: "button" }, "Select all but the best");
  return create("article", { className: "group" }, create("header", {}, title, others), grid);
}

/** Marks a near-duplicate of the query, and counts the near-duplicates of a photo, where they are left out. */
function badgeOf(photo, bits) {
  if (photo.missing) return create("span", { className: "badge", title: "missing: its file is gone" }, "missing");
  const counted = plural(photo.near_duplicates, "near-duplicate", "near-duplicates");
  const count = photo.near_duplicates ? `\u2248 ${photo.near_duplicates}` : "";
  if (bits && photo.near_duplicate) {
    const title = count ? `near-duplicate with ${counted}` : "near-duplicate";
    return create("span", { className: "badge near", title }, `near-duplicate ${count}`.trim());
  }
  return count && create("span", { className: "badge", title: counted }, count);
}

function distanceBar(distance, bits) {
  const bar = create("i", {});
  bar.style.setProperty("--share", `${(100 * distance) / bits}%`);
  return create("span", { className: "away" }, create("b", {}, distance), bar);
}

export function showPlaceholders(grid) {
  const placeholder = () => create("li", { className: "waiting" }, create("span", { className: "frame" }));
  grid.replaceChildren(...Array.from({ length: 12 }, placeholder));
  grid.setAttribute("aria-busy", "true");
}

/** End the placeholders, and let Tab reach one tile. */
export function updateGrid(grid) {
  grid.removeAttribute("aria-busy");
  const links = visibleTiles(grid);
  if (!links.some((link) => link.tabIndex === 0) && links.length) links[0].tabIndex = 0;
}

export function visibleTiles(grid) {
  return [...grid.querySelectorAll("li:not([hidden]) > .tile")];
}

export function focusTile(grid, link) {
  for (const other of grid.querySelectorAll(".tile[tabindex='0']")) other.tabIndex = -1;
  link.tabIndex = 0;
  link.focus();
}

/** The tile to which an arrow, Home or End leads. */
export function nextTile(grid, link, key) {
  const links = visibleTiles(grid);
  const here = links.indexOf(link);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return links[0];
  if (key === "End") return links.at(-1);
  return step === undefined ? undefined : links[here + step];
}

/** Draw the number of hits at each distance, above the slider. */
export function drawHistogram(drawing, hits, radius, bits) {
  const counts = new Array(bits + 1).fill(0);
  for (const hit of hits) counts[hit.distance] += 1;
  const largest = Math.max(1, ...counts);
  drawing.setAttribute("viewBox", `0 0 ${counts.length} 40`);
  drawing.replaceChildren(
    ...counts.map((count, distance) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(2, (40 * count) / largest) : 0;
      for (const [name, value] of Object.entries({ x: distance + 0.1, y: 40 - height, width: 0.8, height })) {
        bar.setAttribute(name, value);
      }
      if (distance <= radius) bar.setAttribute("class", "in");
      return bar;
    }),
  );
}
