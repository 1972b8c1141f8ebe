// Keys: g and a letter jumps to a screen, / goes to the find box, ? shows the keys.
const dialog = document.getElementById("keys");
const help = document.getElementById("help");
let waiting = 0;

if (help) {
  help.hidden = false;
  help.addEventListener("click", () => dialog.showModal());
  addEventListener("keydown", pressed);
}

function pressed(event) {
  const writes = event.target.closest("input, textarea, select, [contenteditable]");
  if (writes || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  if (Date.now() - waiting < 1500) {
    waiting = 0;
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      link.click();
    }
    return;
  }
  if (event.key === "g") waiting = Date.now();
  if (event.key === "?") dialog.showModal();
  if (event.key === "/") {
    const find = document.querySelector("input[type=search]");
    if (find) {
      event.preventDefault();
      find.focus();
    }
  }
}
