// Who is logged in, in the head of each page: a link to log in, or the name and a way out.

import { getUser } from "./api.js";
import { byId, element } from "./dom.js";

const here = () => location.pathname + location.search;

/** Show it; a shop where nobody can log in shows nothing. */
export async function showAccount() {
  const found = await getUser().catch(() => null);
  if (!found) return;
  byId("account").replaceChildren(...(found.user ? loggedIn(found.user) : [logIn()]));
}

function logIn() {
  const href = `/login?to=${encodeURIComponent(here())}`;
  return element("a", { id: "log-in", href }, "Log in");
}

function loggedIn(user) {
  const name = user.claims.name ?? user.name;
  // A form, and not a request of a script: the browser goes on to where the log-out leads.
  const out = element(
    "form",
    { method: "post", action: "/logout" },
    element("button", { id: "log-out", type: "submit" }, "Log out"),
  );
  const who = element("span", { id: "who" }, name);
  const clerk = user.roles.includes("clerk");
  return [who, ...(clerk ? [element("a", { href: "clerk.html" }, "All orders")] : []), out];
}
