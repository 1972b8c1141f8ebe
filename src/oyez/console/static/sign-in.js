// A link from the terminal carries its code behind "#", which no server and no log sees.
const code = location.hash.slice(1);
if (code) {
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("token").value = code;
  document.getElementById("sign-in").requestSubmit();
}
