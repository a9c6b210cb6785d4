// Images from outside: picked, dropped anywhere on the page, or pasted.

const element = (id) => document.getElementById(id);

/** Give every image that comes in to ``take``. */
export function receive(take) {
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
}
