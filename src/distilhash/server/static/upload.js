// Images that the user picks, drops anywhere on the page, or pastes.

const element = (id) => document.getElementById(id);

/** Call ``handle`` with the file of each. */
export function onImage(handle) {
  element("pick").addEventListener("click", () => element("file").click());
  element("file").addEventListener("change", () => {
    const [file] = element("file").files;
    element("file").value = "";
    if (file) handle(file);
  });
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
    element("drop").hidden = depth > 0 ? element("drop").hidden : true;
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    element("drop").hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) handle(file);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) handle(file);
  });
}
