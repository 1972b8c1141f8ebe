// Renews the list in place, so that neither the scroll position nor the focus is lost.

const EVERY_MS = 2000;

async function renew() {
  const main = document.querySelector("main");
  try {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (fresh.innerHTML === main.innerHTML) return;
    const focused = document.activeElement?.getAttribute("href");
    main.replaceChildren(...fresh.childNodes);
    if (focused) main.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  } catch {
    // The mailbox is away; the next round asks again.
  }
}

setInterval(() => document.hidden || renew(), EVERY_MS);
